"""Faults at random, for hours if need be, under load with duplicates and poison; after each round all must agree.

    scripts/soak --hours 1
    scripts/soak --hours 24 --faults 500 --seed 7
    scripts/soak --hours 2 --airflow                            the models run beside it, and are harmed, too
    scripts/soak --hours 4 --only PostgreSQL --only Kafka       the consumers live on: does their memory grow?

Starts a Kafka and a PostgreSQL of its own. A line a fault; at the end, or at Ctrl+C (the fault under way is ended and
all is counted first), how long recoveries took and what memory was held. Exit code 1: something was lost, doubled, did
not recover or ended by itself; then everything is kept, and the same seed gives the same plan. See docs/chaos.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "streaming"), str(Path(__file__).resolve().parent)]

from chaos_run import Run  # noqa: E402
from faults import AIRFLOW_FAULTS, kinds_to_be_had, plan  # noqa: E402
from rich.console import Console  # noqa: E402
from run_summary import memory, models, recovery  # noqa: E402
from stage import Stage  # noqa: E402

import kafka_log  # noqa: E402
from local_servers import ServerError, state_dir  # noqa: E402
from pipeline_settings import number  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = number(int, 1, 10**9)
    text = "end after so long, at the latest"
    parser.add_argument("--hours", type=number(float, 0), required=True, metavar="H", help=text)
    text = "end after so many faults (default: no limit)"
    parser.add_argument("--faults", type=whole, default=None, metavar="N", help=text)
    text = "of the plan (default: a new one, told at the start)"
    parser.add_argument("--seed", type=number(int, 0, 2**63), default=None, help=text)
    parser.add_argument("--rate", type=whole, default=400, metavar="N", help="records a second (default: 400)")
    text = "faults before all is counted (default: 12)"
    parser.add_argument("--per-round", type=whole, default=12, metavar="N", help=text)
    text = "only kinds of faults whose name begins so; may be given more than once (default: all)"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
    text = "also an Airflow that runs the models again and again, and its faults (default: off, as it takes a core)"
    parser.add_argument("--airflow", action="store_true", help=f"{text}; --only Airflow asks for it, too")
    args = parser.parse_args()
    args.airflow = args.airflow or any(kind.startswith(tuple(args.only)) for kind in AIRFLOW_FAULTS if args.only)
    return args


def main() -> int:
    args = parse_arguments()
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    stop = stop_on_signals()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("fault-proxy").setLevel(logging.INFO)
    kafka_log.calm()
    results = state_dir() / "soak" / f"{time.strftime('%Y%m%d-%H%M%S')}-seed-{seed}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="smart-access-soak-"))
    folder.chmod(0o755)
    run, well = None, False
    try:
        with closing(Stage(folder, args.rate, args.airflow)) as stage:
            kinds = [kind for kind in kinds_to_be_had(stage) if not args.only or kind.startswith(tuple(args.only))]
            for lack in stage.lacks:
                say(f"left out: {lack}")
            if not kinds:
                say(f"--only {' '.join(args.only)}: no kind of fault that can be had here begins so")
                return 2
            say(f"seed {seed}, {len(kinds)} kinds of faults; results in {results}")
            stage.keep = True
            stage.start()
            run = Run(stage, results, stop, say)
            well = run.go(plan(kinds, seed), args.faults or math.inf, args.hours * 3600, args.per_round)
            stage.keep = not well
    except ServerError as error:
        say(f"a server did not start: {error}")
    finally:
        if well or run is None:
            shutil.rmtree(folder)
        else:
            say(f"kept: {folder}, with the servers' data, all logs and journals")
    if run is None:
        return 1
    tables = [recovery(run.lines), *([models(run.lines)] if args.airflow else []), memory(run.lines)]
    Console(width=120).print(*tables)
    verdict = "nothing lost, nothing doubled" if well else f"NOT WELL: {len(run.problems)} problems, told above"
    say(f"{run.faults} faults, seed {seed}: {verdict}")
    return 0 if well else 1


def stop_on_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; the second one interrupts."""
    stop = threading.Event()

    def end(signum: int, frame: object) -> None:
        signal.signal(signum, signal.default_int_handler)
        stop.set()
        say("ending: the fault under way first, then all is counted …")

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    return stop


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
