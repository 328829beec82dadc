"""What a sweep deletes and what it leaves, on the real PostgreSQL; a day is one of 30 before 2026-03-31."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import psycopg2
import pytest
from event_stream import wait_until
from running_consumer import ROOT, Database

import sweep as sweeping
from pipeline_settings import apply_schema
from sweep import AnotherSweep, Stopped, sweep
from sweep_parts import Retention

TODAY = date(2026, 3, 31)
CUTOFF = datetime(2026, 3, 1, tzinfo=UTC)
RETENTION = Retention(days=30, months=13, today=TODAY)


@pytest.fixture
def warehouse(database: dict[str, str]) -> Database:
    return Database(database)


def connecting(warehouse: Database) -> Callable[..., Any]:
    env = warehouse.environment
    return partial(
        psycopg2.connect, host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=env["PGUSER"],
        password=env["PGPASSWORD"], application_name="smart-access-sweep",
    )  # fmt: skip


def swept(warehouse: Database, retention: Retention = RETENTION, **options: Any) -> dict[str, int]:
    """What went, by table; tables of which nothing went are left out."""
    return {table: count for table, count in sweep(connecting(warehouse), retention, **options).items() if count}


def at(days: float, seconds: float = 0) -> datetime:
    """So many days before the cutoff; negative ones lie after it."""
    return CUTOFF - timedelta(days=days) + timedelta(seconds=seconds)


def put_events(warehouse: Database, device: str, *events: tuple[str, datetime], load: int | None = None) -> None:
    """In their order also where two are of one moment."""
    warehouse.execute(
        "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, file_load_id)"
        " SELECT overlay(md5(%s) PLACING lpad(n::text, 12, '0') FROM 1)::uuid, %s, at, kind, 'app', %s"
        " FROM unnest(%s::timestamptz[], %s::text[]) WITH ORDINALITY AS events (at, kind, n)",
        device, device, load, [when for _, when in events], [kind for kind, _ in events],
    )  # fmt: skip


def put_health(warehouse: Database, device: str, first: datetime, states: str, load: int | None = None) -> None:
    """A report a minute: + is online."""
    warehouse.execute(
        "INSERT INTO raw_device_health (device_id, reported_at, is_online, file_load_id)"
        " SELECT %s, %s + (n - 1) * interval '1 minute', state = '+', %s"
        " FROM unnest(string_to_array(%s, NULL)) WITH ORDINALITY AS states (state, n)",
        device, first, load, states,
    )  # fmt: skip


def events_of(warehouse: Database, device: str) -> list[tuple[str, datetime]]:
    statement = "SELECT event_type, event_ts FROM raw_access_events WHERE device_id = %s ORDER BY event_ts, event_id"
    return warehouse.rows(statement, device)


def reports_of(warehouse: Database, device: str) -> list[datetime]:
    statement = "SELECT reported_at FROM raw_device_health WHERE device_id = %s ORDER BY 1"
    return [when for (when,) in warehouse.rows(statement, device)]


# By device: its events in order, and how many of the first of them go
EVENTS = {
    "closed long ago and opened again": ([("open", at(9)), ("close", at(8)), ("open", at(2)), ("close", at(1))], 2),
    "open across the cutoff": ([("open", at(3)), ("close", at(3, 9)), ("open", at(2)), ("close", at(-1))], 2),
    "open since before the cutoff, and dead": ([("open", at(50)), ("close", at(49)), ("open", at(40))], 2),
    "opened again and again": ([("open", at(9)), ("open", at(8)), ("fail", at(7)), ("open", at(6))], 0),
    "failed before its last session": ([("open", at(9)), ("close", at(8)), ("fail", at(7)), ("open", at(6))], 3),
    "failed since its last session": ([("open", at(9)), ("close", at(8)), ("fail", at(7)), ("fail", at(1))], 0),
    "only young": ([("open", at(-1)), ("close", at(-2))], 0),
    "at the cutoff itself": ([("open", at(1)), ("close", at(0, -1)), ("open", at(0)), ("close", at(0, 1))], 0),
    "a session that begins with the close before it": (
        [("open", at(9)), ("close", at(8)), ("open", at(7)), ("close", at(6)), ("open", at(6)), ("close", at(5))], 2,
    ),
    "a failure as its session begins": (
        [("open", at(9)), ("close", at(8)), ("open", at(7)), ("close", at(6)), ("fail", at(5)), ("open", at(5))], 2,
    ),
    "opened again the moment it was closed": (
        [("open", at(9)), ("close", at(8)), ("open", at(8)), ("open", at(7)), ("close", at(-1))], 0,
    ),
    "only failures, in two bursts": ([("fail", at(9)), ("fail", at(9, 599)), ("fail", at(2)), ("fail", at(2, 600))], 2),
    "a burst across the cutoff": ([("fail", at(9)), ("fail", at(0, -500)), ("fail", at(0, 1))], 1),
    "never opened, closed, failed since": ([("fail", at(9)), ("close", at(8)), ("fail", at(7))], 1),
}  # fmt: skip


def test_events_go_up_to_the_last_session_that_begins_before_the_cutoff(warehouse: Database) -> None:
    for device, (events, _) in EVENTS.items():
        put_events(warehouse, device, *events)
    going = {device: count for device, (_, count) in EVENTS.items() if count}
    assert swept(warehouse, dry_run=True) == {"raw_access_events": sum(going.values())}
    assert swept(warehouse) == {"raw_access_events": sum(going.values())}
    left = {device: events_of(warehouse, device) for device in EVENTS}
    assert left == {device: events[count:] for device, (events, count) in EVENTS.items()}
    noted = warehouse.rows("SELECT device_id, swept_from, horizon FROM device_horizons WHERE stream = 'events'")
    assert sorted(noted) == sorted(
        (device, events[0][1].replace(minute=0, second=0), events[count][1])
        for device, (events, count) in EVENTS.items()
        if count
    )
    assert swept(warehouse) == {}
    assert {device: events_of(warehouse, device) for device in EVENTS} == left


# By device: when its reports begin, what they say, and how many of the first of them go
HEALTH = {
    "online all the time": (at(2), "+" * 30, 29),
    "online across the cutoff": (at(0, -25 * 60), "+" * 50, 24),
    "silent since": (at(2), "+" * 30 + "-" * 10, 29),
    "online again for 20 reports": (at(2), "+" * 25 + "-" + "+" * 20, 24),
    "online again for 21 reports": (at(2), "+" * 25 + "-" + "+" * 21, 46),
    "flapping": (at(2), "+" * 22 + "+-" * 9, 22),
    "flapping for longer than is looked back": (at(2), "+-" * 101, 200),
    "online for 20 reports": (at(2), "+" * 20, 0),
    "never calm": (at(2), "+-" * 20, 0),
    "never online": (at(20), "-" * 250, 0),
    "only young": (at(-1), "+" * 50, 0),
}


def test_health_reports_go_up_to_a_calm_online_one_before_the_cutoff(warehouse: Database) -> None:
    for device, (first, states, _) in HEALTH.items():
        put_health(warehouse, device, first, states)
    before = {device: reports_of(warehouse, device) for device in HEALTH}
    going = {device: count for device, (*_, count) in HEALTH.items() if count}
    assert swept(warehouse) == {"raw_device_health": sum(going.values())}
    left = {device: reports_of(warehouse, device) for device in HEALTH}
    assert left == {device: before[device][going.get(device, 0) :] for device in HEALTH}
    horizons = dict(warehouse.rows("SELECT device_id, horizon FROM device_horizons WHERE stream = 'health'"))
    assert horizons == {device: left[device][0] for device in going}
    # what is left of a device that is silent now is not cut again, however old it grows
    later = Retention(days=30, months=13, today=TODAY + timedelta(days=90))
    younger = {"only young": 49, "online across the cutoff": 25}
    assert swept(warehouse, later) == {"raw_device_health": sum(younger.values())}
    left = {device: times[younger.get(device, 0) :] for device, times in left.items()}
    assert {device: reports_of(warehouse, device) for device in HEALTH} == left


def load_number(warehouse: Database, pinned: bool) -> int:
    warehouse.execute(
        "INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes, pinned)"
        " VALUES (md5(random()::text), 't', '[]', 'f', 1, %s)",
        pinned,
    )
    return int(warehouse.one("SELECT max(file_load_id) FROM file_loads"))


OLD = [("open", at(9)), ("close", at(8)), ("open", at(7)), ("close", at(6))]


def test_rows_of_a_pinned_file_stay_and_decide_nothing(warehouse: Database) -> None:
    pinned, other = load_number(warehouse, True), load_number(warehouse, False)
    put_events(warehouse, "lock", *OLD)
    put_events(warehouse, "gate", *OLD, load=pinned)
    put_events(warehouse, "door", *OLD, load=other)
    put_health(warehouse, "gate", at(9), "+" * 30, load=pinned)
    put_health(warehouse, "door", at(9), "+" * 30, load=other)
    assert swept(warehouse, dry_run=True) == swept(warehouse) == {"raw_access_events": 4, "raw_device_health": 29}
    assert events_of(warehouse, "gate") == OLD
    assert len(reports_of(warehouse, "gate")) == 30
    assert warehouse.rows("SELECT stream, device_id FROM device_horizons ORDER BY 1, 2") == [
        ("events", "door"), ("events", "lock"), ("health", "door"),
    ]  # fmt: skip


def test_a_row_that_comes_late_goes_with_the_next_sweep_and_moves_no_horizon(warehouse: Database) -> None:
    put_events(warehouse, "lock", *OLD)
    swept(warehouse)
    warehouse.execute(
        "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
        " VALUES (uuidv7(), 'lock', %s, 'open', 'app')",
        at(20, 100),
    )
    assert swept(warehouse) == {"raw_access_events": 1}
    assert events_of(warehouse, "lock") == OLD[2:]
    assert warehouse.rows("SELECT swept_from, horizon FROM device_horizons") == [(at(20), at(7))]


def test_dead_letters_and_minutes_have_their_time(warehouse: Database) -> None:
    warehouse.execute(
        "INSERT INTO dead_letters (topic, reason, detail, created_at) SELECT 't', 'r', 'd', at FROM unnest(%s) AS at;"
        "INSERT INTO ingest_minutes (cluster_id, consumer_group, topic, partition, minute_starts_at)"
        " SELECT 'c', 'g', 't', 0, at FROM unnest(%s) AS at",
        [at(0, -1), at(0)],
        [datetime(2025, 2, 28, tzinfo=UTC) - timedelta(seconds=1), datetime(2025, 2, 28, tzinfo=UTC)],
    )
    assert swept(warehouse, dry_run=True) == swept(warehouse) == {"dead_letters": 1, "ingest_minutes": 1}
    assert warehouse.one("SELECT created_at FROM dead_letters") == CUTOFF


def test_thirteen_months_never_end_before_the_days() -> None:
    assert Retention(30, 13, TODAY).aggregates_cutoff == datetime(2025, 2, 28, tzinfo=UTC)
    assert Retention(30, 1, TODAY).aggregates_cutoff == datetime(2026, 2, 28, tzinfo=UTC)
    assert Retention(300, 1, TODAY).aggregates_cutoff == Retention(300, 1, TODAY).cutoff


def test_each_sweep_has_its_line_also_one_that_found_nothing(warehouse: Database) -> None:
    swept(warehouse, dry_run=True)
    assert warehouse.rows("SELECT FROM sweeps") == []
    swept(warehouse)
    put_events(warehouse, "lock", *OLD)
    swept(warehouse)
    found = warehouse.rows(
        "SELECT retention_days, cutoff, aggregates_cutoff, deleted, ended_at IS NOT NULL FROM sweeps ORDER BY sweep_id"
    )
    nothing = dict.fromkeys(("raw_access_events", "raw_device_health", "dead_letters", "ingest_minutes"), 0)
    assert found == [(30, CUTOFF, None, deleted, True) for deleted in (nothing, nothing | {"raw_access_events": 2})]


@pytest.fixture
def many_old_events(warehouse: Database, monkeypatch: pytest.MonkeyPatch) -> int:
    """Four thousand old sessions of ten devices on some ninety pages, of which each batch is to take one."""
    for name in ("FIRST_PAGES", "LEAST_PAGES", "MOST_PAGES"):
        monkeypatch.setattr(sweeping, name, 1)
    warehouse.execute(
        "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
        " SELECT uuidv7(), 'lock-' || n %% 10, %s + n / 10 * interval '1 hour' + seconds * interval '1 s', kind, 'app'"
        " FROM generate_series(0, 3999) AS n, (VALUES ('open', 0), ('close', 9)) AS kinds (kind, seconds)",
        at(99),
    )
    return 7980  # but for the last session of each


def test_a_sweep_that_is_stopped_has_an_exact_audit_and_the_next_one_goes_on(
    warehouse: Database, many_old_events: int
) -> None:
    stop = threading.Event()
    told: list[int] = []

    def tell(table: str, page: int, pages: int, gone: int) -> None:
        told.append(gone)
        if len(told) == 5:
            stop.set()

    with pytest.raises(Stopped):
        swept(warehouse, stop=stop, tell=tell)
    gone = many_old_events + 20 - warehouse.one("SELECT count(*) FROM raw_access_events")
    assert warehouse.rows("SELECT (deleted ->> 'raw_access_events')::int, ended_at FROM sweeps") == [(gone, None)]
    assert 0 < gone == told[-1] < many_old_events
    assert swept(warehouse) == {"raw_access_events": many_old_events - gone}
    assert warehouse.one("SELECT count(*) FROM raw_access_events") == 20
    assert warehouse.one("SELECT count(DISTINCT horizon) FROM device_horizons WHERE horizon > swept_from") == 1


def test_a_sweep_goes_on_over_a_connection_that_was_cut(warehouse: Database, many_old_events: int) -> None:
    cut = iter([False, False, False, True])

    def tell(*_: object) -> None:
        if next(cut, False):
            warehouse.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                           " AND application_name = 'smart-access-sweep' AND datname = current_database()")  # fmt: skip

    assert swept(warehouse, tell=tell) == {"raw_access_events": many_old_events}
    assert next(cut, None) is None
    assert warehouse.rows("SELECT (deleted ->> 'raw_access_events')::int, ended_at IS NOT NULL FROM sweeps") == [
        (many_old_events, True)
    ]


def test_only_one_sweep_is_at_work(warehouse: Database) -> None:
    def tell(*_: object) -> None:
        with pytest.raises(AnotherSweep):
            swept(warehouse)

    put_events(warehouse, "lock", *OLD)
    assert swept(warehouse, tell=tell) == {"raw_access_events": 2}


INGESTION = """
    INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
    VALUES (uuidv7(), 'lock', now(), 'open', 'app');
    INSERT INTO raw_device_health (device_id, reported_at, is_online) VALUES ('lock', now(), true);
    INSERT INTO dead_letters (topic, reason, detail) VALUES ('t', 'r', 'd');
    INSERT INTO ingest_minutes (cluster_id, consumer_group, topic, partition, minute_starts_at)
    VALUES ('c', 'g', 't', 0, now())"""


def test_nobody_who_writes_waits_for_a_batch(warehouse: Database) -> None:
    """One is held within its transaction, by the line of a device's horizon, with all that it has locked."""
    put_events(warehouse, "lock", *OLD)
    warehouse.execute("INSERT INTO device_horizons VALUES ('events', 'lock', %s, %s)", at(9), at(8))
    with (
        ThreadPoolExecutor() as threads,
        closing(warehouse.connect()) as holder,
        closing(warehouse.connect()) as writer,
    ):
        holder.cursor().execute("SELECT FROM device_horizons FOR UPDATE")
        sweeping_now = threads.submit(swept, warehouse)
        waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name ~ 'sweep'"
        wait_until(lambda: warehouse.rows(waits))
        locks = "SELECT FROM pg_locks WHERE relation = 'raw_access_events'::regclass AND mode = 'RowExclusiveLock'"
        assert warehouse.rows(locks)
        with writer, writer.cursor() as cursor:
            cursor.execute("SET lock_timeout = '100ms'")
            cursor.execute(INGESTION)
        with closing(warehouse.connect()) as starting:
            starting.cursor().execute("SET lock_timeout = '100ms'")
            apply_schema(starting)
        holder.rollback()
        assert sweeping_now.result(30) == {"raw_access_events": 2}


