"""The DAGs as Airflow loads them, and runs of them on the real PostgreSQL."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pipeline_settings

DAGS = pipeline_settings.ROOT / "airflow/dags"


def load() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(DAGS))
    assert bag.import_errors == {}
    return bag.dags


def run_dag(name: str, database: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path, **params: Any) -> Any:
    """A run of the DAG, each task once, as a scheduler would have it: without the project's own PATH."""
    for variable, value in {**database, "DBT_TARGET_PATH": str(folder), "DBT_LOG_PATH": str(folder)}.items():
        monkeypatch.setenv(variable, value)
    for variable in ("DBT_PROJECT_DIR", "DBT_PROFILES_DIR", "DBT_SCHEMA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", os.defpath)  # no dbt, no python of the project's there
    dag = load()[name]
    for task in dag.tasks:
        task.retries = 0
    return dag.test(run_conf=params or None)


def sql(statement: str) -> Any:
    """The first row of a statement's result, on the database that the environment names."""
    with (
        closing(pipeline_settings.connect_postgres("tests")) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        return cursor.fetchone()


def states(run: Any) -> dict[str, str]:
    return {task.task_id: str(task.state) for task in run.get_task_instances()}
