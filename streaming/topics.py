"""Makes the topics that are missing, each with its contract's clean-up policy. Never changes one that exists."""

from __future__ import annotations

import logging
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import TopicAlreadyExistsError

from contracts import CONTRACTS

log = logging.getLogger("topics")

RETENTION_MS = 7 * 24 * 3600 * 1000


def ensure_topics(connection: dict[str, Any], partitions: int, replication_factor: int) -> list[str]:
    """Creates what is missing and returns its names.

    connection: bootstrap_servers and whatever else a kafka-python client needs to connect.
    Raises kafka.errors.KafkaTimeoutError when no broker answers, KafkaError when one refuses.
    """
    admin = KafkaAdminClient(**connection)
    try:
        missing = [topic for topic in CONTRACTS if topic not in set(admin.list_topics())]
        if not missing:
            return []
        made = []
        for topic in missing:
            configs = {"cleanup.policy": "delete", "retention.ms": str(RETENTION_MS)}
            if CONTRACTS[topic].compacted:
                configs = {"cleanup.policy": "compact"}
            new = {"num_partitions": partitions, "replication_factor": replication_factor, "configs": configs}
            try:
                admin.create_topics({topic: new}, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                continue  # another script was quicker
            made.append(topic)
        log.info("made topics %s: %d partitions, %d copies", ", ".join(made), partitions, replication_factor)
        return made
    finally:
        admin.close()


def cluster_id(connection: dict[str, Any]) -> str:
    """The id that Kafka made for itself when its storage was formatted; another one is another log."""
    admin = KafkaAdminClient(**connection)
    try:
        return str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()
