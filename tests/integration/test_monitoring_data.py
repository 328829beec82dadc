"""Every query of the dashboards, and everything that an alert looks at, has an answer while the pipeline runs: real
Kafka, PostgreSQL with marts, scripts, exporters and Prometheus; of Airflow its database, with a run in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hurried_monitoring import HurriedMonitoring, wait_for
from running_consumer import ROOT, Pipeline, get

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.monitoring import Monitoring
    from local_servers.postgres_server import PostgresServer

# What has no answer while all is well
EMPTY_WHEN_WELL = {
    "sum by (sqlstate) (increase(consumer_retries_total[5m]))",  # counts outages of PostgreSQL
    "sum(increase(consumer_gap_records_total[5m]))",  # counts records that were given up
    "up == 0",  # names what does not answer
}
AIRFLOW_ROWS = """
INSERT INTO dag_bundle (name, active) VALUES ('dags-folder', true);
INSERT INTO dag (dag_id, is_paused, is_stale, bundle_name, max_active_tasks, max_consecutive_failed_dag_runs,
                 has_task_concurrency_limits, exceeds_max_non_backfill, timetable_type, partition_mapper_info)
VALUES ('smart_access_streaming_pipeline', false, false, 'dags-folder', 16, 0, false, false, '', '[]');
INSERT INTO dag_run (dag_id, run_id, run_type, state, run_after, start_date, end_date, span_status)
VALUES ('smart_access_streaming_pipeline', 'scheduled__1', 'scheduled', 'success', now() - interval '9 minutes',
        now() - interval '9 minutes', now() - interval '8 minutes', 'ended');
INSERT INTO job (job_type, state, latest_heartbeat)
VALUES ('SchedulerJob', 'running', now() - interval '3 seconds'), ('SchedulerJob', 'failed', now() - interval '3 days'),
       ('DagProcessorJob', 'running', now() - interval '4 seconds');
"""
FLEET = ("--households", "4", "--malformed-share", "0.02", "--duplicate-share", "0.02")


@contextmanager
def running(command: list[str | Path], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A script of the project's, until the block ends."""
    with log.open("wb") as output:
        env = os.environ | environment
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(90) == 0, log.read_text(encoding="utf-8")


def selectors() -> set[str]:
    """What the alerts look at: each metric with its matchers, without what is done with it."""
    alerts = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text(encoding="utf-8"))
    text = " ".join(rule["expr"] for group in alerts["groups"] for rule in group["rules"])
    return set(re.findall(r"(?<![\w:])(?:up|[a-z]+[_:][\w:]+)(?:\{[^}]*\})?(?![\w:]|\s*\()", text))


def panels() -> set[str]:
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "monitoring/grafana").rglob("*.json")]
    return {target["expr"] for board in boards for panel in board["panels"] for target in panel.get("targets", [])}


class Observed:
    """The pipeline's real processes and what watches them, on free ports."""

    def __init__(self, broker: KafkaBroker, postgres: PostgresServer, folder: Path) -> None:

        from local_servers import free_port
        from local_servers.monitoring import PORTS

        self.folder = folder
        self.pipeline = Pipeline(broker, postgres.environment(), folder)
        ports = {job: free_port() for job in PORTS}
        assert broker.metrics_port
        self.monitoring: Monitoring = HurriedMonitoring(folder, folder, [broker.metrics_port], ports)

    def close(self) -> None:
        self.monitoring.stop()
        self.pipeline.close()

    def ask(self, expression: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expression})
        answer = json.loads(get(self.monitoring.ports["prometheus"], f"/api/v1/query?{query}"))
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def told(self, job: str) -> dict[str, float]:
        """Of an exporter: the sum of each metric's samples."""
        found: dict[str, float] = {}
        for line in get(self.monitoring.ports[job], "/metrics").splitlines():
            if not line.startswith("#"):
                name = re.split(r"[{ ]", line)[0]
                found[name] = found.get(name, 0) + float(line.rsplit(" ", 1)[1])
        return found

    def produce(self, *arguments: str) -> Any:
        command = ["streaming/kafka_producer.py", *FLEET, *arguments]
        port = str(self.monitoring.ports["producer"])
        environment = {**self.pipeline.environment, "PRODUCER_METRICS_PORT": port}
        return running(command, self.folder / "producer.log", **environment)


