"""fct_device_daily_summary, run after run, against the real PostgreSQL: always what a full refresh would give."""

from __future__ import annotations

import random
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import pipeline_settings

Dbt = Callable[..., Any]
START = datetime(2026, 3, 27, 6, tzinfo=UTC)  # two days before the clocks change in Berlin
ZONES = ["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Auckland", "Mars/Olympus_Mons", None]

SUMMARY = """
SELECT device_id, local_date, time_zone, opens, closes, fails, fail_rate, health_reports,
       battery_min_pct, battery_last_pct, source_ingested_at
FROM marts.fct_device_daily_summary ORDER BY 1, 2
"""


def run(dbt: Dbt, *arguments: str) -> None:
    result = dbt("run", *arguments)
    assert result.success, result.exception or [each.message for each in result.result]


def rows(warehouse: Any, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with warehouse.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()


def insert(warehouse: Any, table: str, **values: Any) -> None:
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    with warehouse.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING", list(values.values()))  # noqa: S608


def add_event(warehouse: Any, device_id: str, event_ts: datetime, event_type: str, **more: Any) -> None:
    values = {"event_id": str(uuid.uuid4()), "trigger_source": "app", **more}
    insert(warehouse, "raw_access_events", device_id=device_id, event_ts=event_ts, event_type=event_type, **values)


def register(warehouse: Any, device_id: str, zone: str | None, at: datetime) -> None:
    """One household per device, so that a zone moves one device."""
    household = f"home of {device_id}"
    insert(warehouse, "raw_devices", device_id=device_id, household_id=household, updated_at=at, ingested_at=at)
    with warehouse.cursor() as cursor:
        cursor.execute(
            """INSERT INTO raw_households (household_id, timezone, updated_at, ingested_at) VALUES (%s, %s, %s, %s)
               ON CONFLICT (household_id) DO UPDATE SET timezone = excluded.timezone, updated_at = excluded.updated_at,
                                                        ingested_at = excluded.ingested_at""",
            (household, zone, at, at),
        )


def recomputed(warehouse: Any) -> list[tuple[Any, ...]]:
    """The mart from its definition, in Python, from all raw rows."""
    zones = dict(
        rows(warehouse, "SELECT device_id, timezone FROM raw_devices JOIN raw_households USING (household_id)")
    )
    days: dict[tuple[Any, ...], dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    observations = rows(
        warehouse,
        """SELECT device_id, event_ts AS at, event_type, NULL::real, ingested_at FROM raw_access_events
           UNION ALL SELECT device_id, reported_at, 'report', battery_pct, ingested_at FROM raw_device_health
           ORDER BY at""",
    )
    for device_id, at, kind, battery, ingested_at in observations:
        zone = zones.get(device_id)
        zone = "UTC" if zone is None or zone == "Mars/Olympus_Mons" else zone
        day = days[device_id, at.astimezone(ZoneInfo(zone)).date(), zone]
        day[kind].append(at)
        day["ingested_at"].append(ingested_at)
        if battery is not None:
            day["battery"].append(battery)
    return [
        (
            *key,
            len(day["open"]),
            len(day["close"]),
            len(day["fail"]),
            len(day["fail"]) / (len(day["open"]) + len(day["fail"])) if day["open"] or day["fail"] else None,
            len(day["report"]),
            min(day["battery"], default=None),
            day["battery"][-1] if day["battery"] else None,
            max(day["ingested_at"]),
        )
        for key, day in sorted(days.items(), key=lambda item: item[0][:2])
    ]


def arrive(warehouse: Any, chance: random.Random, devices: list[str], now: datetime, before: datetime) -> None:
    """What arrives between two runs: some late by up to ten days, some twice, some behind the last run's watermark."""
    for _ in range(chance.randrange(5, 60)):
        device_id = chance.choice(devices)
        late = timedelta(days=10) * chance.random() if chance.random() < 0.2 else timedelta(0)
        at = now - late - timedelta(minutes=chance.randrange(600))
        # a transaction that began up to 60 s before the last run and committed after it
        ingested_at = before - timedelta(seconds=chance.randrange(60)) if chance.random() < 0.1 else now
        if chance.random() < 0.6:
            event = {"event_id": str(uuid.UUID(int=chance.getrandbits(128))), "ingested_at": ingested_at}
            kind = chance.choice(["open", "close", "fail"])
            for _ in range(chance.choice([1, 1, 2])):
                add_event(warehouse, device_id, at, kind, **event)
        else:
            battery = chance.choice([None, chance.randrange(101)])
            report = {"device_id": device_id, "reported_at": at, "battery_pct": battery, "is_online": True}
            insert(warehouse, "raw_device_health", **report, ingested_at=ingested_at)


@pytest.mark.parametrize("seed", range(3))
def test_after_every_slice_of_a_random_history_the_mart_is_what_its_definition_says(
    seed: int, dbt: Dbt, warehouse: Any
) -> None:
    chance = random.Random(seed)
    devices = [f"device {number}" for number in range(4)]
    now = START
    run(dbt)
    for _ in range(5):
        before, now = now, now + timedelta(hours=chance.randrange(1, 30))
        for device_id in devices[:3]:  # the fourth is never registered
            if chance.random() < 0.4:
                register(warehouse, device_id, chance.choice(ZONES), now)
        arrive(warehouse, chance, devices, now, before)
        run(dbt)
        assert rows(warehouse, SUMMARY) == recomputed(warehouse)
    incremental = rows(warehouse, SUMMARY)
    run(dbt, "--full-refresh")
    assert rows(warehouse, SUMMARY) == incremental
    assert len(incremental) > 20


def test_a_late_event_corrects_its_own_day_and_rewrites_no_other(dbt: Dbt, warehouse: Any) -> None:
    for number in range(5):
        at = START + timedelta(days=number)
        add_event(warehouse, "lock", at, "open", ingested_at=at)
    run(dbt)
    versions = "SELECT local_date, xmin::text FROM marts.fct_device_daily_summary"
    before = dict(rows(warehouse, versions))

    late = START + timedelta(days=1, hours=2)
    add_event(warehouse, "lock", late, "fail", ingested_at=START + timedelta(days=5))
    run(dbt)

    after = dict(rows(warehouse, versions))
    rewritten = {day for day in after if after[day] != before[day]}
    # the day of the newest row lies within the overlap of every run
    newest = (START + timedelta(days=4)).date()
    assert rewritten == {late.date(), newest}
    day = rows(warehouse, "SELECT opens, fails, fail_rate FROM marts.fct_device_daily_summary WHERE fails > 0")
    assert day == [(1, 1, 0.5)]


def test_a_transaction_that_commits_after_a_run_that_saw_younger_rows_is_not_missed(dbt: Dbt, warehouse: Any) -> None:
    slow = pipeline_settings.connect_postgres("a slow writer")
    add_event(slow, "slow lock", START, "open")
    add_event(warehouse, "lock", START, "open")
    run(dbt)
    assert [device_id for device_id, *_ in rows(warehouse, SUMMARY)] == ["lock"]

    slow.commit()
    slow.close()
    run(dbt)
    assert [device_id for device_id, *_ in rows(warehouse, SUMMARY)] == ["lock", "slow lock"]


def test_a_household_that_changes_its_time_zone_takes_its_whole_history_with_it(dbt: Dbt, warehouse: Any) -> None:
    register(warehouse, "lock", "Europe/Berlin", START)
    register(warehouse, "neighbour", "Europe/Berlin", START)
    for day in range(3):
        for device_id in ("lock", "neighbour"):
            at = datetime(2026, 4, 1 + day, 23, tzinfo=UTC)  # one o'clock on the next day in Berlin
            add_event(warehouse, device_id, at, "open", ingested_at=at)
    run(dbt)
    days = (
        "SELECT device_id, array_agg(extract(day FROM local_date)::int ORDER BY local_date)"
        " FROM marts.fct_device_daily_summary GROUP BY 1 ORDER BY 1"
    )
    assert rows(warehouse, days) == [("lock", [2, 3, 4]), ("neighbour", [2, 3, 4])]

    # the registry's entry is older than the newest event: it is no row's arrival that tells of the move
    register(warehouse, "lock", "America/New_York", START + timedelta(minutes=1))
    run(dbt)
    assert rows(warehouse, days) == [("lock", [1, 2, 3]), ("neighbour", [2, 3, 4])]


def test_a_failed_run_changes_nothing_and_the_next_one_makes_up_for_it(dbt: Dbt, warehouse: Any) -> None:
    add_event(warehouse, "lock", START, "open", ingested_at=START)
    run(dbt)
    before = rows(warehouse, SUMMARY)
    add_event(warehouse, "lock", START, "fail", ingested_at=START + timedelta(hours=1))
    with warehouse.cursor() as cursor:
        cursor.execute("ALTER TABLE marts.fct_device_daily_summary ADD CONSTRAINT no_fails CHECK (fails = 0)")
    assert not dbt("run").success
    assert rows(warehouse, SUMMARY) == before

    with warehouse.cursor() as cursor:
        cursor.execute("ALTER TABLE marts.fct_device_daily_summary DROP CONSTRAINT no_fails")
    run(dbt)
    assert rows(warehouse, SUMMARY) == recomputed(warehouse)
