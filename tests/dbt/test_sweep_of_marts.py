"""What a sweep deletes of the marts that dbt has built, and how it keeps out of the models' way."""

# ruff: noqa: S608 - the names are this file's own

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import pytest

import pipeline_settings
import sweep as sweeping
from backfill import DBT_LOCK
from sweep import sweep
from sweep_parts import Retention

# Days before 2026-03-01, the cutoff, of whose hours the last 13 months before 2026-03-31 stay
TODAY = Retention(days=30, months=13, today=date(2026, 3, 31))
LONG_AGO = datetime(2025, 1, 10, tzinfo=UTC)
connect = partial(pipeline_settings.connect_postgres, "smart-access-sweep")

# Seven devices of seven households open and close every six hours, in two weeks that are long ago, the week before the
# cutoff and the day after it; home-7's only in the second of these weeks. lock-1's doors fail five times in a row, and
# each device flaps and loses its battery once long ago. lock-0 is pinned.
HISTORY = """
INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes, pinned)
VALUES ('a', 't', '[]', 'f', 1, true);
INSERT INTO raw_households (household_id, timezone, updated_at)
SELECT 'home-' || n, 'Europe/Berlin', '2024-01-01' FROM generate_series(0, 6) AS n;
INSERT INTO raw_devices (device_id, household_id, updated_at)
SELECT 'lock-' || n, 'home-' || n, '2024-01-01' FROM generate_series(0, 6) AS n;

CREATE TEMP TABLE days AS
SELECT 'lock-' || n AS device_id, n, day
FROM generate_series(0, 6) AS n, (
    SELECT timestamptz '2025-01-10' + d * interval '1 day', d < 7 FROM generate_series(0, 13) AS d
    UNION ALL SELECT timestamptz '2026-02-23' + d * interval '1 day', false FROM generate_series(0, 6) AS d
) AS calendar (day, is_of_first_week)
WHERE n < 4 OR NOT is_of_first_week;

INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, file_load_id)
SELECT uuidv7(), device_id, day + hour * interval '6 hours' + seconds * interval '1 second' + n * interval '1 minute',
       kind, 'app', CASE WHEN n = 0 THEN 1 END
FROM days, generate_series(0, 3) AS hour, (VALUES ('open', 0), ('close', 700)) AS kinds (kind, seconds);
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
SELECT uuidv7(), 'lock-1', day + interval '3 hours' + fail * interval '20 seconds', 'fail', 'keypad'
FROM days, generate_series(1, 6) AS fail WHERE device_id = 'lock-1';

INSERT INTO raw_device_health (device_id, reported_at, battery_pct, signal_strength_dbm, is_online, file_load_id)
SELECT device_id, day + minute * interval '30 seconds', CASE WHEN minute < 120 THEN 90 ELSE 60 END, -60,
       minute > 60 OR minute % 4 > 1, CASE WHEN n = 0 THEN 1 END
FROM days, generate_series(1, 160) AS minute;
"""

# By mart: its schema and time, the stream that it follows, and the raw rows that it begins with
FOLLOWING = {
    "fct_access_events": ("marts", "event_at", "events", "r.event_id = t.event_id"),
    "fct_open_sessions": ("marts", "opened_at", "events", "r.event_id = t.session_id"),
    "int_failed_bursts": ("intermediate", "started_at", "events", "r.event_id = t.first_event_id"),
    "fct_offline_sessions": ("marts", "started_at", "health", "r.reported_at = t.started_at"),
    "int_flapping": ("intermediate", "started_at", "health", "r.reported_at = t.started_at"),
    "int_battery_cliffs": (
        "intermediate", "hour_starts_at", "health",
        "r.reported_at >= t.hour_starts_at AND r.reported_at < t.hour_starts_at + interval '1 hour'",
    ),
}  # fmt: skip
RAW = {"events": "raw_access_events", "health": "raw_device_health"}


@pytest.fixture
def built(dbt: Any, warehouse: Any) -> Any:
    run(warehouse, HISTORY)
    assert dbt("build", "--selector", "models").success
    return warehouse


def run(connection: Any, statement: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)


