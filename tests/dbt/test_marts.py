"""Every mart, run after run, against the real PostgreSQL: always what its definition says of all the raw rows.

The definitions are computed once more in Python (recomputation.py). A history that once found a fault stays, under
FOUND_FAULTS.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
import random_history
from mart_comparison import faults, mart_rows
from recomputation import KEYS, Marts, read, read_inputs

Dbt = Callable[..., Any]

QUIET, CHANGING = "the registry quiet", "the registry changing"
# Devices that moved to another zone within an hour, which then had the day of one home and the hour of the other
FOUND_FAULTS = (1024, 1025, 1026)
# Several fleets in one database, as a run costs the same for one
HISTORIES = [
    ((*FOUND_FAULTS, 4), CHANGING),
    ((0, 1, 2, 3), QUIET),
    ((8, 9, 10, 11), QUIET),
    ((12, 13, 14, 15), CHANGING),
    ((16, 17, 18, 19), QUIET),
    ((20, 5, 6, 7), CHANGING),
]

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
RULES = {"failed_burst", "unusual_hour", "flapping", "battery_cliff", "silent", "left_open"}


def run(dbt: Dbt, *arguments: str) -> None:
    result = dbt("build", "--selector", "models", *arguments)
    assert result.success, result.exception or [each.message for each in result.result if each.status == "error"]


def assert_marts_are_right(warehouse: Any) -> Marts:
    """Compares every mart with its recomputation, which is returned."""
    expected = Marts(read_inputs(warehouse))
    found = [
        fault for mart, rows in mart_rows(warehouse).items() for fault in list(faults(mart, rows, expected[mart]))[:4]
    ]
    assert not found, "\n".join(found)
    return expected


def forget_when_the_registry_was_noticed(warehouse: Any) -> None:
    """The tests' arrivals are simulated and lie in the past, but noticed_at is the present: it would have every row of
    a device that the registry knows made anew, at every run."""
    with warehouse.cursor() as cursor:
        for table in ("devices_history", "households_history"):
            cursor.execute(f"UPDATE snapshots.{table} SET noticed_at = '2000-01-01'")  # noqa: S608


def sentence(value: Any) -> str:
    return value if isinstance(value, str) else f"the histories {', '.join(map(str, value))}"


# Each history is as good as another: the gate takes those that once found a fault
MORE_HISTORIES = [pytest.param(*history, marks=pytest.mark.slow) for history in HISTORIES[1:]]


@pytest.mark.parametrize(("seeds", "registry"), [HISTORIES[0], *MORE_HISTORIES], ids=sentence)
def test_after_every_slice_of_random_histories_every_mart_is_what_its_definition_says(
    seeds: tuple[int, ...], registry: str, dbt: Dbt, warehouse: Any
) -> None:
    seen = set()
    slices = random_history.histories(seeds, is_restless=registry == CHANGING)
    for number, part in enumerate(slices, start=1):
        part.store(warehouse)
        run(dbt)
        marts = assert_marts_are_right(warehouse)
        seen |= {row["rule"] for row in marts.fct_anomalies} | {row["status"] for row in marts.fct_open_sessions}
        if registry == QUIET and number < len(slices):
            forget_when_the_registry_was_noticed(warehouse)
    incremental = mart_rows(warehouse)
    run(dbt, "--full-refresh")
    refreshed = mart_rows(warehouse)
    for mart, rows in refreshed.items():
        assert rows == incremental[mart], mart
    assert seen == {*RULES, "closed", "still_open", "unknown_offline"}


@pytest.mark.slow
def test_an_empty_database_has_empty_marts(dbt: Dbt, warehouse: Any) -> None:
    for _ in range(2):
        run(dbt)
        assert mart_rows(warehouse) == {mart: [] for mart in KEYS}


@pytest.mark.slow
def test_after_runs_that_failed_the_next_one_makes_up_for_them(dbt: Dbt, warehouse: Any) -> None:
    slices = random_history.histories([100, 101, 102], is_restless=False, slices=6)
    for part in slices[:2]:  # all that the registry tells
        part.store(warehouse)
    run(dbt)
    for part, broken in zip(
        slices[2:-1],
        [
            ["fct_access_events", "rpt_pipeline_health"],
            ["fct_access_hourly", "fct_offline_sessions"],
            ["fct_device_health_hourly", "fct_open_sessions"],
        ],
        strict=True,
    ):
        forget_when_the_registry_was_noticed(warehouse)
        part.store(warehouse)
        for mart in broken:
            execute(warehouse, f"ALTER TABLE marts.{mart} ADD CONSTRAINT nothing_new CHECK (false) NOT VALID")
        before = mart_rows(warehouse)
        result = dbt("build", "--selector", "models")
        assert {each.node.name for each in result.result if each.status == "error"} == set(broken)
        assert [mart for mart in broken if mart_rows(warehouse)[mart] != before[mart]] == []
        for mart in broken:
            execute(warehouse, f"ALTER TABLE marts.{mart} DROP CONSTRAINT nothing_new")
    slices[-1].store(warehouse)
    run(dbt)
    assert_marts_are_right(warehouse)


def test_days_of_23_and_25_hours_are_right_in_both_directions_and_on_both_hemispheres(dbt: Dbt, warehouse: Any) -> None:
    changes = {
        "Europe/Berlin": ((date(2026, 3, 29), 23), (date(2026, 10, 25), 25)),
        "America/New_York": ((date(2026, 3, 8), 23), (date(2026, 11, 1), 25)),
        "Pacific/Auckland": ((date(2026, 4, 5), 25), (date(2026, 9, 27), 23)),
    }
    for zone, days in changes.items():
        register(warehouse, zone, household_id=zone, timezone=zone)
        for day, _ in days:
            start = datetime.combine(day, time(), tzinfo=UTC) - timedelta(days=1)
            send(warehouse, zone, [start + quarter * timedelta(minutes=15) for quarter in range(3 * 24 * 4)])
    run(dbt)
    assert_marts_are_right(warehouse)
    days_of_change = {(zone, *day) for zone, days in changes.items() for day in days}
    summary = read(warehouse, "SELECT * FROM marts.fct_device_daily_summary")
    for zone, day, hours in days_of_change:
        (row,) = [row for row in summary if (row["device_id"], row["local_date"]) == (zone, day)]
        assert (row["observed_minutes"], row["opens"], row["health_reports"]) == (hours * 60, hours * 4, hours * 4)
    hourly = read(warehouse, "SELECT * FROM marts.fct_access_hourly ORDER BY hour_starts_at")
    for zone, day, hours in days_of_change:
        found = [row["local_hour"] for row in hourly if (row["device_id"], row["local_date"]) == (zone, day)]
        # clocks go from 2 to 3 and from 3 to 2, in New York from 2 to 1
        doubled = 1 if zone == "America/New_York" else 2
        assert found == sorted([*range(24), doubled] if hours == 25 else {*range(24)} - {2})
    assert {row["opens"] for row in hourly} == {4}


@pytest.mark.slow  # FOUND_FAULTS have such hours
def test_an_hour_in_which_a_device_moves_is_one_hour_with_the_later_local_time(dbt: Dbt, warehouse: Any) -> None:
    hour = datetime(2026, 5, 4, 21, tzinfo=UTC)  # 23 o'clock in Berlin, 9 o'clock of the next day in Auckland
    register(warehouse, "lock", household_id="old home", timezone="Europe/Berlin")
    run(dbt)
    register(
        warehouse, "lock", household_id="new home", timezone="Pacific/Auckland", updated_at=hour + timedelta(minutes=30)
    )
    send(warehouse, "lock", [hour + timedelta(minutes=20), hour + timedelta(minutes=40)])
    run(dbt)
    assert_marts_are_right(warehouse)
    columns = "local_hour, local_date, hour_starts_at"
    (hourly,) = read(warehouse, f"SELECT opens, {columns} FROM marts.fct_access_hourly")  # noqa: S608
    assert hourly == {"opens": 2, "local_hour": 9, "local_date": date(2026, 5, 5), "hour_starts_at": hour}
    events = read(warehouse, f"SELECT household_id, {columns} FROM marts.fct_access_events ORDER BY event_at")  # noqa: S608
    assert [tuple(row.values()) for row in events] == [
        ("old home", 23, date(2026, 5, 4), hour),
        ("new home", 9, date(2026, 5, 5), hour),
    ]


def test_a_day_on_which_a_device_without_health_reports_was_used_has_no_uptime_and_no_completeness(
    dbt: Dbt, warehouse: Any
) -> None:
    at = datetime(2026, 5, 4, 12, tzinfo=UTC)
    send(warehouse, "lock", [at], reports=False)
    run(dbt)
    (day,) = read(warehouse, "SELECT observed_minutes, uptime, completeness FROM marts.fct_device_daily_summary")
    assert day == {"observed_minutes": 0, "uptime": None, "completeness": None}


def test_events_of_one_time_are_in_the_order_of_their_ids(dbt: Dbt, warehouse: Any) -> None:
    at = datetime(2026, 5, 4, 12, tzinfo=UTC)
    moves = [("a lock", "open", 1), ("a lock", "close", 2), ("b lock", "close", 1), ("b lock", "open", 2)]
    for device_id, kind, number in moves:
        event_id = str(uuid.uuid5(uuid.NAMESPACE_OID, device_id))[:-1] + str(number)
        send(warehouse, device_id, [at], kind, event_id=event_id, reports=False)
    run(dbt)
    assert_marts_are_right(warehouse)
    states = read(warehouse, "SELECT device_id, state FROM marts.rpt_device_current ORDER BY 1")
    assert [row["state"] for row in states] == ["closed", "open"]


def test_a_first_report_that_arrives_late_has_the_device_observed_from_then_on(dbt: Dbt, warehouse: Any) -> None:
    at = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
    send(warehouse, "lock", [at, at + timedelta(minutes=5)])
    send(warehouse, "other", [at + timedelta(days=2)])
    run(dbt)
    expected = "SELECT reports_expected FROM marts.fct_device_health_hourly WHERE hour_starts_at = '2026-05-04 12:00Z'"
    assert read(warehouse, expected) == [{"reports_expected": 60}]

    send(warehouse, "lock", [at - timedelta(days=1)], arrives_after=4 * 86400)
    run(dbt)
    assert read(warehouse, expected) == [{"reports_expected": 120}]
    assert_marts_are_right(warehouse)


@pytest.mark.slow
def test_a_former_household_that_changes_its_time_zone_takes_the_events_of_its_time_along(
    dbt: Dbt, warehouse: Any
) -> None:
    at = datetime(2026, 5, 4, 23, tzinfo=UTC)  # one o'clock on the next day in Berlin
    register(warehouse, "lock", household_id="old home", timezone="Europe/Berlin")
    send(warehouse, "lock", [at])
    run(dbt)
    register(warehouse, "lock", household_id="new home", timezone="UTC", updated_at=at + timedelta(days=1))
    run(dbt)
    days = "SELECT household_id, local_date FROM marts.fct_triggers_daily"
    assert read(warehouse, days) == [{"household_id": "old home", "local_date": date(2026, 5, 5)}]

    told = {"household_id": "old home", "updated_at": at + timedelta(days=2), "ingested_at": at + timedelta(days=2)}
    random_history.store(warehouse, "raw_households", [{**told, "timezone": "America/New_York"}], key="household_id")
    run(dbt)
    assert read(warehouse, days) == [{"household_id": "old home", "local_date": date(2026, 5, 4)}]
    assert_marts_are_right(warehouse)


def test_what_is_at_a_threshold_is_counted_as_the_definition_says(dbt: Dbt, warehouse: Any) -> None:
    """Just at it and just beyond it: five failures in 600 s, a door open for 120 and 600 s, rows that come after 120 s,
    reports 75 s apart, silences of 900 s, charges that fall by 10 and rise by 20 points, signals at a band's edge."""
    at = datetime(2026, 5, 4, 12, tzinfo=UTC)

    def after(seconds: float) -> datetime:
        return at + timedelta(seconds=seconds)

    for name, more in (("at", 0.0), ("beyond", 0.001)):
        send(warehouse, f"fails {name}", [after(150 * number) for number in range(4)], "fail", reports=False)
        send(warehouse, f"fails {name}", [after(600 + more)], "fail", reports=False)
        for limit in (120, 600):
            send(warehouse, f"open {limit} {name}", [at], "open", reports=False)
            send(warehouse, f"open {limit} {name}", [after(limit + more)], "close", reports=False)
        send(warehouse, f"late {name}", [at], arrives_after=120 + more)
        for limit in (75, 900):
            send(warehouse, f"silent {limit} {name}", [at, after(limit + more)], "close")
    for name, charges in {
        "fell 10": [50, 40],
        "fell 9.5": [50, 40.5],
        "rose 20": [50, 70],
        "rose 19.5": [50, 69.5],
    }.items():
        for number, charge in enumerate(charges):
            send(
                warehouse,
                name,
                [after(86400 * number)],
                "close",
                battery_pct=charge,
                signal_strength_dbm=-85 + 18 * number,
            )
    run(dbt)
    assert_marts_are_right(warehouse)

    def devices(query: str) -> list[str]:
        return [row["device_id"] for row in read(warehouse, f"SELECT device_id FROM marts.{query} ORDER BY 1")]  # noqa: S608

    assert devices("fct_anomalies WHERE rule = 'failed_burst'") == ["fails at"]
    assert devices("fct_open_sessions WHERE left_open = 'warn'") == ["open 120 beyond", "open 600 at"]
    assert devices("fct_anomalies WHERE rule = 'left_open' AND NOT is_open") == ["open 600 beyond"]
    assert devices("fct_access_events WHERE is_late") == ["late beyond"]
    assert devices("fct_offline_sessions WHERE duration_seconds < 76") == ["silent 75 beyond"]
    assert devices("fct_anomalies WHERE rule = 'silent' AND NOT is_open AND evidence ->> 'seconds' LIKE '900%'") == [
        "silent 900 at",
        "silent 900 beyond",
    ]
    assert devices("fct_anomalies WHERE rule = 'battery_cliff'") == ["fell 10"]
    assert devices("fct_battery_forecast WHERE replaced_on IS NOT NULL") == ["rose 20"]
    bands = read(warehouse, "SELECT DISTINCT signal_median_dbm, signal_band FROM marts.fct_device_health_hourly")
    assert {row["signal_median_dbm"]: row["signal_band"] for row in bands} == {None: None, -85: "weak", -67: "good"}


