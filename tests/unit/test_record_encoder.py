"""The fast encoder writes, byte for byte, the batches that kafka-python's send() makes of the same records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import kafka
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.producer.record_accumulator import RecordAccumulator

import record_encoder
from record_encoder import FastBatches, Headers, encoded_headers, fast_batches, varint

PLACE = TopicPartition("smart-access.events", 0)
ROOM = 2_000  # bytes of a batch: small, so that many are filled
LZ4 = 3
NOW_MS = 1_800_000_000_000
SHORT = st.binary(max_size=40)
VALUES = st.none() | SHORT | st.binary(min_size=120, max_size=140) | st.binary(min_size=1_900, max_size=2_100)
# a clock that is set back or ahead by an hour, too
CLOCKS = st.integers(-3_600_000, 3_600_000) | st.integers(0, 3)
RECORDS = st.lists(st.tuples(st.binary(min_size=1, max_size=70), VALUES, CLOCKS), min_size=1, max_size=60)
HEADERS = st.lists(st.tuples(st.text(max_size=5), SHORT), max_size=3)


class Producer:
    """As much of a KafkaProducer as appends to its accumulator; at `now_ms`."""

    def __init__(self, codec: int) -> None:
        self.config = {"batch_size": ROOM}
        self._accumulator = RecordAccumulator(batch_size=ROOM, compression_attrs=codec)
        self.now_ms = NOW_MS
        self.sent = 0

    def send(self, topic: str, value: bytes | None, key: bytes, headers: Headers, partition: int) -> None:
        self.sent += 1
        self._accumulator.append(TopicPartition(topic, partition), self.now_ms, key, value, headers)

    def batches(self) -> list[tuple[int, bytes]]:
        found = []
        for batch in self._accumulator._batches[PLACE]:
            batch.records.close()
            found.append((batch.record_count, bytes(batch.records.buffer())))
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    frozen = SimpleNamespace(ms=NOW_MS, perf_counter=lambda: 0.0)
    frozen.time = lambda: frozen.ms / 1000
    monkeypatch.setattr(record_encoder, "time", frozen)
    return frozen


@pytest.mark.parametrize("codec", [0, LZ4], ids=["plain", "lz4"])
def test_the_bytes_are_those_of_send(clock: Any, codec: int) -> None:
    @settings(max_examples=100, deadline=None)
    @given(RECORDS, HEADERS)
    def both_agree(records: list[tuple[bytes, bytes | None, int]], headers: Headers) -> None:
        slow, behind = Producer(codec), Producer(codec)
        fast = FastBatches(behind, lambda *_: None)
        for key, value, offset_ms in records:
            slow.now_ms = behind.now_ms = clock.ms = NOW_MS + offset_ms
            slow.send(PLACE.topic, value, key, headers, PLACE.partition)
            fast.send(PLACE, key, value, headers, encoded_headers(headers))
        assert behind.batches() == slow.batches()

    both_agree()


def test_a_batch_is_as_full_as_one_of_send(clock: Any) -> None:
    counts = []
    for size in range(ROOM - 130, ROOM):
        slow, behind = Producer(0), Producer(0)
        fast = FastBatches(behind, lambda *_: None)
        for value in (b"first", b"x" * size):
            slow.send(PLACE.topic, value, b"key", [], PLACE.partition)
            fast.send(PLACE, b"key", value, [], encoded_headers([]))
        assert behind.batches() == slow.batches()
        counts.append(len(behind.batches()))
    assert set(counts) == {1, 2}


def test_all_but_the_first_of_a_batch_take_the_fast_way(clock: Any) -> None:
    behind = Producer(0)
    fast = FastBatches(behind, lambda *_: None)
    for _ in range(100):
        fast.send(PLACE, b"key", b"x" * 90, [], encoded_headers([]))
    assert behind.sent == len(behind.batches()) == 6


@pytest.mark.parametrize("failing", [False, True])
def test_a_batch_tells_once_what_became_of_all_of_its_records(clock: Any, failing: bool) -> None:
    behind = Producer(0)
    told: list[tuple[str, int, BaseException | None]] = []
    fast = FastBatches(behind, lambda topic, records, error, sent_at: told.append((topic, records, error)))
    for _ in range(7):
        fast.send(PLACE, b"key", b"value", [], encoded_headers([]))
    (batch,) = behind._accumulator._batches[PLACE]
    batch.records.close()
    error = ValueError("refused")
    if failing:
        batch.complete_exceptionally(error, lambda _: error)
    else:
        batch.complete(17, -1)
    assert told == [(PLACE.topic, 7, error if failing else None)]


def test_both_halves_of_a_batch_that_was_too_large_are_counted(clock: Any) -> None:
    behind = Producer(0)
    told: list[int] = []
    fast = FastBatches(behind, lambda topic, records, error, sent_at: told.append(records))
    for _ in range(7):
        fast.send(PLACE, b"key", b"value", [], encoded_headers([]))
    batch = behind._accumulator._batches[PLACE].popleft()
    batch.records.close()
    assert behind._accumulator.split_and_reenqueue(batch) == 2
    fast.send(PLACE, b"key", b"one more", [], encoded_headers([]))
    for half in behind._accumulator._batches[PLACE]:
        half.records.close()
        half.complete(0, -1)
    assert sorted(told) == [4, 4]


def test_a_batch_that_waits_to_be_sent_again_takes_no_more(clock: Any) -> None:
    behind = Producer(0)
    fast = FastBatches(behind, lambda *_: None)
    fast.send(PLACE, b"key", b"value", [], encoded_headers([]))
    batch = behind._accumulator._batches[PLACE].popleft()
    batch.records.close()
    behind._accumulator.reenqueue(batch)
    fast.send(PLACE, b"key", b"value", [], encoded_headers([]))
    assert [count for count, _ in behind.batches()] == [1, 1]


@pytest.mark.parametrize("value", [-5, -1, 0, 1, 63, 64, 8191, 8192, 2**31, 2**40])
def test_numbers_are_zigzag_varints(value: int) -> None:
    """Read back as Kafka's ByteUtils.readVarlong does: seven bits a byte, the lowest first, then undo the zigzag."""
    number = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint(value)))
    assert (number >> 1) ^ -(number & 1) == value


def test_another_version_and_the_setting_off_leave_everything_to_send(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer(0)
    monkeypatch.setenv("KAFKA_FAST_ENCODER", "off")
    assert fast_batches(producer, lambda *_: None) is None
    monkeypatch.delenv("KAFKA_FAST_ENCODER")
    monkeypatch.setattr(kafka, "__version__", "3.0.13")
    assert fast_batches(producer, lambda *_: None) is None
    assert "staying slow" in caplog.text
    assert producer._accumulator._incomplete.__class__.__module__ == "kafka.producer.record_accumulator"
