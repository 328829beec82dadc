"""Kafka records to the lines of a COPY, with a shortcut for the common shape of events and health reports.

Contract.decode says what a record means. Nearly all records are plainer than it allows: a canonical UUID, UTC times,
no unknown field, nothing to escape. For those a typed JSON decode and one f-string give the same line; one regex over
all the lines of a poll proves that they are of that plain shape, and what is not goes through Contract.decode. A test
holds the two equal.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Annotated, Literal, NamedTuple

import msgspec

from contracts import EVENTS, HEALTH, MAX_AHEAD, MAX_VALUE_BYTES, Columns, Contract, InvalidRecord
from record import PlainRecord, Record


class Encoded(NamedTuple):
    """The records of one poll of one partition: lines[i] is the row of records[i]."""

    records: Sequence[PlainRecord]
    lines: list[str]
    dead: list[tuple[Record, InvalidRecord]]
    mismatched: set[int]  # offsets of the events and health reports whose key is not their device_id


def copy_line(columns: Columns, partition: int | None, offset: int | None) -> str:
    """One line of COPY's text format: the contract's columns, then kafka_partition and kafka_offset."""
    texts = [*columns, None if partition is None else str(partition), None if offset is None else str(offset)]
    return "\t".join("\\N" if text is None else escape(text) for text in texts) + "\n"


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_TO_ESCAPE = re.compile(r"[\\\t\n\r]")


_ESCAPED = re.compile(r"\\(.)")
_MEANT = {"t": "\t", "n": "\n", "r": "\r"}


def escape(text: str) -> str:
    return text.translate(_ESCAPES) if _TO_ESCAPE.search(text) else text  # to look costs a tenth of it


def unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: _MEANT.get(found[1], found[1]), text) if "\\" in text else text


def encode(
    contract: Contract, partition: int, records: Sequence[PlainRecord], oldest: datetime | None = None
) -> Encoded:
    """Lines for the valid records, in their order; the others with the reason why they are dead.

    oldest: what happened before it is refused, as Contract.decode has it.
    """
    shape = _SHAPES.get(contract.topic)
    mismatched: set[int] = set()
    lines = _plain_lines(shape, partition, records, mismatched, oldest) if shape else [""] * len(records)
    dead = []
    for at, line in enumerate(lines) if not all(lines) else ():
        if line:
            continue
        record = Record(*records[at])
        try:
            columns = contract.decode(record.value, record.key, record.timestamp, oldest)
        except InvalidRecord as error:
            dead.append((record, error))
            mismatched.discard(record.offset)
            continue
        lines[at] = copy_line(columns, partition, record.offset)
        if shape and record.key != (columns[contract.columns.index("device_id")] or "").encode():
            mismatched.add(record.offset)
    if dead:
        kept = [at for at, line in enumerate(lines) if line]
        records, lines = [records[at] for at in kept], [lines[at] for at in kept]
    return Encoded(records, lines, dead, mismatched)


def of_file(contract: Contract, lines: list[str], load: int | None) -> list[str]:
    """The same rows with NULL for kafka_partition and kafka_offset, and the file's load where the table has one."""
    end = "\t\\N\t\\N\n" if contract.compacted else f"\t\\N\t\\N\t{_NULL if load is None else load}\n"
    return [line[: line.rindex("\t", 0, line.rindex("\t"))] + end for line in lines]


_Lines = Callable[[int, Sequence[PlainRecord], set[int]], tuple[list[str], list[str]]]


class _Shape(NamedTuple):
    lines: _Lines
    row: re.Pattern[str]
    rows: re.Pattern[str]


def _plain_lines(
    shape: _Shape, partition: int, records: Sequence[PlainRecord], mismatched: set[int], oldest: datetime | None
) -> list[str]:
    """The lines of the records of the plain shape and "" for the others."""
    lines, times = shape.lines(partition, records, mismatched)
    text = "".join(lines)
    # a newline within a value could make one record look like two rows, so there must be one for each line
    if text.count("\n") != len(lines) - lines.count("") or not shape.rows.fullmatch(text):
        lines = [line if shape.row.fullmatch(line) else "" for line in lines]
    timestamps = list(map(itemgetter(1), records))
    if max(times) > _latest(min(timestamps)) or max(timestamps) >= UNUSABLE_FROM_MS:
        lines = [
            line if time_ <= _latest(timestamp) else ""
            for line, time_, timestamp in zip(lines, times, timestamps, strict=True)
        ]
    if oldest:
        # the first whole second in which no plain time is refused
        first = (oldest + timedelta(microseconds=999_999)).strftime("%Y-%m-%dT%H:%M:%S")
        if min(times) < first:
            lines = [line if time_ >= first else "" for line, time_ in zip(lines, times, strict=True)]
    return lines


