"""The fast decoder gives exactly what kafka-python's own gives, over every shape of batch that a log can hold."""

import random
import struct

import kafka
import pytest
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c
from kafka.structs import TopicPartition

import kafka_internals
import record_decoder
from record import Record
from record_decoder import FastPartitionRecords, read_batch

PARTITION = TopicPartition("smart-access.events", 0)
CODECS = {"none": 0, "gzip": 1, "lz4": 3}
TIMESTAMP = 1_700_000_000_000
CRC_AT, ATTRIBUTES_AT, LAST_OFFSET_AT = 17, 21, 23  # places in a batch's header


def batch(records, offset=0, codec=0, producer_id=-1):
    builder = MemoryRecordsBuilder(
        magic=2,
        compression_type=codec,
        batch_size=1 << 24,
        offset=offset,
        transactional=producer_id >= 0,
        producer_id=producer_id,
        producer_epoch=0 if producer_id >= 0 else -1,
        base_sequence=0 if producer_id >= 0 else -1,
    )
    for timestamp, key, value, headers in records:
        assert builder.append(timestamp, key, value, headers) is not None
    builder.close()
    return bytes(builder.buffer())


def with_checksum(data):
    struct.pack_into(">I", data, CRC_AT, calc_crc32c(bytes(data[ATTRIBUTES_AT:])))
    return bytes(data)


def control_batch(offset, producer_id, commits):
    """A transaction's marker, as the broker writes it: one record whose key is (version, type)."""
    key = struct.pack(">hh", 0, 1 if commits else 0)
    data = bytearray(batch([(TIMESTAMP, key, b"\0\0\0\0\0\0", [])], offset, producer_id=producer_id))
    (attributes,) = struct.unpack_from(">h", data, ATTRIBUTES_AT)
    struct.pack_into(">h", data, ATTRIBUTES_AT, attributes | 0x20)
    return with_checksum(data)


def compacted(records, keep, last_offset):
    """A batch of which compaction has kept only some records: their offsets and the batch's last one stay."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for offset in keep:
        builder.append(offset, *records[offset])
    data = bytearray(builder.build())
    struct.pack_into(">i", data, LAST_OFFSET_AT, last_offset)
    return with_checksum(data)


def read(reader, data, fetch_offset=0, per_take=7, **options):
    """All records, the position at the end, and the leader's epoch."""
    part = reader(fetch_offset, PARTITION, MemoryRecords(data), **options)
    records = []
    while part:
        taken = part.take(per_take)
        if reader is Fetcher.PartitionRecords:
            taken = [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in taken]
        records += [Record(*record)._replace(headers=list(record[4])) for record in taken]
    return records, part.next_fetch_offset, part.leader_epoch


def assert_same(data, **options):
    slow = read(Fetcher.PartitionRecords, data, **options)
    fast = read(FastPartitionRecords, data, **options)
    assert fast == slow
    return fast[:2]


def sample(count, seed=1, headers=False):
    rng = random.Random(seed)
    sizes = (0, 1, 62, 63, 64, 65, 127, 128, 200, 8190, 8192, 20_000)
    records = []
    for _ in range(count):
        key = None if rng.random() < 0.1 else rng.randbytes(rng.choice(sizes[:8]))
        value = None if rng.random() < 0.1 else rng.randbytes(rng.choice(sizes))
        named = [("trace", rng.randbytes(3)), ("öß", None), ("", b"")] if headers and rng.random() < 0.5 else []
        records.append((TIMESTAMP + rng.choice((-70_000, -64, -1, 0, 1, 63, 64, 100_000)), key, value, named))
    return records


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("headers", [False, True], ids=["without_headers", "with_headers"])
def test_both_decoders_agree_on_every_size_of_key_value_and_timestamp(codec, headers):
    data = b"".join(batch(sample(50, seed, headers), offset=seed * 50, codec=codec) for seed in range(4))
    records, end = assert_same(data)
    assert len(records) == 200
    assert end == 200


def test_both_decoders_agree_on_offsets_beyond_a_byte_and_beyond_two():
    data = batch([(TIMESTAMP, b"k", b"v", [])] * 20_000)
    assert assert_same(data)[0][-1].offset == 19_999


