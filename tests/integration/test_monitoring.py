"""The servers of the monitoring around a real pipeline: each target tells what it should, and an alert arrives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
import psycopg2
import pytest
from hurried_monitoring import HurriedMonitoring, wait_for

import pipeline_metrics
import pipeline_settings
from local_servers import ROOT, ServerError, free_port, kafka_jars
from local_servers.monitoring import LOGIN, NAMES, PORTS, Monitoring, find_programs
from topics import ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.postgres_server import PostgresServer

try:
    find_programs()
except ServerError as error:
    pytest.skip(str(error), allow_module_level=True)

# kafka_jmx.yml's names; alerts and dashboards rest on them
BROKER_METRICS = {
    "kafka_server_replicamanager_underreplicatedpartitions",
    "kafka_server_replicamanager_underminisrpartitioncount",
    "kafka_server_replicamanager_partitioncount",
    "kafka_server_replicamanager_leadercount",
    "kafka_controller_kafkacontroller_activecontrollercount",
    "kafka_controller_kafkacontroller_offlinepartitionscount",
    "kafka_server_brokertopicmetrics_messagesin_total",
    "kafka_server_brokertopicmetrics_bytesin_total",
    "kafka_server_brokertopicmetrics_bytesout_total",
    "kafka_log_log_size",
    "jvm_memory_used_bytes",
}
AIRFLOW_TABLES = ("dag", "dag_run", "import_error", "job", "task_instance")


class Webhook:
    """Takes what Alertmanager sends."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """The test says what is wrong."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts?token=secret"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Watched:
    """A pipeline, its monitoring and who gets the alerts."""

    def __init__(self, monitoring: Monitoring, webhook: Webhook, settings: dict[str, str]) -> None:
        self.monitoring = monitoring
        self.webhook = webhook
        self.settings = settings

    def ask(self, path: str, **parameters: str) -> Any:
        return read(f"{self.monitoring.url('prometheus')}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]

    def targets(self) -> dict[str, str]:
        """Job and instance: up, down or unknown."""
        found = self.ask("targets", state="active")["activeTargets"]
        return {f"{one['labels']['job']} {one['labels']['instance']}": one["health"] for one in found}

    def metrics(self, job: str) -> set[str]:
        return {series["__name__"] for series in self.ask("series", **{"match[]": f'{{job="{job}"}}'})}


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def script(name: str, log: Path, settings: dict[str, str], *arguments: str) -> Iterator[None]:
    command = [sys.executable, f"streaming/{name}.py", *arguments]
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stdout=output, stderr=output) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0, log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def broker(servers_folder: Path) -> Iterator[KafkaBroker]:
    from local_servers.kafka_broker import KafkaBroker

    place = servers_folder / "kafka-with-agent" / "kafka"
    broker = KafkaBroker(place, free_port(), heap="256m", fast_start=True, metrics_port=free_port())
    broker.start()
    ensure_topics(broker.admin_connection(), 2, 1)
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[PostgresServer]:
    """With the project's tables, and Airflow's as far as its exporter is let in."""
    from local_servers.postgres_server import PostgresServer

    server = PostgresServer(servers_folder / "watched-postgres" / "data", free_port())
    server.start()
    with closing(server.connect(server.database)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
    server.create_database("airflow")
    with closing(server.connect("airflow")) as connection, connection.cursor() as cursor:
        for table in (*AIRFLOW_TABLES, "connection"):
            cursor.execute(f"CREATE TABLE {table} (anything int)")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def watched(broker: KafkaBroker, server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, webhook = tmp_path_factory.mktemp("watched"), Webhook()
    ports = {job: free_port() for job in PORTS}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**server.environment(), "ALERT_WEBHOOK_URL": webhook.url}.items():
            environment.setenv(name, value)
        assert broker.metrics_port
        monitoring = HurriedMonitoring(folder, folder, [broker.metrics_port], ports)
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "CONSUMER_METRICS_PORT": str(ports["consumer"]),
            "PRODUCER_METRICS_PORT": str(ports["producer"]),
        }
        try:
            monitoring.start()
            with (
                script("kafka_consumer", folder / "consumer.out", settings),
                script("kafka_producer", folder / "producer.out", settings, "--malformed-share", "0.2"),
            ):
                yield Watched(monitoring, webhook, settings)
        finally:
            monitoring.stop()
            webhook.close()