@pytest.fixture
def observed(
    make_broker: Callable[..., KafkaBroker],
    make_postgres: Callable[..., PostgresServer],
    servers_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Observed]:
    from local_servers import ServerError, free_port
    from local_servers.monitoring import find_programs

    try:
        find_programs()
    except ServerError as error:
        pytest.skip(str(error))
    postgres = make_postgres()
    for name, value in postgres.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEALTH_CHECK_INTERVAL", "300")
    folder = servers_folder / "observed"
    folder.mkdir()
    with migrated_airflow(postgres, folder):
        broker = make_broker(metrics_port=free_port())
    with closing(Observed(broker, postgres, folder)) as observed:
        yield observed


@contextmanager
def migrated_airflow(postgres: PostgresServer, folder: Path) -> Iterator[None]:
    """Beside the block, Airflow makes its database; then that of a scheduler that runs."""
    postgres.create_database("airflow")
    env = postgres.environment("airflow")
    place = f"{env['PGUSER']}:{env['PGPASSWORD']}@{env['PGHOST']}:{env['PGPORT']}/airflow"
    settings = {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{place}",
    }
    log = folder / "airflow.log"
    with running(["-m", "airflow", "db", "migrate"], log, **settings) as migration:
        yield
        finish(migration, log)
    with closing(postgres.connect("airflow")) as connection, connection.cursor() as cursor:
        cursor.execute(AIRFLOW_ROWS)


@pytest.mark.slow
def test_every_query_has_an_answer(observed: Observed) -> None:
    pipeline, monitoring, folder = observed.pipeline, observed.monitoring, observed.folder
    port = str(monitoring.ports["consumer"])
    with pipeline.consumer(CONSUMER_METRICS_PORT=port) as consumer:
        with observed.produce("--profile", "realistic", "--max-speed", "--duration", "4320") as producer:
            finish(producer, folder / "producer.log")
        pipeline.wait_until_consumed(consumer)
        monitoring.start()

        told = observed.told("warehouse")
        assert told["pg_exporter_last_scrape_error"] == 1  # there are no marts yet
        assert told["warehouse_ledger_stored_total"] > 1000
        assert told["warehouse_fleet_devices"] == 12
        assert "warehouse_marts_batteries" not in told
        monitoring.daemons["warehouse-exporter"].stop()  # it would remember for a minute that there are none

        models = ["dbt/one_at_a_time.py", "--quiet", "build", "--selector", "models"]
        dbt = {name: str(folder / "dbt") for name in ("DBT_TARGET_PATH", "DBT_LOG_PATH")}
        with running(models, folder / "dbt.log", **dbt) as build:
            finish(build, folder / "dbt.log")
        with observed.produce():
            monitoring.start()
            told = observed.told("warehouse")
            assert told["pg_exporter_last_scrape_error"] == told["warehouse_ledger_unbalanced"] == 0
            assert observed.told("airflow")["pg_exporter_last_scrape_error"] == 0
            asked = panels() | selectors()
            assert asked > EMPTY_WHEN_WELL
            unanswered = asked - EMPTY_WHEN_WELL

            def all_answered() -> bool:
                unanswered.difference_update({expression for expression in unanswered if observed.ask(expression)})
                return not unanswered

            wait_for(all_answered, lambda: unanswered)
            assert [expression for expression in EMPTY_WHEN_WELL if observed.ask(expression)] == []
            groups = json.loads(get(monitoring.ports["prometheus"], "/api/v1/rules"))["data"]["groups"]
            assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
            assert observed.ask('ALERTS{alertstate="firing"}') == []
