"""The fast decoder against plain poll() on logs that a real broker wrote, and the consumer without it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import Launcher, Stream, event, stop, wait_until
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.codec import has_gzip, has_lz4, has_snappy, has_zstd

from contracts import DEVICES, EVENTS, HEALTH
from record import Record
from record_decoder import speed_up

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker

AVAILABLE = {"none": True, "gzip": has_gzip(), "lz4": has_lz4(), "snappy": has_snappy(), "zstd": has_zstd()}
CODECS = [codec for codec, available in AVAILABLE.items() if available]
MIXTURE = [
    (b"key", b"value", []),
    (None, b"", [("trace", b"\x00\xff"), ("empty", b"")]),
    (b"", None, []),
    (b"k" * 200, b"v" * 70_000, [("a", b"1"), ("a", b"2")]),
    ("schlüssel".encode(), bytes(range(256)), [("ключ", "значение".encode())]),
]


@pytest.fixture
def make_topic(kafka: KafkaBroker) -> Callable[..., TopicPartition]:
    """make_topic(**settings): a topic of one partition."""

    def make(**settings: str) -> TopicPartition:
        name = f"decoders-{uuid.uuid4().hex[:8]}"
        configs = {key.replace("_", "."): value for key, value in settings.items()}
        new = {name: {"num_partitions": 1, "replication_factor": 1, "configs": configs}}
        with closing(KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)) as admin:
            admin.create_topics(new, wait_for_metadata=True)
        return TopicPartition(name, 0)

    return make


@pytest.fixture
def producer(kafka: KafkaBroker) -> Iterator[Callable[..., KafkaProducer]]:
    made: list[KafkaProducer] = []

    def make(**options: Any) -> KafkaProducer:
        options = {"bootstrap_servers": kafka.bootstrap_servers, "linger_ms": 20, **options}
        made.append(KafkaProducer(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def read(kafka: KafkaBroker, place: TopicPartition, fast: bool, begin: int = 0, **options: Any) -> list[Record]:
    """Everything from `begin` to the end of the partition, and that the position has then reached the end."""
    options = {"isolation_level": "read_committed", "max_poll_records": 37, "auto_offset_reset": "none", **options}
    records: list[Any] = []
    with closing(KafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, **options)) as consumer:
        if fast:
            assert speed_up(consumer)
        consumer.assign([place])
        consumer.seek(place, begin)
        end = consumer.end_offsets([place])[place]
        deadline = time.monotonic() + 30
        while consumer.position(place) < end:
            assert time.monotonic() < deadline
            for found in consumer.poll(timeout_ms=200).values():
                records.extend(found)
    assert not any(hasattr(record, "checksum") for record in records) or not fast  # what plain poll() gives has one
    columns = [
        record if fast else (record.offset, record.timestamp, record.key, record.value, record.headers)
        for record in records
    ]
    return [Record(*rest, [tuple(header) for header in headers]) for *rest, headers in columns]


def assert_same(kafka: KafkaBroker, place: TopicPartition, **options: Any) -> list[Record]:
    plain = read(kafka, place, fast=False, **options)
    assert read(kafka, place, fast=True, **options) == plain
    return plain


@pytest.mark.parametrize("codec", CODECS)
def test_both_decoders_read_the_same_whatever_the_codec(
    kafka: KafkaBroker, make_topic: Callable[..., TopicPartition], producer: Callable[..., KafkaProducer], codec: str
) -> None:
    place = make_topic()
    sender = producer(compression_type=None if codec == "none" else codec)
    for number in range(200):
        key, value, headers = MIXTURE[number % len(MIXTURE)]
        sender.send(place.topic, value, key=key, headers=headers, timestamp_ms=1_700_000_000_000 - 1000 * number)
    sender.flush()
    found = assert_same(kafka, place)
    assert len(found) == 200
    assert [tuple(record[2:]) for record in found[: len(MIXTURE)]] == MIXTURE
    assert assert_same(kafka, place, begin=101) == found[101:]  # from within a batch


def test_both_decoders_read_the_same_with_the_brokers_own_timestamps(
    kafka: KafkaBroker, make_topic: Callable[..., TopicPartition], producer: Callable[..., KafkaProducer]
) -> None:
    place = make_topic(message_timestamp_type="LogAppendTime")
    sender = producer()
    for number in range(100):
        sender.send(place.topic, b"%d" % number, timestamp_ms=1_700_000_000_000)
    sender.flush()
    assert min(record.timestamp for record in assert_same(kafka, place)) > 1_750_000_000_000


def test_both_decoders_read_the_same_of_a_compacted_log(
    kafka: KafkaBroker, make_topic: Callable[..., TopicPartition], producer: Callable[..., KafkaProducer]
) -> None:
    place = make_topic(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.001", max_compaction_lag_ms="100"
    )
    sender = producer(linger_ms=5)

    def holes() -> bool:
        for number in range(100):
            sender.send(place.topic, b"%d" % number, key=b"key-%d" % (number % 7))
        sender.flush()
        found = read(kafka, place, fast=False)
        return found[-1].offset + 1 - len(found) > 50

    def same_of_one_log() -> bool:
        """False if the broker compacted it further in between."""
        before, fast, after = (read(kafka, place, fast=which) for which in (False, True, False))
        assert fast == before or before != after
        return before == after

    wait_until(holes, timeout=60)
    wait_until(same_of_one_log, timeout=60)


@pytest.mark.parametrize("level", ["read_committed", "read_uncommitted"])
def test_both_decoders_read_the_same_of_transactions(
    kafka: KafkaBroker,
    make_topic: Callable[..., TopicPartition],
    producer: Callable[..., KafkaProducer],
    level: str,
) -> None:
    place = make_topic()
    first, second = (producer(transactional_id=f"{place.topic}-{number}") for number in (1, 2))
    for sender in (first, second):
        sender.init_transactions()
    for number in range(6):  # two transactions, interleaved; of each pair one is committed
        for sender in (first, second):
            sender.begin_transaction()
        for at in range(10):
            first.send(place.topic, b"first %d %d" % (number, at))
            second.send(place.topic, b"second %d %d" % (number, at))
            for sender in (first, second):
                sender.flush()
        (first.commit_transaction if number % 2 else first.abort_transaction)()
        (second.abort_transaction if number % 3 else second.commit_transaction)()
    found = assert_same(kafka, place, isolation_level=level)
    assert len(found) == (30 + 20 if level == "read_committed" else 120)


def health(number: int) -> bytes:
    report = {"device_id": f"lock-{number}", "reported_at": "2025-06-01T12:00:00Z", "is_online": True}
    return json.dumps(report).encode()


def device(number: int) -> bytes:
    return json.dumps({"device_id": f"lock-{number % 20}", "household_id": "home-1", "model": f"m{number}"}).encode()


def test_the_consumer_stores_the_same_rows_without_the_fast_decoder(stream: Stream, launch: Launcher) -> None:
    for number in range(300):
        stream.send(EVENTS.topic, event(number), b"lock", [("trace", b"x")])
        stream.send(HEALTH.topic, health(number), b"other")
        stream.send(DEVICES.topic, device(number), f"lock-{number % 20}".encode())
        if number % 50 == 0:
            stream.send(EVENTS.topic, b"{", b"lock", [("trace", b"x")])
            stream.send(DEVICES.topic, None, f"lock-{number % 20}".encode())
    stream.flush()
    found = []
    for setting in ("on", "off"):
        running = launch(stream, KAFKA_FAST_DECODER=setting)
        stream.wait_until_consumed(running)
        stop(running)
        assert ("KAFKA_FAST_DECODER=off" in running.log) is (setting == "off")
        found.append([*map(stream.rows, EVERYTHING), stream.ledger()])
        stream.execute(
            "TRUNCATE raw_access_events, raw_device_health, raw_devices, dead_letters, ingest_minutes;"
            "UPDATE ingest_offsets SET next_offset = start_offset, stored = 0, duplicates = 0, dead = 0, gaps = 0"
        )
    assert found[0] == found[1]
    assert [len(rows) for rows in found[0][:4]] == [300, 300, 20, 6]


EVERYTHING = (
    "SELECT event_id, device_id, event_ts, event_type, trigger_source, extra, kafka_partition, kafka_offset"
    " FROM raw_access_events ORDER BY 1",
    "SELECT device_id, reported_at, is_online, extra, kafka_partition, kafka_offset FROM raw_device_health ORDER BY 1",
    "SELECT device_id, household_id, model, updated_at, deleted_at, kafka_partition, kafka_offset"
    " FROM raw_devices ORDER BY 1",
    'SELECT topic, partition, "offset", record_ts, headers, key, value, reason, detail'
    " FROM dead_letters ORDER BY 1, 2, 3",
)