@pytest.fixture
def own_stack(servers_folder: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """scripts/stack with a state folder and ports of the test's own; gives what it printed."""
    state = servers_folder / request.node.name
    state.mkdir()
    for kept in (kafka_jars.jars_folder(), kafka_jars.jars_folder().with_name("maven")):
        (state / kept.name).symlink_to(kept)
    environment = {
        **os.environ,
        **{setting: str(free_port()) for setting in ("PGPORT", *(setting for setting, _ in PORTS.values()))},
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "KAFKA_METRICS_PORT": str(free_port()),
        "PGHOST": "127.0.0.1",
        "STACK_DIR": str(state),
        "STACK_EXTERNAL": "",
    }

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "local_servers.stack", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or arguments == ("status",), done.stderr
        return done.stdout

    yield run
    if list(state.glob("*.pid")):
        run("down")


@pytest.mark.slow
def test_the_stack_starts_shows_and_ends_it(own_stack: Callable[..., str]) -> None:
    own_stack("up")
    said = own_stack("up", "--monitoring")
    # the broker has no agent, and Prometheus sees it
    assert "scripts/stack down, then scripts/stack up --monitoring" in said
    [url] = re.findall(r"Prometheus +(\S+)", said)
    down = f"{url}/api/v1/query?query=" + urllib.parse.quote("up == 0")
    wait_for(lambda: "kafka" in [one["metric"]["job"] for one in read(down)["data"]["result"]], lambda: read(down))
    running = re.findall(r"^(\S+) +running", own_stack("status"), re.MULTILINE)
    # there is no Airflow here
    assert set(running) == {*NAMES, "kafka", "postgres"} - {"airflow-exporter"}
    said = own_stack("down")
    ended = re.findall(r"stopping ([\w-]+)", said)
    assert set(ended) == set(running)
    # who raises alarms ends before what it watches
    assert ended[:2] == ["prometheus", "alertmanager"]


def test_every_target_is_up(watched: Watched, broker: KafkaBroker) -> None:
    wait_for(lambda: set(watched.targets().values()) == {"up"}, watched.targets)
    where = {**watched.monitoring.ports, "kafka": broker.metrics_port}
    assert set(watched.targets()) == {f"{job} 127.0.0.1:{port}" for job, port in where.items()}


def declared(prefix: str) -> set[str]:
    """The samples of pipeline_metrics whose names begin so, as Prometheus keeps them."""
    suffixes = {
        prometheus_client.Counter: ["_total"],
        prometheus_client.Gauge: [""],
        prometheus_client.Histogram: ["_bucket", "_sum", "_count"],
    }
    metrics = [value for value in vars(pipeline_metrics).values() if type(value) in suffixes]
    names = {metric.describe()[0].name: suffixes[type(metric)] for metric in metrics}
    return {name + suffix for name, found in names.items() if name.startswith(prefix) for suffix in found}


# Nothing of that kind happens here, and a metric with labels has no sample before it does
OF_A_BAD_DAY = {"consumer_retries_total", "consumer_gap_records_total", "producer_records_failed_total"}


@pytest.mark.parametrize(
    ("job", "names"),
    [
        ("consumer", declared("consumer_") - OF_A_BAD_DAY),
        ("producer", declared("producer_") - OF_A_BAD_DAY),
        ("kafka", BROKER_METRICS),
        ("warehouse", {"pg_up", "warehouse_ledger_stored_total", "warehouse_fleet_devices"}),
        ("airflow", {"pg_up"}),
        ("node", {"node_filesystem_avail_bytes", "node_memory_MemAvailable_bytes", "node_cpu_seconds_total"}),
        ("prometheus", {"prometheus_build_info"}),
        ("alertmanager", {"alertmanager_notifications_failed_total"}),
    ],
)
def test_every_program_tells_its_metrics(watched: Watched, job: str, names: set[str]) -> None:
    wait_for(lambda: names <= watched.metrics(job), lambda: sorted(names - watched.metrics(job)))


def test_a_brokers_metrics_name_topic_and_partition(watched: Watched) -> None:
    sizes = 'kafka_log_log_size{topic="smart-access.events"}'
    wait_for(lambda: watched.ask("query", query=sizes)["result"], lambda: "no size")
    found = watched.ask("query", query=sizes)["result"]
    assert {one["metric"]["partition"] for one in found} == {"0", "1"}
    came_in = 'kafka_server_brokertopicmetrics_messagesin_total{topic="smart-access.events"}'
    wait_for(lambda: watched.ask("query", query=came_in)["result"], lambda: "no records")
    assert float(watched.ask("query", query=came_in)["result"][0]["value"][1]) > 0


def post_alert(watched: Watched, **labels: str) -> None:
    url = f"{watched.monitoring.url('alertmanager')}/api/v2/alerts"
    alert = [{"labels": labels, "startsAt": datetime.now(UTC).isoformat()}]
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(alert).encode(), headers), timeout=10).close()


