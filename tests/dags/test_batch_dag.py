"""The batch DAG: its order and limits, and a run that loads a file, and one that makes past days anew."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from dag_runs import DAGS, load, run_dag, sql, states

from pipeline_settings import POSTGRES_DEFAULTS

NAME = "smart_access_batch_pipeline"
HEADER = "event_id,device_id,event_ts,event_type,trigger_source\n"
# Airflow's own imports and its SQLite session warn of what its next version changes
pytestmark = pytest.mark.filterwarnings("default")


def test_every_file_in_the_folder_loads_and_shows_its_docstring_in_the_ui() -> None:
    dags = load()
    files = {path.name for path in DAGS.glob("*.py")} - {"pipeline_tasks.py"}
    assert {Path(dag.fileloc).name for dag in dags.values()} == files
    for dag in dags.values():
        assert dag.doc_md


def test_the_tasks_run_one_after_the_other_once_a_day_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dag = load()[NAME]
    downstream = {task.task_id: task.downstream_task_ids - {"complete"} for task in dag.tasks}
    assert downstream == {"load": {"dbt_run"}, "dbt_run": {"dbt_test"}, "dbt_test": set(), "complete": set()}
    assert dag.get_task("complete").upstream_task_ids == {"load", "dbt_run", "dbt_test"}
    assert (dag.schedule, dag.max_active_runs, dag.catchup) == ("0 2 * * *", 1, False)
    monkeypatch.setenv("BATCH_SCHEDULE", "30 3 * * *")
    assert load()[NAME].schedule == "30 3 * * *"


def test_all_attempts_of_all_tasks_end_before_the_next_day() -> None:
    dag = load()[NAME]
    tasks = [task for task in dag.tasks if task.task_id != "complete"]
    longest = sum(
        (task.execution_timeout * (task.retries + 1) + task.retry_delay * task.retries for task in tasks), timedelta(0)
    )
    assert longest < dag.dagrun_timeout < timedelta(days=1)


def test_the_page_in_the_ui_tells_of_every_task_setting_and_parameter() -> None:
    dag = load()[NAME]
    settings = {"BATCH_SCHEDULE", "BATCH_DROP_DIR", "ALERT_WEBHOOK_URL", "DBT_PROJECT_DIR", "DBT_PROFILES_DIR"}
    names = {*dag.task_ids, *dag.params, *settings, *POSTGRES_DEFAULTS}
    assert {name for name in names if f"`{name}`" not in dag.doc_md} == set()


@pytest.mark.parametrize(
    ("name", "value"), [("since", "yesterday"), ("until", "2026-02-30"), ("full_refresh", "$(date)")]
)
def test_a_parameter_that_is_none_is_refused(name: str, value: str) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    known = load()[NAME].params
    with pytest.raises(ParamValidationError):
        known[name] = value


def drop(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    os.utime(folder / name, (0, 0))


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_database")
def test_a_run_loads_what_was_dropped_and_a_backfill_makes_past_days_anew(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in database.items():
        monkeypatch.setenv(name, value)
    sql(
        """INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
           SELECT gen_random_uuid(), 'lock', at, 'open', 'app', now() - interval '1 day'
           FROM (VALUES (timestamptz '2026-05-01 12:00Z'), ('2026-05-03 12:00Z')) AS times (at) RETURNING 1"""
    )
    folder = tmp_path / "drop"
    monkeypatch.setenv("BATCH_DROP_DIR", str(folder))
    drop(folder, "events.csv", HEADER + "e1,lock,2026-05-05T12:00:00Z,open,app\n")
    drop(folder, "bad.csv", "a,b\n1,2\n")
    run = run_dag(NAME, database, monkeypatch, tmp_path, full_refresh=True)
    assert states(run) == {"load": "success", "dbt_run": "success", "dbt_test": "success", "complete": "failed"}
    assert str(run.state) == "failed"
    assert sorted(path.name for path in folder.iterdir()) == ["done", "failed", "keep"]
    assert "--full-refresh" in (tmp_path / "dbt.log").read_text()
    opens = "SELECT array_agg(opens ORDER BY hour_starts_at) FROM marts.fct_access_hourly"
    assert sql(opens) == ([1, 1, 1],)

    sql("UPDATE marts.fct_access_hourly SET opens = 9 RETURNING 1")
    run = run_dag(NAME, database, monkeypatch, tmp_path, since="2026-05-02", until="2026-05-03")
    said = run.get_task_instance("complete").xcom_pull(task_ids="complete")
    assert said.startswith("files loaded=0 known=0 failed=0 rows=0 stored=0 duplicates=0 dead=0; dbt run: PASS=")
    assert sql(opens) == ([9, 1, 1],)  # the last one, as what has just arrived is always read again
