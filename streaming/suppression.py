"""Whose records are no longer taken: the list that an erasure leaves behind, and what of a batch it holds back.

The list holds digests: HMAC-SHA256 of `household:ID` or `device:ID` under a salt of this database's own. Each is good
for a span of time, half-open: of a device that moved, only the records of its time in the erased household are held
back. Each transaction learns the list's version with the statement that it begins with, and reads the list only when
that has changed; while nobody was ever erased there is nothing to do.

A record that is not valid may name its device anywhere. It is held back if its key or anything in it is an id of the
list: as a dead letter it would bring the erased household's data back.
"""

from __future__ import annotations

import hmac
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from batch import Batch, Chunk, DeadLetter, TopicPartition
from contracts import CONTRACTS, DEVICES, EVENTS, HEALTH, HOUSEHOLDS, Contract
from record import Record
from row_text import unescape

HOUSEHOLD, DEVICE = "household", "device"
LONGEST_ID = 64
KEPT = 200_000  # ids that were looked up

READ = """
SELECT salt, digest, extract(epoch FROM valid_from)::float8, extract(epoch FROM valid_to)::float8
FROM suppression_list, suppressions"""

Span = tuple[float, float]  # seconds since 1970: from, and up to but not including
ALWAYS: Span = (-math.inf, math.inf)


def digest(salt: bytes, kind: str, name: str) -> bytes:
    return hmac.digest(salt, f"{kind}:{name}".encode(), "sha256")


class _Places(NamedTuple):
    """Where a row's line of COPY has its ids, by kind, and its time."""

    ids: tuple[tuple[str, int], ...]
    at: int


def _places(contract: Contract, at: str, **ids: str) -> _Places:
    column = contract.columns.index
    return _Places(tuple((kind, column(name)) for kind, name in ids.items()), column(at))


PLACES = {
    EVENTS.topic: _places(EVENTS, "event_ts", device="device_id"),
    HEALTH.topic: _places(HEALTH, "reported_at", device="device_id"),
    DEVICES.topic: _places(DEVICES, "updated_at", device="device_id", household="household_id"),
    HOUSEHOLDS.topic: _places(HOUSEHOLDS, "updated_at", household="household_id"),
}


