"""The dbt project as a whole: its own tests, its freshness, and what it says where nothing is there yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2.errors
import pytest
import yaml
from analysts_columns import shown_and_left_out

import pipeline_settings
from sink import TRANSACTION_TIMEOUT_S

Dbt = Callable[..., Any]


def execute(warehouse: Any, statement: str) -> None:
    with warehouse.cursor() as cursor:
        cursor.execute(statement)


def test_on_empty_tables_one_build_makes_every_model_and_passes_every_test_and_unit_test(
    dbt: Dbt, warehouse: Any
) -> None:
    built = dbt("build")
    assert built.success
    outcomes = {(each.node.resource_type, each.status) for each in built.result}
    assert {("model", "success"), ("test", "pass"), ("unit_test", "pass")} <= outcomes


def test_a_row_that_breaks_the_key_or_a_value_of_a_mart_is_refused(dbt: Dbt, warehouse: Any) -> None:
    assert dbt("build", "--selector", "models").success
    row = """INSERT INTO marts.fct_triggers_daily
                 (household_id, trigger_source, event_type, events, share, local_date, source_ingested_at)
             SELECT 'home', 'app', %s, 1, 1, '2026-05-04', now() FROM generate_series(1, %s)"""
    for event_type, count, refusal in (
        ("open", 2, psycopg2.errors.UniqueViolation),
        ("opened", 1, psycopg2.errors.CheckViolation),
    ):
        with pytest.raises(refusal), warehouse.cursor() as cursor:
            cursor.execute(row, (event_type, count))


def test_a_run_summarizes_what_arrived_so_that_no_model_reads_it_twice(dbt: Dbt, warehouse: Any) -> None:
    indexes = ("raw_access_events_ingested_at", "raw_device_health_ingested_at", "ingest_minutes_minute_starts_at")

    def left_over() -> int:
        with warehouse.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(f"SELECT brin_summarize_new_values('{name}')" for name in indexes))
            return sum(count for (count,) in cursor.fetchall())

    reports = """INSERT INTO raw_device_health (device_id, reported_at, is_online)
                 SELECT 'lock', timestamptz '2026-05-04' + n * interval '30 s', true
                 FROM generate_series(1, 9000) AS n"""
    execute(warehouse, reports)
    assert left_over() > 0
    execute(warehouse, reports.replace("'lock'", "'gate'"))
    assert dbt("build", "--selector", "models").success
    assert left_over() == 0


def test_a_database_without_the_raw_tables_gets_the_next_step_told(
    dbt: Dbt, warehouse: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(warehouse, "DROP TABLE raw_households CASCADE")
    result = dbt("build", "--selector", "models")
    assert not result.success
    said = capsys.readouterr().out
    assert "lacks raw_households: start the consumer once (python streaming/kafka_consumer.py)" in said


def test_a_stream_that_fell_silent_is_stale(dbt: Dbt, warehouse: Any) -> None:
    execute(
        warehouse,
        """INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
           VALUES (gen_random_uuid(), 'lock', now(), 'open', 'app', now() - interval '2 hours')""",
    )
    execute(
        warehouse,
        "INSERT INTO raw_device_health (device_id, reported_at, is_online) VALUES ('lock', now(), true)",
    )
    results = dbt("source", "freshness").result
    states = {each.node.name: each.status for each in results if each.node.resource_type == "source"}
    assert states == {"raw_access_events": "error", "raw_device_health": "pass"}


def test_the_marts_carry_their_descriptions_into_the_database(dbt: Dbt, warehouse: Any) -> None:
    assert dbt("build", "--selector", "models").success
    with warehouse.cursor() as cursor:
        cursor.execute("SELECT obj_description('marts.fct_device_daily_summary'::regclass)")
        (description,) = cursor.fetchone()
    assert description.startswith("One row per device and local day")


def test_a_run_reads_again_at_least_what_a_slow_writer_may_commit_behind_it() -> None:
    project = yaml.safe_load((pipeline_settings.ROOT / "dbt/dbt_project.yml").read_text())
    assert project["vars"]["overlap_seconds"] >= TRANSACTION_TIMEOUT_S


def test_of_each_column_of_each_mart_somebody_has_decided_what_analysts_see() -> None:
    columns = {}
    for file in (pipeline_settings.ROOT / "dbt/models/marts").glob("[!_]*.yml"):
        for model in yaml.safe_load(file.read_text())["models"]:
            columns[model["name"]] = {column["name"] for column in model["columns"]}
    assert {mart: set(shown) | set(left_out) for mart, (shown, left_out) in shown_and_left_out().items()} == columns