def execute(warehouse: Any, statement: str) -> None:
    with warehouse.cursor() as cursor:
        cursor.execute(statement)


def register(
    warehouse: Any,
    device_id: str,
    *,
    household_id: str,
    timezone: str,
    updated_at: datetime = LONG_AGO,
) -> None:
    told = {"household_id": household_id, "updated_at": updated_at, "ingested_at": updated_at}
    random_history.store(warehouse, "raw_households", [{**told, "timezone": timezone}], key="household_id")
    random_history.store(warehouse, "raw_devices", [{"device_id": device_id, **told}], key="device_id")


def send(
    warehouse: Any,
    device_id: str,
    times: list[datetime],
    kind: str = "open",
    *,
    event_id: str = "",
    reports: bool = True,
    arrives_after: float = 0,
    **measured: float,
) -> None:
    """An event at each of the times and, with `reports`, a health report that says online."""
    events = [
        {
            "event_id": event_id or str(uuid.uuid4()),
            "device_id": device_id,
            "event_ts": at,
            "event_type": kind,
            "trigger_source": "app",
            "ingested_at": at + timedelta(seconds=arrives_after),
        }
        for at in times
    ]
    health = [
        {
            "device_id": device_id,
            "reported_at": at,
            "is_online": True,
            "ingested_at": at + timedelta(seconds=arrives_after),
            **measured,
        }
        for at in times
    ]
    random_history.Slice(events=events, reports=health if reports else []).store(warehouse)
