"""One membership in the consumer group: polls, decodes, and hands what it finds to the writer.

Partitions come and go as the group decides. A new one stays paused until the ledger has said where it goes on; one that
is taken away is first written up to what has been read (positions.py). If anything contradicts that (the fence, another
cluster), the session ends and the caller begins a new one from the ledger.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
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

import pipeline_metrics as metrics
from assignor import Assignor
from contracts import CONTRACTS
from lag_report import LagReport
from positions import LogMismatch, Positions, names
from record import Record
from record_decoder import speed_up
from row_text import encode
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


class ClusterChanged(Exception):
    """Kafka has another cluster id than when the session began: it was wiped and made anew."""


class Session(ConsumerRebalanceListener):
    def __init__(self, connection: dict[str, Any], group: str, instance_id: str, session_timeout: float,
                 accept_gap: bool, until_caught_up: bool, retention_days: int | None, cluster: str, ledger: Sink,
                 writer: Writer, status: Status):  # fmt: skip
        self._connection = connection
        self._until_caught_up = until_caught_up
        self._retention = timedelta(days=retention_days) if retention_days else None
        self._cluster = cluster
        self._ledger = ledger
        self._writer = writer
        self._status = status
        self._assignor = Assignor()
        self._joins_again = bool(instance_id)
        self._report_at = self._heard_at = self._reached_at = time.monotonic()
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
        self._positions = Positions(self._consumer, writer, ledger, accept_gap)
        self._consumer._cluster.add_listener(self._on_metadata)
        self._consumer.subscribe(list(CONTRACTS), listener=self)
        self._lag_report = LagReport(self._consumer, writer)
        # kafka-python may otherwise join before it knows the partitions, assign none of them, and leave it at that
        if missing := self._missing_topic():
            raise LogMismatch(f"topic {missing} is missing, or this user may not read it")

    # --- called by kafka-python, on its own thread ---

    def _on_metadata(self, cluster: object) -> None:
        self._reached_at, self._is_away = time.monotonic(), False

    def on_partitions_assigned(self, assigned: list[KafkaPartition]) -> None:
        self._positions.take(assigned)
        if self._joins_again:
            # A static member is let in without a rebalance. If its predecessor was about to give partitions up, the
            # group waits for it to join once more before it gives them to others: without this, for ever
            self._joins_again = False
            self._consumer._coordinator.request_rejoin()

    def on_partitions_revoked(self, revoked: list[KafkaPartition]) -> None:
        self._positions.give_up(revoked, HANDOVER_TIMEOUT_S)

    def on_partitions_lost(self, lost: list[KafkaPartition]) -> None:
        self._positions.give_up(lost, 0)

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
                self._positions.place_anew(error.args[0])
            except LogTruncationError as error:
                self._require_same_cluster()
                raise LogMismatch(
                    f"{names(error.divergent_offsets)}: Kafka has lost records that were read from it. "
                    "To read what it holds now, set CONSUMER_GROUP to a new name; duplicates are absorbed"
                ) from error
            except KafkaConnectionError as error:
                # kafka-python goes on as the same member. To end here would be to join as another one later, and the
                # group would wait for this one until its session ends
                if not self._is_away:
                    log.warning("Kafka is away, waiting: %s", error)
                self._is_away = True
                stop.wait(AWAY_S)
            self._report()
            if self._until_caught_up and self._positions.have_caught_up():
                log.info("caught up with what Kafka held at the start")
                stop.set()

    def _poll(self, timeout_ms: int) -> None:
        polled = self._consumer.poll(timeout_ms=timeout_ms)
        if polled:
            # After a silence it may be another Kafka that speaks: a broker takes longer than that to be made anew, and
            # the group may not have noticed yet. What was read there must not be counted here.
            try:
                if time.monotonic() - self._heard_at > SILENCE_S:
                    self._require_same_cluster()
            except RetriableError:
                self._positions.read_again(polled)  # it is away again
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
            self._positions.hand_over(topic, partition, Record(*records[-1]).offset + 1, encoded)
        if not polled:
            self._positions.pass_gaps()
        more_to_come = count >= MAX_POLL_RECORDS
        self._writer.close_batch(more_to_come)
        if polled and not more_to_come:
            time.sleep(GATHER_S)

    def _stay_in_group(self) -> None:
        """While there is no room: a poll that fetches nothing, so that the group does not take us for dead."""
        self._consumer.pause(*self._consumer.assignment())
        self._consumer.poll(timeout_ms=0)
        self._positions.resume()

    def _place_fresh(self) -> None:
        if not self._positions.has_fresh():
            return
        try:
            self._require_same_cluster()
            self._positions.place_fresh()
        except psycopg2.Error as error:
            self._ledger.close()
            if not is_outage(error):
                raise
            if self._status.state != "backing_off":
                log.warning("PostgreSQL is down, backing off: %s", str(error).strip().splitlines()[0])
                self._status.set("backing_off", "PostgreSQL is down, backing off")
        except RetriableError as error:
            log.warning("Kafka does not tell the partitions' bounds, trying again: %r", error)
        else:
            self._status.set("running")

    def _require_same_cluster(self) -> None:
        if cluster_id(self._connection) != self._cluster:
            raise ClusterChanged(f"cluster {self._cluster} is gone")

    def _require_kafka(self) -> None:
        """A broker that is back at another address is found only by asking KAFKA_BOOTSTRAP_SERVERS anew."""
        if time.monotonic() - self._reached_at > GROUP_PATIENCE_S:
            raise KafkaConnectionError(f"no answer for {GROUP_PATIENCE_S:.0f} s")

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
            log.warning("nobody has %s: sharing out anew", names(left))
            self._consumer._coordinator.request_rejoin()

    def _missing_topic(self) -> str | None:
        return next((topic for topic in CONTRACTS if not self._consumer.partitions_for_topic(topic)), None)

    def _report(self) -> None:
        if time.monotonic() - self._report_at < REPORT_EVERY_S:
            return
        self._report_at = time.monotonic()
        self._require_kafka()
        self._require_topics()
        self._share_out_what_nobody_has()
        stored = self._positions.stored()
        if stored:
            # For lag tools only; nothing here reads it, so a failure is of no consequence and is not waited for. As
            # often as Kafka's own clients do it: after a crash the coordinator reads all of it before it answers
            self._consumer.commit_async(stored)
        if not self._lag_report.tell(stored):
            gc.collect()  # kafka-python leaves a socket behind for each connection refused, one a second in an outage

    def close(self) -> None:
        """Leaves the group. What was not written before is left to the next owner."""
        try:
            self._consumer.commit(self._positions.stored(), timeout_ms=5000)
        except KafkaError as error:
            log.warning("could not tell Kafka the offsets (the ledger has them): %s", error)
        self._consumer.close(autocommit=False, timeout_ms=5000)