class Suppressions:
    """The list as it was at its last `update`, and which ids are not on it."""

    def __init__(self, salt: bytes = b"", listed: Mapping[bytes, list[Span]] | None = None):
        self._version = 0
        self._read(salt, listed or {})

    def _read(self, salt: bytes, listed: Mapping[bytes, list[Span]]) -> None:
        self._salt, self._listed = salt, listed
        self._spans: dict[tuple[str, str], list[Span]] = {}
        self._unlisted: dict[str, set[str]] = {HOUSEHOLD: {"\\N"}, DEVICE: {"\\N"}}  # as they stand in lines of COPY

    def update(self, cursor: Any, version: int) -> None:
        """version: the list's, as a statement of this transaction has found it."""
        if version == self._version:
            return
        cursor.execute(READ)
        rows = cursor.fetchall()
        listed: defaultdict[bytes, list[Span]] = defaultdict(list)
        for _, name, since, until in rows:
            listed[bytes(name)].append((since, until))
        self._read(bytes(rows[0][0]) if rows else b"", dict(listed))
        self._version = version

    def sift(self, batch: Batch) -> tuple[dict[str, list[Chunk]], list[DeadLetter], Counter[TopicPartition]]:
        """What may be stored, by topic, and the dead letters; and how many records were held back. The batch stays."""
        if not self._listed:
            return dict(batch.chunks), list(batch.dead), Counter()
        held: Counter[TopicPartition] = Counter()
        wanted: defaultdict[str, list[Chunk]] = defaultdict(list)
        for topic, chunks in batch.chunks.items():
            for chunk in chunks:
                kept = self._wanted(topic, chunk)
                held[topic, chunk.partition] += len(chunk.lines) - len(kept.lines)
                if kept.lines:
                    wanted[topic].append(kept)
        dead = [letter for letter in batch.dead if not self.are_mentioned(letter.record)]
        held.update((letter.topic, letter.partition) for letter in batch.dead)
        held.subtract((letter.topic, letter.partition) for letter in dead)
        return wanted, dead, held

    def _wanted(self, topic: str, chunk: Chunk) -> Chunk:
        if all(
            self._unlisted[kind].issuperset([line.split("\t", column + 1)[column] for line in chunk.lines])
            for kind, column in PLACES[topic].ids
        ):
            return chunk
        kept = [at for at, line in enumerate(chunk.lines) if not self.hold_back(topic, line)]
        return Chunk(chunk.partition, [chunk.records[at] for at in kept], [chunk.lines[at] for at in kept])

    def hold_back(self, topic: str, line: str) -> bool:
        """line: a row of the topic's table, as COPY takes it."""
        fields = line.rstrip("\n").split("\t")
        for kind, column in PLACES[topic].ids:
            field = fields[column]
            if field in self._unlisted[kind]:
                continue
            spans = self._of(kind, unescape(field))
            if not spans:
                if len(self._unlisted[kind]) > KEPT:
                    self._unlisted[kind] = {"\\N"}
                self._unlisted[kind].add(field)
            elif _fall_in(spans, lambda: [datetime.fromisoformat(fields[PLACES[topic].at])]):
                return True
        return False

    def are_mentioned(self, record: Record) -> bool:
        """Whether a record that is not valid names somebody of the list.

        Of when it speaks: whatever time stands in it, or, without one, when it was sent.
        """
        return any(
            spans and _fall_in(spans, lambda: _times(record))
            for token in tokens(record)
            for spans in (self._of(HOUSEHOLD, token), self._of(DEVICE, token))
        )

    def _of(self, kind: str, name: str) -> list[Span]:
        found = self._spans.get((kind, name))
        if found is None:
            if len(self._spans) > KEPT:
                self._spans.clear()
            found = self._spans[kind, name] = self._listed.get(digest(self._salt, kind, name), [])
        return found


def _fall_in(spans: list[Span], times: Callable[[], list[datetime]]) -> bool:
    """times: gives them; asked only where it makes a difference."""
    return ALWAYS in spans or any(since <= at.timestamp() < until for at in times() for since, until in spans)


_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?")


def _times(record: Record) -> list[datetime]:
    found = []
    for text in _TIME.findall((record.value or b"").decode("utf-8", "replace")):
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            continue
        found.append(at if at.tzinfo else at.replace(tzinfo=UTC))
    sent = record.timestamp / 1000 if 0 <= record.timestamp < 4_000_000_000_000 else time.time()
    return found or [datetime.fromtimestamp(sent, UTC)]


_READINGS = {
    field.name
    for contract in CONTRACTS.values()
    for field in contract.fields
    if "number" in field.schema.get("type", ()) or field.schema.get("type") == "boolean"
}
_QUOTED = re.compile(r'"([^"\\]{1,64})"')
_CELL = re.compile(r"[^,;|\t\r\n]+")
_WORD = re.compile(r"[^\s\"',;|:=\[\]{}()<>]+")


def tokens(record: Record) -> set[str]:
    """Every text in a record that could be an id."""
    parts = [record.key, *(value for _, value in record.headers)]
    found = {part.decode("utf-8", "replace") for part in parts if part}
    value = record.value or b""
    try:
        found.update(_in_json(msgspec.json.decode(value)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = value.decode("utf-8", "replace")
        found.update(_QUOTED.findall(text), _WORD.findall(text))
        found.update(cell.strip(" \"'") for cell in _CELL.findall(text))
    return {token for token in found if 0 < len(token) <= LONGEST_ID}


def _in_json(value: Any) -> Iterator[str]:
    """Its strings, names of fields too, and its integers; but for a battery's charge, which may equal somebody's id."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, dict):
        yield from value
        yield from _in_all(inner for name, inner in value.items() if name not in _READINGS)
    elif isinstance(value, list):
        yield from _in_all(value)


def _in_all(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        yield from _in_json(value)