def rows(connection: Any, statement: str, *values: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return list(cursor.fetchall())


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def copy(connection: Any, schema: str, table: str) -> None:
    run(connection, f"CREATE TEMP TABLE old_{table} AS SELECT * FROM {schema}.{table}")


def difference(connection: Any, schema: str, table: str, kept: str) -> list[Any]:
    """Rows that went though they should have stayed, and the other way round; kept: of t, an old row."""
    now, then = f"SELECT * FROM {schema}.{table}", f"SELECT t.* FROM old_{table} AS t WHERE {kept}"
    return rows(connection, f"({now} EXCEPT ALL {then}) UNION ALL ({then} EXCEPT ALL {now})")


def test_what_follows_raw_rows_goes_with_them_and_the_rest_stays(built: Any) -> None:
    hours = ("fct_access_hourly", "fct_device_health_hourly")
    of_marts = (*hours, "fct_device_daily_summary", "fct_triggers_daily", "fct_fleet_hourly", "rpt_pipeline_health")
    for table, (schema, *_) in FOLLOWING.items():
        copy(built, schema, table)
    for table in of_marts:
        copy(built, "marts", table)
    would = sweep(connect, TODAY, dry_run=True)
    gone = sweep(connect, TODAY)
    assert gone == would
    for table, (schema, begins_at, stream, begins) in FOLLOWING.items():
        raw = f"SELECT FROM {RAW[stream]} AS r WHERE r.device_id = t.device_id AND {begins}"
        horizon = f"SELECT FROM device_horizons AS h WHERE h.stream = '{stream}' AND h.device_id = t.device_id"
        kept = f"NOT EXISTS ({horizon} AND t.{begins_at} < h.horizon) OR EXISTS ({raw})"
        assert difference(built, schema, table, kept) == [], table
        assert gone[table] > 0, table
        assert rows(built, f"SELECT count(*) FROM {schema}.{table} WHERE device_id = 'lock-0'") == rows(
            built, f"SELECT count(*) FROM old_{table} WHERE device_id = 'lock-0'"
        ), table
    stays = "t.hour_starts_at >= '2025-02-28' OR t.device_id = 'lock-0'"
    for table in hours:
        assert difference(built, "marts", table, stays) == [], table
    stays = "t.local_date >= '2025-02-28' OR t.device_id = 'lock-0'"
    assert difference(built, "marts", "fct_device_daily_summary", stays) == []
    stays = "t.local_date >= '2025-02-28' OR t.household_id = 'home-0'"
    assert difference(built, "marts", "fct_triggers_daily", stays) == []
    # four households took part in the first week, seven in the others, but one where somebody failed
    stays = "t.hour_starts_at >= '2025-02-28' OR t.hour_starts_at >= '2025-01-17' AND t.fails = 0"
    assert difference(built, "marts", "fct_fleet_hourly", stays) == []
    assert gone["fct_fleet_hourly"] > 0
    assert rows(built, "SELECT aggregates_cutoff FROM sweeps") == [(TODAY.aggregates_cutoff,)]

    left = rows(built, "SELECT * FROM marts.fct_fleet_hourly ORDER BY hour_starts_at")
    assert set(sweep(connect, TODAY).values()) == {0}
    assert rows(built, "SELECT * FROM marts.fct_fleet_hourly ORDER BY hour_starts_at") == left


@contextmanager
def models_run(wait: bool = False) -> Iterator[Any]:
    """Another session with the lock of dbt/one_at_a_time.py, or one that asks for it."""
    with closing(connect()) as connection:
        connection.autocommit = True
        if not wait:
            run(connection, "SELECT pg_advisory_lock(%s, %s)", *DBT_LOCK)
        yield connection


def test_the_marts_are_swept_while_no_run_of_the_models_is_at_work(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "MODELS_HOLD_S", 0.0)
    count = "SELECT count(*) FROM marts.fct_open_sessions"
    before = rows(built, count)
    waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = (%s, %s) AND NOT granted"
    at_work, go_on = threading.Event(), threading.Event()

    def tell(table: str, *_: object) -> None:
        if table == "int_failed_bursts":
            at_work.set()
            assert go_on.wait(30)

    with ThreadPoolExecutor() as threads:
        with models_run() as running:
            sweeping_now = threads.submit(sweep, connect, TODAY, tell=tell)
            wait_until(lambda: rows(built, waiting, *DBT_LOCK))
            assert rows(built, "SELECT (deleted ->> 'raw_access_events')::int > 0 FROM sweeps") == [(True,)]
            assert rows(built, count) == before
            run(running, "SELECT pg_advisory_unlock(%s, %s)", *DBT_LOCK)
        # a run that asks for the lock meanwhile has it before the next table
        assert at_work.wait(30)
        with models_run(wait=True) as asking:
            asked = threads.submit(run, asking, "SELECT pg_advisory_lock(%s, %s)", *DBT_LOCK)
            wait_until(lambda: rows(built, waiting, *DBT_LOCK))
            go_on.set()
            asked.result(30)
            wait_until(lambda: rows(built, waiting, *DBT_LOCK))
            assert rows(built, "SELECT ended_at FROM sweeps") == [(None,)]
            assert rows(built, "SELECT count(*) FROM marts.fct_access_events WHERE event_at < '2026-01-01'") > [(57,)]
        assert sweeping_now.result(30)["fct_access_events"] > 0
