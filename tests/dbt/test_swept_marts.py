"""After sweeps of the retention the marts say of what is left what they would have said without, and of what is gone
what they said before; a full refresh agrees, whatever comes late."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import random_history
from mart_comparison import faults, mart_rows
from random_history import START, Slice
from recomputation import KEYS, read
from swept_marts import Memory

import sweep as retention
from pipeline_settings import connect_postgres

Dbt = Callable[..., Any]
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def run(dbt: Dbt, *arguments: str) -> None:
    result = dbt("build", "--selector", "models", *arguments)
    assert result.success, result.exception or [each.message for each in result.result if each.status == "error"]


def execute(warehouse: Any, statement: str, *values: Any) -> None:
    with warehouse.cursor() as cursor:
        cursor.execute(statement, values)


def sweep(days: int, today: date, months: int = 13) -> None:
    connect = partial(connect_postgres, "tests")
    retention.sweep(connect, retention.Retention(days, months, today), share=1.0)


@pytest.fixture
def pinned_file(warehouse: Any) -> int:
    """The id of a load that the sweep leaves alone."""
    execute(
        warehouse,
        """INSERT INTO file_loads (sha256, table_name, columns, file_name, size_bytes, pinned)
           VALUES ('of history', 'raw_access_events', '[]', 'history.csv', 1, true)""",
    )
    [load] = read(warehouse, "SELECT file_load_id FROM file_loads")
    return int(load["file_load_id"])


def with_pinned_files(slices: list[Slice], file: int, chance: random.Random) -> list[Slice]:
    """Some days of some devices come from a pinned file; of one device in five the first four days do, in the last
    slice but one."""
    pinned: dict[Any, bool] = {}
    devices = sorted({row["device_id"] for part in slices for row in part.events + part.reports})
    is_history = {device_id: chance.random() < 0.2 for device_id in devices}
    for kind, time in (("events", "event_ts"), ("reports", "reported_at")):
        held_back = []
        for part in slices[:-2]:
            here = []
            for row in getattr(part, kind):
                is_held = is_history[row["device_id"]] and START - DAY < row[time] < START + 4 * DAY
                (held_back if is_held else here).append(row)
            setattr(part, kind, here)
        rows = getattr(slices[-2], kind)
        arrival = max((row["ingested_at"] for row in rows), default=START)
        rows += [{**row, "ingested_at": arrival, "file_load_id": file} for row in held_back]
        for row in (row for part in slices for row in getattr(part, kind)):
            day = row["device_id"], row[time].date()
            if day not in pinned:
                pinned[day] = chance.random() < 0.12
            row["file_load_id"] = file if pinned[day] or "file_load_id" in row else None
    return slices


def assert_right(memory: Memory, warehouse: Any, but: tuple[str, ...] = ()) -> None:
    expected = memory.expected(warehouse)
    actual = memory.look(warehouse)
    marts = [mart for mart in KEYS if mart not in but]
    found = [fault for mart in marts for fault in list(faults(mart, actual[mart], expected[mart]))[:4]]
    assert not found, "\n".join(found)


def forget_when_the_registry_was_noticed(warehouse: Any) -> None:
    for table in ("devices_history", "households_history"):
        execute(warehouse, f"UPDATE snapshots.{table} SET noticed_at = '2000-01-01'")  # noqa: S608


def clock_of(warehouse: Any) -> datetime:
    [found] = read(warehouse, "SELECT data_clock_at FROM intermediate.int_data_clock")
    clock: datetime = found["data_clock_at"]
    return clock


OF_THE_LAST_RUN = ("fct_battery_forecast", "rpt_device_current")  # made anew as a whole by each
MORE = [pytest.param((number, number + 1, number + 2, number + 3), marks=pytest.mark.slow) for number in (40, 44, 48)]


@pytest.mark.parametrize("seeds", [(36, 37), *MORE], ids=str)
def test_after_sweeps_of_random_histories_the_marts_say_what_they_would_say_without(
    seeds: tuple[int, ...], dbt: Dbt, warehouse: Any, pinned_file: int
) -> None:
    chance = random.Random(f"pinned {seeds[0]}")
    slices = with_pinned_files(random_history.histories(seeds, is_restless=False), pinned_file, chance)
    memory = Memory()
    for number, part in enumerate(slices):
        part.store(warehouse)
        run(dbt)
        assert_right(memory, warehouse)
        if number in (1, 2):  # after all that the registry tells
            # a month is some five days more
            cutoff = clock_of(warehouse).date() - timedelta(days=9 - number)
            sweep(26, cutoff + 26 * DAY, months=13 if number == 1 else 1)
            assert_right(memory, warehouse, but=OF_THE_LAST_RUN)
        forget_when_the_registry_was_noticed(warehouse)
    swept = read(warehouse, "SELECT stream, device_id FROM device_horizons")
    assert len(swept) > 10
    incremental = mart_rows(warehouse)
    run(dbt, "--vars", f"{{backfill_since: {START.date()}}}")
    assert_right(memory, warehouse)
    run(dbt, "--full-refresh")
    for mart, rows in mart_rows(warehouse).items():
        assert rows == incremental[mart], mart


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(60, 61, 62, 63), (64, 65, 66, 67), (1024, 1025, 1026)], ids=str)
def test_after_sweeps_a_full_refresh_agrees_with_runs_while_the_registry_changes(
    seeds: tuple[int, ...], dbt: Dbt, warehouse: Any, pinned_file: int
) -> None:
    chance = random.Random(f"pinned {seeds[0]}")
    slices = with_pinned_files(random_history.histories(seeds, is_restless=True, slices=6), pinned_file, chance)
    for number, part in enumerate(slices):
        part.store(warehouse)
        run(dbt)
        incremental = mart_rows(warehouse)
        run(dbt, "--full-refresh")
        for mart, rows in mart_rows(warehouse).items():
            assert list(faults(mart, incremental[mart], rows))[:4] == [], mart
        cutoff = clock_of(warehouse).date() - timedelta(days=9 - number)
        sweep(26, cutoff + 26 * DAY, months=chance.choice([1, 13]))


def send(
    warehouse: Any,
    device_id: str,
    times: list[datetime],
    *kinds: str,
    file: int | None = None,
    arrival: datetime | None = None,
) -> None:
    """An online report at each time, and the events of these kinds, a second apart."""
    reports = [
        {"device_id": device_id, "reported_at": at, "is_online": True, "ingested_at": arrival or at}
        | {"file_load_id": file}
        for at in times
    ]
    events = [
        {
            "event_id": str(uuid.uuid4()),
            "device_id": device_id,
            "event_ts": at + timedelta(seconds=number),
            "event_type": kind,
            "trigger_source": "app",
            "ingested_at": arrival or at,
            "file_load_id": file,
        }
        for at in times
        for number, kind in enumerate(kinds)
    ]
    Slice(events=events, reports=reports).store(warehouse)


def every(seconds: float, since: datetime, count: int) -> list[datetime]:
    return [since + timedelta(seconds=seconds) * number for number in range(count)]


@pytest.mark.slow
def test_no_silence_reaches_from_pinned_history_over_what_was_swept(dbt: Dbt, warehouse: Any, pinned_file: int) -> None:
    day = [START + number * DAY for number in range(30)]
    send(warehouse, "lock", every(30, day[0], 3), file=pinned_file)
    send(warehouse, "lock", every(30, day[5], 40))
    send(warehouse, "lock", every(30, day[20], 3))
    run(dbt)
    silences = "SELECT started_at, ended_at FROM marts.fct_offline_sessions ORDER BY 1"
    before = read(warehouse, silences)
    minute = timedelta(minutes=1)
    horizon = day[5] + 39 * timedelta(seconds=30)
    assert [tuple(row.values()) for row in before] == [(day[0] + minute, day[5]), (horizon, day[20])]

    sweep(30, (day[10] + 30 * DAY).date())
    [line] = read(warehouse, "SELECT swept_from, horizon FROM device_horizons")
    assert (line["swept_from"], line["horizon"]) == (day[5], horizon)
    # into what was there as a whole, into what was swept, and what is newest
    send(warehouse, "lock", every(30, day[2], 3), file=pinned_file, arrival=day[21])
    send(warehouse, "lock", every(30, day[5] + minute / 4, 3), file=pinned_file, arrival=day[21])
    send(warehouse, "lock", every(30, day[21], 3))
    run(dbt)
    after = [tuple(row.values()) for row in read(warehouse, silences)]
    assert after == [
        *(tuple(row.values()) for row in before),
        (day[20] + minute, day[21]),
    ]
    hours = "SELECT hour_starts_at, reports FROM marts.fct_device_health_hourly ORDER BY 1"
    assert [tuple(row.values()) for row in read(warehouse, hours)] == [
        (day[0], 3),
        (day[2], 3),
        (day[5], 40),
        (day[20], 3),
        (day[21], 3),
    ]
    incremental = mart_rows(warehouse)
    run(dbt, "--full-refresh")
    assert mart_rows(warehouse) == incremental


@pytest.mark.slow
def test_a_device_that_fell_silent_long_ago_stays_as_it_was(dbt: Dbt, warehouse: Any, pinned_file: int) -> None:
    send(warehouse, "door", every(30, START, 60))
    send(warehouse, "door", [START + HOUR], "open", "close", "fail")
    send(warehouse, "door", [START + 2 * HOUR], "open")
    send(warehouse, "other", every(86400, START, 200), "open", "close")
    run(dbt)
    columns = "state, is_online, state_since, last_seen_at, battery_pct, battery_band, open_anomalies"
    state = f"SELECT {columns} FROM marts.rpt_device_current WHERE device_id = 'door'"  # noqa: S608
    silence = "SELECT * FROM marts.fct_offline_sessions WHERE device_id = 'door' AND ended_at IS NULL"
    session = "SELECT * FROM marts.fct_open_sessions WHERE device_id = 'door' AND closed_at IS NULL"
    before = [read(warehouse, query) for query in (state, silence, session)]
    assert (before[0][0]["state"], before[0][0]["is_online"]) == ("unknown", False)
    assert [len(rows) for rows in before] == [1, 1, 1]

    sweep(30, (START + 200 * DAY).date(), months=1)
    for options in (["--vars", "{backfill_since: 2026-01-01}"], ["--full-refresh"]):
        run(dbt, *options)
        assert [read(warehouse, query) for query in (state, silence, session)] == before
    assert read(warehouse, "SELECT count(*) AS n FROM raw_device_health WHERE device_id = 'door'")[0]["n"] < 60


@pytest.mark.slow
def test_a_full_refresh_takes_what_was_swept_from_a_table_that_lacks_a_column(
    dbt: Dbt, warehouse: Any, pinned_file: int
) -> None:
    for number in range(20):
        send(warehouse, "lock", [START + number * DAY], "open")
        send(warehouse, "lock", [START + number * DAY + HOUR], "close")
    run(dbt)
    sweep(30, (START + 40 * DAY).date())
    rates = "SELECT hour_starts_at, opens, fail_rate FROM marts.fct_access_hourly ORDER BY 1"
    before = read(warehouse, rates)
    execute(warehouse, "ALTER TABLE marts.fct_access_hourly DROP COLUMN fail_rate CASCADE")
    run(dbt, "--full-refresh")
    after = read(warehouse, rates)
    assert [row["opens"] for row in after] == [row["opens"] for row in before]
    [line] = read(warehouse, "SELECT horizon FROM device_horizons WHERE stream = 'events'")
    assert {row["fail_rate"] for row in after if row["hour_starts_at"] < line["horizon"]} == {None}
    assert [row for row in after if row["hour_starts_at"] > line["horizon"]] == [
        row for row in before if row["hour_starts_at"] > line["horizon"]
    ]


def test_a_backfill_ends_the_hours_of_the_fleet_of_which_no_device_is_left(
    dbt: Dbt, warehouse: Any, pinned_file: int
) -> None:
    for device_id, hours in (("lock", (0, 1, 30)), ("gate", (1, 2))):
        send(warehouse, device_id, [START + hour * HOUR for hour in hours], "open")
    run(dbt)
    fleet = "SELECT hour_starts_at, opens, reporting_devices FROM marts.fct_fleet_hourly ORDER BY 1"
    assert len(read(warehouse, fleet)) == 4
    for table in ("raw_access_events", "raw_device_health", "marts.fct_access_events"):
        execute(warehouse, f"DELETE FROM {table} WHERE device_id = 'gate'")  # noqa: S608
    for table in ("fct_access_hourly", "fct_device_health_hourly"):
        execute(warehouse, f"DELETE FROM marts.{table} WHERE device_id = 'gate'")  # noqa: S608
    run(dbt, "--vars", f"{{backfill_since: {START.date()}, backfill_until: {START.date()}}}")
    assert [tuple(row.values()) for row in read(warehouse, fleet)] == [
        (START + hour * HOUR, 1, 1) for hour in (0, 1, 30)
    ]


@pytest.mark.slow
def test_the_fleet_keeps_the_hours_of_five_households_when_those_of_its_devices_are_gone(
    dbt: Dbt, warehouse: Any, pinned_file: int
) -> None:
    for number in range(5):
        told = {"household_id": f"home {number}", "updated_at": START, "ingested_at": START}
        random_history.store(warehouse, "raw_households", [{**told, "timezone": "UTC"}], key="household_id")
        random_history.store(warehouse, "raw_devices", [{"device_id": f"lock {number}", **told}], key="device_id")
        for day in range(60):
            at = START + day * DAY
            send(warehouse, f"lock {number}", [at, at + HOUR] if number else [at], "open", "close")
    run(dbt)
    sweep(20, (START + 60 * DAY).date(), months=1)
    before = mart_rows(warehouse)
    assert before["fct_access_hourly"][0]["hour_starts_at"] > START + 25 * DAY
    hours = [row for row in before["fct_fleet_hourly"] if row["hour_starts_at"] < START + 20 * DAY]
    assert [row["opens"] for row in hours] == [5] * 20
    run(dbt, "--full-refresh")
    assert mart_rows(warehouse)["fct_fleet_hourly"] == before["fct_fleet_hourly"]
