"""Airflow's three processes (api-server, scheduler, dag-processor) with their own database, `airflow`, in PostgreSQL.

The UI and the REST API are at AIRFLOW_PORT, user airflow, password airflow, on 127.0.0.1 only. Tasks inherit PG* and
the virtual environment's PATH, so the DAGs' dbt finds its database. No triggerer: no DAG here waits in one.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

import pipeline_settings
from local_servers import LOOPBACK, ROOT, ServerError, require_free_port
from local_servers.daemon import Daemon

USER = PASSWORD = "airflow"  # noqa: S105 - the guide's own, on 127.0.0.1
DATABASE = "airflow"
AIRFLOW = Path(sys.executable).with_name("airflow")
COMMANDS = {
    "airflow-api-server": ["api-server"],
    "airflow-scheduler": ["scheduler", "--skip-serve-logs"],
    "airflow-dag-processor": ["dag-processor"],
}


class AirflowServices:
    """Airflow with its state in `home`; `log_folder` gets a log for each process, beside Airflow's own task logs.

    settings: variables that count before those of the environment: another PostgreSQL, Airflow's own settings.
    """

    def __init__(self, home: Path, port: int, log_folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.port = port
        self.url = f"http://{LOOPBACK}:{port}"
        self.daemons = [Daemon(name, home.parent, log_folder / f"{name}.log") for name in COMMANDS]
        self._migration = Daemon("airflow-db-migrate", home.parent, log_folder / "airflow-db-migrate.log")
        self._settings = settings or {}
        self._token = ""
        self._started: dict[str, Daemon] = {}

    def start(self) -> None:
        """Starts the processes; `is_ready` tells when they answer. Raises ServerError."""
        require_free_port(self.port, "set AIRFLOW_PORT=<free port>")
        _create_database(self._postgres())
        self._migration.start([AIRFLOW, "db", "migrate"], env=self._environment())
        if self._migration.wait() != 0:
            raise ServerError(f"airflow db migrate failed.{self._migration.log_tail()}")
        self.start_ended()

    def start_ended(self) -> list[str]:
        """Starts the processes that do not run; their names."""
        ended = [daemon for daemon in self.daemons if not daemon.is_running()]
        for daemon in ended:
            daemon.start([AIRFLOW, *COMMANDS[daemon.name]], env=self._environment())
            self._started[daemon.name] = daemon
        return [daemon.name for daemon in ended]

    def stop(self) -> None:
        # The scheduler first: it starts nothing new then, and its tasks can still report to the api-server
        by_name = {daemon.name: daemon for daemon in self.daemons}
        self._migration.stop()
        for name in ("airflow-scheduler", "airflow-dag-processor", "airflow-api-server"):
            by_name[name].stop(timeout_s=20)

    def started(self) -> list[Daemon]:
        """The processes that should be running by now."""
        return list(self._started.values())

    def is_ready(self) -> bool:
        """Whether the UI answers and both other processes have reported."""
        try:
            health = self._request("GET", "/api/v2/monitor/health")
        except OSError:
            return False
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))

    def unpause(self, dag_id: str) -> bool:
        """Switches the DAG on, as its toggle in the UI does. False: the dag-processor has not read it yet."""
        try:
            self._request("PATCH", f"/api/v2/dags/{quote(dag_id)}", {"is_paused": False})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    def last_run(self, dag_id: str) -> dict[str, Any] | None:
        """The newest run as the REST API tells it: state, start_date, end_date …; None: there was none yet."""
        runs = self._request("GET", f"/api/v2/dags/{quote(dag_id)}/dagRuns?order_by=-run_after&limit=1")["dag_runs"]
        return runs[0] if runs else None

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        """Raises OSError (urllib's errors are of that kind) when Airflow does not answer, or answers with an error."""
        if not self._token and not path.endswith("/health"):
            self._token = self._call("POST", "/auth/token", {"username": USER, "password": PASSWORD})["access_token"]
        try:
            return self._call(method, path, body)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                self._token = ""  # it has expired: the next request takes a new one
            raise

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        # Long: on two busy cores Airflow can take seconds
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _postgres(self) -> dict[str, str]:
        known = pipeline_settings.postgres_parameters()
        return known | {name: value for name, value in self._settings.items() if name in known}

    def _environment(self) -> dict[str, str]:
        """Everything that the processes and their tasks need: settings, libpq's variables, PATH."""
        self.home.mkdir(parents=True, exist_ok=True)
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({USER: PASSWORD}))
        postgres = self._postgres()
        login = f"{quote(postgres['PGUSER'], safe='')}:{quote(postgres['PGPASSWORD'], safe='')}"
        secret = self._secret()
        return {
            **os.environ,
            **postgres,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "AIRFLOW_HOME": str(self.home.absolute()),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": (
                f"postgresql+psycopg2://{login}@{postgres['PGHOST']}:{postgres['PGPORT']}/{DATABASE}"
            ),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "airflow" / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords.absolute()),
            # With the port alone every task would still report to 8080, and fail
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,  # of the log's address in an alert
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": secret,
            "BATCH_DROP_DIR": os.environ.get("BATCH_DROP_DIR") or str(self.home.absolute().parent / "drop"),
            "DBT_TARGET_PATH": str(self.home.absolute() / "dbt-target"),
            "DBT_LOG_PATH": str(self.home.absolute() / "dbt-logs"),
            **self._settings,
        }

    def _secret(self) -> str:
        """Made once: a new one would end every login at each start."""
        file = self.home / "secret"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(64))
        return file.read_text()


def _create_database(postgres: dict[str, str]) -> None:
    """Airflow's metadata beside the project's data, not in it."""
    where = {"host": postgres["PGHOST"], "port": postgres["PGPORT"], "dbname": "postgres"}
    login = {"user": postgres["PGUSER"], "password": postgres["PGPASSWORD"]}
    with closing(pipeline_settings.connect_postgres("smart-access-stack", **where, **login)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            try:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
            except psycopg2.errors.DuplicateDatabase:
                return
