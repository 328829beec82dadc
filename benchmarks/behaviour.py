"""What does each system do with duplicates, with poison, and after a kill -9?

    python benchmarks/behaviour.py [--events N] [--kill-events N] [--only NAME,NAME]

The systems are those of alternatives.py, on topics of the same events, into the same table, whose key is the event's
id:

duplicates   1,000 of 20,000 events are sent twice, one right after the other
cut          1,000 of 20,000 records end in the middle of their JSON
poison       1,000 of 20,000 records are JSON with an event_type that the contract and the table's CHECK refuse
kill -9      all processes of the system are killed, three times: when a quarter, a half and three quarters of 300,000
             rows are there, or 3 s after it began to store, whichever comes first; and started again each time

A system that stops is started once more, as a supervisor would; `stops` means that it then stopped again. A row is
lost when a later one of its partition is stored and it is not; `unfinished` is what takes longer than a minute. `kept`
is what lies in a place for dead letters, from where it can be looked at and sent again; `gone` is what does not. What
it found is in benchmarks/results/behaviour.json (--results).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alternatives import BROKER, versions
from figures import RESULTS, keep, machine
from kafka import KafkaConsumer, TopicPartition
from kafka_connect import DEAD_LETTERS
from meter import STALLED_S, TROUBLE, Meter
from preloaded_topic import TOPIC, Dataset, empty, fill, running_broker, temporary_tables
from systems import KafkaConnect, Ours, Place, QuixStreams, RowByRow, System, quixstreams_python

from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer

DATASETS = (Dataset("duplicates", 5), Dataset("cut", 5), Dataset("poison", 5))
KILL = Dataset()
KILL_AT = (0.25, 0.5, 0.75)
STORING_S = 3.0
QUIET_S = 120.0  # longer than a session, a rebalance and a start of Java together, on a busy machine, too
LONGEST_S = 60.0
AFTER_LAST_ROW_S = 2.0  # the last record is one of the duplicates, or of the poison
EVENT_TYPES = ("open", "close", "fail")


@dataclass
class Outcome:
    """What a system has made of a topic."""

    expected: int
    stops: list[str] = field(default_factory=list)  # its own words, each time
    kills: int = 0
    rows: int = 0
    lost: int = 0
    kept: int = 0
    counted_duplicates: int = 0

    def told(self, kind: str, marked: int) -> str:
        stopped, complete = len(self.stops) > 1, self.rows == self.expected
        words = ["stops" if stopped else "goes on" if self.stops else "right" if complete else "unfinished"]
        words.append(f"{self.rows:,} of {self.expected:,} rows" if not complete else f"{self.rows:,} rows")
        if self.lost:
            words.append(f"{self.lost:,} lost")
        if kind in ("cut", "poison") and not stopped and (complete or self.kept):
            words.append(f"{self.kept:,} kept" if self.kept else f"{marked:,} gone")
        if self.counted_duplicates:
            words.append(f"{self.counted_duplicates:,} counted")
        return ", ".join(filter(None, words))


def published(servers: str) -> dict[str, tuple[int, int]]:
    """Partition and offset of the first record of each valid event's id."""
    found: dict[str, tuple[int, int]] = {}
    with closing(KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")) as consumer:
        partitions = [TopicPartition(TOPIC, number) for number in consumer.partitions_for_topic(TOPIC)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(timeout_ms=500).values():
                for record in records:
                    try:
                        event = json.loads(record.value)
                    except ValueError:
                        continue
                    if event["event_type"] in EVENT_TYPES:
                        found.setdefault(event["event_id"], (record.partition, record.offset))
    return found


def lost_rows(sent: dict[str, tuple[int, int]], stored: set[str]) -> int:
    """How many are not stored although a later one of their partition is."""
    furthest: dict[int, int] = defaultdict(lambda: -1)
    for partition, offset in (sent[event_id] for event_id in stored):
        furthest[partition] = max(furthest[partition], offset)
    return sum(
        event_id not in stored and offset < furthest[partition] for event_id, (partition, offset) in sent.items()
    )


def dead_letters_in_kafka(servers: str) -> int:
    with closing(KafkaConsumer(bootstrap_servers=servers)) as consumer:
        numbers = consumer.partitions_for_topic(DEAD_LETTERS) or ()
        return sum(consumer.end_offsets([TopicPartition(DEAD_LETTERS, number) for number in numbers]).values())


class Trial:
    """One system on one topic."""

    def __init__(self, system: System, place: Place, meter: Meter, expected: int) -> None:
        self._system = system
        self._place = place
        self._meter = meter
        self.outcome = Outcome(expected)

    def run(self, kill_at: tuple[float, ...] = ()) -> None:
        try:
            self._system.start(self._place)
            for share in kill_at:
                if not self._stores(round(share * self.outcome.expected), STORING_S):
                    return
                self._system.kill()
                self.outcome.kills += 1
                self._system.start(self._place)
            if self._stores(self.outcome.expected, LONGEST_S):
                time.sleep(AFTER_LAST_ROW_S)
                if words := self._system.failure():
                    self.outcome.stops.append(words)
        finally:
            self._system.stop()

    def _stores(self, goal: int, seconds: float) -> bool:
        """Waits for the goal, or for so long from the first new row on. False when it stops for good, or is quiet."""
        rows = self._meter.rows()
        began: float | None = None
        grown_at = asked_at = time.monotonic()
        while True:
            now, before, rows = time.monotonic(), rows, self._meter.rows()
            if rows > before:
                grown_at, began = now, began or now
            if rows >= goal or (began and now - began > seconds):
                return True
            if now - grown_at > STALLED_S and now - asked_at > STALLED_S:
                asked_at = now
                if words := self._system.failure():
                    self.outcome.stops.append(words)
                    if len(self.outcome.stops) > 1:
                        return False
                    self._system.stop()
                    self._system.start(self._place)
                    grown_at = time.monotonic()
            if now - grown_at > QUIET_S:
                return False
            time.sleep(0.02)

    def evaluate(self, sent: dict[str, tuple[int, int]]) -> None:
        stored = {event_id for (event_id,) in self._meter.ask("SELECT event_id::text FROM raw_access_events")}
        outcome = self.outcome
        outcome.rows = len(stored)
        outcome.lost = lost_rows(sent, stored)
        [(kept,)] = self._meter.ask("SELECT count(*) FROM dead_letters")
        [(duplicates,)] = self._meter.ask("SELECT coalesce(sum(duplicates), 0)::bigint FROM ingest_ledger")
        outcome.kept += kept
        outcome.counted_duplicates = duplicates


def trials(
    systems: list[System], folder: Path, broker: KafkaBroker, postgres: PostgresServer, connection: Any,
    kill_at: tuple[float, ...],
) -> Iterator[tuple[System, Outcome]]:  # fmt: skip
    meter = Meter(connection, postgres)
    servers = broker.bootstrap_servers
    sent = published(servers)
    for number, system in enumerate(systems):
        empty(connection)
        place = Place(folder / f"{number}", servers, postgres, f"group-{number}")
        place.folder.mkdir(parents=True)
        trial = Trial(system, place, meter, len(sent))
        before = dead_letters_in_kafka(servers)
        try:
            trial.run(kill_at)
        except TROUBLE as error:
            print(f"  {system.name}: {error}", flush=True)
            continue
        trial.outcome.kept = dead_letters_in_kafka(servers) - before
        trial.evaluate(sent)
        yield system, trial.outcome


def all_systems(folder: Path) -> list[System]:
    systems: list[System] = [Ours(), KafkaConnect("insert", 2, 2_000), KafkaConnect("upsert", 2, 2_000)]
    try:
        systems.append(QuixStreams(quixstreams_python(folder), 1_000))
    except SystemExit as error:
        print(error, flush=True)
    return [*systems, RowByRow(100), RowByRow(1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000, help="in the first three topics (default: 20000)")
    parser.add_argument("--kill-events", type=int, default=300_000, help="in the fourth (default: 300000)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="systems whose name has one of these in it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw figures")
    args = parser.parse_args()
    raw: dict[str, Any] = {"when": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", "machine": machine()}
    with temporary_tables() as (folder, postgres, connection):
        raw["versions"] = versions(connection)
        systems = all_systems(folder)
        if args.only:
            systems = [system for system in systems if any(part in system.name for part in args.only)]
        table: dict[str, dict[str, str]] = {system.name: {} for system in systems}
        for dataset in (*DATASETS, KILL):
            count, kind = (args.kill_events, "kill -9") if dataset is KILL else (args.events, dataset.kind)
            with running_broker(folder / dataset.folder, BROKER) as broker:
                fill(broker, dataset, count)
                place = folder / f"trials-{dataset.folder}"
                kill_at = KILL_AT if dataset is KILL else ()
                for system, outcome in trials(systems, place, broker, postgres, connection, kill_at):
                    told = outcome.told(kind, dataset.marked(count))
                    table[system.name][kind] = told
                    raw.setdefault(kind, {})[system.name] = asdict(outcome)
                    print(f"  {system.name}: {told}{''.join(f' [{words}]' for words in outcome.stops)}", flush=True)
            file = keep(raw, args.results / "behaviour.json")
    kinds = [dataset.kind for dataset in DATASETS] + ["kill -9"]
    print(f"\n| | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells.get(kind, '') for kind in kinds)} |")
    print(f"\nraw figures: {file}")


if __name__ == "__main__":
    main()
