"""An idempotent Kafka producer that knows the fate of every record it was given.

Wraps kafka-python's producer with what it lacks: a bound on what waits for an acknowledgement (its own buffer has
none), counts by topic, send latencies, and transactions that are committed every second.
"""

from __future__ import annotations

import logging
import math
import random
import time
from functools import partial
from typing import Any

from kafka import KafkaProducer
from kafka.errors import AuthorizationError, KafkaError
from kafka.partitioner import murmur2

import pipeline_metrics as metrics
from contracts import CONTRACTS

log = logging.getLogger("producer")

MAX_IN_FLIGHT = 50_000  # records; more only make memory and latency grow
MAX_TRANSACTION = 20_000  # records; and a second
DELIVERY_TIMEOUT = 3600.0  # seconds; Kafka may be away for so long before a record counts as failed
FINISH_TIMEOUT = 120.0  # seconds; so long is waited at the end for what is on its way
LATENCY_SAMPLE = 8  # one record in so many is timed
LATENCIES_KEPT = 10_000

Headers = list[tuple[str, bytes]]


class Tally:
    """One topic's records. `acknowledge` and `fail` run on kafka-python's thread, `sent` counts on the caller's."""

    def __init__(self, topic: str, partitions: int, headers: Headers | None = None) -> None:
        self.topic = topic
        self.headers = headers or []
        self.timed = not CONTRACTS[topic].compacted  # the registry comes in one gush, which says nothing about reports
        self.sent = self.acknowledged = self.failed = self.committed = 0
        self.error: BaseException | None = None
        self._partitions = partitions
        self._partition_of: dict[bytes, int] = {}
        self._published = [0, 0, 0]

    def partition(self, key: bytes) -> int:
        """Kafka's own choice for a key (murmur2), kept: computing it costs more than all the rest of a send."""
        known = self._partition_of.get(key)
        if known is None:
            known = self._partition_of[key] = (murmur2(key) & 0x7FFFFFFF) % self._partitions
        return known

    def acknowledge(self, _: Any) -> None:
        self.acknowledged += 1

    def fail(self, error: BaseException) -> None:
        self.failed += 1
        self.error = error

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
        future = self._producer.send(topic, value, key=key, headers=tally.headers, partition=tally.partition(key))
        tally.sent += 1
        self._in_transaction += self.transactional
        self._until_timed -= tally.timed
        if self._until_timed <= 0:
            self._until_timed = LATENCY_SAMPLE
            future.add_callback(partial(self._time, time.perf_counter()))
        future.add_callback(tally.acknowledge)
        future.add_errback(tally.fail)

    def _time(self, sent_at: float, _: Any) -> None:
        latency = time.perf_counter() - sent_at
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
        """To be called often: commits what is due.

        Raises AuthorizationError when a right was taken from us meanwhile: to go on would only fail record by record.
        """
        for tally in self.tallies.values():
            if isinstance(tally.error, AuthorizationError):
                raise tally.error
        if self._in_transaction:
            age = time.monotonic() - self._transaction_since
            if age >= 1 or self._in_transaction >= MAX_TRANSACTION:
                self._commit()

    def has_room(self) -> bool:
        """False from MAX_IN_FLIGHT records on, until half of them have been acknowledged."""
        was_full, self._is_full = self._is_full, self.in_flight >= MAX_IN_FLIGHT // (2 if self._is_full else 1)
        if self._is_full and not was_full:
            log.warning("%d records wait for Kafka: it is away or too slow; sending pauses", self.in_flight)
        return not self._is_full

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
        self._producer.commit_transaction()
        self._in_transaction = 0
        for tally in self.tallies.values():
            tally.committed = tally.acknowledged

    def finish(self) -> None:
        """Waits for what is on its way and commits it. Raises KafkaError when that cannot be done."""
        if self._in_transaction:
            self._commit()
        self._producer.flush(timeout=FINISH_TIMEOUT)

    def abort(self) -> None:
        """After a failure: what the open transaction holds is withdrawn, if Kafka still takes that from us."""
        if self._in_transaction:
            try:
                self._producer.abort_transaction()
            except KafkaError as error:
                log.error("the transaction was not aborted either (Kafka will, in a minute): %r", error)

    def close(self) -> None:
        left = self.in_flight
        try:
            self._producer.close(timeout=0 if left else 5)  # its timeout counts for every batch that is left
        except KafkaError:
            log.warning("closed with %d records that Kafka did not acknowledge", left)
        self.publish()
