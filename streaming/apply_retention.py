"""Deletes what is older than RETENTION_DAYS: raw rows, dead letters, and what follows them in the marts.

    python streaming/apply_retention.py --dry-run       how many rows of which table would go
    python streaming/apply_retention.py                 deletes them, beside the running pipeline

Without RETENTION_DAYS nothing is ever deleted. Ctrl+C or SIGTERM ends it between two batches, exit code 1; what is gone
is gone, and the next sweep goes on. What stays, and why: docs/retention.md. The last line has the counts.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg2
from psycopg2.extras import wait_select
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from backfill import marts
from pipeline_settings import (
    add_logging_options,
    add_retention_option,
    apply_schema,
    connect_postgres,
    lacks_a_right,
    number,
    option,
    postgres_parameters,
    set_up_logging,
)
from sink import is_outage
from stop_signals import set_soon
from sweep import AnotherSweep, Stopped, Tell, sweep
from sweep_parts import Retention

log = logging.getLogger("sweep")

TELL_EVERY_S = 5.0
OFF = "retention is off, nothing is deleted: set RETENTION_DAYS, say to 90, to switch it on (docs/retention.md)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Deletes raw rows, dead letters and their rows in the marts that are older than RETENTION_DAYS.",
        epilog="PostgreSQL is named by libpq's variables: PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD …",
    )
    add_retention_option(parser, "days that raw rows and dead letters are kept; unset: for ever")
    text = "months that devices' hours and days are kept; counts only with RETENTION_DAYS"
    option(parser, "--aggregate-months", "AGGREGATE_RETENTION_MONTHS", 13, number(int, 1, 1200), text)
    text = "part of the time that it works, resting for the rest, so that ingestion goes on"
    option(parser, "--share", "SWEEP_SHARE", 0.2, number(float, 0.01, 1), text)
    parser.add_argument("--dry-run", action="store_true", help="count what would go, change nothing")
    add_logging_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    set_up_logging(args)
    if args.retention_days is None:
        print(OFF)
        return 0
    stop = threading.Event()

    def interrupt(*_: object) -> None:
        set_soon(stop)
        raise KeyboardInterrupt  # out of a rest; a statement is cancelled by wait_select

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    psycopg2.extensions.set_wait_callback(wait_select)
    try:
        return _sweep(args, stop)
    except (KeyboardInterrupt, Stopped, psycopg2.errors.QueryCanceled):
        log.error("stopped; what is gone is gone, and the next sweep goes on")
    except AnotherSweep:
        log.error("another sweep is at work on this database")
    except psycopg2.errors.LockNotAvailable as error:
        log.error("a run of the models, or another lock, did not end: %s. The next sweep goes on", _line(error))
    except psycopg2.errors.InsufficientPrivilege as error:
        log.error("%s", lacks_a_right(error))
    except psycopg2.Error as error:
        if not is_outage(error):
            raise
        log.error("PostgreSQL: %s. Set %s", _line(error), ", ".join(postgres_parameters()))
    return 1


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _sweep(args: argparse.Namespace, stop: threading.Event) -> int:
    began = time.monotonic()
    connect = partial(connect_postgres, "smart-access-sweep")
    with closing(connect()) as connection:
        apply_schema(connection)
    retention = Retention(args.retention_days, args.aggregate_months, datetime.now(UTC).date())
    with _progress() as tell:
        deleted = sweep(connect, retention, marts=marts(), share=args.share, dry_run=args.dry_run, stop=stop, tell=tell)
    counts = " ".join(f"{table}={count}" for table, count in deleted.items() if count) or "nothing"
    would = "would go" if args.dry_run else "gone"
    print(f"{would}: {counts} before={retention.cutoff:%Y-%m-%d} seconds={time.monotonic() - began:.1f}")
    return 0


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar for each table on a terminal, else a line every few seconds."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        tasks: dict[str, Any] = {}

        def tell(table: str, page: int, pages: int, gone: int) -> None:
            if table not in tasks:
                tasks[table] = bar.add_task(table, total=pages)
            bar.update(tasks[table], completed=page, description=f"{table} {gone:,} rows")

        yield tell


def _lines() -> Callable[[str, int, int, int], None]:
    told_at = time.monotonic()

    def tell(table: str, page: int, pages: int, gone: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            log.info("%s: %.0f %%, %d rows", table, 100 * page / pages, gone)

    return tell


if __name__ == "__main__":
    sys.exit(main())
