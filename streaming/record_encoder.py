"""Records put into kafka-python's batches several times as fast as its send() puts them there, with the same bytes.

send() takes each record through some forty calls and makes a future of it; that bounds a producer's rate, and no
setting does. `FastBatches` writes a record of the format v2 straight into the batch that is open for its partition, and
tells of whole batches what became of them. What has no open batch goes through send(): new batches, transactions,
metadata, retries, sequence numbers and everything else stay kafka-python's. The place is private, so it is taken only
in the version that was tested; otherwise, and with KAFKA_FAST_ENCODER=off, each record goes through send(): slower, and
the same. A test holds the bytes against each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.producer.record_accumulator import IncompleteProducerBatches
from kafka.record.util import encode_varint

from kafka_internals import may_be_replaced

LATENCY_SAMPLE = 8  # one record in so many is timed

Headers = list[tuple[str, bytes]]
# topic, records, the error of a batch that failed, when some of its records were sent (time.perf_counter)
Settled = Callable[[str, int, BaseException | None, list[float]], None]


def fast_batches(producer: KafkaProducer, settled: Settled) -> FastBatches | None:
    """None if send() has to do."""
    return FastBatches(producer, settled) if may_be_replaced("KAFKA_FAST_ENCODER") else None


def varint(value: int) -> bytes:
    """Zigzag, seven bits a byte, as a record's numbers are written."""
    written = bytearray()
    encode_varint(value, written.append)
    return bytes(written)


_SMALL = [varint(value) for value in range(8192)]


def _number(value: int) -> bytes:
    return _SMALL[value] if 0 <= value < len(_SMALL) else varint(value)


def encoded_headers(headers: Headers) -> bytes:
    parts = [_number(len(headers))]
    for name, value in headers:
        parts += [_number(len(name.encode())), name.encode(), _number(len(value)), value]
    return b"".join(parts)


class CountedBatches(IncompleteProducerBatches):
    """Every batch that kafka-python makes goes through here, those too into which it splits one that is too large."""

    def __init__(self, settled: Settled) -> None:
        super().__init__()
        self._settled = settled

    def add(self, batch: Any) -> None:
        batch.sent_at = [time.perf_counter()]
        # its success() is told of failures too
        batch.produce_future.add_callback(partial(self._settle, batch))
        super().add(batch)

    def _settle(self, batch: Any, result: tuple[int, int, Callable[[int], BaseException] | None]) -> None:
        _, _, error_of_record = result
        error = error_of_record(0) if error_of_record else None
        self._settled(batch.topic_partition.topic, batch.record_count, error, batch.sent_at)


class FastBatches:
    """Of one producer, and of one thread that sends; kafka-python's own thread calls `settled`."""

    def __init__(self, producer: KafkaProducer, settled: Settled) -> None:
        self._producer = producer
        self._accumulator = producer._accumulator
        self._accumulator._incomplete = CountedBatches(settled)
        self._open = self._accumulator._batches
        self._room = producer.config["batch_size"]
        self._until_timed = LATENCY_SAMPLE

    def send(
        self, place: TopicPartition, key: bytes, value: bytes | None, headers: Headers, headers_bytes: bytes
    ) -> None:
        """headers_bytes: the same headers by `encoded_headers`. Raises what send() raises."""
        if value is None or not self._append(place, key, value, headers_bytes):
            self._producer.send(place.topic, value, key=key, headers=headers, partition=place.partition)

    def _append(self, place: TopicPartition, key: bytes, value: bytes, headers: bytes) -> bool:
        """False if no batch is open for the partition, or the record does not fit into it."""
        with self._accumulator._tp_lock(place):  # kafka-python's thread closes a batch under the same lock
            waiting = self._open[place]
            if not waiting:
                return False
            batch = waiting[-1]
            records = batch.records
            if records._closed:  # one that is to be sent again
                return False
            builder, offset = records._builder, records._next_offset
            timestamp = int(time.time() * 1000)
            record = b"".join(
                (
                    b"\0",  # attributes
                    _number(timestamp - builder._first_timestamp),
                    _number(offset),
                    _number(len(key)),
                    key,
                    _number(len(value)),
                    value,
                    headers,
                )
            )
            length = _number(len(record))
            buffer = builder._buffer
            if len(buffer) + len(length) + len(record) > self._room:
                return False
            buffer += length
            buffer += record
            records._next_offset = offset + 1
            builder._last_offset = offset
            builder._num_records += 1
            if timestamp > builder._max_timestamp:
                builder._max_timestamp = timestamp
            self._until_timed -= 1
            if not self._until_timed:
                self._until_timed = LATENCY_SAMPLE
                batch.sent_at.append(time.perf_counter())
        return True
