"""The fleet registry's two topics, to a file of JSON lines and back into Kafka.

The newest record of each key is kept, tombstones too, with its bytes, timestamp and headers as they were. A key or a
value that is no UTF-8 stands as {"base64": "…"}.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from contracts import CONTRACTS
from kafka_contact import NoContact, first_contact
from local_servers import ServerError

TABLES = {topic: contract.table for topic, contract in CONTRACTS.items() if contract.compacted}
TOPICS = list(TABLES)
SILENCE_S = 30.0  # Kafka answers and gives nothing of what it says that it has


class RegistryRecord(NamedTuple):
    topic: str
    key: bytes
    value: bytes | None
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]]


@contextmanager
def at_kafka(connection: dict[str, Any]) -> Iterator[None]:
    """Waits for a broker first. Raises ServerError, with the reason, for whatever Kafka refuses within the block."""
    logging.getLogger("kafka.cluster").setLevel(logging.CRITICAL)  # a client that closes cuts its own question short
    try:
        first_contact(connection)
        yield
    except (NoContact, KafkaError) as error:
        raise ServerError(str(error)) from None


def read_registry(connection: dict[str, Any], missing_ok: bool = False) -> list[RegistryRecord]:
    """The newest record of each key of the registry topics, the oldest first.

    Raises ServerError when a topic is missing, unless that is a way of being empty; KafkaError when no broker answers.
    """
    newest: dict[tuple[str, int, bytes], RegistryRecord] = {}
    for record in _all_records(connection, missing_ok):
        # By partition: where their number was raised, a key has moved, and its older record is still in the old one
        newest[record.topic, record.partition, record.key] = RegistryRecord(
            record.topic, record.key, record.value, record.timestamp, record.headers
        )
    return sorted(newest.values(), key=lambda record: record.timestamp)


def _all_records(connection: dict[str, Any], missing_ok: bool) -> Iterator[Any]:
    """What stands in the topics at this moment."""
    consumer = KafkaConsumer(
        **connection, group_id=None, enable_auto_commit=False, isolation_level="read_committed", metrics_enabled=False
    )
    with closing(consumer):
        numbers = {topic: consumer.partitions_for_topic(topic) or set() for topic in TOPICS}
        missing = [topic for topic, found in numbers.items() if not found]
        if missing and not missing_ok:
            raise ServerError(f"topic {', '.join(missing)} is missing, or this user may not read it")
        partitions = [TopicPartition(topic, number) for topic in TOPICS for number in sorted(numbers[topic])]
        if not partitions:
            return
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        heard_at, left = time.monotonic(), set(partitions)
        while left:
            polled = consumer.poll(timeout_ms=500)
            for records in polled.values():
                yield from records
            done = {place for place in left if (consumer.position(place, timeout_ms=5000) or 0) >= ends[place]}
            left -= done
            if polled or done:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > SILENCE_S:
                raise ServerError(f"Kafka gives nothing more of {sorted(left)}: are all of its brokers there?")


def write_registry(connection: dict[str, Any], records: Iterable[RegistryRecord]) -> None:
    """Produces them in this order, each to the partition that its key belongs to there. Raises KafkaError."""
    # As the producer script's: idempotent, all copies; its partitioner is kafka-python's own
    settings = {"enable_idempotence": True, "acks": "all", "linger_ms": 20, "max_request_size": 2**24}
    with closing(KafkaProducer(**connection, **settings, metrics_enabled=False)) as producer:
        sent = [
            producer.send(
                record.topic,
                record.value,
                key=record.key,
                headers=list(record.headers),
                timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
            )
            for record in records
        ]
        producer.flush(120)
        for future in sent:
            future.get(120)


def save(records: Iterable[RegistryRecord], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(_line(record)) + "\n")


def load(file: Path) -> list[RegistryRecord]:
    with file.open(encoding="utf-8") as lines:
        return [_record(json.loads(line)) for line in lines]


def _line(record: RegistryRecord) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "key": _text(record.key),
        "value": _text(record.value),
        "timestamp": record.timestamp,
        "headers": [[name, _text(value)] for name, value in record.headers],
    }


def _record(line: dict[str, Any]) -> RegistryRecord:
    headers = [(name, _bytes(value)) for name, value in line["headers"]]
    return RegistryRecord(line["topic"], _bytes(line["key"]) or b"", _bytes(line["value"]), line["timestamp"], headers)


def _text(value: bytes | None) -> str | dict[str, str] | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _bytes(text: str | dict[str, str] | None) -> bytes | None:
    if text is None:
        return None
    return text.encode() if isinstance(text, str) else base64.b64decode(text["base64"])
