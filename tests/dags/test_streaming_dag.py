"""The streaming DAG: that Airflow can load it, its order and its limits, and one run of it on the real PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pipeline_settings

DAGS = pipeline_settings.ROOT / "airflow/dags"
# Airflow's own imports and its SQLite session warn of what its next version changes
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


def load() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(DAGS))
    assert bag.import_errors == {}
    return bag.dags


def streaming_dag() -> Any:
    return load()["smart_access_streaming_pipeline"]


def test_every_file_in_the_folder_loads_and_shows_its_docstring_in_the_ui() -> None:
    dags = load()
    assert {Path(dag.fileloc).name for dag in dags.values()} == {path.name for path in DAGS.glob("*.py")}
    for dag in dags.values():
        assert dag.doc_md


def test_the_tasks_run_one_after_the_other_every_fifteen_minutes_one_run_at_a_time() -> None:
    dag = streaming_dag()
    downstream = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert downstream["dbt_run"] >= {"dbt_test"}
    assert downstream["dbt_test"] == {"complete"}
    assert downstream["complete"] == set()
    assert dag.schedule == "*/15 * * * *"
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert dag.start_date.tzinfo is not None


def test_all_attempts_of_all_tasks_end_before_the_next_slot() -> None:
    dag = streaming_dag()
    longest = timedelta(0)
    for task in dag.tasks:
        if task.task_id != "complete":
            assert task.retries >= 1
            longest += task.execution_timeout * (task.retries + 1) + task.retry_delay * task.retries
    assert longest < dag.dagrun_timeout < timedelta(minutes=15)


def test_the_schedule_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMING_SCHEDULE", "*/5 * * * *")
    assert streaming_dag().schedule == "*/5 * * * *"


def run_dag(database: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    for name, value in {**database, "DBT_TARGET_PATH": str(folder), "DBT_LOG_PATH": str(folder)}.items():
        monkeypatch.setenv(name, value)
    for name in ("DBT_PROJECT_DIR", "DBT_PROFILES_DIR", "DBT_SCHEMA"):
        monkeypatch.delenv(name, raising=False)
    dag = streaming_dag()
    for task in dag.tasks:
        task.retries = 0
    return dag.test()


@pytest.mark.usefixtures("airflow_database")
def test_a_run_fills_the_marts_and_says_so(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_dag(database, monkeypatch, tmp_path)
    assert str(run.state) == "success"
    assert {task.task_id: str(task.state) for task in run.get_task_instances()} == {
        "dbt_run": "success",
        "dbt_test": "success",
        "complete": "success",
    }
    summary = run.get_task_instance("complete").xcom_pull(task_ids="complete")
    assert summary.startswith("dbt run: PASS=")
    assert summary.count("ERROR=0") == 2
    connection = pipeline_settings.connect_postgres("tests")
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('marts.fct_device_daily_summary') IS NOT NULL")
        assert cursor.fetchone() == (True,)
    connection.close()


@pytest.mark.usefixtures("airflow_database")
def test_a_run_without_the_raw_tables_fails_and_names_the_next_step(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_dag({**database, "PGDATABASE": "postgres"}, monkeypatch, tmp_path)
    assert str(run.state) == "failed"
    states = {task.task_id: str(task.state) for task in run.get_task_instances()}
    assert states["dbt_run"] == "failed"
    assert "success" not in states.values()
    assert "start the consumer once" in "".join(capfd.readouterr())
