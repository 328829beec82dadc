"""Counts what Kafka holds with plain kafka-python, and holds the journals, the ledger and the tables against it.

Of each number Kafka's first record is to be a row, every further one a duplicate, each poisonous one a dead letter:
offset by offset, not in sum. Nothing else may be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from numbered_events import HEADER, NUMBER_IN_ROW, PARTITIONS, is_poison, read_journal
from onlooker import GROUP, Place

from contracts import CONTRACTS

SHOWN = 5
SILENCE_MS = 10_000
LEDGER = """
SELECT start_offset, next_offset, l.stored, l.duplicates, l.dead, gaps, balanced,
       coalesce(sum(m.stored), 0)::bigint, coalesce(sum(m.duplicates), 0)::bigint, coalesce(sum(m.dead), 0)::bigint
FROM ingest_ledger AS l
LEFT JOIN ingest_minutes AS m USING (cluster_id, consumer_group, topic, partition)
WHERE consumer_group = %s AND topic = %s AND partition = %s
GROUP BY 1, 2, 3, 4, 5, 6, 7
"""
ROWS = "SELECT kafka_offset, {number} FROM {table} WHERE kafka_partition = %s AND kafka_offset >= %s"
LETTERS = 'SELECT "offset" FROM dead_letters WHERE topic = %s AND partition = %s AND "offset" >= %s'


class Tally:
    """What is to have become of one partition's records, up to a position."""

    def __init__(self) -> None:
        self.position = 0
        self.counts: Counter[str] = Counter()


class IndependentCount:
    """Goes on where it stood the last time; a new one counts from offset 0.

    Takes three bytes of memory a number, and the rows of the partition that it looks at.

    connection: what a kafka-python client needs. rows: asks PostgreSQL, by statement and values.
    """

    def __init__(self, connection: dict[str, Any], rows: Callable[..., list[Any]]) -> None:
        self._connection = connection
        self._rows = rows
        # By number, from 1: how often it was sent (up to 255), how often Kafka has it, whether it was acknowledged
        self._tried, self._seen, self._acknowledged = bytearray(1), bytearray(1), bytearray(1)
        self._checked = 0
        self._tallies = {(name, number): Tally() for name in NUMBER_IN_ROW for number in range(PARTITIONS)}

    @property
    def last_number(self) -> int:
        return len(self._tried) - 1

    def total(self) -> Counter[str]:
        return sum((tally.counts for tally in self._tallies.values()), Counter())

    def read(self, journal: Path) -> None:
        tried, acknowledged = read_journal(journal)
        more = bytes(max(0, max(tried, default=0) - self.last_number))
        for numbers in (self._tried, self._seen, self._acknowledged):
            numbers.extend(more)
        for number, times in tried.items():
            self._tried[number] = min(255, self._tried[number] + times)
        for number in acknowledged:
            self._acknowledged[number] = 1

    def differences(self) -> list[str]:
        """A line for each thing that is not as it should be; none if all is well. To be asked when all is at rest."""
        found: list[str] = []
        with closing(self._kafka()) as kafka:
            for place, tally in self._tallies.items():
                found += self._look_at(kafka, place, tally)
        fresh = range(self._checked + 1, self.last_number + 1)
        lost = [number for number in fresh if self._acknowledged[number] > self._seen[number]]
        found += _said("acknowledged, and not in Kafka: number", lost)
        # The producer ended well: what it has tried it has tried until it was acknowledged
        left = [number for number in fresh if self._tried[number] and not self._acknowledged[number]]
        found += _said("never acknowledged: number", left)
        self._checked = self.last_number
        for name in NUMBER_IN_ROW:
            stored = sum(tally.counts["stored"] for place, tally in self._tallies.items() if place[0] == name)
            [(rows,)] = self._rows(f"SELECT count(*) FROM {CONTRACTS[name].table}")  # noqa: S608 - our own
            if rows != stored:
                found.append(f"{CONTRACTS[name].table} has {rows} rows, to be: {stored}")
        [(letters,)] = self._rows("SELECT count(*) FROM dead_letters")
        if letters != self.total()["dead"]:
            found.append(f"dead_letters has {letters} rows, to be: {self.total()['dead']}")
        return found

    def _kafka(self) -> Any:
        return KafkaConsumer(
            **self._connection,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            metrics_enabled=False,
        )

    def _look_at(self, kafka: Any, place: Place, tally: Tally) -> Iterator[str]:
        """One partition, from where it was looked at the last time to its end."""
        since, rows, letters, counts = tally.position, set(), set(), tally.counts
        for offset, number in self._records(kafka, TopicPartition(*place), tally):
            if number > self.last_number or self._seen[number] >= self._tried[number]:
                often = self._tried[number] if number <= self.last_number else 0
                yield f"{place} at {offset}: number {number} once more than the {often} times that it was sent"
                continue
            self._seen[number] += 1
            if is_poison(number):
                letters.add((offset,))
            elif self._seen[number] == 1:
                rows.add((offset, number))
            else:
                counts["duplicates"] += 1
        counts["stored"] += len(rows)
        counts["dead"] += len(letters)
        statement = ROWS.format(number=NUMBER_IN_ROW[place[0]], table=CONTRACTS[place[0]].table)
        yield from _compared(f"{place} rows (offset, number)", rows, self._rows(statement, place[1], since))
        yield from _compared(f"{place} dead letters", letters, self._rows(LETTERS, *place, since))
        three = [counts[name] for name in ("stored", "duplicates", "dead")]
        to_be = (0, tally.position, *three, 0, True, *three)
        ledger = self._rows(LEDGER, GROUP, *place)
        if ledger != [to_be]:
            names = "(start_offset, next_offset, stored, duplicates, dead, gaps, balanced, the minutes' three sums)"
            yield f"{place} ledger {ledger}, to be: [{to_be}] {names}"

    def _records(self, kafka: Any, partition: TopicPartition, tally: Tally) -> Iterator[tuple[int, int]]:
        """Offset and number of each record; the tally's position goes with them."""
        kafka.assign([partition])
        kafka.seek(partition, tally.position)
        end = kafka.end_offsets([partition])[partition]
        while tally.position < end:
            records = kafka.poll(timeout_ms=SILENCE_MS).get(partition)
            assert records, f"{partition}: Kafka gives nothing at offset {tally.position}, before its end at {end}"
            for record in records:
                yield record.offset, int(dict(record.headers)[HEADER])
            tally.position = kafka.position(partition)


def _compared(what: str, to_be: set[Any], there: list[Any]) -> Iterator[str]:
    found = set(there)
    if len(found) != len(there):
        yield f"{what}: {len(there) - len(found)} twice"
    yield from _said(f"{what} missing:", to_be - found)
    yield from _said(f"{what} too many:", found - to_be)


def _said(what: str, which: Collection[Any]) -> list[str]:
    if not which:
        return []
    return [f"{what} {', '.join(map(str, sorted(which)[:SHOWN]))}{' …' if len(which) > SHOWN else ''} ({len(which)})"]
