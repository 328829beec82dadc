"""The partitions of one member of the group, and the offset at which each goes on.

The ledger says where a partition goes on when it is assigned; from then on the polls move it. Kafka's own committed
offsets have no say in it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import LeaderNotAvailableError
from kafka.structs import OffsetAndMetadata

import pipeline_metrics as metrics
from batch import TopicPartition
from row_text import Encoded
from sink import Sink
from writer import Writer

log = logging.getLogger("consumer")

NO_RECORDS = Encoded([], [], [], set())


class LogMismatch(Exception):
    """Kafka's log and the ledger contradict each other in a way that a person must decide on."""


class Positions:
    """A partition is fresh, which is assigned and paused, until `place_fresh` has asked the ledger."""

    def __init__(self, consumer: KafkaConsumer, writer: Writer, ledger: Sink, accept_gap: bool) -> None:
        self._consumer = consumer
        self._writer = writer
        self._ledger = ledger
        self._accept_gap = accept_gap
        self._lock = threading.Lock()  # the group gives and takes on kafka-python's own thread
        self._next: dict[TopicPartition, int] = {}  # the first offset of each partition that has not been read yet
        self._ends: dict[TopicPartition, int] = {}  # where each partition ended when it was placed
        self._fresh: set[KafkaPartition] = set()

    # --- what the group says ---

    def take(self, partitions: list[KafkaPartition]) -> None:
        for partition in partitions:
            self._consumer.seek(partition, 0)  # any position: without one, poll would ask Kafka for its own
            self._consumer.pause(partition)
        with self._lock:
            self._fresh |= set(partitions)
        if partitions:
            log.info("assigned %s", names(partitions))

    def give_up(self, partitions: list[KafkaPartition], timeout: float) -> None:
        """Has what was read of them written first, for up to `timeout` seconds."""
        with self._lock:
            self._fresh -= set(partitions)
            for topic, partition in partitions:
                self._next.pop((topic, partition), None)
        if partitions:
            self._writer.drop({(topic, partition) for topic, partition in partitions}, timeout)
            log.info("gave up %s", names(partitions))

    # --- where they go on ---

    def has_fresh(self) -> bool:
        with self._lock:
            return bool(self._fresh)

    def place_fresh(self) -> None:
        """Takes fresh partitions to where the ledger says that they go on. Raises LogMismatch, and what Kafka and
        PostgreSQL raise; then they are as fresh as before."""
        with self._lock:
            fresh = sorted(self._fresh)
        try:
            begin = self._consumer.beginning_offsets(fresh)
            end = self._consumer.end_offsets(fresh)
        except KeyError as error:  # so kafka-python says of one that was just added
            raise LeaderNotAvailableError(f"no leader known of {error}") from error
        ledger = self._ledger.positions({tuple(partition): begin[partition] for partition in fresh})
        with self._lock:
            for partition in fresh:
                if partition in self._fresh and partition in self._consumer.assignment():
                    self._place(partition, ledger[tuple(partition)], begin[partition], end[partition])
            self._fresh -= set(fresh)

    def _place(self, partition: KafkaPartition, at: int, begin: int, end: int) -> None:
        name = f"{partition.topic}[{partition.partition}]"
        if at > end:
            raise LogMismatch(
                f"{name}: the ledger is at offset {at}, but Kafka's log ends at {end}: the topic was made anew or cut "
                "short. To read what it holds now, set CONSUMER_GROUP to a new name; duplicates are absorbed"
            )
        if at < begin:
            lost = f"{name}: offsets {at} to {begin - 1} ({begin - at} records) were deleted by Kafka before being read"
            if not self._accept_gap:
                raise LogMismatch(f"{lost}. To go on without them, start with --accept-gap: the ledger records the gap")
            log.error("%s: accepted, recorded in the ledger as a gap", lost)
            metrics.GAPS.labels(partition.topic).inc(begin - at)
            self._writer.add(partition.topic, partition.partition, at, begin, NO_RECORDS)
        at = max(at, begin)
        self._next[tuple(partition)] = at
        self._ends[tuple(partition)] = end
        self._writer.stored_to[tuple(partition)] = at
        self._consumer.seek(partition, at)
        self._consumer.resume(partition)

    def place_anew(self, partitions: Iterable[KafkaPartition]) -> None:
        """Makes them fresh again; by then what was read of them is stored."""
        self._writer.flush(timeout=30)
        with self._lock:
            for partition in partitions:
                self._consumer.pause(partition)
                self._next.pop(tuple(partition), None)
                self._fresh.add(partition)

    # --- what is read ---

    def hand_over(self, topic: str, partition: int, high: int, encoded: Encoded) -> None:
        """Gives the writer what was read of a partition up to the offset `high`, exclusive."""
        with self._lock:
            low = self._next.get((topic, partition))
            if low is not None:  # else the partition was taken away while its records were on the way
                self._writer.add(topic, partition, low, high, encoded)
                self._next[topic, partition] = high

    def pass_gaps(self) -> None:
        """Lets the ledger pass the markers at the end of a transaction, so that an idle partition has no lag."""
        for topic, partition in list(self._next):
            kafka_partition = KafkaPartition(topic, partition)
            if kafka_partition in self._consumer.assignment():
                position = self._consumer.position(kafka_partition, timeout_ms=100)
                if position is not None and position > self._next.get((topic, partition), position):
                    self.hand_over(topic, partition, position, NO_RECORDS)

    def read_again(self, polled: Iterable[KafkaPartition]) -> None:
        """Has the next poll bring what was polled and not handed over."""
        with self._lock:
            for partition in set(polled) & self._consumer.assignment():
                if tuple(partition) in self._next:
                    self._consumer.seek(partition, self._next[tuple(partition)])

    def resume(self) -> None:
        """Lets all go on that were paused, but not the fresh ones."""
        with self._lock:
            placed = {KafkaPartition(*partition) for partition in self._next}
            self._consumer.resume(*placed & self._consumer.assignment())

    # --- what is stored ---

    def stored(self) -> dict[KafkaPartition, OffsetAndMetadata]:
        with self._lock:
            stored = {tp: self._writer.stored_to[tp] for tp in self._next if tp in self._writer.stored_to}
        return {KafkaPartition(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in stored.items()}

    def have_caught_up(self) -> bool:
        """Whether all is stored that was there when the partitions were placed."""
        with self._lock:
            stored = [self._writer.stored_to.get(partition, -1) >= self._ends[partition] for partition in self._next]
            return bool(stored) and not self._fresh and all(stored)


def names(partitions: Iterable[KafkaPartition]) -> str:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in sorted(partitions):
        by_topic.setdefault(topic, []).append(partition)
    return ", ".join(f"{topic}{numbers}" for topic, numbers in by_topic.items())
