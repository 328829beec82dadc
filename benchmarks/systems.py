"""The systems that are compared: how each is started on the same topic and the same table, and how one sees it fail."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import kafka_connect
import psutil
from preloaded_topic import ROOT, TOPIC

from local_servers import free_port
from local_servers.daemon import Daemon
from local_servers.postgres_server import PostgresServer

OURS = "this project"
QUIXSTREAMS = "quixstreams[postgresql]==3.28.1"
SINKS = Path(__file__).with_name("sinks")
START_S = 180
SESSION_S = 6  # the least that Kafka allows by default; the same for all, as after a kill each waits for so long


class Place(NamedTuple):
    """What a system works on."""

    folder: Path  # of its files and logs
    servers: str
    postgres: PostgresServer
    group: str


class System:
    """One of those compared. `settings` are what differs from its defaults."""

    def __init__(self, name: str, settings: Mapping[str, str | int | bool]) -> None:
        self.name = name
        self.settings = dict(settings)
        self.daemons: list[Daemon] = []

    def commands(self, place: Place) -> list[list[str]]:
        raise NotImplementedError

    def environment(self, place: Place) -> dict[str, str]:
        return place.postgres.environment()

    def start(self, place: Place) -> None:
        """Starts its processes, or starts them again at the same place."""
        label = "".join(letter if letter.isalnum() else "-" for letter in self.name)
        self.daemons = []
        for number, command in enumerate(self.commands(place), start=1):
            daemon = Daemon(f"{label}-{number}", place.folder, place.folder / f"{label}-{number}.log")
            self.daemons.append(daemon)
            daemon.start(command, env=self.environment(place), cwd=place.folder)  # quixstreams writes where it stands

    def processes(self) -> list[psutil.Process]:
        return [process for daemon in self.daemons if (process := daemon.process())]

    def failure(self) -> str:
        """Empty while it works; else what it says."""
        for daemon in self.daemons:
            if not daemon.is_running():
                lines = [line.strip() for line in daemon.log_tail().splitlines()] or ["it ended"]
                # PostgreSQL's DETAIL comes after it
                errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Violation)\b", line)]
                return (errors or lines)[-1][:200]
        return ""

    def stop(self) -> None:
        for daemon in self.daemons:
            daemon.send(signal.SIGTERM)
        for daemon in self.daemons:
            daemon.stop(timeout_s=20)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        for daemon in self.daemons:
            daemon.send(signal.SIGKILL)
        for daemon in self.daemons:
            daemon.kill()


class Ours(System):
    """streaming/kafka_consumer.py, so many of them in one group; all its defaults but the session's length."""

    def __init__(self, consumers: int = 1) -> None:
        super().__init__(OURS if consumers == 1 else f"{OURS}, {consumers} consumers", {})
        self._consumers = consumers

    def commands(self, place: Place) -> list[list[str]]:
        return [[sys.executable, str(ROOT / "streaming/kafka_consumer.py")]] * self._consumers

    def environment(self, place: Place) -> dict[str, str]:
        return place.postgres.environment() | {
            "KAFKA_BOOTSTRAP_SERVERS": place.servers,
            "CONSUMER_GROUP": place.group,
            "CONSUMER_METRICS_PORT": "0",
            "SESSION_TIMEOUT": str(SESSION_S),
        }


class RowByRow(System):
    """One INSERT … ON CONFLICT a record, a commit after so many (benchmarks/sinks/row_by_row.py)."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"row by row, commit every {rows}", {"rows": rows})

    def commands(self, place: Place) -> list[list[str]]:
        rows = str(self.settings["rows"])
        return [[sys.executable, str(SINKS / "row_by_row.py"), place.servers, place.group, TOPIC, rows]]


class QuixStreams(System):
    """quixstreams' PostgreSQLSink (benchmarks/sinks/quix_sink.py), in an environment of its own."""

    def __init__(self, python: Path, commit_every: int) -> None:
        super().__init__("quixstreams PostgreSQLSink", {"commit_every": commit_every})
        self._python = python

    def commands(self, place: Place) -> list[list[str]]:
        every = str(self.settings["commit_every"])
        return [[str(self._python), str(SINKS / "quix_sink.py"), place.servers, place.group, TOPIC, every]]


def quixstreams_python(folder: Path) -> Path:
    """The interpreter of a new environment with quixstreams in it. Raises SystemExit when it cannot be had."""
    python = folder / "quixstreams/bin/python"
    uv = Path(sys.executable).with_name("uv")
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--python", sys.executable, folder / "quixstreams"],
        [uv, "pip", "install", "--quiet", "--python", python, QUIXSTREAMS],
    ]
    for command in commands:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"cannot install {QUIXSTREAMS}: {made.stderr.strip()}")
    return python


class KafkaConnect(System):
    """Kafka Connect with Debezium's JDBC sink in one process. mode: insert or upsert.

    Beside the settings told, what cannot be read as JSON goes to a topic for dead letters (errors.tolerance=all).
    """

    def __init__(self, mode: str, tasks: int, batch_size: int, unnest: bool = True) -> None:
        settings: dict[str, str | int | bool] = {
            "insert.mode": mode,
            "tasks.max": tasks,
            "batch.size": batch_size,
            "consumer.override.max.poll.records": batch_size,
            "dialect.postgres.unnest.insert.enabled": unnest,
        }
        if mode == "upsert":
            # Without it two records of one key in a batch of unnest are an error
            settings |= {"primary.key.mode": "record_value", "primary.key.fields": "event_id"}
            settings["use.reduction.buffer"] = True
        super().__init__(f"Kafka Connect, {mode}{'' if unnest else ', row-wise'}", settings)
        self._rest_port = 0

    def commands(self, place: Place) -> list[list[str]]:
        self._rest_port = free_port()
        worker = {"bootstrap.servers": place.servers}
        connector = {
            "connection.url": f"jdbc:postgresql://{place.postgres.environment()['PGHOST']}:{place.postgres.port}/"
            f"{place.postgres.database}",
            "connection.username": place.postgres.user,
            "connection.password": place.postgres.password,
            "collection.name.format": "raw_access_events",
            "schema.evolution": "none",
            "consumer.override.group.id": place.group,
            "consumer.override.session.timeout.ms": SESSION_S * 1000,
            "consumer.override.heartbeat.interval.ms": 2000,
            "errors.tolerance": "all",
            "errors.deadletterqueue.topic.name": kafka_connect.DEAD_LETTERS,
            "errors.deadletterqueue.topic.replication.factor": 1,
            **self.settings,
        }
        return [kafka_connect.worker_command(place.folder, self._rest_port, worker, _as_text(connector))]

    def start(self, place: Place) -> None:
        super().start(place)
        # Java's start and the plug-ins' take long on a busy machine, and nobody's patience is to depend on that
        self.daemons[0].wait_until(lambda: bool(kafka_connect.states(self._rest_port)), START_S, interval_s=0.5)

    def failure(self) -> str:
        causes = (cause for _, cause in kafka_connect.states(self._rest_port))
        return super().failure() or next(filter(None, causes), "")


def _as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}