@pytest.mark.parametrize("fetch_offset", [0, 1, 49, 50, 73, 99])
def test_both_decoders_begin_in_the_middle_of_a_batch(fetch_offset):
    data = batch(sample(50), offset=0) + batch(sample(50, 2), offset=50)
    records, _ = assert_same(data, fetch_offset=fetch_offset)
    assert records[0].offset == fetch_offset


@pytest.mark.parametrize("per_take", [1, 3, 50, 1000, None])
def test_both_decoders_give_the_same_whatever_is_taken_at_a_time(per_take):
    assert_same(batch(sample(50), codec=3) + batch(sample(50, 2), offset=50), per_take=per_take)


def test_the_position_follows_the_last_record_taken():
    for reader in (Fetcher.PartitionRecords, FastPartitionRecords):
        part = reader(0, PARTITION, MemoryRecords(batch(sample(10))))
        part.take(4)
        assert part.next_fetch_offset == 4


@pytest.mark.parametrize("keep", [[0, 3, 4, 9], [0], [0, 17]], ids=["holes", "first_only", "last_removed"])
def test_both_decoders_pass_the_holes_that_compaction_leaves(keep):
    data = compacted(sample(30), keep, last_offset=19)
    records, end = assert_same(data)
    assert [record.offset for record in records] == keep
    assert end == 20


class Aborted:
    def __init__(self, producer_id, first_offset):
        self.producer_id = producer_id
        self.first_offset = first_offset


@pytest.mark.parametrize("level", list(IsolationLevel), ids=lambda level: level.name.lower())
def test_both_decoders_hide_markers_and_aborted_transactions(level):
    data = b"".join(
        [
            batch(sample(5, 1), 0, producer_id=7),
            batch(sample(5, 2), 5, producer_id=8),
            control_batch(10, 7, commits=False),
            batch(sample(5, 3), 11, producer_id=7),
            control_batch(16, 8, commits=True),
            control_batch(17, 7, commits=True),
            batch(sample(5, 4), 18),
            control_batch(23, 9, commits=True),
        ]
    )
    records, end = assert_same(data, isolation_level=level, aborted_transactions=[Aborted(7, 0)])
    assert end == 24
    assert len(records) == (15 if level == IsolationLevel.READ_COMMITTED else 20)


def test_a_batch_with_a_wrong_checksum_is_refused_after_what_came_before_it():
    good, bad = batch(sample(5)), bytearray(batch(sample(5, 2), offset=5))
    bad[-1] ^= 1
    part = FastPartitionRecords(0, PARTITION, MemoryRecords(good + bytes(bad)))
    assert len(part.take(100)) == 5
    with pytest.raises(CorruptRecordError):
        part.take(100)


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_batch_that_breaks_off_is_corrupt_and_not_short(cut):
    data = bytearray(batch([(TIMESTAMP, b"key", b"value", [])] * 3))
    del data[-cut:]
    struct.pack_into(">i", data, 8, len(data) - 12)
    with pytest.raises(CorruptRecordError):
        FastPartitionRecords(0, PARTITION, MemoryRecords(with_checksum(data))).take()


def test_a_header_name_that_is_not_utf8_does_not_block_the_partition():
    data = bytearray(batch([(TIMESTAMP, b"k", b"v", [("ab", b"1")])]))
    at = data.index(b"ab")
    data[at : at + 2] = b"\xff\xfe"
    (record,) = read_batch(MemoryRecords(with_checksum(data)).next_batch())
    assert Record(*record).headers == [("\ufffd\ufffd", b"1")]


class FakeConsumer:
    def __init__(self):
        self._fetcher = type("Fetcher", (), {})()


@pytest.mark.parametrize(
    ("version", "setting", "expected"),
    [("3.0.12", "on", True), ("3.0.13", "on", False), ("3.0.12", "off", False)],
    ids=["the_tested_version_is_sped_up", "another_version_is_left_alone", "the_setting_turns_it_off"],
)
def test_the_decoder_is_only_taken_where_it_was_tested(monkeypatch, version, setting, expected):
    monkeypatch.setattr(kafka, "__version__", version)
    monkeypatch.setenv("KAFKA_FAST_DECODER", setting)
    consumer = FakeConsumer()
    assert record_decoder.speed_up(consumer) is expected
    assert hasattr(consumer._fetcher, "PartitionRecords") is expected


def test_the_installed_version_is_the_tested_one():
    assert kafka.__version__ == kafka_internals.TESTED_VERSION
