"""One membership in the consumer group: polls, decodes, and hands what it finds to the writer.

Partitions come and go as the group decides. A new one stays paused until the ledger has said where it goes on; one that
is taken away is first written up to what has been read. If anything contradicts that (the fence, another cluster), the
session ends and the caller begins a new one from the ledger.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    RetriableError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import OffsetAndMetadata

import pipeline_metrics as metrics
from assignor import Assignor
from batch import TopicPartition
from contracts import CONTRACTS
from lag_report import LagReport
from record import Record
from record_decoder import speed_up
from row_text import Encoded, encode
from sink import Sink, is_outage
from topics import cluster_id
from writer import Status, Writer

log = logging.getLogger("consumer")

MAX_POLL_RECORDS = 2000  # keeps the next fetch under way while these are decoded; larger polls lose that
# A fetch and its transaction cost 10 ms of CPU, all three parts together, whatever is in them: on two cores rows are
# there sooner when a few more of them go together (benchmarks/RESULTS.md, Latency)
GATHER_S = 0.005
HANDOVER_TIMEOUT_S = 5.0  # a partition that moves waits so long for its rows to be written, then they are read again
# So long the group waits for a member that does not join again. One that is dead it has noticed before, mostly; not one
# that left while Kafka itself was frozen. The default is five minutes, in which nobody reads anything
GROUP_PATIENCE_S = 60.0
METADATA_AGE_S = 10.0  # the default lets partitions that were added wait for up to five minutes
REPORT_EVERY_S = 5.0
SILENCE_S = 1.0
AWAY_S = 0.2  # from a poll that does not reach Kafka to the next
KAFKA_COMMIT_EVERY_S = 0.5


class ClusterChanged(Exception):
    """Kafka has another cluster id than when the session began: it was wiped and made anew."""


class LogMismatch(Exception):
    """Kafka's log and the ledger contradict each other in a way that a person must decide on."""


