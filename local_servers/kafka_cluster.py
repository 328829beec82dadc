"""Kafka as the settings want it: one broker or several, plain or secured. Start, stop and faults of one or of all.

Brokers of a cluster are controllers too, so the loss of one of three leaves a majority. Each has its folder, its pid
file and its log: kafka for a single one, kafka-1, kafka-2 … for several.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local_servers import ServerError, free_port
from local_servers.daemon import Daemon
from local_servers.kafka_broker import KafkaBroker, new_cluster_id
from local_servers.kafka_security import KafkaSecurity


def names(brokers: int) -> list[str]:
    """The brokers' folders and processes."""
    return ["kafka"] if brokers == 1 else [f"kafka-{number}" for number in range(1, brokers + 1)]


def stop_together(brokers: Sequence[Daemon]) -> None:
    """Ends the brokers of one Kafka. One after the other, the last would wait in vain for a majority to let it go."""
    for broker in brokers:
        broker.send(signal.SIGCONT)
        broker.send(signal.SIGTERM)
    for broker in brokers:
        broker.stop(timeout_s=60)


class KafkaCluster:
    """Brokers side by side in `folder`, listening on `ports`; `options` go to each KafkaBroker.

    metrics_port: of the first broker; the others' follow it. None: they tell no metrics.
    """

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        log_folder: Path | None = None,
        security: KafkaSecurity | None = None,
        metrics_port: int | None = None,
        **options: Any,
    ) -> None:
        self.security = security
        self.brokers = [
            KafkaBroker(
                folder / name,
                port,
                log_file=(log_folder or folder) / f"{name}.log",
                node_id=number,
                security=security,
                name=name,
                metrics_port=None if metrics_port is None else metrics_port + number - 1,
                **options,
            )
            for number, (name, port) in enumerate(zip(names(len(ports)), ports, strict=True), start=1)
        ]

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    def admin_connection(self) -> dict[str, Any]:
        return self.brokers[0].admin_connection() | {"bootstrap_servers": self.bootstrap_servers.split(",")}

    def start(self) -> None:
        """Starts what does not run; returns when each broker answers. Raises ServerError."""
        self._require_same_security()
        if self.is_running():
            return
        if self.security:
            self.security.make()
        voters = self._controllers_of_the_living()
        while len(voters) < len(self.brokers):
            voters.append(free_port())
        cluster_id = new_cluster_id()
        absent = [broker for broker in self.brokers if not broker.is_running()]
        for broker in absent:
            broker.voters = voters
            broker.launch(cluster_id)
        # Together: the first answers only when there is a majority
        for broker in absent:
            broker.wait_until_ready()

    def stop(self) -> None:
        stop_together([broker.daemon for broker in self.brokers])

    def is_running(self) -> bool:
        """Whether all of them do."""
        return all(broker.is_running() for broker in self.brokers)

    def _controllers_of_the_living(self) -> list[int]:
        """The controllers' ports that running brokers know: a broker that comes back must know the same."""
        for broker in self.brokers:
            if broker.is_running():
                return broker.written_voters()
        return []

    def _require_same_security(self) -> None:
        if not any(broker.has_data for broker in self.brokers):
            return
        if self.security and not self.security.exists():
            raise ServerError(
                "Kafka's data here was made without --secure, so it knows no users: set STACK_DIR to another folder,"
                " or remove the data with scripts/stack reset"
            )
