"""What a sweep deletes and what it leaves, on the real PostgreSQL; a day is one of 30 before 2026-03-31."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import psycopg2
import pytest
from running_consumer import Database

import sweep as sweeping
from sweep import AnotherSweep, Retention, Stopped, sweep

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


def load_number(warehouse: Database, pinned: bool = True) -> int:
    return int(
        warehouse.one(
            "WITH made AS (INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes, pinned)"
            " VALUES (md5(random()::text), 't', '[]', 'f', 1, %s) RETURNING file_load_id) SELECT * FROM made",
            pinned,
        )
    )
