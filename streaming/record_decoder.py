"""Record batches decoded several times as fast as kafka-python decodes them, with the same result.

kafka-python reads each record through a dozen calls; that, and no setting, bounds a consumer's rate. `speed_up` puts
another reader of *record batches* (format v2) in the place of its own. Fetching, checksums, transactions, positions and
everything else stay kafka-python's. The place is private, so it is taken only in the version that was tested;
otherwise, and with KAFKA_FAST_DECODER=off, records come as plain `poll()` gives them: slower, and the same. A test
holds the two against each other over codecs, batch shapes, headers, compacted topics, transactions and aborts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.util import decode_varint

from kafka_internals import may_be_replaced
from record import PlainRecord


def speed_up(consumer: Any) -> bool:
    """Makes the consumer's poll() return `PlainRecord`s from the fast reader; False if it stays as it was."""
    if not may_be_replaced("KAFKA_FAST_DECODER"):
        return False
    consumer._fetcher.PartitionRecords = FastPartitionRecords
    return True


class FastPartitionRecords(Fetcher.PartitionRecords):
    """The records of one fetch response for one partition, read a batch at a time."""

    def __init__(self, fetch_offset: int, tp: Any, records: Any, *args: Any, **kwargs: Any):
        super().__init__(fetch_offset, tp, records, *args, **kwargs)
        self.record_iterator: Iterator[list[PlainRecord]] | None = self._batches(records)  # None once drained
        self._pending: list[PlainRecord] = []
        self._batch_end = fetch_offset

    def take(self, n: int | None = None) -> list[PlainRecord]:
        """At most n records, in order; next_fetch_offset is where the partition goes on."""
        self._maybe_raise_next_inline_exception()
        taken: list[PlainRecord] = []
        try:
            while n is None or len(taken) < n:
                if not self._pending:
                    self.next_fetch_offset = self._batch_end  # past what compaction removed from the batch's end
                    if self.record_iterator is None:
                        break
                    found = next(self.record_iterator, None)
                    if found is None:
                        self.next_fetch_offset = self._batch_end
                        self.drain()
                        break
                    self._pending = found
                    continue
                room = len(self._pending) if n is None else n - len(taken)
                taken += self._pending[:room]
                self._pending = self._pending[room:]
                self.next_fetch_offset = taken[-1][0] + 1
        except Exception as error:
            if not taken:
                raise
            self._next_inline_exception = error  # these records first, the error at the next call, as the base has it
        self.records_read += len(taken)
        return taken

    def _batches(self, records: Any) -> Iterator[list[PlainRecord]]:
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"{self.topic_partition}: batch at {batch.base_offset} fails its checksum")
            if batch.magic != 2:
                read = [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in batch]
                self._batch_end = read[-1][0] + 1 if read else self._batch_end
            else:
                self.leader_epoch = batch.leader_epoch
                read = [] if self._is_hidden(batch) else read_batch(batch)
                self._batch_end = batch.next_offset
            self.bytes_read += batch.size_in_bytes
            # a batch may begin before the offset that was asked for
            yield (
                read
                if not read or read[0][0] >= self.fetch_offset
                else [record for record in read if record[0] >= self.fetch_offset]
            )

    def _is_hidden(self, batch: Any) -> bool:
        """True for a transaction's markers and, reading committed records only, for what was aborted."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)


def read_batch(batch: Any) -> list[PlainRecord]:
    """The records of one v2 batch (https://kafka.apache.org/documentation/#recordbatch).

    Every number is a zigzag varint; those of one or two bytes, nearly all, are read in place, as a call for each would
    cost more than all the rest. Raises CorruptRecordError when the bytes do not add up.
    """
    batch._maybe_uncompress()
    buffer, at = bytes(batch._buffer), batch._pos
    base_offset, base_timestamp, count = batch.base_offset, batch.first_timestamp, batch.records_count
    append_time = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    # nothing was compacted away: the offsets count up, and only the size of what tells them matters (one byte up to 63,
    # two up to 8191, three up to 2**20 - 1)
    dense = count == batch.last_offset_delta + 1 and count <= 2**20
    one_byte_to, two_bytes_to = base_offset + 64, base_offset + 8192
    varint = decode_varint
    key: bytes | None
    value: bytes | None
    records: list[PlainRecord] = []
    append = records.append
    try:
        for offset in range(base_offset, base_offset + count):
            # the record's length, which nothing here needs, and one byte of attributes, unused
            if buffer[at] < 128:
                at += 2
            elif buffer[at + 1] < 128:
                at += 3
            else:
                _, at = varint(buffer, at)
                at += 1
            low = buffer[at]
            if low < 128:
                timestamp = base_timestamp + ((low >> 1) ^ -(low & 1))
                at += 1
            elif (high := buffer[at + 1]) < 128 and not low & 1:
                timestamp = base_timestamp + (high << 6) + (low - 128 >> 1)
                at += 2
            else:
                delta, at = varint(buffer, at)
                timestamp = base_timestamp + delta
            if dense:
                at += 1 if offset < one_byte_to else 2 if offset < two_bytes_to else 3
            else:
                delta, at = varint(buffer, at)
                offset = base_offset + delta
            low = buffer[at]
            if low < 128 and not low & 1:
                start = at + 1
                at = start + (low >> 1)
                key = buffer[start:at]
            else:
                key, at = _read_bytes(buffer, at)
            low = buffer[at]
            if low >= 128 and (high := buffer[at + 1]) < 128 and not low & 1:
                start = at + 2
                at = start + (high << 6) + (low - 128 >> 1)
                value = buffer[start:at]
            else:
                value, at = _read_bytes(buffer, at)
            headers: Sequence[tuple[str, bytes | None]] = ()
            if buffer[at]:
                headers, at = _read_headers(buffer, at)
            else:
                at += 1
            append((offset, append_time or timestamp, key, value, headers))
    except (IndexError, ValueError) as error:
        raise CorruptRecordError(f"batch at offset {base_offset} breaks off: {error}") from error
    if at != len(buffer):
        raise CorruptRecordError(f"batch at offset {base_offset} has {len(buffer) - at} bytes too many")
    return records


def _read_bytes(buffer: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(buffer, at)
    return (buffer[at : at + size], at + size) if size >= 0 else (None, at)


def _read_headers(buffer: bytes, at: int) -> tuple[list[tuple[str, bytes | None]], int]:
    count, at = decode_varint(buffer, at)
    if count < 0:
        raise ValueError("negative number of headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = decode_varint(buffer, at)
        if size < 0:
            raise ValueError("negative size of a header's name")
        # kafka-python would fail on a name that is not UTF-8, at every poll anew: no way past the record
        name = buffer[at : at + size].decode("utf-8", "replace")
        value, at = _read_bytes(buffer, at + size)
        headers.append((name, value))
    return headers, at
