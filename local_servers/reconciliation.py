"""What Kafka holds against what the ledger accounts for, by topic: what was stored, duplicates, dead and the rest."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition

import pipeline_settings
import topics
from contracts import CONTRACTS

LEDGER = """
SELECT topic, partition, start_offset, next_offset, stored, duplicates, dead, gaps, suppressed, balanced
FROM ingest_ledger WHERE cluster_id = %s AND consumer_group = %s
"""


@dataclass
class TopicAccount:
    """One topic's records. produced: from where the ledger begins to the log's end; lag: not yet in the ledger."""

    topic: str
    produced: int = 0
    stored: int = 0
    duplicates: int = 0
    dead: int = 0
    gaps: int = 0
    suppressed: int = 0
    lag: int = 0
    partitions_balanced: bool = True

    @property
    def balanced(self) -> bool:
        accounted = self.stored + self.duplicates + self.dead + self.gaps + self.suppressed
        return self.partitions_balanced and self.produced == accounted


class Accountant:
    """Reads both sides again and again over one connection to Kafka. Close it.

    connection: what a kafka-python client needs to connect as somebody who may read all topics.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._cluster_id = topics.cluster_id(connection)
        self._group = os.environ.get("CONSUMER_GROUP") or "smart-access-sink"
        # It never polls: only the log's ends are asked
        self._kafka = KafkaConsumer(**connection, group_id=None, isolation_level="read_committed")

    def close(self) -> None:
        self._kafka.close()

    def accounts(self) -> list[TopicAccount]:
        """Raises psycopg2.OperationalError or kafka.errors.KafkaError when a server does not answer."""
        # The ledger first: what it has, Kafka had before
        with closing(pipeline_settings.connect_postgres("smart-access-demo")) as ledger, ledger.cursor() as cursor:
            cursor.execute(LEDGER, (self._cluster_id, self._group))
            rows = cursor.fetchall()
        accounts = {topic: TopicAccount(topic) for topic in CONTRACTS}
        positions: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for topic, partition, start, position, stored, duplicates, dead, gaps, suppressed, balanced in rows:
            account = accounts[topic]
            positions[topic, partition] = (start, position)
            account.stored += stored
            account.duplicates += duplicates
            account.dead += dead
            account.gaps += gaps
            account.suppressed += suppressed
            account.partitions_balanced &= balanced
        for (topic, partition), end in self._ends().items():
            start, position = positions[topic, partition]
            accounts[topic].produced += end - start
            accounts[topic].lag += end - position
        return list(accounts.values())

    def _ends(self) -> dict[tuple[str, int], int]:
        partitions = [
            TopicPartition(topic, number)
            for topic in CONTRACTS
            for number in self._kafka.partitions_for_topic(topic) or ()
        ]
        return {(place.topic, place.partition): end for place, end in self._kafka.end_offsets(partitions).items()}


def total(accounts: list[TopicAccount]) -> TopicAccount:
    whole = TopicAccount("all")
    for account in accounts:
        for field in ("produced", "stored", "duplicates", "dead", "gaps", "suppressed", "lag"):
            setattr(whole, field, getattr(whole, field) + getattr(account, field))
        whole.partitions_balanced &= account.balanced
    return whole
