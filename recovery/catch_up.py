"""What a consumer will find when it goes on from a backup's ledger: how much is to be read again, and what is lost."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from contracts import CONTRACTS
from recovery.backup_folder import Position
from topics import cluster_id


def catch_up(connection: dict[str, Any], ledger: list[Position], group: str) -> list[str]:
    """The lines to say. Raises KafkaError."""
    cluster = cluster_id(connection)
    positions = {
        (p.topic, p.partition): p.next_offset for p in ledger if (p.cluster_id, p.consumer_group) == (cluster, group)
    }
    begins, ends = _bounds(connection)
    if not positions:
        return [
            _why_afresh(cluster, group, ledger),
            f"it will read {sum(ends.values()) - sum(begins.values()):,} records",
        ]
    lines, records = [], 0
    for place, end in ends.items():
        begin = begins[place]
        at = positions.get(place, begin)
        name = f"{place[0]}[{place[1]}]"
        if at < begin:
            lines.append(
                f"GAP: {name}: offsets {at} to {begin - 1} ({begin - at:,} records) came after the backup, and Kafka"
                " has deleted them since. A later backup may have them; else the consumer needs --accept-gap, once"
            )
        elif at > end:
            lines.append(
                f"MISMATCH: {name}: the backup was at offset {at}, Kafka's log ends at {end}: the topic was made anew"
                " or cut short. The consumer will refuse: give it a new CONSUMER_GROUP; duplicates are absorbed"
            )
        records += max(0, end - max(at, begin))
    lines += [f"MISSING: Kafka has no {topic}[{number}] any more" for topic, number in positions.keys() - ends.keys()]
    return [*lines, f"Kafka holds {records:,} records after the backup: the consumer will read them"]


def _why_afresh(cluster: str, group: str, ledger: list[Position]) -> str:
    if cluster in {p.cluster_id for p in ledger}:
        groups = ", ".join(sorted({p.consumer_group for p in ledger if p.cluster_id == cluster}))
        return f"the backup's ledger has no group {group} (CONSUMER_GROUP), but {groups}: {group} starts afresh"
    return f"this Kafka ({cluster}) is another one than the backup's ledger speaks of: the consumer starts afresh in it"


def _bounds(connection: dict[str, Any]) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int]]:
    """The first offset of each partition, and the one after its last."""
    consumer = KafkaConsumer(
        **connection, group_id=None, enable_auto_commit=False, isolation_level="read_committed", metrics_enabled=False
    )
    with closing(consumer):
        places = [TopicPartition(topic, n) for topic in CONTRACTS for n in consumer.partitions_for_topic(topic) or ()]
        if not places:
            return {}, {}
        begins, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
        return {tuple(place): begins[place] for place in places}, {tuple(place): ends[place] for place in places}
