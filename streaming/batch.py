"""A batch: from where to where each partition was read, and what was found there. Pure bookkeeping, no I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from record import PlainRecord, Record
from row_text import Encoded

TopicPartition = tuple[str, int]
OF_NO_PARTITION = -1  # stands for the partition of what did not come from Kafka


class DeadLetter(NamedTuple):
    topic: str
    partition: int
    record: Record
    reason: str
    detail: str


class Chunk(NamedTuple):
    """Rows of one partition: lines[i], of COPY's text format, is the row of records[i]."""

    partition: int
    records: Sequence[PlainRecord]
    lines: list[str]


@dataclass
class Span:
    """What a batch holds of one partition: the offsets low <= offset < high, `count` records among them."""

    low: int
    high: int
    count: int = 0

    @property
    def gaps(self) -> int:
        """Offsets without a record: transaction markers, aborted or compacted records, and what was lost."""
        return self.high - self.low - self.count


@dataclass
class Batch:
    spans: dict[TopicPartition, Span] = field(default_factory=dict)
    chunks: defaultdict[str, list[Chunk]] = field(default_factory=lambda: defaultdict(list))
    dead: list[DeadLetter] = field(default_factory=list)
    records: int = 0
    size: int = 0  # bytes of the records, roughly

    def add(self, topic: str, partition: int, low: int, high: int, encoded: Encoded) -> None:
        """Adds what was read of low <= offset < high; low is where the batch's span of that partition ends so far."""
        span = self.spans.setdefault((topic, partition), Span(low, low))
        span.high = high
        count = len(encoded.records) + len(encoded.dead)
        span.count += count
        if encoded.records:
            self.chunks[topic].append(Chunk(partition, encoded.records, encoded.lines))
        self.dead += [DeadLetter(topic, partition, record, e.reason, e.detail) for record, e in encoded.dead]
        self.records += count
        self.size += sum(map(len, encoded.lines)) + sum(len(record.value or b"") for record, _ in encoded.dead)

    def drop(self, partitions: set[TopicPartition]) -> None:
        """Forgets what it holds of these partitions: they belong to another consumer now, who will read it again."""
        for topic in {topic for topic, _ in partitions}:
            self.chunks[topic] = [chunk for chunk in self.chunks[topic] if (topic, chunk.partition) not in partitions]
        self.dead = [letter for letter in self.dead if (letter.topic, letter.partition) not in partitions]
        for partition in partitions:
            self.records -= self.spans.pop(partition, Span(0, 0)).count


@dataclass
class Written:
    """What became of a batch: by partition the rows stored and the records suppressed, and every dead letter."""

    stored: Counter[TopicPartition] = field(default_factory=Counter)
    dead: list[DeadLetter] = field(default_factory=list)
    suppressed: Counter[TopicPartition] = field(default_factory=Counter)

    def duplicates(self, batch: Batch) -> Counter[TopicPartition]:
        dead = Counter((letter.topic, letter.partition) for letter in self.dead)
        accounted = self.stored + dead + self.suppressed
        return Counter({tp: span.count - accounted[tp] for tp, span in batch.spans.items()})