def received(watched: Watched) -> set[str]:
    return {alert["labels"]["alertname"] for message in watched.webhook.messages for alert in message["alerts"]}


def test_an_alert_reaches_the_webhook_and_what_follows_from_it_does_not(watched: Watched) -> None:
    # the cause comes first: Alertmanager looks at what is held back when it is about to send
    post_alert(watched, alertname="KafkaDown", severity="page", job="kafka")
    post_alert(watched, alertname="KafkaNoController", severity="page")
    post_alert(watched, alertname="LedgerOutOfBalance", severity="page")
    wait_for(lambda: {"KafkaDown", "LedgerOutOfBalance"} <= received(watched), lambda: watched.webhook.messages)
    alerts = read(f"{watched.monitoring.url('alertmanager')}/api/v2/alerts")
    states = {one["labels"]["alertname"]: one["status"]["state"] for one in alerts}
    assert states["KafkaNoController"] == "suppressed"
    assert "KafkaNoController" not in received(watched)


def test_prometheus_finds_its_alertmanager_and_its_rules(watched: Watched) -> None:
    wait_for(lambda: watched.ask("alertmanagers")["activeAlertmanagers"], lambda: watched.ask("alertmanagers"))
    [found] = watched.ask("alertmanagers")["activeAlertmanagers"]
    assert found["url"].startswith(watched.monitoring.url("alertmanager"))
    groups = watched.ask("rules")["groups"]
    assert {Path(group["file"]).name for group in groups} == {"recording_rules.yml", "alerts.yml"}
    wait_for(
        lambda: {rule["health"] for group in watched.ask("rules")["groups"] for rule in group["rules"]} == {"ok"},
        lambda: watched.ask("rules"),
    )


def test_a_second_start_finds_everything_running(watched: Watched) -> None:
    pids = {name: daemon.pid for name, daemon in watched.monitoring.daemons.items()}
    loaded = watched.ask("status/runtimeinfo")["lastConfigTime"]
    watched.monitoring.start()
    assert {name: daemon.pid for name, daemon in watched.monitoring.daemons.items()} == pids
    wait_for(lambda: watched.ask("status/runtimeinfo")["lastConfigTime"] > loaded, lambda: loaded)
    assert watched.ask("status/runtimeinfo")["reloadConfigSuccess"]


def test_the_exporters_login_reads_what_is_asked_and_nothing_else(watched: Watched, server: PostgresServer) -> None:
    password = (watched.monitoring.folder / f"{LOGIN}.password").read_text()

    def try_to(statement: str, database: str) -> None:
        connection = psycopg2.connect(
            host="127.0.0.1", port=server.port, dbname=database, user=LOGIN, password=password
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    try_to("SELECT * FROM live.ledger", server.database)
    try_to("SELECT * FROM dag_run", "airflow")
    for statement, database in (
        ("SELECT * FROM raw_access_events", server.database),
        ("SELECT * FROM dead_letters", server.database),
        ("SELECT * FROM connection", "airflow"),
        ("SET transaction_read_only = off; DELETE FROM dag_run", "airflow"),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            try_to(statement, database)


def test_no_password_and_no_token_can_be_seen(watched: Watched) -> None:
    password = (watched.monitoring.folder / f"{LOGIN}.password").read_text()
    for daemon in watched.monitoring.daemons.values():
        process = daemon.process()
        assert process
        said = daemon.log_file.read_text(encoding="utf-8")
        assert "collector failed" not in said
        seen = " ".join(process.cmdline()) + said
        assert password not in seen
        assert "token=secret" not in seen
    for file in ("prometheus.yml", "alertmanager.yml", f"{LOGIN}.password"):
        assert (watched.monitoring.folder / file).stat().st_mode & 0o077 == 0
