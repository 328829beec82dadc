"""One sweep: what is older than the retention goes, table by table, in short transactions between which it rests.

Each batch is a range of a table's pages, so a table is read once and no index is needed; the batch's rows, the horizons
of the devices that they were of, and the audit's counts commit together. So a sweep may be stopped or killed anywhere,
and the next one goes on. Nothing here waits for a writer, or lets one wait: only the rows deleted are locked.

The marts are swept under the lock of dbt/one_at_a_time.py, which is let go now and then for a run that waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from datetime import date, timedelta
from typing import Any

import psycopg2
import tenacity
from psycopg2 import sql

from backfill import DBT_LOCK
from pipeline_settings import ROOT
from sink import is_outage
from sweep_parts import FLEET, Part, Retention, fleet_statements, mart_parts, midnight, public_parts

log = logging.getLogger("sweep")

LOCK = (0x737770, 1)  # "swp" and a number, of which only one sweep has it
MODELS_WAIT_S = 600
MODELS_HOLD_S = 20.0
OUTAGE_S = 60  # so long PostgreSQL is waited for
BATCH_S = 0.2  # what a batch is to take; its pages follow from it
FIRST_PAGES, LEAST_PAGES, MOST_PAGES = 128, 8, 2048
# A vacuum rests as autovacuum does
SESSION = (
    "-c timezone=UTC -c statement_timeout=0 -c transaction_timeout=0 -c idle_session_timeout=0 -c work_mem=64MB"
    " -c vacuum_cost_delay=2ms"
)
BEGIN = """
INSERT INTO sweeps (retention_days, cutoff, aggregates_cutoff, deleted)
SELECT %s, %s, max(aggregates_cutoff), %s FROM sweeps RETURNING sweep_id"""


class AnotherSweep(Exception):
    """Another sweep is at work on this database."""


class Stopped(Exception):
    """Asked to stop between two batches."""


Tell = Callable[[str, int, int, int], object]  # table, pages done, its pages, rows gone


def sweep(
    connect: Callable[..., Any],
    retention: Retention,
    *,
    marts: str = "marts",
    share: float = 1.0,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    tell: Tell = lambda *_: None,
) -> dict[str, int]:
    """The rows deleted, by table; with dry_run those that would be.

    connect: gives a psycopg2 connection; called with the session's options.
    share: the part of the time in which it works; it rests for the others.
    Raises AnotherSweep; Stopped; psycopg2.errors.LockNotAvailable if the models run for too long; psycopg2.Error.
    """
    at_work = _Sweep(connect, retention, marts, share, dry_run, stop or threading.Event(), tell)
    try:
        at_work.run()
    finally:
        at_work.close()
    return at_work.deleted


class _Sweep:
    def __init__(
        self, connect: Callable[..., Any], retention: Retention, marts: str, share: float, dry_run: bool,
        stop: threading.Event, tell: Tell,
    ):  # fmt: skip
        self._connect = connect
        self._retention = retention
        self._marts = marts
        self._rest = 1 / share - 1
        self._dry_run = dry_run
        self._stop = stop
        self._tell = tell
        self._connection: Any = None
        self._with_models_lock = False
        self._models_locked_at = 0.0
        self._pages = FIRST_PAGES
        self._values: dict[str, Any] = {
            "cutoff": retention.cutoff,
            "aggregates_cutoff": retention.aggregates_cutoff,
            "sweep": None,
        }
        self.deleted: dict[str, int] = {}

    def run(self) -> None:
        tables = set(self._execute("SELECT schemaname, tablename FROM pg_tables"))
        of_public = public_parts()
        of_marts = [part for part in mart_parts(self._marts, self._dry_run) if (part.schema, part.table) in tables]
        has_fleet = (self._marts, FLEET) in tables
        self.deleted = {part.table: 0 for part in of_public + of_marts}
        if not self._dry_run:
            retention = self._retention
            values = (retention.days, retention.cutoff, psycopg2.extras.Json(self.deleted))
            self._values["sweep"] = self._execute(BEGIN, values)[0][0]
        for part in of_public:
            self._sweep(part)
        self._vacuum(of_public)
        if of_marts:
            self._lock_models()
            if has_fleet:
                self._sweep_fleet()
            for part in of_marts:
                self._sweep(part)
            self._unlock_models()
            self._vacuum(of_marts)
        if not self._dry_run:
            self._execute("UPDATE sweeps SET ended_at = now() WHERE sweep_id = %(sweep)s", self._values)

    def close(self) -> None:
        if self._connection is None:
            return
        with suppress(psycopg2.Error):  # broken, or in the middle of a statement: then the server lets go of them soon
            self._connection.cursor().execute("SELECT pg_advisory_unlock_all()")
        self._connection.close()

    # --- the connection, and what must hold on it ---

    def _execute(self, statement: Any, values: Any = None) -> list[Any]:
        """Its rows. Tried again through an outage: a statement that was done is found done."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: is_outage(error) and not self._stop.is_set()),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(OUTAGE_S),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=_say_waiting,
            reraise=True,
        )
        return list(retrying(self._execute_once, statement, values))

    def _execute_once(self, statement: Any, values: Any) -> list[Any]:
        with self._opened().cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def _opened(self) -> Any:
        """A connection that holds the sweep's lock and has the horizons."""
        if self._connection is None or self._connection.closed:
            with ExitStack() as closed_on_failure:
                connection = closed_on_failure.enter_context(closing(self._connect(options=SESSION)))
                self._prepare(connection)
                closed_on_failure.pop_all()
            self._connection = connection
            if self._with_models_lock:
                self._lock_models()
        return self._connection

    def _prepare(self, connection: Any) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK)
            if not cursor.fetchone()[0]:
                raise AnotherSweep
            log.info("looking for each device's horizon before %s", self._retention.cutoff.date())
            cursor.execute((ROOT / "streaming/sql/horizons.sql").read_text(encoding="utf-8"), self._values)

    def _lock_models(self) -> None:
        [(taken,)] = self._execute("SELECT pg_try_advisory_lock(%s, %s)", DBT_LOCK)
        if not taken:
            log.info("a run of the models is at work: waiting for its end, at most %d s", MODELS_WAIT_S)
            self._execute("SET lock_timeout = %s", (f"{MODELS_WAIT_S}s",))
            self._execute("SELECT pg_advisory_lock(%s, %s)", DBT_LOCK)
            self._execute("RESET lock_timeout")
        self._with_models_lock = True
        self._models_locked_at = time.monotonic()

    def _unlock_models(self) -> None:
        self._with_models_lock = False
        self._execute("SELECT pg_advisory_unlock(%s, %s)", DBT_LOCK)

    # --- the work ---

    def _sweep(self, part: Part) -> None:
        size = sql.SQL("SELECT pg_relation_size({}::regclass) / current_setting('block_size')::integer")
        [(pages,)] = self._execute(size.format(sql.Literal(part.identifier.as_string(self._opened()))))
        statement = part.counting if self._dry_run else part.deletion
        page = 0
        while page < pages:
            self._breathe()
            began = time.monotonic()
            high = min(pages, page + self._pages)
            pages_of_batch = {"low": f"({page},0)", "high": f"({high},0)"}
            for (count,) in self._execute(statement, self._values | pages_of_batch):
                self.deleted[part.table] += count
            took = time.monotonic() - began
            if high - page == self._pages:
                factor = min(2.0, max(0.5, BATCH_S / took))
                self._pages = int(min(MOST_PAGES, max(LEAST_PAGES, self._pages * factor)))
            page = high
            self._tell(part.table, page, pages, self.deleted[part.table])
            self._stop.wait(took * self._rest)

    def _breathe(self) -> None:
        """Between two batches: ends if asked to, and lets a run of the models go first that has waited."""
        if self._stop.is_set():
            raise Stopped
        if self._with_models_lock and time.monotonic() - self._models_locked_at > MODELS_HOLD_S:
            self._unlock_models()
            self._lock_models()

    def _sweep_fleet(self) -> None:
        """Day by day, before the devices' hours go by which it is judged."""
        self.deleted[FLEET] = 0
        first_day, statement = fleet_statements(self._marts, self._dry_run)
        [(first,)] = self._execute(first_day)
        day, end = first or date.max, self._retention.aggregates_cutoff.date()
        while day < end:
            self._breathe()
            low, high = midnight(day), midnight(day + timedelta(days=1))
            [(count,)] = self._execute(statement, {**self._values, "low": low, "high": high})
            self.deleted[FLEET] += count
            day = high.date()
        if not self._dry_run:
            moved = "UPDATE sweeps SET aggregates_cutoff = greatest(aggregates_cutoff, %(aggregates_cutoff)s)"
            self._execute(f"{moved} WHERE sweep_id = %(sweep)s", self._values)

    def _vacuum(self, parts: list[Part]) -> None:
        """So that new rows take the place of those that went. Without truncation, which would lock the table."""
        for part in parts:
            if self.deleted[part.table] and not self._dry_run:
                log.info("%s: %d rows gone, making room for new ones", part.table, self.deleted[part.table])
                self._execute(sql.SQL("VACUUM (TRUNCATE false) {}").format(part.identifier))


def _say_waiting(attempt: tenacity.RetryCallState) -> None:
    if attempt.attempt_number == 1 and attempt.outcome:
        log.warning("waiting for PostgreSQL: %s", str(attempt.outcome.exception()).strip().splitlines()[0])
