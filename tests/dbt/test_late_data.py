"""What arrives late corrects what it belongs to, day by day and session by session, as a full refresh would have it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import pipeline_settings

Dbt = Callable[..., Any]
START = datetime(2026, 3, 27, 6, tzinfo=UTC)  # two days before the clocks change in Berlin
MARTS = [
    "dim_devices",
    "dim_households",
    "fct_access_events",
    "fct_access_hourly",
    "fct_fleet_hourly",
    "fct_triggers_daily",
    "fct_open_sessions",
    "fct_offline_sessions",
    "fct_device_health_hourly",
    "fct_device_daily_summary",
    "fct_battery_forecast",
    "fct_anomalies",
    "rpt_device_current",
    "rpt_pipeline_health",
]


def run(dbt: Dbt, *arguments: str) -> None:
    result = dbt("build", "--selector", "models", *arguments)
    assert result.success, result.exception or [each.message for each in result.result]


def rows(warehouse: Any, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with warehouse.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()


def execute(warehouse: Any, statement: str, *parameters: Any) -> None:
    with warehouse.cursor() as cursor:
        cursor.execute(statement, parameters)


def insert(warehouse: Any, table: str, **values: Any) -> None:
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    execute(warehouse, f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING", *values.values())  # noqa: S608


def add_event(warehouse: Any, device_id: str, event_ts: datetime, event_type: str, **more: Any) -> None:
    values = {"event_id": str(uuid.uuid4()), "trigger_source": "app", "ingested_at": event_ts, **more}
    insert(warehouse, "raw_access_events", device_id=device_id, event_ts=event_ts, event_type=event_type, **values)


def add_report(warehouse: Any, device_id: str, reported_at: datetime, is_online: bool = True, **more: Any) -> None:
    values = {"ingested_at": reported_at, **more}
    insert(warehouse, "raw_device_health", device_id=device_id, reported_at=reported_at, is_online=is_online, **values)


def register(warehouse: Any, device_id: str, household: str, zone: str | None, at: datetime, **more: Any) -> None:
    """The newest entry of a device and of its household."""
    for table, values in (
        ("raw_devices", {"device_id": device_id, "household_id": household, **more}),
        ("raw_households", {"household_id": household, "timezone": zone}),
    ):
        values |= {"updated_at": at, "ingested_at": at}
        key, *others = values
        changes = ", ".join(f"{name} = excluded.{name}" for name in others)
        marks = ", ".join(["%s"] * len(values))
        execute(
            warehouse,
            f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {changes}",  # noqa: S608
            *values.values(),
        )


def snapshot(warehouse: Any) -> dict[str, set[tuple[Any, ...]]]:
    """Every row of every mart, as text."""
    return {mart: set(rows(warehouse, f"SELECT m::text FROM marts.{mart} AS m")) for mart in MARTS}  # noqa: S608


def assert_equals_full_refresh(dbt: Dbt, warehouse: Any) -> dict[str, set[tuple[Any, ...]]]:
    incremental = snapshot(warehouse)
    run(dbt, "--full-refresh")
    full = snapshot(warehouse)
    for mart in MARTS:
        stale, missing = incremental[mart] - full[mart], full[mart] - incremental[mart]
        assert (stale, missing) == (set(), set()), mart
    return full


@pytest.mark.slow
def test_a_second_run_without_new_rows_changes_nothing(dbt: Dbt, warehouse: Any) -> None:
    register(warehouse, "lock", "home", "Europe/Berlin", START)
    for number in range(9):
        at = START + timedelta(minutes=number)
        add_event(warehouse, "lock", at, "fail")
        add_report(warehouse, "lock", at, battery_pct=90 - 9 * number, is_online=number % 2 == 0)
    add_event(warehouse, "lock", START + timedelta(hours=1), "open")
    run(dbt)
    before = snapshot(warehouse)
    run(dbt)
    assert snapshot(warehouse) == before


def test_a_late_event_corrects_its_own_hour_and_day_and_no_other(dbt: Dbt, warehouse: Any) -> None:
    for number in range(5):
        at = START + timedelta(days=number)
        add_event(warehouse, "lock", at, "open")
        add_event(warehouse, "lock", at + timedelta(seconds=5), "close")
    run(dbt)
    versions = "SELECT hour_starts_at, xmin::text FROM marts.fct_access_hourly"
    before = dict(rows(warehouse, versions))

    late = START + timedelta(days=1, minutes=20)
    add_event(warehouse, "lock", late, "fail", ingested_at=START + timedelta(days=5))
    run(dbt)

    after = dict(rows(warehouse, versions))
    # the hour of the newest rows lies within the overlap of every run
    assert {hour for hour in after if after[hour] != before[hour]} == {
        START + timedelta(days=1),
        START + timedelta(days=4),
    }
    assert rows(warehouse, "SELECT opens, fails, fail_rate FROM marts.fct_device_daily_summary WHERE fails > 0") == [
        (1, 1, 0.5)
    ]
    assert rows(warehouse, "SELECT is_late FROM marts.fct_access_events WHERE event_type = 'fail'") == [(True,)]


@pytest.mark.slow
def test_a_late_close_ends_its_session_and_a_late_open_joins_two(dbt: Dbt, warehouse: Any) -> None:
    sessions = "SELECT opened_at, closed_at, reopens, status FROM marts.fct_open_sessions ORDER BY 1"
    minute = [START + timedelta(minutes=number) for number in range(60)]
    add_event(warehouse, "door", minute[0], "open")
    add_event(warehouse, "door", minute[10], "open")
    add_event(warehouse, "door", minute[20], "close")
    run(dbt)
    assert rows(warehouse, sessions) == [(minute[0], minute[20], 1, "closed")]

    add_event(warehouse, "door", minute[5], "close", ingested_at=minute[30])
    run(dbt)
    assert rows(warehouse, sessions) == [
        (minute[0], minute[5], 0, "closed"),
        (minute[10], minute[20], 0, "closed"),
    ]

    add_event(warehouse, "door", minute[8], "open", ingested_at=minute[40])
    run(dbt)
    assert rows(warehouse, sessions) == [
        (minute[0], minute[5], 0, "closed"),
        (minute[8], minute[20], 1, "closed"),  # that of minute 10 is part of it now
    ]
    assert_equals_full_refresh(dbt, warehouse)


@pytest.mark.slow
def test_a_late_report_splits_a_silence_and_many_end_it(dbt: Dbt, warehouse: Any) -> None:
    silences = "SELECT started_at, ended_at FROM marts.fct_offline_sessions ORDER BY 1"
    second = [START + timedelta(seconds=number) for number in range(0, 700, 10)]
    add_report(warehouse, "lock", second[0])
    add_report(warehouse, "lock", second[60])
    run(dbt)
    assert rows(warehouse, silences) == [(second[0], second[60])]

    add_report(warehouse, "lock", second[30], ingested_at=second[61])
    run(dbt)
    assert rows(warehouse, silences) == [(second[0], second[30]), (second[30], second[60])]

    for at in range(0, 60, 5):
        add_report(warehouse, "lock", second[at], ingested_at=second[62])
    run(dbt)
    assert rows(warehouse, silences) == []
    assert_equals_full_refresh(dbt, warehouse)


@pytest.mark.slow
def test_an_open_door_of_a_silent_device_is_unknown_until_its_close_arrives(dbt: Dbt, warehouse: Any) -> None:
    state = (
        "SELECT status, state, is_online FROM marts.fct_open_sessions JOIN marts.rpt_device_current USING (device_id)"
    )
    add_report(warehouse, "door", START)
    add_event(warehouse, "door", START, "open")
    add_report(warehouse, "other", START + timedelta(hours=1))
    run(dbt)
    assert rows(warehouse, state) == [("unknown_offline", "unknown", False)]

    add_event(warehouse, "door", START + timedelta(minutes=1), "close", ingested_at=START + timedelta(hours=2))
    add_report(warehouse, "door", START + timedelta(hours=2))
    run(dbt)
    assert rows(warehouse, state) == [("closed", "closed", True)]
    assert_equals_full_refresh(dbt, warehouse)


@pytest.mark.slow  # the random histories have such transactions
def test_a_transaction_that_commits_after_a_run_that_saw_younger_rows_is_not_missed(dbt: Dbt, warehouse: Any) -> None:
    slow = pipeline_settings.connect_postgres("a slow writer")
    add_event(slow, "slow lock", START, "open")
    add_event(warehouse, "lock", START, "open", ingested_at=START + timedelta(seconds=50))
    run(dbt)
    devices = "SELECT device_id FROM marts.fct_device_daily_summary ORDER BY 1"
    assert rows(warehouse, devices) == [("lock",)]

    slow.commit()
    slow.close()
    run(dbt)
    assert rows(warehouse, devices) == [("lock",), ("slow lock",)]


@pytest.mark.slow
def test_a_household_that_changes_its_time_zone_takes_its_whole_history_with_it(dbt: Dbt, warehouse: Any) -> None:
    for device_id, home in (("lock", "mine"), ("neighbour", "next door")):
        register(warehouse, device_id, home, "Europe/Berlin", START)
        for day in range(3):
            at = datetime(2026, 4, 1 + day, 23, tzinfo=UTC)  # one o'clock on the next day in Berlin
            add_event(warehouse, device_id, at, "open")
            add_event(warehouse, device_id, at + timedelta(seconds=9), "close")
    run(dbt)
    days = (
        "SELECT device_id, array_agg(extract(day FROM local_date)::int ORDER BY local_date)"
        " FROM marts.fct_device_daily_summary GROUP BY 1 ORDER BY 1"
    )
    assert rows(warehouse, days) == [("lock", [2, 3, 4]), ("neighbour", [2, 3, 4])]

    # the registry's entry is older than the newest event: it is no row's arrival that tells of the move
    register(warehouse, "lock", "mine", "America/New_York", START + timedelta(minutes=1))
    run(dbt)
    assert rows(warehouse, days) == [("lock", [1, 2, 3]), ("neighbour", [2, 3, 4])]
    assert_equals_full_refresh(dbt, warehouse)


@pytest.mark.slow
def test_an_event_keeps_the_household_and_the_version_that_its_device_had(dbt: Dbt, warehouse: Any) -> None:
    register(warehouse, "lock", "first", "UTC", START, firmware_version="1")
    add_event(warehouse, "lock", START + timedelta(hours=1), "open")
    run(dbt)
    register(warehouse, "lock", "second", "UTC", START + timedelta(hours=2), firmware_version="2")
    add_event(warehouse, "lock", START + timedelta(hours=3), "close")
    add_event(warehouse, "lock", START - timedelta(days=1), "open", ingested_at=START + timedelta(hours=3))
    run(dbt)
    assert rows(warehouse, "SELECT household_id, device_version_id FROM marts.fct_access_events ORDER BY event_at") == [
        ("first", "lock#1"),
        ("first", "lock#1"),
        ("second", "lock#2"),
    ]
    assert rows(warehouse, "SELECT household_id, devices FROM marts.dim_households ORDER BY 1") == [
        ("first", 0),
        ("second", 1),
    ]
    assert_equals_full_refresh(dbt, warehouse)


@pytest.mark.slow
def test_days_of_23_and_25_hours_and_the_doubled_hour_are_right(dbt: Dbt, warehouse: Any) -> None:
    register(warehouse, "berlin", "b", "Europe/Berlin", START - timedelta(days=9))
    register(warehouse, "new york", "n", "America/New_York", START - timedelta(days=9))
    register(warehouse, "nepal", "k", "Asia/Kathmandu", START - timedelta(days=9))
    for device_id in ("berlin", "new york", "nepal"):
        at = datetime(2026, 10, 23, tzinfo=UTC)
        while at < datetime(2026, 11, 4, tzinfo=UTC):
            add_report(warehouse, device_id, at)
            add_event(warehouse, device_id, at, "open")
            at += timedelta(minutes=30)
    run(dbt)
    days = "SELECT local_date::text, observed_minutes, opens FROM marts.fct_device_daily_summary WHERE device_id = %s"
    usual = ("1440", 48)
    for device_id, long_day in (("berlin", "2026-10-25"), ("new york", "2026-11-01"), ("nepal", None)):
        found = {day: (f"{minutes:g}", opens) for day, minutes, opens in rows(warehouse, days, device_id)}
        whole = sorted(found)[1:-1]
        assert {day: found[day] for day in whole} == {day: ("1500", 50) if day == long_day else usual for day in whole}
    doubled = "SELECT local_hour, opens FROM marts.fct_access_hourly WHERE device_id = 'berlin' AND local_date = %s"
    hours = rows(warehouse, doubled + " ORDER BY hour_starts_at", datetime(2026, 10, 25).date())
    assert hours == [(hour, 2) for hour in [0, 1, 2, 2, *range(3, 24)]]
    assert {hour.minute for (hour,) in rows(warehouse, "SELECT hour_starts_at FROM marts.fct_access_hourly")} == {0, 15}


@pytest.mark.slow
def test_the_day_on_which_clocks_go_forward_has_23_hours(dbt: Dbt, warehouse: Any) -> None:
    register(warehouse, "berlin", "b", "Europe/Berlin", START - timedelta(days=9))
    for hour in range(96):
        add_report(warehouse, "berlin", START + timedelta(hours=hour))
    run(dbt)
    assert rows(
        warehouse,
        "SELECT observed_minutes, health_reports FROM marts.fct_device_daily_summary WHERE local_date = '2026-03-29'",
    ) == [(1380, 23)]


def test_a_failed_run_changes_nothing_and_the_next_one_makes_up_for_it(dbt: Dbt, warehouse: Any) -> None:
    add_event(warehouse, "lock", START, "open")
    run(dbt)
    mart = "SELECT opens, fails FROM marts.fct_access_hourly"
    add_event(warehouse, "lock", START, "fail", ingested_at=START + timedelta(hours=1))
    execute(warehouse, "ALTER TABLE marts.fct_access_hourly ADD CONSTRAINT no_fails CHECK (fails = 0)")
    assert not dbt("build", "--selector", "models").success
    assert rows(warehouse, mart) == [(1, 0)]

    execute(warehouse, "ALTER TABLE marts.fct_access_hourly DROP CONSTRAINT no_fails")
    add_event(warehouse, "other", START, "open", ingested_at=START + timedelta(hours=9))  # far beyond the overlap
    run(dbt)
    assert sorted(rows(warehouse, mart)) == [(1, 0), (1, 1)]


@pytest.mark.slow
def test_a_model_that_runs_before_its_source_claims_no_more_than_it_has_seen(dbt: Dbt, warehouse: Any) -> None:
    add_event(warehouse, "lock", START, "open")
    run(dbt)
    add_event(warehouse, "lock", START + timedelta(hours=2), "open")
    # the data clock moves on, the events are not brought up to it
    assert dbt("run", "--select", "int_device_activity", "fct_access_hourly").success
    add_event(warehouse, "other", START + timedelta(hours=9), "open")
    run(dbt)
    assert len(rows(warehouse, "SELECT 1 FROM marts.fct_access_hourly")) == 3
    assert_equals_full_refresh(dbt, warehouse)


INCREMENTAL = {  # with the moment by which a row belongs to a day
    "fct_access_events": "event_at",
    "fct_access_hourly": "hour_starts_at",
    "fct_device_health_hourly": "hour_starts_at",
    "fct_fleet_hourly": "hour_starts_at",
    "fct_open_sessions": "opened_at",
    "fct_offline_sessions": "started_at",
    "fct_triggers_daily": "local_date",
    "fct_device_daily_summary": "local_date",
}


@pytest.mark.slow
def test_a_backfill_makes_the_rows_of_its_days_anew_and_no_others(dbt: Dbt, warehouse: Any) -> None:
    for device, zone in (("lock", "Asia/Kolkata"), ("gate", "America/Los_Angeles"), ("quiet", "Europe/Berlin")):
        register(warehouse, device, f"home of {device}", zone, START)
    for hour in range(24 * 6):
        at = START + timedelta(hours=hour)
        for device in ("lock", "gate"):
            add_event(warehouse, device, at + timedelta(minutes=7), ["open", "close", "fail"][hour % 3])
            if hour % 24 > 5:
                add_report(warehouse, device, at, battery_pct=90 - hour / 4, is_online=hour % 7 > 0)
    add_event(warehouse, "quiet", START, "open")
    run(dbt)
    before = snapshot(warehouse)
    first, last = START.date() + timedelta(days=2), START.date() + timedelta(days=3)
    for mart, at in INCREMENTAL.items():
        statement = f"DELETE FROM marts.{mart} WHERE {at} >= %s AND {at} < %s"  # noqa: S608
        execute(warehouse, statement, first, last + timedelta(days=1))
        assert snapshot(warehouse)[mart] != before[mart] if mart in MARTS else True, mart
    not_asked_for = "UPDATE marts.fct_access_hourly SET opens = 99 WHERE device_id = 'gate' AND hour_starts_at = %s"
    execute(warehouse, not_asked_for, START)
    run(dbt, "--vars", f"{{backfill_since: {first}, backfill_until: {last}}}")
    after = snapshot(warehouse)
    assert {mart for mart in MARTS if after[mart] != before[mart]} == {"fct_access_hourly"}
    assert len(after["fct_access_hourly"] - before["fct_access_hourly"]) == 1
    run(dbt, "--vars", f"{{backfill_since: {START.date()}}}")
    assert assert_equals_full_refresh(dbt, warehouse) == before
