"""The maintenance DAG: its order and limits, and a run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from dag_runs import load, run_dag, sql, states

from pipeline_settings import POSTGRES_DEFAULTS

NAME = "smart_access_maintenance"
# Airflow's own imports and its SQLite session warn of what its next version changes
pytestmark = pytest.mark.filterwarnings("default")


def test_it_sweeps_once_a_day_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dag = load()[NAME]
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {"sweep": {"complete"}, "complete": set()}
    assert (dag.schedule, dag.max_active_runs, dag.catchup) == ("30 3 * * *", 1, False)
    sweep = dag.get_task("sweep")
    longest = sweep.execution_timeout * (sweep.retries + 1) + sweep.retry_delay * sweep.retries
    assert longest < dag.dagrun_timeout < timedelta(days=1)
    assert [callback.__name__ for callback in sweep.on_failure_callback] == ["alert"]
    monkeypatch.setenv("MAINTENANCE_SCHEDULE", "0 5 * * 0")
    assert load()[NAME].schedule == "0 5 * * 0"


def test_the_page_in_the_ui_tells_of_every_task_and_setting() -> None:
    dag = load()[NAME]
    settings = {"MAINTENANCE_SCHEDULE", "RETENTION_DAYS", "AGGREGATE_RETENTION_MONTHS", "SWEEP_SHARE", "DBT_SCHEMA"}
    names = {*dag.task_ids, *settings, "ALERT_WEBHOOK_URL", *POSTGRES_DEFAULTS}
    assert {name for name in names if f"`{name}`" not in dag.doc_md} == set()


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_database")
def test_a_run_deletes_what_is_too_old(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.items():
        monkeypatch.setenv(name, value)
    insert = """INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
        SELECT gen_random_uuid(), 'lock', now() - days * interval '1 day', kind, 'app'
        FROM (VALUES (300, 'open'), (299, 'close'), (200, 'open'), (1, 'close')) AS events (days, kind) RETURNING 1"""
    sql(insert)
    monkeypatch.setenv("RETENTION_DAYS", "90")
    run = run_dag(NAME, database, monkeypatch, tmp_path)
    assert states(run) == {"sweep": "success", "complete": "success"}
    assert run.get_task_instance("complete").xcom_pull(task_ids="complete").startswith("gone: raw_access_events=2 ")
    assert sql("SELECT deleted ->> 'raw_access_events', ended_at IS NOT NULL FROM sweeps") == ("2", True)
