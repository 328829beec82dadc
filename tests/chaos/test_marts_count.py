"""What the count of the marts says: nothing of marts that a run has just built, and something of each wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from marts_count import differences

from backfill import DBT_LOCK
from pipeline_settings import ROOT, apply_schema

pytestmark = pytest.mark.slow  # as are the runs that count by it

RECORDS = """
    INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
    SELECT gen_random_uuid(), 'd' || n % 5, '2020-01-01Z'::timestamptz + n * interval '1 minute',
           (array['open', 'close', 'fail'])[1 + n % 3], 'app'
    FROM generate_series(1, 400) AS n;

    INSERT INTO raw_device_health (device_id, reported_at, is_online)
    SELECT 'd' || n % 5, '2020-01-01Z'::timestamptz + n * interval '1 minute', true FROM generate_series(1, 400) AS n;

    INSERT INTO ingest_offsets
        (cluster_id, consumer_group, topic, partition, start_offset, next_offset, stored, duplicates, dead)
    VALUES ('c', 'g', 'smart-access.events', 0, 0, 412, 400, 9, 3),
           ('c', 'g', 'smart-access.health', 0, 0, 400, 400, 0, 0);

    INSERT INTO ingest_minutes
        (cluster_id, consumer_group, topic, partition, minute_starts_at, stored, duplicates, dead)
    SELECT cluster_id, consumer_group, topic, partition, date_trunc('minute', now()), stored, duplicates, dead
    FROM ingest_offsets
"""
WRONGS = {
    "an event is missing": (
        "DELETE FROM marts.fct_access_events WHERE ctid = (SELECT min(ctid) FROM marts.fct_access_events)",
        ["marts.fct_access_events lacks 1 rows"],
    ),
    "an event says something else": (
        "UPDATE marts.fct_access_events SET trigger_source = 'keypad'"
        " WHERE ctid = (SELECT min(ctid) FROM marts.fct_access_events)",
        ["marts.fct_access_events lacks 1 rows", "marts.fct_access_events has too many 1 rows"],
    ),
    "an hour lacks an event": (
        "UPDATE marts.fct_access_hourly SET closes = closes - 1 WHERE closes > 0 AND device_id = 'd1'"
        " AND hour_starts_at = '2020-01-01Z'",
        ["marts.fct_access_hourly, events: [399], to be: [400]"],
    ),
    "an hour of the fleet was counted twice": (
        "UPDATE marts.fct_fleet_hourly SET opens = opens + 1 WHERE hour_starts_at = '2020-01-01Z'",
        ["marts.fct_fleet_hourly, events: [401], to be: [400]"],
    ),
    "a day lacks a report": (
        "UPDATE marts.fct_device_daily_summary SET health_reports = health_reports - 1 WHERE device_id = 'd1'"
        " AND local_date = '2020-01-01'",
        [
            "marts.fct_device_daily_summary, events and reports: [400, 399], to be: [400, 400]",
        ],
    ),
    "an hour lacks a report": (
        "UPDATE marts.fct_device_health_hourly SET reports = reports - 1 WHERE device_id = 'd1'"
        " AND hour_starts_at = '2020-01-01Z'",
        ["marts.fct_device_health_hourly, reports: [399], to be: [400]"],
    ),
    "a minute lacks a duplicate": (
        "UPDATE marts.rpt_pipeline_health SET duplicates = 8 WHERE duplicates = 9",
        ["marts.rpt_pipeline_health, rows, duplicates and dead letters: [800, 8, 3], to be: [800, 9, 3]"],
    ),
    "dbt has left something": (
        "CREATE TABLE marts.dim_devices__dbt_backup ()",
        ["left by dbt: marts.dim_devices__dbt_backup"],
    ),
}


@pytest.fixture(scope="module")
def built(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database that a run of the models has seen."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.create_database(name)
    with closing(postgres.connect(name)) as connection:
        connection.autocommit = False
        apply_schema(connection)
        with connection, connection.cursor() as cursor:
            cursor.execute(RECORDS)
    build(postgres.environment(name), tmp_path_factory.mktemp("dbt"))
    yield name
    postgres.drop_database(name)


def build(database: dict[str, str], folder: Path) -> None:
    places = {"DBT_TARGET_PATH": str(folder), "DBT_LOG_PATH": str(folder), "DBT_SCHEMA": "marts"}
    command = [sys.executable, str(ROOT / "dbt/one_at_a_time.py"), "--quiet", "build", "--selector", "models"]
    subprocess.run(command, env={**os.environ, **database, **places}, check=True)


@pytest.fixture
def warehouse(postgres: Any, built: str) -> Iterator[Any]:
    """A connection to a copy of it, to do wrong to."""
    name = f"test_{uuid.uuid4().hex}"
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {built}")
    with closing(postgres.connect(name)) as connection:
        yield connection
    postgres.drop_database(name)


def found(postgres: Any, warehouse: Any) -> list[str]:
    return differences(postgres.connect(warehouse.info.dbname))


def test_of_marts_that_were_just_built_nothing_is_said(postgres: Any, warehouse: Any) -> None:
    assert found(postgres, warehouse) == []


@pytest.mark.parametrize("wrong", WRONGS)
def test_the_count_of_the_marts_finds_that(postgres: Any, warehouse: Any, wrong: str) -> None:
    statement, said = WRONGS[wrong]
    with warehouse.cursor() as cursor:
        cursor.execute(statement)
        assert cursor.rowcount in (1, -1)
    assert found(postgres, warehouse) == said


def test_the_count_of_the_marts_finds_who_holds_a_lock_of_theirs(postgres: Any, warehouse: Any) -> None:
    with warehouse.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), pg_advisory_lock(7)")
        [(pid, _)] = cursor.fetchall()
    assert found(postgres, warehouse) == [f"a lock of the models is held: ({pid}, 0, 7)"]


def test_a_run_that_never_ends_is_found(postgres: Any, warehouse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill.DBT_WAIT_S", 0.1)
    with warehouse.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", DBT_LOCK)
    [said] = found(postgres, warehouse)
    assert said.startswith("the lock of the models is not to be had: ")