def test_new_rows_take_the_place_of_old_ones_and_what_arrived_is_still_found_by_a_few_pages(
    warehouse: Database, many_old_events: int
) -> None:
    def size() -> int:
        return int(warehouse.one("SELECT pg_relation_size('raw_access_events')"))

    def arrive(count: int) -> None:
        warehouse.execute(
            "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
            " SELECT uuidv7(), 'lock-' || n %% 10, now(), 'fail', 'app' FROM generate_series(1, %s) AS n",
            count,
        )

    def pages_read_for(since: datetime) -> int:
        """Pages of the table that the index on the arrival time leads to."""
        with closing(warehouse.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off")
            query = "EXPLAIN (ANALYZE, FORMAT json) SELECT count(*) FROM raw_access_events WHERE ingested_at > %s"
            cursor.execute(query, (since,))
            plan = json.dumps(cursor.fetchone()[0])
        return int(re.findall(r'"Lossy Heap Blocks": (\d+)', plan)[0])

    warehouse.execute("SELECT brin_summarize_new_values('raw_access_events_ingested_at')")
    before = size()
    swept(warehouse)
    arrive(6000)
    assert size() == before
    since = warehouse.one("SELECT clock_timestamp()")
    arrive(50)
    pages = before // 8192
    assert pages > 64  # two ranges of the index, and more
    assert pages_read_for(since) <= 32 < pages_read_for(since - timedelta(hours=1))


def script(warehouse: Database, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "streaming/apply_retention.py", *arguments]
    env = {**os.environ, **warehouse.environment, **environment}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_a_retention_the_script_says_how_to_switch_it_on(warehouse: Database) -> None:
    put_events(warehouse, "lock", *OLD)
    with script(warehouse, RETENTION_DAYS="") as off, script(warehouse, "--retention-days", "0") as refused:
        said, complaints = off.communicate(timeout=60)
        assert (off.returncode, complaints) == (0, "")
        assert said.startswith("retention is off, nothing is deleted: set RETENTION_DAYS")
        assert "must be from 1 to 36500" in refused.communicate(timeout=60)[1]
        assert refused.returncode == 2
    assert events_of(warehouse, "lock") == OLD


def test_the_script_counts_and_ends_in_order_when_it_is_told_to(warehouse: Database, many_old_events: int) -> None:
    with script(warehouse, "--dry-run", RETENTION_DAYS="90") as dry:
        said, _ = dry.communicate(timeout=60)
        assert said.startswith(f"would go: raw_access_events={many_old_events} before=")
    # it rests for a hundred times as long as it works
    with script(warehouse, "--share", "0.01", RETENTION_DAYS="90") as process:
        wait_until(lambda: warehouse.rows("SELECT FROM sweeps WHERE (deleted ->> 'raw_access_events')::int > 0"))
        with script(warehouse, RETENTION_DAYS="90") as second:
            assert "another sweep is at work on this database" in second.communicate(timeout=60)[1]
            assert second.returncode == 1
        process.terminate()
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped; what is gone is gone, and the next sweep goes on" in complaints
    assert "Traceback" not in complaints


def test_tables_that_exist_already_get_what_a_sweep_needs(warehouse: Database) -> None:
    def columns() -> list[Any]:
        return warehouse.rows(
            "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"
        )

    fresh = columns()
    put_events(warehouse, "lock", *OLD)
    for table, column in (("raw_access_events", "file_load_id"), ("raw_device_health", "file_load_id"),
                          ("dead_letters", "file_load_id"), ("file_loads", "pinned")):  # fmt: skip
        warehouse.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    warehouse.execute("DROP VIEW live.sweeps; DROP TABLE device_horizons, sweeps")
    with closing(warehouse.connect()) as connection:
        apply_schema(connection)
    assert columns() == fresh
    assert swept(warehouse) == {"raw_access_events": 2}
