"""Loads what lies in the drop folder, as load_csv.py does, and moves each file to done/ or failed/ with a report.

    python streaming/drop_folder.py [--folder FOLDER]

Taken is what ends in .csv or .csv.gz and was last written a minute ago or earlier. So give a file that takes long to
arrive another name until it is there (NAME.part), or let it be written without a pause. `mapping.json` in the folder,
if there is one, names foreign columns as `--mapping` of load_csv.py does. What lies in keep/ in the folder is loaded as
`--keep` of load_csv.py does: its rows stay when RETENTION_DAYS is over.

The last line counts. Exit code 0 if each file was moved, failed ones too; 1 if one had to be left for the next run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from csv_file import FileError
from file_load import Outcome, Reading, load_file
from load_csv import ENDS_IT, explained, make_tables, mapping_from, with_progress
from pipeline_settings import ROOT, add_logging_options, connect_postgres, option, set_up_logging
from sink import Fenced
from stop_signals import set_soon

log = logging.getLogger("load")

SETTLED_AFTER_S = 60
ENDINGS = (".csv", ".csv.gz")
KEEP = "keep"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Loads the CSV files of a folder and moves each to done/ or failed/ in it, with a report.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    option(parser, "--folder", "BATCH_DROP_DIR", ".local/drop", Path, "the folder; relative to the project")
    add_logging_options(parser)
    return parser.parse_args()


def settled(folder: Path) -> list[Path]:
    """The files to take, by name; says which are left for another time."""
    taken = []
    for path in sorted(folder.iterdir()):
        if path.name == "mapping.json" or path.name.startswith(".") or not path.is_file():
            continue
        if not path.name.lower().endswith(ENDINGS):
            log.warning("%s is left: its name does not end in .csv or .csv.gz", path.name)
        elif time.time() - path.stat().st_mtime < SETTLED_AFTER_S:
            log.warning("%s is left: it was written less than %d s ago", path.name, SETTLED_AFTER_S)
        else:
            taken.append(path)
    return taken


def put_away(path: Path, folder: Path, place: str, report: dict[str, Any]) -> None:
    """Moves the file; its report is there first, so that no file lies there without one."""
    at = datetime.now(UTC)
    file = str(path.relative_to(folder))
    name = folder / place / f"{at:%Y-%m-%dT%H-%M-%S}Z-{file.replace(os.sep, '-')}"
    name.parent.mkdir(exist_ok=True)
    text = json.dumps({**report, "file": file, "moved_at": at.isoformat()}, indent=2, default=str)
    name.with_name(f"{name.name}.report.json").write_text(text + "\n", encoding="utf-8")
    os.replace(path, name)


def load_all(folder: Path, files: list[Path], load: Callable[..., Outcome]) -> int:
    counts: Counter[str] = Counter()
    code = 0
    for path in files:
        try:
            outcome = with_progress(partial(load, keep=path.parent != folder), str(path))
        except FileError as error:
            counts["failed"] += 1
            log.error("%s: %s", path.name, error)
            put_away(path, folder, "failed", {"error": str(error)})
            continue
        except (Fenced, *ENDS_IT) as error:
            log.error("%s is left for the next run: %s", path.name, explained(error))
            code = 1
            if isinstance(error, Fenced):
                continue
            break
        log.info("%s", outcome)
        put_away(path, folder, "done", vars(outcome))
        if outcome.loaded_before:
            counts["known"] += 1
            continue
        counts.update(loaded=1, rows=outcome.rows, stored=outcome.stored)
        counts.update(duplicates=outcome.duplicates, dead=outcome.dead, suppressed=outcome.suppressed)
    names = ["loaded", "known", "failed", "rows", "stored", "duplicates", "dead"]
    names += ["suppressed"] if counts["suppressed"] else []
    print("files " + " ".join(f"{name}={counts[name]}" for name in names))
    return code


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    folder: Path = ROOT / args.folder
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: set_soon(stop))
    try:
        (folder / KEEP).mkdir(parents=True, exist_ok=True)
        files = settled(folder / KEEP) + settled(folder)
        mapping = folder / "mapping.json"
        reading = Reading(mapping=mapping_from(str(mapping)) if mapping.exists() else {})
    except (OSError, argparse.ArgumentTypeError) as error:
        log.error("BATCH_DROP_DIR=%s cannot be used: %s", folder, error)
        return 1
    connect = partial(connect_postgres, "smart-access-load")
    if not make_tables(connect):
        return 1
    return load_all(folder, files, partial(load_file, reading=reading, connect=connect, stop=stop))


if __name__ == "__main__":
    sys.exit(main())
