"""Prometheus, Alertmanager and the exporters as ordinary processes; the programs are Debian's or upstream's, installed.

They work with the files of monitoring/. What the settings change in these, ports and the webhook's address, goes into
copies beside the data that they keep. The PostgreSQL exporters log in as `monitoring`, which reads statistics and what
the dashboard reads; its password is made once and kept in a file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml  # type: ignore[import-untyped]

import pipeline_settings
from local_servers import LOOPBACK, ROOT, ServerError, port_setting, require_free_port
from local_servers.airflow_services import DATABASE as AIRFLOW_DATABASE
from local_servers.daemon import Daemon
from local_servers.postgres_server import binaries_folder

FILES = ROOT / "monitoring"
LOGIN = "monitoring"
# In this order they end: who raises alarms before what it watches
NAMES = ("prometheus", "alertmanager", "airflow-exporter", "warehouse-exporter", "node-exporter")
# By the names of Debian's packages, each also its program's name: upstream's program
PROGRAMS = {
    "prometheus": "prometheus",
    "prometheus-alertmanager": "alertmanager",
    "prometheus-node-exporter": "node_exporter",
    "prometheus-postgres-exporter": "postgres_exporter",
}
# The jobs of prometheus.yml: the setting and the default of each one's port
PORTS = {
    "prometheus": ("PROMETHEUS_PORT", 9090),
    "alertmanager": ("ALERTMANAGER_PORT", 9095),
    "node": ("NODE_EXPORTER_PORT", 9100),
    "warehouse": ("WAREHOUSE_EXPORTER_PORT", 9187),
    "airflow": ("AIRFLOW_EXPORTER_PORT", 9188),
    "consumer": ("CONSUMER_METRICS_PORT", 9101),
    "producer": ("PRODUCER_METRICS_PORT", 9102),
}
READY_PATHS = {"prometheus": "/-/ready", "alertmanager": "/-/ready"}
VERIFIED_TLS = ("require", "verify-ca", "verify-full")


class Monitoring:
    """The processes with their pid files in `folder`; their own files are in its subfolder `monitoring`.

    ports: by job, other than the settings'. kafka_ports: where the brokers' metrics are.
    """

    def __init__(
        self,
        folder: Path,
        log_folder: Path,
        kafka_ports: Sequence[int],
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self.folder = folder / "monitoring"
        self.ports = {job: port for job in PORTS if (port := (ports or {}).get(job, _port(job)))}
        self._kafka_ports = list(kafka_ports)
        self._postgres = pipeline_settings.postgres_parameters()
        self.daemons = {name: Daemon(name, folder, log_folder / f"{name}.log") for name in NAMES}

    def url(self, job: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[job]}"

    def start(self) -> None:
        """Starts what does not run, and has the rest read its configuration again. Raises ServerError."""
        programs = find_programs()
        for folder in (self.folder, self.folder / "prometheus", self.folder / "alertmanager"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        password_file = self._make_login()
        databases = {"warehouse": self._postgres["PGDATABASE"], "airflow": AIRFLOW_DATABASE}
        if not self._let_into_airflow():
            del databases["airflow"]
            self.ports.pop("airflow", None)
        for job, database in databases.items():
            queries = f"--extend.query-path={FILES / f'{job}_queries.yml'}"
            # what the queries ask is all that is wanted; the exporter's own are for other versions of PostgreSQL
            options = [queries, "--disable-default-metrics", "--disable-settings-metrics"]
            command = [*_without(programs["postgres_exporter"], "bgwriter"), *options]
            self._start(job, command, self._exporter_login(database, password_file))
        self._start("node", _without(programs["node_exporter"], "systemd"))
        receiver = self._write_private("alertmanager.yml", self.alertmanager_configuration())
        options = [f"--config.file={receiver}", f"--storage.path={self.folder / 'alertmanager'}"]
        self._start("alertmanager", [programs["alertmanager"], *options, "--cluster.listen-address="])
        scrapes = self._write_private("prometheus.yml", self.prometheus_configuration())
        options = [f"--config.file={scrapes}", f"--storage.tsdb.path={self.folder / 'prometheus'}"]
        self._start("prometheus", [programs["prometheus"], *options])

    def stop(self) -> None:
        for daemon in self.daemons.values():
            daemon.stop()

    def prometheus_configuration(self) -> dict[str, Any]:
        """monitoring/prometheus.yml with these ports, without the jobs that have nothing to scrape here."""
        configuration = _read("prometheus.yml")
        configuration["rule_files"] = [str(FILES / name) for name in configuration["rule_files"]]
        configuration["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": self._targets("alertmanager")}]}]
        for scrape in configuration["scrape_configs"]:
            if scrape["job_name"] in (*PORTS, "kafka", "kafka-lag"):
                # the default comes first; what somebody has added after it stays
                scrape["static_configs"][0]["targets"][:1] = self._targets(scrape["job_name"])
        configuration["scrape_configs"] = [
            scrape for scrape in configuration["scrape_configs"] if scrape.get("static_configs") != [{"targets": []}]
        ]
        return configuration

    def alertmanager_configuration(self) -> dict[str, Any]:
        """monitoring/alertmanager.yml; with ALERT_WEBHOOK_URL, or what its file says, somebody gets the alerts."""
        configuration = _read("alertmanager.yml")
        address = pipeline_settings.secret("ALERT_WEBHOOK_URL")
        if address:
            [receiver] = configuration["receivers"]
            receiver["webhook_configs"] = [{"url": address}]
        return configuration

    def _targets(self, job: str) -> list[str]:
        ports = self._kafka_ports if job == "kafka" else [self.ports[job]] if job in self.ports else []
        return [f"{LOOPBACK}:{port}" for port in ports]

    def _start(self, job: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        name = job if job in self.daemons else f"{job}-exporter"
        daemon = self.daemons[name]
        if daemon.is_running():
            if job in READY_PATHS:
                daemon.send(signal.SIGHUP)
            return
        port = self.ports[job]
        require_free_port(port, f"set {PORTS[job][0]}=<free port>")
        daemon.start([*command, f"--web.listen-address={LOOPBACK}:{port}"], environment)
        daemon.wait_until(lambda: _answers(self.url(job) + READY_PATHS.get(job, "/")), timeout_s=30)

    def _make_login(self) -> Path:
        """The file of the password; PostgreSQL knows it too. Raises ServerError."""
        file = self.folder / f"{LOGIN}.password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(24))
        self._psql(self._postgres["PGDATABASE"], "exporter_login.sql", MONITORING_PASSWORD=file.read_text())
        return file

    def _let_into_airflow(self) -> bool:
        """Opens what the queries ask of Airflow's database. False: there is none here, or not yet."""
        connect = pipeline_settings.connect_postgres
        with closing(connect("smart-access-stack")) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (AIRFLOW_DATABASE,))
            exists: bool = cursor.rowcount == 1
        if exists:
            self._psql(AIRFLOW_DATABASE, "airflow_grants.sql")
        return exists

    def _psql(self, database: str, file: str, **variables: str) -> None:
        command: list[str | Path] = [binaries_folder() / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-f", FILES / file]
        environment = {**os.environ, **self._postgres, "PGDATABASE": database, **variables}
        made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            reason = made.stderr.strip().split("\n")[0].rpartition("ERROR:")[2].strip()
            raise ServerError(
                f"PGUSER={self._postgres['PGUSER']} cannot let the exporters in ({reason}): let the owner of"
                f" PostgreSQL run monitoring/{file} by psql on {database}"
            )

    def _exporter_login(self, database: str, password_file: Path) -> dict[str, str]:
        """What the exporter reads of its environment; a command line can be seen by everybody on the machine."""
        mode = os.environ.get("PGSSLMODE")
        place = f"{self._postgres['PGHOST']}:{self._postgres['PGPORT']}/{quote(database, safe='')}"
        interval = os.environ.get("HEALTH_CHECK_INTERVAL") or "30"
        return {
            # its driver does not know libpq's default, which tries TLS and does without
            "DATA_SOURCE_URI": f"{place}?sslmode={mode if mode in VERIFIED_TLS else 'disable'}",
            "DATA_SOURCE_USER": LOGIN,
            "DATA_SOURCE_PASS_FILE": str(password_file),
            "PGOPTIONS": f"-c smart_access.health_check_interval={interval}",
        }

    def _write_private(self, name: str, configuration: dict[str, Any]) -> Path:
        """The webhook's address often holds a token."""
        file = self.folder / name
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(configuration, sort_keys=False))
        return file