UNUSABLE_FROM_MS = 4_000_000_000_000  # in 2096; Contract.decode knows what to make of a later one


def _latest(timestamp_ms: int) -> str:
    """The last whole second that a plain time may have, as text: such texts sort as the times do.

    A record without a usable timestamp gets "", so that Contract.decode judges it.
    """
    if not 0 <= timestamp_ms < UNUSABLE_FROM_MS:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(timestamp_ms // 1000 + MAX_AHEAD.seconds))


_Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
_Dbm = Annotated[float, msgspec.Meta(ge=-150, le=0)]


class _Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    event_id: str
    device_id: str
    event_ts: str
    event_type: Literal["open", "close", "fail"]
    trigger_source: str


class _Health(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    device_id: str
    reported_at: str
    is_online: bool
    battery_pct: _Percent | None = None
    signal_strength_dbm: _Dbm | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_health = msgspec.json.Decoder(_Health).decode
_UNDECODED = (msgspec.DecodeError, UnicodeDecodeError, TypeError)  # TypeError: a tombstone


_NULL = "\\N"


def _event_lines(partition: int, records: Sequence[PlainRecord], mismatched: set[int]) -> tuple[list[str], list[str]]:
    lines, times = [], []
    for offset, _, key, value, _ in records:
        try:
            event = _decode_event(value)  # type: ignore[arg-type]
        except _UNDECODED:
            times.append("")
            lines.append("")
            continue
        if key != event.device_id.encode():
            mismatched.add(offset)
        times.append(event.event_ts)
        lines.append(
            f"{event.event_id}\t{event.device_id}\t{event.event_ts}\t{event.event_type}\t{event.trigger_source}"
            f"\t\\N\t{partition}\t{offset}\n"
            if len(value) <= MAX_VALUE_BYTES  # type: ignore[arg-type]
            else ""
        )
    return lines, times


def _health_lines(partition: int, records: Sequence[PlainRecord], mismatched: set[int]) -> tuple[list[str], list[str]]:
    lines, times = [], []
    for offset, _, key, value, _ in records:
        try:
            report = _decode_health(value)  # type: ignore[arg-type]
        except _UNDECODED:
            times.append("")
            lines.append("")
            continue
        battery = _NULL if report.battery_pct is None else report.battery_pct
        signal = _NULL if report.signal_strength_dbm is None else report.signal_strength_dbm
        online = "t" if report.is_online else "f"
        if key != report.device_id.encode():
            mismatched.add(offset)
        times.append(report.reported_at)
        lines.append(
            f"{report.device_id}\t{report.reported_at}\t{battery}\t{signal}\t{online}\t\\N\t{partition}\t{offset}\n"
            if len(value) <= MAX_VALUE_BYTES  # type: ignore[arg-type]
            else ""
        )
    return lines, times


_HEX = "[0-9a-fA-F]"
_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_DAY = (  # what every month has comes first, as nearly all days are of it; 29 February goes the long way
    r"20[0-9]{2}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
)
_TIME = _DAY + r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?Z"
_WORD = r"[0-9A-Za-z_.:@/+-]{1,64}"
_NUMBER = r"(?:\\N|(?!-0\.0\t)-?[0-9]{1,3}\.[0-9]{1,20})"  # -0.0 and what a real cannot hold go the long way
_KAFKA = r"\t\\N\t[0-9]{1,9}\t[0-9]{1,18}\n"


def _shape(lines: _Lines, row: str) -> _Shape:
    return _Shape(lines, re.compile(row), re.compile(f"(?:{row})*+"))


_SHAPES = {
    EVENTS.topic: _shape(_event_lines, f"{_UUID}\t{_WORD}\t{_TIME}\t(?:open|close|fail)\t{_WORD}{_KAFKA}"),
    HEALTH.topic: _shape(_health_lines, f"{_WORD}\t{_TIME}\t{_NUMBER}\t{_NUMBER}\t[tf]{_KAFKA}"),
}
