"""Makes the topics that are missing, each with its contract's clean-up policy. Never changes one that exists.

And finds out whether we may use them: a consumer that may not read a topic gets no error from Kafka, only silence.
"""

from __future__ import annotations

import logging
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import AuthorizationError, KafkaError, TopicAlreadyExistsError

from contracts import CONTRACTS

log = logging.getLogger("topics")

RETENTION_MS = 7 * 24 * 3600 * 1000


class NotAllowed(KafkaError):
    """Kafka knows us and does not let us do that; the text names the right that is missing, and whose."""


def ensure_topics(
    connection: dict[str, Any], partitions: int, replication_factor: int, right: str | None = None
) -> list[str]:
    """Creates what is missing and returns its names.

    connection: bootstrap_servers and whatever else a kafka-python client needs to connect.
    right: READ or WRITE, which our user must have on each topic.
    Raises kafka.errors.KafkaTimeoutError when no broker answers, NotAllowed or another KafkaError when one refuses.
    """
    user = f"KAFKA_USERNAME={connection.get('sasl_plain_username', 'unset')}"
    admin = KafkaAdminClient(**connection)
    try:
        made = _make_missing(admin, partitions, replication_factor, user)
        if right:
            for topic in admin.describe_topics(list(CONTRACTS)):
                if right not in (topic["authorized_operations"] or []):
                    raise NotAllowed(f"{user} may not {right} topic {topic['name']}: it needs that ACL")
        return made
    finally:
        admin.close()


def _make_missing(admin: KafkaAdminClient, partitions: int, replication_factor: int, user: str) -> list[str]:
    missing = [topic for topic in CONTRACTS if topic not in set(admin.list_topics())]
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
        except AuthorizationError:
            raise NotAllowed(f"topic {topic} is missing, or hidden from {user}, who may not CREATE it") from None
        made.append(topic)
    if made:
        log.info("made topics %s: %d partitions, %d copies", ", ".join(made), partitions, replication_factor)
    return made


def cluster_id(connection: dict[str, Any]) -> str:
    """The id that Kafka made for itself when its storage was formatted; another one is another log."""
    admin = KafkaAdminClient(**connection)
    try:
        return str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()
