"""Loads CSV files into the raw tables, through the same contract and sink as the stream. It may run beside it.

    python streaming/load_csv.py events.csv devices.csv.gz
    zcat history.gz | python streaming/load_csv.py - --table raw_access_events --mapping theirs.json
    python streaming/load_csv.py --dry-run events.csv          what would become of it; needs no PostgreSQL

A file is known by its content: loaded again, it changes nothing. One that was stopped or killed midway goes on where it
stood. A line that is not valid becomes a dead letter with file and line. A file that cannot be loaded as a whole does
not stop the others; exit code 1 then, 0 if all were loaded. docs/batch.md has the details.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import psycopg2
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from contracts import CONTRACTS
from csv_file import CsvFile, FileError
from file_load import Outcome, Reading, Stopped, check_file, load_file
from pipeline_settings import (
    add_logging_options,
    apply_schema,
    connect_postgres,
    lacks_a_right,
    number,
    option,
    postgres_parameters,
    set_up_logging,
)
from sink import Fenced
from stop_signals import set_soon

log = logging.getLogger("load")

TELL_EVERY_S = 5.0
# for this file and those after it, until somebody has seen to it
ENDS_IT = (Stopped, psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.InsufficientPrivilege)
TABLES = [contract.table for contract in CONTRACTS.values()]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Loads CSV files into the raw tables; a file that was loaded before changes nothing.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="CSV, also compressed by gzip; - is standard input")
    parser.add_argument("--table", choices=TABLES, default="", help="what the files hold (default: by their headers)")
    parser.add_argument(
        "--mapping", type=mapping_from, default={}, metavar="FILE",
        help="JSON object of foreign column names and what they are here; null leaves one out (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--delimiter", type=_delimiter, help="one character, or tab (default: , ; | or tab, by the header)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="their rows stay when RETENTION_DAYS is over, also of files loaded before"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would become of the rows, change nothing")
    option(parser, "--batch-size", "BATCH_SIZE", 20_000, number(int, 1, 1_000_000), "most rows in one transaction")
    add_logging_options(parser)
    return parser.parse_args()


def mapping_from(path: str) -> dict[str, str | None]:
    try:
        with open(path, encoding="utf-8") as file:
            mapping = json.load(file)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} is no file with a JSON object: {error}") from None
    if not isinstance(mapping, dict) or not all(isinstance(name, str | None) for name in mapping.values()):
        raise argparse.ArgumentTypeError(
            f'{path} must hold one object such as {{"their name": "event_ts", "id": null}}'
        )
    return mapping


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, or tab")
    return delimiter


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    reading = Reading(args.table, args.delimiter or "", args.mapping, args.batch_size)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: set_soon(stop))
    if args.dry_run:
        return each(args.files, partial(check_file, reading=reading, stop=stop))
    connect = partial(connect_postgres, "smart-access-load")
    if not make_tables(connect):
        return 1
    return each(args.files, partial(load_file, reading=reading, connect=connect, stop=stop, keep=args.keep))


def make_tables(connect: Callable[..., Any]) -> bool:
    try:
        with closing(connect()) as connection:
            apply_schema(connection)
    except psycopg2.OperationalError as error:
        log.error("no PostgreSQL: %s. Set %s", str(error).strip(), ", ".join(postgres_parameters()))
        return False
    return True


def each(files: list[str], load: Callable[..., Outcome]) -> int:
    """Loads one file after the other and prints what became of it; the exit code."""
    failed = 0
    for path in files:
        try:
            outcome = with_progress(load, path)
        except (FileError, Fenced) as error:
            failed += 1
            log.error("%s: %s", path, explained(error))
            continue
        except ENDS_IT as error:
            log.error("%s: %s; start the same command again to go on there", path, explained(error))
            return 1
        print(outcome, flush=True)
        if outcome.reasons:
            said = ", ".join(f"{name} {count}" for name, count in outcome.reasons.most_common())
            log.warning("%s: dead: %s; python streaming/replay_dead_letters.py show", path, said)
    if failed:
        log.error("%d of %d files were not loaded", failed, len(files))
    return 1 if failed else 0


def explained(error: BaseException) -> str:
    if isinstance(error, Fenced):
        return "another load of this file is at work; nothing of this batch was written. Start again when it has ended"
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        return lacks_a_right(error)
    if isinstance(error, psycopg2.Error):
        return f"PostgreSQL ended it: {str(error).strip().splitlines()[0]}"
    return str(error)


def with_progress(load: Callable[..., Outcome], path: str) -> Outcome:
    """The file loaded, with a bar on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        return load(path, tell=_Lines().tell)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task(path, total=None)

    def tell(file: CsvFile, outcome: Outcome) -> None:
        bar.update(task, total=file.size, completed=file.bytes_read, description=f"{path} {outcome.rows:,} rows")

    streams = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    try:
        with bar:
            for handler in streams:
                handler.setStream(sys.stderr)  # the bar's, above which lines appear
            return load(path, tell=tell)
    finally:
        for handler in streams:
            handler.setStream(sys.stderr)


class _Lines:
    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def tell(self, file: CsvFile, outcome: Outcome) -> None:
        if time.monotonic() - self._told_at >= TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.info("%.0f %%: %s", 100 * file.bytes_read / file.size, outcome)


if __name__ == "__main__":
    sys.exit(main())