class Session(ConsumerRebalanceListener):
    def __init__(self, connection: dict[str, Any], group: str, instance_id: str, session_timeout: float,
                 accept_gap: bool, until_caught_up: bool, retention_days: int | None, cluster: str, ledger: Sink,
                 writer: Writer, status: Status):  # fmt: skip
        self._connection = connection
        self._accept_gap = accept_gap
        self._until_caught_up = until_caught_up
        self._retention = timedelta(days=retention_days) if retention_days else None
        self._cluster = cluster
        self._ledger = ledger
        self._writer = writer
        self._status = status
        self._lock = threading.Lock()  # the group's callbacks come on kafka-python's own thread
        self._next: dict[TopicPartition, int] = {}  # the first offset of each partition that has not been read yet
        self._ends: dict[TopicPartition, int] = {}  # where each partition ended when it was placed
        self._fresh: set[KafkaPartition] = set()  # assigned, paused, and not yet placed by the ledger
        self._assignor = Assignor()
        self._joins_again = bool(instance_id)
        self._kafka_commit_at = self._report_at = self._heard_at = self._reached_at = time.monotonic()
        self._is_away = False
        self._consumer = KafkaConsumer(
            **connection,
            group_id=group,
            group_instance_id=instance_id or None,
            session_timeout_ms=int(session_timeout * 1000),
            heartbeat_interval_ms=int(session_timeout * 1000 / 3.5),
            max_poll_interval_ms=int(GROUP_PATIENCE_S * 1000),
            partition_assignment_strategy=[self._assignor],
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",  # 'earliest' would restart at 0, silently, whenever an offset is out of range
            max_poll_records=MAX_POLL_RECORDS,
            fetch_max_bytes=8 * 1024 * 1024,
            # One fetch is under way at a time. Where it has only partitions in it that are read to their end, it waits
            # at the broker, and the others wait with it: for half a second by default, a quarter of the rate
            fetch_max_wait_ms=50,
            reconnect_backoff_max_ms=1_000,  # the default lets a broker that is back wait for up to 30 s
            metadata_max_age_ms=int(METADATA_AGE_S * 1000),
            metrics_enabled=False,
        )
        self._is_fast = speed_up(self._consumer)
        self._consumer.subscribe(list(CONTRACTS), listener=self)
        self._lag_report = LagReport(self._consumer, writer)
        # kafka-python may otherwise join before it knows the partitions, assign none of them, and leave it at that
        if missing := self._missing_topic():
            raise LogMismatch(f"topic {missing} is missing, or this user may not read it")

    # --- called by kafka-python, on its own thread ---

    def on_partitions_assigned(self, assigned: list[KafkaPartition]) -> None:
        for partition in assigned:
            self._consumer.seek(partition, 0)  # any position: without one, poll would ask Kafka for its own
            self._consumer.pause(partition)
        with self._lock:
            self._fresh |= set(assigned)
        if assigned:
            log.info("assigned %s", _names(assigned))
        if self._joins_again:
            # A static member is let in without a rebalance. If its predecessor was about to give partitions up, the
            # group waits for it to join once more before it gives them to others: without this, for ever
            self._joins_again = False
            self._consumer._coordinator.request_rejoin()

    def on_partitions_revoked(self, revoked: list[KafkaPartition]) -> None:
        self._give_up(revoked, HANDOVER_TIMEOUT_S)

    def on_partitions_lost(self, lost: list[KafkaPartition]) -> None:
        self._give_up(lost, 0)

    def _give_up(self, partitions: list[KafkaPartition], timeout: float) -> None:
        with self._lock:
            self._fresh -= set(partitions)
            for topic, partition in partitions:
                self._next.pop((topic, partition), None)
        if partitions:
            self._writer.drop({(topic, partition) for topic, partition in partitions}, timeout)
            log.info("gave up %s", _names(partitions))

    # --- the polling thread ---

    def run(self, stop: threading.Event) -> None:
        """Polls until `stop` is set. Raises ClusterChanged, LogMismatch, Fenced, or what the writer died of."""
        while not stop.is_set():
            self._status.polled_at = time.monotonic()
            self._place_fresh()
            try:
                if self._writer.wait_for_room(timeout=1.0):
                    self._poll(timeout_ms=200)
                else:
                    self._stay_in_group()
            except OffsetOutOfRangeError as error:
                self._replace(error.args[0])
            except LogTruncationError as error:
                self._require_same_cluster()
                raise LogMismatch(
                    f"{_names(error.divergent_offsets)}: Kafka has lost records that were read from it. "
                    "To read what it holds now, set CONSUMER_GROUP to a new name; duplicates are absorbed"
                ) from error
            except KafkaConnectionError as error:
                # kafka-python goes on as the same member. To end here would be to join as another one later, and the
                # group would wait for this one until its session ends
                if time.monotonic() - self._reached_at > GROUP_PATIENCE_S:
                    raise
                if not self._is_away:
                    log.warning("Kafka is away, waiting: %s", error)
                self._is_away = True
                stop.wait(AWAY_S)
            self._commit_to_kafka()
            self._report()
            if self._until_caught_up and self._has_caught_up():
                log.info("caught up with what Kafka held at the start")
                stop.set()

    def _has_caught_up(self) -> bool:
        """Whether all is stored that was there when the partitions were placed."""
        with self._lock:
            stored = [self._writer.stored_to.get(partition, -1) >= self._ends[partition] for partition in self._next]
            return bool(stored) and not self._fresh and all(stored)

    def _poll(self, timeout_ms: int) -> None:
        polled = self._consumer.poll(timeout_ms=timeout_ms)
        self._reached_at, self._is_away = time.monotonic(), False
        if polled:
            # After a silence it may be another Kafka that speaks: a broker takes longer than that to be made anew, and
            # the group may not have noticed yet. What was read there must not be counted here.
            try:
                if time.monotonic() - self._heard_at > SILENCE_S:
                    self._require_same_cluster()
            except RetriableError:
                self._read_again(polled)  # it is away again
                return
            self._heard_at = time.monotonic()
        count = 0
        oldest = datetime.now(UTC) - self._retention if self._retention else None
        for kafka_partition, records in polled.items():
            count += len(records)
            topic, partition = kafka_partition
            if not self._is_fast:
                records = [Record(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]
            encoded = encode(CONTRACTS[topic], partition, records, oldest)
            metrics.KEY_MISMATCHES.labels(topic).inc(len(encoded.mismatched))
            self._hand_over(topic, partition, Record(*records[-1]).offset + 1, encoded)
        if not polled:
            self._pass_gaps()
        more_to_come = count >= MAX_POLL_RECORDS
        self._writer.close_batch(more_to_come)
        if polled and not more_to_come:
            time.sleep(GATHER_S)

    def _read_again(self, polled: Iterable[KafkaPartition]) -> None:
        with self._lock:
            for partition in set(polled) & self._consumer.assignment():
                if tuple(partition) in self._next:
                    self._consumer.seek(partition, self._next[tuple(partition)])

    def _hand_over(self, topic: str, partition: int, high: int, encoded: Encoded) -> None:
        with self._lock:
            low = self._next.get((topic, partition))
            if low is not None:  # else the partition was taken away while its records were on the way
                self._writer.add(topic, partition, low, high, encoded)
                self._next[topic, partition] = high

    def _pass_gaps(self) -> None:
        """Lets the ledger pass the markers at the end of a transaction, so that an idle partition has no lag."""
        for topic, partition in list(self._next):
            kafka_partition = KafkaPartition(topic, partition)
            if kafka_partition in self._consumer.assignment():
                position = self._consumer.position(kafka_partition, timeout_ms=100)
                if position is not None and position > self._next.get((topic, partition), position):
                    self._hand_over(topic, partition, position, Encoded([], [], [], set()))

    def _stay_in_group(self) -> None:
        """While there is no room: a poll that fetches nothing, so that the group does not take us for dead."""
        assigned = self._consumer.assignment()
        self._consumer.pause(*assigned)
        self._consumer.poll(timeout_ms=0)
        with self._lock:
            placed = [KafkaPartition(*partition) for partition in self._next]
            self._consumer.resume(*set(placed) & self._consumer.assignment())

    def _place_fresh(self) -> None:
        """Takes newly assigned partitions to where the ledger says that they go on."""
        with self._lock:
            fresh = sorted(self._fresh)
        if not fresh:
            return
        try:
            self._require_same_cluster()
            begin = self._consumer.beginning_offsets(fresh)
            end = self._consumer.end_offsets(fresh)
            ledger = self._ledger.positions({tuple(partition): begin[partition] for partition in fresh})
        except psycopg2.Error as error:
            self._ledger.close()
            if not is_outage(error):
                raise
            if self._status.state != "backing_off":
                log.warning("PostgreSQL is down, backing off: %s", str(error).strip().splitlines()[0])
                self._status.set("backing_off", "PostgreSQL is down, backing off")
            return
        except (RetriableError, KeyError) as error:  # KeyError: kafka-python knows no leader yet of one just added
            log.warning("Kafka does not tell the partitions' bounds, trying again: %r", error)
            return
        with self._lock:
            for partition in fresh:
                if partition in self._fresh and partition in self._consumer.assignment():
                    self._place(partition, ledger[tuple(partition)], begin[partition], end[partition])
            self._fresh -= set(fresh)
        self._status.set("running")

    def _require_same_cluster(self) -> None:
        if cluster_id(self._connection) != self._cluster:
            raise ClusterChanged(f"cluster {self._cluster} is gone")

    def _require_topics(self) -> None:
        """A topic that is deleted is given up by the group in silence."""
        if missing := self._missing_topic():
            raise UnknownTopicOrPartitionError(f"topic {missing} is gone, or may no longer be read")

    def _share_out_what_nobody_has(self) -> None:
        known = [
            KafkaPartition(topic, partition)
            for topic in CONTRACTS
            for partition in self._consumer.partitions_for_topic(topic) or ()
        ]
        if left := self._assignor.given_to_nobody(known, for_s=METADATA_AGE_S):
            log.warning("nobody has %s: sharing out anew", _names(left))
            self._consumer._coordinator.request_rejoin()

    def _missing_topic(self) -> str | None:
        return next((topic for topic in CONTRACTS if not self._consumer.partitions_for_topic(topic)), None)

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
            self._writer.add(partition.topic, partition.partition, at, begin, Encoded([], [], [], set()))
        at = max(at, begin)
        self._next[tuple(partition)] = at
        self._ends[tuple(partition)] = end
        self._writer.stored_to[tuple(partition)] = at
        self._consumer.seek(partition, at)
        self._consumer.resume(partition)

    def _replace(self, out_of_range: dict[KafkaPartition, int]) -> None:
        """Has partitions whose offset Kafka does not have placed again: by then what was read of them is stored."""
        self._writer.flush(timeout=30)
        with self._lock:
            for partition in out_of_range:
                self._consumer.pause(partition)
                self._next.pop(tuple(partition), None)
                self._fresh.add(partition)

    def _commit_to_kafka(self) -> None:
        """For lag tools only; nothing here reads it, so a failure is of no consequence and is not waited for."""
        if time.monotonic() - self._kafka_commit_at >= KAFKA_COMMIT_EVERY_S:
            self._kafka_commit_at = time.monotonic()
            offsets = self._offsets()
            if offsets:
                self._consumer.commit_async(offsets)

    def _offsets(self) -> dict[KafkaPartition, OffsetAndMetadata]:
        with self._lock:
            stored = {tp: self._writer.stored_to[tp] for tp in self._next if tp in self._writer.stored_to}
        return {KafkaPartition(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in stored.items()}

    def _report(self) -> None:
        if time.monotonic() - self._report_at < REPORT_EVERY_S:
            return
        self._report_at = time.monotonic()
        self._require_topics()
        self._share_out_what_nobody_has()
        if not self._lag_report.tell(self._offsets()):
            gc.collect()  # kafka-python leaves a socket behind for each connection refused, one a second in an outage

    def close(self) -> None:
        """Leaves the group. What was not written before is left to the next owner."""
        try:
            self._consumer.commit(self._offsets(), timeout_ms=5000)
        except KafkaError as error:
            log.warning("could not tell Kafka the offsets (the ledger has them): %s", error)
        self._consumer.close(autocommit=False, timeout_ms=5000)


def _names(partitions: Iterable[KafkaPartition]) -> str:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in sorted(partitions):
        by_topic.setdefault(topic, []).append(partition)
    return ", ".join(f"{topic}{numbers}" for topic, numbers in by_topic.items())
