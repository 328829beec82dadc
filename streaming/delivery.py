"""An idempotent Kafka producer that knows the fate of every record it was given.

Wraps kafka-python's producer with what it lacks: a bound on what waits for an acknowledgement (its own buffer has
none), counts by topic, send latencies, and transactions that are committed every second.
"""

from __future__ import annotations

import logging
import math
import random
import time
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import AuthorizationError, KafkaError, KafkaTimeoutError
from kafka.partitioner import murmur2

import pipeline_metrics as metrics
from contracts import CONTRACTS
from record_encoder import LATENCY_SAMPLE, Headers, encoded_headers, fast_batches

log = logging.getLogger("producer")

MAX_IN_FLIGHT = 50_000  # records; more only make memory and latency grow
MAX_TRANSACTION = 20_000  # records; and a second
DELIVERY_TIMEOUT = 3600.0  # seconds; Kafka may be away for so long before a record counts as failed
FINISH_TIMEOUT = 120.0  # seconds; so long is waited at the end for what is on its way
LATENCIES_KEPT = 10_000


class Tally:
    """One topic's records. `settle` runs on kafka-python's thread, `sent` counts on the caller's."""

    def __init__(self, topic: str, partitions: int, headers: Headers | None = None) -> None:
        self.topic = topic
        self.headers = headers or []
        self.headers_bytes = encoded_headers(self.headers)
        self.timed = not CONTRACTS[topic].compacted  # the registry comes in one gush, which says nothing about reports
        self.sent = self.acknowledged = self.failed = self.committed = 0
        self.error: BaseException | None = None
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]
        self._partition_of: dict[bytes, TopicPartition] = {}
        self._published = [0, 0, 0]

    def partition(self, key: bytes) -> TopicPartition:
        """Kafka's own choice for a key (murmur2), kept: computing it costs more than all the rest of a send."""
        known = self._partition_of.get(key)
        if known is None:
            known = self._partition_of[key] = self._partitions[(murmur2(key) & 0x7FFFFFFF) % len(self._partitions)]
        return known

    def settle(self, records: int, error: BaseException | None) -> None:
        if error is None:
            self.acknowledged += records
        else:
            self.error = error  # first: who sees that something failed asks why
            self.failed += records

    def publish(self) -> None:
        """Brings the metrics up to date; per record it would be a lock too many."""
        now = [self.sent, self.acknowledged, self.failed]
        counters = (metrics.PRODUCER_SENT, metrics.PRODUCER_ACKNOWLEDGED, metrics.PRODUCER_FAILED)
        for counter, count, before in zip(counters, now, self._published, strict=True):
            counter.labels(self.topic).inc(count - before)
        self._published = now


