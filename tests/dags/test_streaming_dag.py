"""The streaming DAG: that Airflow can load it, its order and its limits, and one run of it on the real PostgreSQL."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dag_runs import load, run_dag, sql, states

from local_servers import free_port
from pipeline_settings import POSTGRES_DEFAULTS

# Airflow's own imports and its SQLite session warn of what its next version changes
pytestmark = pytest.mark.filterwarnings("default")


NAME = "smart_access_streaming_pipeline"


def streaming_dag() -> Any:
    return load()[NAME]


def test_the_tasks_run_one_after_the_other_every_fifteen_minutes_one_run_at_a_time() -> None:
    dag = streaming_dag()
    downstream = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert downstream["dbt_run"] >= {"dbt_test"}
    assert downstream["dbt_test"] == {"complete"}
    assert downstream["complete"] == set()
    assert dag.schedule == "*/15 * * * *"
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert dag.start_date.tzinfo is not None


def test_the_page_in_the_ui_tells_of_every_task_and_every_setting() -> None:
    dag = streaming_dag()
    settings = {"STREAMING_SCHEDULE", "ALERT_WEBHOOK_URL", "DBT_PROJECT_DIR", "DBT_PROFILES_DIR", "DBT_TARGET_PATH"}
    assert {name for name in {*dag.task_ids, *settings, *POSTGRES_DEFAULTS} if f"`{name}`" not in dag.doc_md} == set()


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


def summary(run: Any) -> str:
    assert str(run.state) == "success"
    return run.get_task_instance("complete").xcom_pull(task_ids="complete")


@pytest.mark.usefixtures("airflow_database")
def test_a_run_takes_what_is_new_and_says_which_sources_are_not_fresh(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in database.items():
        monkeypatch.setenv(variable, value)
    sql("INSERT INTO raw_device_health (device_id, reported_at, is_online) VALUES ('lock', now(), true) RETURNING 1")
    sql(
        """INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
           VALUES (gen_random_uuid(), 'lock', now(), 'open', 'app', now() - interval '20 minutes') RETURNING 1"""
    )
    run = run_dag(NAME, database, monkeypatch, tmp_path)
    assert states(run) == {"dbt_run": "success", "dbt_test": "success", "complete": "success"}
    said = summary(run)
    assert said.startswith("dbt run: PASS=")
    assert said.count("ERROR=0") == 2
    assert "; sources: raw_access_events WARN; dbt test: PASS=" in said
    taken = "SELECT (SELECT count(*) FROM marts.fct_access_events), max(device_id) FROM marts.rpt_device_current"
    assert sql(taken) == (1, "lock")


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that takes alerts, and those that it has got."""
    got: list[dict[str, Any]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(503 if "unwell" in self.path else 204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/alerts?token=secret", got
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("airflow_database")
def test_a_failing_model_fails_the_run_and_alerts_once_and_the_next_run_makes_up_for_it(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhook: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    url, alerts = webhook
    (tmp_path / "webhook").write_text(f"{url}\n")
    monkeypatch.setenv("ALERT_WEBHOOK_URL_FILE", str(tmp_path / "webhook"))
    stale = "; sources: raw_access_events ERROR STALE,raw_device_health ERROR STALE; "
    assert stale in summary(run_dag(NAME, database, monkeypatch, tmp_path))
    sql("ALTER TABLE marts.fct_access_hourly ADD CONSTRAINT refuses CHECK (opens = 0); SELECT 1")
    sql(
        """INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
           VALUES (gen_random_uuid(), 'lock', now(), 'open', 'app') RETURNING 1"""
    )
    sql("INSERT INTO raw_device_health (device_id, reported_at, is_online) VALUES ('lock', now(), true) RETURNING 1")
    run = run_dag(NAME, database, monkeypatch, tmp_path)
    assert str(run.state) == "failed"
    assert states(run) == {"dbt_run": "failed", "dbt_test": "upstream_failed", "complete": "upstream_failed"}
    [message] = alerts
    error = message["error"]
    assert error
    assert "\n" not in error
    text = f"smart_access_streaming_pipeline.dbt_run failed in {run.run_id} (attempt {message['try_number']}): {error}"
    assert message == {
        "text": text,
        "dag_id": "smart_access_streaming_pipeline",
        "task_id": "dbt_run",
        "run_id": run.run_id,
        "try_number": message["try_number"],
        "error": error,
        "log_url": message["log_url"],
    }
    assert "dbt_run" in message["log_url"]
    assert text in caplog.messages

    sql("ALTER TABLE marts.fct_access_hourly DROP CONSTRAINT refuses; SELECT 1")
    assert "; sources: fresh; " in summary(run_dag(NAME, database, monkeypatch, tmp_path))
    assert sql("SELECT opens FROM marts.fct_access_hourly") == (1,)
    assert len(alerts) == 1


@pytest.mark.usefixtures("airflow_database")
def test_without_the_raw_tables_a_run_names_the_next_step_and_a_webhook_that_is_down_changes_nothing(
    database: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("ALERT_WEBHOOK_URL", f"http://127.0.0.1:{free_port()}/alerts?token=secret")
    run = run_dag(NAME, {**database, "PGDATABASE": "postgres"}, monkeypatch, tmp_path)
    assert str(run.state) == "failed"
    assert states(run) == {"dbt_run": "failed", "dbt_test": "upstream_failed", "complete": "upstream_failed"}
    said = caplog.text + "".join(capfd.readouterr())
    assert "start the consumer once" in said
    assert "ALERT_WEBHOOK_URL did not take the alert: ConnectionError" in said
    assert "token=secret" not in said


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("{server}&unwell", "HTTPError"),
        ("{silent}", "ReadTimeout"),
        ("no address", "InvalidURL"),
        ("http://[::1/secret", "InvalidURL"),
    ],
)
def test_whatever_the_webhook_does_the_alert_ends_in_time_and_hides_the_address(
    url: str, kind: str, webhook: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    callbacks = {task.on_failure_callback[0] for task in streaming_dag().tasks}
    [alert] = callbacks
    monkeypatch.setitem(alert.__globals__, "WEBHOOK_TIMEOUT_S", 0.2)
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", try_number=2, log_url="http://127.0.0.1/log")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        address = url.format(server=webhook[0], silent=f"http://127.0.0.1:{silent.getsockname()[1]}/secret")
        monkeypatch.setenv("ALERT_WEBHOOK_URL", address)
        alert({"ti": ti, "exception": RuntimeError("first line\nsecond line")})
    assert caplog.messages == [
        "d.t failed in r (attempt 2): first line",
        f"ALERT_WEBHOOK_URL did not take the alert: {kind}",
    ]


def test_without_a_webhook_the_alert_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ALERT_WEBHOOK_URL", raising=False)
    [alert] = streaming_dag().get_task("complete").on_failure_callback
    alert({"ti": SimpleNamespace(dag_id="d", task_id="t", run_id="r", try_number=1, log_url="")})
    assert caplog.messages == ["d.t failed in r (attempt 1): no reason given"]
