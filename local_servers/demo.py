"""The whole pipeline on this machine until Ctrl+C: python -m local_servers.demo [--minutes N] [--no-airflow] …

Servers, consumer, producer, Airflow, dashboard and a Kafka UI, and what flows between them, live. At the end the
producer flushes, the consumer drains, the rest stops in order, and the reconciliation shows that every record that
Kafka acknowledged is accounted for. The data stays for the next start.

Exit codes: 0 it balances; 1 it does not, or something ended by itself (the end of its log is shown); 2 usage.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
from kafka.errors import KafkaError
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

import pipeline_settings
from local_servers import LOOPBACK, ROOT, ServerError, port_setting, require_free_port, state_dir
from local_servers.airflow_services import PASSWORD, USER, AirflowServices
from local_servers.daemon import Daemon
from local_servers.kafka_cluster import KafkaCluster, names
from local_servers.kafka_security import CONSUMER, PRODUCER
from local_servers.kafka_ui import DEFAULT_PORT as KAFKA_UI_PORT
from local_servers.reconciliation import Accountant, TopicAccount, total
from local_servers.stack import MOST_BROKERS, admin_connection, daemon, start_servers, stop_all

DAG_ID = "smart_access_streaming_pipeline"
DBT_BY_HAND = "python dbt/one_at_a_time.py build --selector models"
SERVERS = (*names(1), *names(MOST_BROKERS), "postgres")
LINE_INTERVAL_S = 5.0  # between two lines when the output is no terminal
DRAIN_TIMEOUT_S = 60.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="The whole pipeline on this machine.")
    parser.add_argument(
        "--minutes",
        type=pipeline_settings.number(float, 0.1, 100_000),
        help="end by itself after so long (default: Ctrl+C ends it)",
    )
    parser.add_argument("--no-airflow", action="store_true", help="for small machines: run dbt by hand instead")
    parser.add_argument("--no-ui", action="store_true", help="no Kafka UI")
    parser.add_argument("--no-dashboard", action="store_true", help="no dashboard")
    return parser.parse_args()


@dataclass
class AirflowView:
    """Airflow starts and is asked in a thread of its own: neither may hold up the status."""

    services: AirflowServices
    on_ready: Callable[[], None]
    text: str = "starting"
    error: ServerError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        try:
            self.services.start()
            while not self.services.is_ready():
                if self.ended.wait(0.5):
                    return
            self.text = "no run yet"
            self.on_ready()
            self._follow_runs()
        except ServerError as error:
            if not self.ended.is_set():
                self.error = error

    def _follow_runs(self) -> None:
        unpaused = False
        while not self.ended.wait(2):
            try:
                unpaused = unpaused or self.services.unpause(DAG_ID)
                run = self.services.last_run(DAG_ID) if unpaused else None
            except OSError as error:
                self.text = f"Airflow does not answer ({error})"
                continue
            if run:
                self.text = f"{run['state']}, {(run['end_date'] or run['start_date'] or 'queued')[:19]}"


class Demo:
    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args = args
        self.console = console
        self.began = time.monotonic()
        self.metrics_port = _metrics_port("CONSUMER_METRICS_PORT", 9101)
        self.urls: dict[str, str] = {}
        self.airflow: AirflowView | None = None
        self.lag_seconds: float | None = None
        self._accountant: Accountant | None = None
        self._kafka: KafkaCluster | None = None
        self._stored_before: int | None = 0  # None from the first new row on
        self._watched: list[Daemon] = []

    # --- start ---

    def check(self) -> None:
        """Raises ServerError if it could not start, while there is nothing to end yet."""
        for service in ("producer", "consumer"):
            if daemon(service).is_running():
                raise ServerError("the demo runs already, or was killed: scripts/stack down ends what is left of it")
        for port, setting in self._ports().values():
            require_free_port(port, f"set {setting}=<free port>")

    def start(self) -> None:
        ports = self._ports()
        self._say("starting Kafka and PostgreSQL …")
        self._kafka = start_servers()
        self._watched = [service for service in map(daemon, SERVERS) if service.is_running()]
        self._accountant = Accountant(admin_connection(self._kafka))
        self._stored_before = total(self._accountant.accounts()).stored
        self._run("consumer", [ROOT / "streaming/kafka_consumer.py"])
        self._run("producer", [ROOT / "streaming/kafka_producer.py"])
        if not self.args.no_airflow:
            port = ports["Airflow"][0]
            services = AirflowServices(state_dir() / "airflow", port, state_dir() / "logs")
            self.airflow = AirflowView(services, lambda: self._say(f"Airflow is ready after {self._seconds():.0f} s"))
            threading.Thread(target=self.airflow.follow, name="airflow", daemon=True).start()
            self.urls["Airflow"] = f"http://{LOOPBACK}:{port} ({USER}/{PASSWORD})"
        if not self.args.no_dashboard:
            port = ports["dashboard"][0]
            options = f"--server.address {LOOPBACK} --server.port {port} --server.headless true"
            quiet = "--server.fileWatcherType none --browser.gatherUsageStats false"
            app = ROOT / "analytics/streamlit_app.py"
            self._run("dashboard", ["-m", "streamlit", "run", app, *options.split(), *quiet.split()])
            self.urls["dashboard"] = f"http://{LOOPBACK}:{port}"
        if not self.args.no_ui and self._kafka and self._kafka.security:
            self._say("no Kafka UI: it has no login to a Kafka that was made with --secure")
        elif not self.args.no_ui:
            self._run("kafka-ui", ["-m", "local_servers.kafka_ui"])
            self.urls["Kafka UI"] = f"http://{LOOPBACK}:{ports['Kafka UI'][0]}"
        if not self.console.is_terminal:
            self._say("; ".join(f"{name} {url}" for name, url in self.urls.items()))

    def _ports(self) -> dict[str, tuple[int, str]]:
        """What will listen, where, and the setting that names the port."""
        wanted = {
            "Airflow": ("AIRFLOW_PORT", 8080, self.args.no_airflow),
            "dashboard": ("STREAMLIT_PORT", 8501, self.args.no_dashboard),
            "Kafka UI": ("KAFKA_UI_PORT", KAFKA_UI_PORT, self.args.no_ui),
            "consumer's metrics": ("CONSUMER_METRICS_PORT", 9101, not self.metrics_port),
            "producer's metrics": ("PRODUCER_METRICS_PORT", 9102, not _metrics_port("PRODUCER_METRICS_PORT", 9102)),
        }
        return {
            name: (port_setting(setting, default), setting)
            for name, (setting, default, left_out) in wanted.items()
            if not left_out
        }

    def _run(self, name: str, arguments: list[str | Path]) -> None:
        service = daemon(name)
        environment = pipeline_settings.postgres_parameters()
        if self._kafka:
            environment["KAFKA_BOOTSTRAP_SERVERS"] = self._kafka.bootstrap_servers
            if self._kafka.security and name in (PRODUCER, CONSUMER):
                environment |= self._kafka.security.client_environment(name)
        service.start([sys.executable, *arguments], env=environment, cwd=ROOT)
        self._watched.append(service)

    # --- watch ---

    def watch(self) -> None:
        """Shows the status until time is up. Raises ServerError when something ended by itself."""
        ends_at = time.monotonic() + self.args.minutes * 60 if self.args.minutes else float("inf")
        next_line = 0.0
        live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        try:
            if live:
                live.start()
            while time.monotonic() < ends_at:
                self._check_alive()
                accounts = self._read()
                if live:
                    live.update(self._screen(accounts), refresh=True)
                elif time.monotonic() >= next_line:
                    self._say(self._line(accounts))
                    next_line = time.monotonic() + LINE_INTERVAL_S
                time.sleep(0.5)
        finally:
            if live:
                live.stop()

    def _check_alive(self) -> None:
        if self.airflow and self.airflow.error:
            raise self.airflow.error
        started = self._watched + (self.airflow.services.started() if self.airflow else [])
        for service in started:
            if not service.is_running():
                raise ServerError(f"{service.name} has ended by itself.{service.log_tail()}")

    def _read(self) -> list[TopicAccount]:
        try:
            accounts = self._accounts()
        except (psycopg2.OperationalError, KafkaError) as error:
            self._check_alive()
            raise ServerError(f"a server does not answer: {str(error).strip()}") from None
        self.lag_seconds = read_lag_seconds(self.metrics_port)
        if self._stored_before is not None and total(accounts).stored > self._stored_before:
            self._stored_before = None
            self._say(f"new rows are in the tables after {self._seconds():.1f} s")
        return accounts

    def _accounts(self) -> list[TopicAccount]:
        assert self._accountant is not None, "asked before the start"
        return self._accountant.accounts()

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _elapsed(self) -> str:
        return time.strftime("%H:%M:%S", time.gmtime(self._seconds()))

    def _lag_text(self) -> str:
        return "-" if self.lag_seconds is None else f"{self.lag_seconds:.1f}"

    def _dbt_text(self) -> str:
        return self.airflow.text if self.airflow else f"off; by hand: {DBT_BY_HAND}"

    def _line(self, accounts: list[TopicAccount]) -> str:
        sums = total(accounts)
        return (
            f"{self._elapsed()} produced={sums.produced} stored={sums.stored} duplicates={sums.duplicates}"
            f" dead={sums.dead} lag={sums.lag} lag_s={self._lag_text()} dbt={self._dbt_text()}"
        )

    def _screen(self, accounts: list[TopicAccount]) -> Group:
        facts = Table.grid(padding=(0, 2))
        facts.add_row("running for", self._elapsed())
        facts.add_row("lag", f"{total(accounts).lag} records, {self._lag_text()} s")
        facts.add_row("last dbt run", self._dbt_text())
        for name, url in self.urls.items():
            facts.add_row(name, url)
        facts.add_row("logs", str(state_dir() / "logs"))
        facts.add_row("", "Ctrl+C ends everything in order")
        return Group(account_table(accounts, "lag"), facts)

    # --- end ---

    def end(self) -> bool:
        """Stops everything in order. True: everything sent was acknowledged and the books balance."""
        sent = self._end_producer()
        balanced = self._drain_and_reconcile() if daemon("consumer").is_running() else False
        if self.airflow:
            self.airflow.ended.set()
        if self._accountant:
            self._accountant.close()
        stop_all()
        return sent and balanced

    def _end_producer(self) -> bool:
        producer = next((service for service in self._watched if service.name == "producer"), None)
        if producer is None:
            return False
        self._say("stopping the producer: it flushes …")
        producer.stop(timeout_s=60)
        # Ended by the signal itself: it had not begun, so there was nothing to flush
        if producer.exit_code() in (0, -signal.SIGTERM):
            return True
        self._say(f"the producer ended with exit code {producer.exit_code()}.{producer.log_tail()}")
        return False

    def _drain_and_reconcile(self) -> bool:
        self._say("the consumer drains …")
        try:
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            while total(self._accounts()).lag and daemon("consumer").is_running():
                if time.monotonic() > deadline:
                    self._say(f"records are left after {DRAIN_TIMEOUT_S:.0f} s: the next start goes on with them")
                    break
                time.sleep(0.1)
            daemon("consumer").stop(timeout_s=60)
            accounts = self._accounts()
        except (psycopg2.OperationalError, KafkaError) as error:
            self._say(f"no reconciliation, a server does not answer: {str(error).strip()}")
            return False
        self.console.print(account_table(accounts, "balanced"))
        balanced = total(accounts).balanced
        self._say("it balances: produced = stored + duplicates + dead" if balanced else "IT DOES NOT BALANCE")
        return balanced

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def account_table(accounts: list[TopicAccount], last: str) -> Table:
    """The topics and their sum; the last column is `lag` or `balanced`."""
    table = Table()
    columns = ["produced", "stored", "duplicates", "dead"]
    columns += [name for name in ("gaps", "suppressed") if any(getattr(account, name) for account in accounts)]
    table.add_column("topic")
    for name in [*columns, last]:
        table.add_column(name, justify="right")
    for account in [*accounts, total(accounts)]:
        verdict = f"{account.lag:,}" if last == "lag" else ("yes" if account.balanced else "NO")
        table.add_row(account.topic, *(f"{getattr(account, name):,}" for name in columns), verdict)
    return table


def read_lag_seconds(metrics_port: int) -> float | None:
    """The consumer's own measure, the largest of its topics; None while it does not tell."""
    if not metrics_port:
        return None
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{metrics_port}/metrics", timeout=2) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except OSError:
        return None
    values = [sample.value for family in families for sample in family.samples if sample.name == "consumer_lag_seconds"]
    return max(values, default=None)


def _metrics_port(setting: str, default: int) -> int:
    """0 switches the metrics off."""
    return 0 if os.environ.get(setting) == "0" else port_setting(setting, default)


def main() -> int:
    args = parse_arguments()
    console = Console()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # SIGINT too: a shell's background job inherits it ignored, and the demo would then never end in order
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    try:
        demo = Demo(args, console)
        demo.check()
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    failed = started = False
    try:
        demo.start()
        started = True
        demo.watch()
    except KeyboardInterrupt:
        console.print()
    except ServerError as error:
        sys.stderr.write(f"{error}\n")
        failed = True
    # From here on everything ends in order: another Ctrl+C would only leave servers behind
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    balanced = demo.end()
    return 0 if balanced and started and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