class Delivery:
    """Sends records by topic and key, with the topic's headers. The constructor raises KafkaError without a broker."""

    def __init__(self, connection: dict[str, Any], transactional_id: str | None, headers: dict[str, Headers]) -> None:
        self._producer = KafkaProducer(
            **connection,
            client_id="smart-access-producer",
            enable_idempotence=True,
            acks="all",
            compression_type="lz4",
            linger_ms=2,  # 0 costs half as much CPU again at 1,000 records/s; 5 doubles the median latency
            batch_size=512 * 1024,
            delivery_timeout_ms=DELIVERY_TIMEOUT * 1000,
            max_block_ms=60_000,
            reconnect_backoff_max_ms=1_000,  # the default lets a broker that is back wait for up to 30 s
            transactional_id=transactional_id,
        )
        self.transactional = transactional_id is not None
        self._is_full = False
        self._in_transaction = 0  # records
        self._transaction_since = 0.0
        if self.transactional:
            self._producer.init_transactions()
        self.tallies = {
            topic: Tally(topic, len(self._producer.partitions_for(topic)), headers.get(topic)) for topic in CONTRACTS
        }
        self._latencies: list[float] = []
        self._timed = 0
        self._until_timed = 1
        self._fast = fast_batches(self._producer, self._settle)

    @property
    def sent(self) -> int:
        return sum(tally.sent for tally in self.tallies.values())

    @property
    def failed(self) -> int:
        return sum(tally.failed for tally in self.tallies.values())

    @property
    def acknowledged(self) -> int:
        """Records that consumers will see: of a transaction only once it is committed."""
        return sum(t.committed if self.transactional else t.acknowledged for t in self.tallies.values())

    @property
    def in_flight(self) -> int:
        return sum(tally.sent - tally.acknowledged - tally.failed for tally in self.tallies.values())

    def send(self, topic: str, key: bytes, value: bytes | None) -> None:
        tally = self.tallies[topic]
        if self.transactional and not self._in_transaction:
            self._producer.begin_transaction()
            self._transaction_since = time.monotonic()
        place = tally.partition(key)
        if self._fast:
            self._fast.send(place, key, value, tally.headers, tally.headers_bytes)
        else:
            self._send_alone(place, key, value, tally)
        tally.sent += 1
        self._in_transaction += self.transactional

    def _send_alone(self, place: TopicPartition, key: bytes, value: bytes | None, tally: Tally) -> None:
        future = self._producer.send(place.topic, value, key=key, headers=tally.headers, partition=place.partition)
        sent_at = []
        self._until_timed -= 1
        if not self._until_timed:
            self._until_timed = LATENCY_SAMPLE
            sent_at = [time.perf_counter()]
        future.add_callback(lambda _: self._settle(place.topic, 1, None, sent_at))
        future.add_errback(lambda error: self._settle(place.topic, 1, error, sent_at))

    def _settle(self, topic: str, records: int, error: BaseException | None, sent_at: list[float]) -> None:
        tally = self.tallies[topic]
        tally.settle(records, error)
        if error is None and tally.timed:
            now = time.perf_counter()
            for at in sent_at:
                self._time(now - at)

    def _time(self, latency: float) -> None:
        metrics.PRODUCER_SEND_LATENCY.observe(latency)
        self._timed += 1
        if len(self._latencies) < LATENCIES_KEPT:
            self._latencies.append(latency)
        elif (place := random.randrange(self._timed)) < LATENCIES_KEPT:  # a reservoir: each is as likely to be kept
            self._latencies[place] = latency

    def p99(self) -> float:
        """Seconds from send to acknowledgement, of a sample; NaN if there is none."""
        latencies = sorted(self._latencies)
        return latencies[int(0.99 * (len(latencies) - 1))] if latencies else float("nan")

    def look_after(self) -> None:
        """To be called often: commits what is due, once all of it has been acknowledged.

        Raises AuthorizationError when a right was taken from us meanwhile: to go on would only fail record by record.
        Raises the error of a record that failed in a transaction.
        """
        for tally in self.tallies.values():
            if isinstance(tally.error, AuthorizationError):
                raise tally.error
        if self._commit_is_due() and (self.failed or not self.in_flight):
            self._commit()

    def _commit_is_due(self) -> bool:
        full = self._in_transaction >= MAX_TRANSACTION
        return full or (self._in_transaction > 0 and time.monotonic() - self._transaction_since >= 1)

    def has_room(self) -> bool:
        """False from MAX_IN_FLIGHT records on, until half of them have been acknowledged, and while a transaction is to
        be committed."""
        if self._commit_is_due():
            return False
        was_full, self._is_full = self._is_full, self.in_flight >= MAX_IN_FLIGHT // (2 if self._is_full else 1)
        if self._is_full and not was_full:
            log.warning("%d records wait for Kafka: it is away or too slow; sending pauses", self.in_flight)
        return not self._is_full

    def look_for_brokers(self) -> None:
        """Asks KAFKA_BOOTSTRAP_SERVERS anew: kafka-python only ever looks where its brokers were."""
        self._producer._sender._client._manager.bootstrap_async()

    def summary(self, seconds: float) -> dict[str, Any]:
        """What became of the records, in all and by topic; `failed` is whatever was not acknowledged."""
        p99 = self.p99()
        return {
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "failed": self.sent - self.acknowledged,
            "seconds": round(seconds, 1),
            "rate": round(self.sent / seconds, 1),
            "p99_ms": None if math.isnan(p99) else round(p99 * 1000, 1),
            "topics": {
                topic: {
                    "sent": tally.sent,
                    "acknowledged": tally.committed if self.transactional else tally.acknowledged,
                    "rate": round(tally.sent / seconds, 2),
                }
                for topic, tally in self.tallies.items()
            },
        }

    def publish(self) -> None:
        for tally in self.tallies.values():
            tally.publish()

    def _commit(self) -> None:
        """Only to be called with nothing in flight, unless something failed: then that error is raised.

        kafka-python 3.0.12 begins a new epoch after some failures (fenced is one), upon which Kafka aborts the
        transaction; of a commit that waits meanwhile kafka-python says that it was done.
        """
        for tally in self.tallies.values():
            if tally.error:
                raise tally.error
        self._producer.commit_transaction()
        self._in_transaction = 0
        for tally in self.tallies.values():
            tally.committed = tally.acknowledged

    def finish(self) -> None:
        """Waits for what is on its way and commits it. Raises KafkaError when that cannot be done."""
        give_up_at = time.monotonic() + FINISH_TIMEOUT
        # After a failure kafka-python may hold the rest of a transaction for good
        while self.in_flight and not (self._in_transaction and self.failed):
            if time.monotonic() > give_up_at:
                raise KafkaTimeoutError(f"{self.in_flight} records not acknowledged in {FINISH_TIMEOUT:.0f} s")
            time.sleep(0.01)
        if self._in_transaction:
            self._commit()

    def abort(self, error: KafkaError) -> None:
        """After this failure: what the open transaction holds is withdrawn, if Kafka still takes that from us."""
        if self._in_transaction:
            try:
                if isinstance(error, KafkaTimeoutError):
                    raise error  # there is nobody to ask, and kafka-python would wait for ever
                self._producer.abort_transaction()
            except KafkaError as reason:
                log.error("the transaction was not aborted by us (Kafka has done it, or will in a minute): %r", reason)

    def close(self) -> None:
        left = self.in_flight
        try:
            self._producer.close(timeout=0 if left else 5)  # its timeout counts for every batch that is left
        except KafkaError:
            log.warning("closed with %d records that Kafka did not acknowledge", left)
        self.publish()
