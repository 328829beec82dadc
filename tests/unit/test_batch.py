"""The ledger's arithmetic: of every offset that was read it is known what became of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from batch import Batch, DeadLetter, Span, TopicPartition, Written
from contracts import DEVICES, EVENTS, HEALTH, InvalidRecord
from record import Record
from row_text import Encoded

PARTITIONS = [(EVENTS.topic, 0), (EVENTS.topic, 1), (HEALTH.topic, 0), (DEVICES.topic, 1)]
ROW, DEAD, GAP = "row", "dead", "gap"
OFFSETS = st.lists(st.sampled_from([ROW, DEAD, GAP]), max_size=20)


def encoded(low: int, kinds: list[str]) -> Encoded:
    """What was read of the offsets from low on; a gap is an offset without a record."""
    found = [(Record(low + at, 0, None, b"value", ()), kind) for at, kind in enumerate(kinds)]
    rows = [record for record, kind in found if kind == ROW]
    dead = [(record, InvalidRecord("reason", "detail")) for record, kind in found if kind == DEAD]
    return Encoded(rows, [f"{record.offset}\n" for record in rows], dead, set())


reads = st.lists(st.tuples(st.sampled_from(PARTITIONS), OFFSETS), max_size=12)
starts = st.fixed_dictionaries({partition: st.integers(0, 2**40) for partition in PARTITIONS})


def filled(starts: dict[TopicPartition, int], reads: list[tuple[TopicPartition, list[str]]]) -> Batch:
    batch, at = Batch(), dict(starts)
    for (topic, partition), kinds in reads:
        low = at[topic, partition]
        at[topic, partition] = low + len(kinds)
        batch.add(topic, partition, low, low + len(kinds), encoded(low, kinds))
    return batch


def counted(reads: list[tuple[TopicPartition, list[str]]]) -> dict[TopicPartition, Counter[str]]:
    kinds: defaultdict[TopicPartition, Counter[str]] = defaultdict(Counter)
    for partition, found in reads:
        kinds[partition].update(found)
    return kinds


@given(starts, reads, st.data())
def test_every_offset_is_stored_duplicate_dead_or_gap(
    starts: dict[TopicPartition, int], reads: list[tuple[TopicPartition, list[str]]], data: st.DataObject
) -> None:
    batch, kinds = filled(starts, reads), counted(reads)
    written = Written(dead=list(batch.dead))
    absorbed: Counter[TopicPartition] = Counter()
    for topic, chunks in batch.chunks.items():
        for chunk in chunks:
            for record in chunk.records:  # PostgreSQL takes it, has it already, or refuses it
                fate = data.draw(st.sampled_from(["stored", "duplicate", "refused"]))
                written.stored[topic, chunk.partition] += fate == "stored"
                absorbed[topic, chunk.partition] += fate == "duplicate"
                if fate == "refused":
                    written.dead.append(DeadLetter(topic, chunk.partition, record, "refused_by_database", ""))
    dead = Counter((letter.topic, letter.partition) for letter in written.dead)
    duplicates = written.duplicates(batch)
    assert +duplicates == +absorbed
    assert batch.spans.keys() == kinds.keys()
    for partition, span in batch.spans.items():
        assert (span.low, span.high) == (starts[partition], starts[partition] + kinds[partition].total())
        assert span.gaps == kinds[partition][GAP]
        assert written.stored[partition] + duplicates[partition] + dead[partition] + span.gaps == span.high - span.low


@given(starts, reads)
def test_every_record_is_in_the_batch_once_and_in_its_order(
    starts: dict[TopicPartition, int], reads: list[tuple[TopicPartition, list[str]]]
) -> None:
    batch, kinds = filled(starts, reads), counted(reads)
    rows: defaultdict[TopicPartition, list[int]] = defaultdict(list)
    for topic, chunks in batch.chunks.items():
        for chunk in chunks:
            assert chunk.records
            assert chunk.lines == [f"{record.offset}\n" for record in chunk.records]
            rows[topic, chunk.partition] += [record.offset for record in chunk.records]
    for partition, found in kinds.items():
        assert len(rows[partition]) == found[ROW]
        assert all(one < next_one for one, next_one in pairwise(rows[partition]))
    assert Counter((letter.topic, letter.partition) for letter in batch.dead) == Counter(
        {partition: found[DEAD] for partition, found in kinds.items() if found[DEAD]}
    )
    assert batch.records == sum(found[ROW] + found[DEAD] for found in kinds.values())
    assert (batch.size > 0) == (batch.records > 0)


@given(starts, reads, st.sets(st.sampled_from(PARTITIONS)), reads)
def test_a_dropped_partition_leaves_no_trace_and_may_come_back(
    starts: dict[TopicPartition, int],
    reads: list[tuple[TopicPartition, list[str]]],
    dropped: set[TopicPartition],
    later: list[tuple[TopicPartition, list[str]]],
) -> None:
    batch = filled(starts, reads)
    batch.drop(dropped)
    kept = filled(starts, [read for read in reads if read[0] not in dropped])
    assert batch.spans == kept.spans
    assert {topic: chunks for topic, chunks in batch.chunks.items() if chunks} == kept.chunks
    assert batch.dead == kept.dead
    assert batch.records == kept.records
    for (topic, partition), kinds in later:
        if (topic, partition) in dropped:  # taken away and given back: read again from where the ledger stands
            span = batch.spans.get((topic, partition), Span(starts[topic, partition], starts[topic, partition]))
            batch.add(topic, partition, span.high, span.high + len(kinds), encoded(span.high, kinds))
    for place, found in counted([read for read in later if read[0] in dropped]).items():
        assert batch.spans[place].low == starts[place]
        assert batch.spans[place].gaps == found[GAP]


def test_nothing_but_a_gap_still_moves_the_ledger() -> None:
    batch = Batch()
    batch.add(EVENTS.topic, 0, 5, 9, Encoded([], [], [], set()))
    assert batch.spans == {(EVENTS.topic, 0): Span(5, 9, 0)}
    assert batch.spans[EVENTS.topic, 0].gaps == 4
    assert Written().duplicates(batch) == {(EVENTS.topic, 0): 0}
    assert batch.records == batch.size == 0