def find_programs() -> dict[str, str]:
    """Where each program is, by upstream's name. Raises ServerError with what to install."""
    found = {ours: shutil.which(debians) or shutil.which(ours) for debians, ours in PROGRAMS.items()}
    missing = [package for package, ours in PROGRAMS.items() if found[ours] is None]
    if missing:
        raise ServerError(
            "not installed: " + ", ".join(PROGRAMS[package] for package in missing)
            + ". Debian, Ubuntu: apt install --no-install-recommends " + " ".join(missing)
        )  # fmt: skip
    return {ours: place for ours, place in found.items() if place}


def _without(program: str, collector: str) -> list[str]:
    """The program without a collector that cannot work here and would say so at each scrape, where it has that one."""
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    known = f"--collector.{collector} " in told.stdout + told.stderr
    return [program, f"--no-collector.{collector}"] if known else [program]


def _port(job: str) -> int:
    """As the settings say; 0: nothing listens, as a script without metrics."""
    setting, default = PORTS[job]
    if job in ("consumer", "producer") and os.environ.get(setting) == "0":
        return 0
    return port_setting(setting, default)


def _read(name: str) -> dict[str, Any]:
    configuration: dict[str, Any] = yaml.safe_load((FILES / name).read_text(encoding="utf-8"))
    return configuration


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
