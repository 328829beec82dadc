"""How fast is one consumer beside what else one could take, on the same topic and into the same table?

    python benchmarks/alternatives.py [--records N] [--rounds R] [--seconds S] [--only NAME,NAME]

Starts a Kafka and a PostgreSQL of its own in a temporary folder and fills one topic with plain JSON, the same bytes for
all of them (Kafka Connect is told the schema beside: value.converter.schema.content). In each round, one after the
other into raw_access_events, emptied between:

floor           COPY of prepared bytes of the same rows, 20,000 a transaction, one connection
this project    streaming/kafka_consumer.py: one, then two in one group
Kafka Connect   with Debezium's JDBC sink, standalone: insert and upsert with the best of a small grid that is tried
                first (tasks, records a batch; unnest), and insert as the connector's defaults have it, row-wise
quixstreams     PostgreSQLSink, ON CONFLICT DO NOTHING, with the best commit_every of a grid
row by row      one INSERT … ON CONFLICT a record; a commit each, or every hundred

Each runs until everything is there or for so many seconds, whichever comes first. A rate is rows over the time from
the first transaction's begin to the last one's, leaving the last one's rows out; `2nd half` is the same of that time's
second half, when Java has compiled what is hot. CPU seconds a million rows, of the system's processes and of
PostgreSQL's, are from the first rows to the last; memory is the peak of the processes. Ratios are taken within a round.

What it found is in benchmarks/results/alternatives.json (--results), from which plots.py draws. A system that fails
is told, and the others go on. With the defaults it takes a quarter of an hour. benchmarks/behaviour.py tells what each
does with duplicates, poison and a kill -9.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kafka_connect
from figures import RESULTS, Figures, keep, machine, medians
from meter import TROUBLE, Meter
from preloaded_topic import Dataset, empty, fill, floor_lines, floor_rate, running_broker, temporary_tables
from systems import OURS, QUIXSTREAMS, KafkaConnect, Ours, Place, QuixStreams, RowByRow, System, quixstreams_python

from local_servers.kafka_jars import COORDINATES
from local_servers.postgres_server import PostgresServer

BATCHES = (2_000, 10_000)
TASKS = (1, 2)
COMMIT_EVERY = (1_000, 10_000)
GRID_SECONDS = 10.0
# So that the members of a group that are started together share the partitions from the first record on
BROKER = {"group.initial.rebalance.delay.ms": "3000"}
COLUMNS = ("rate", "second_half", "cpu", "postgres_cpu", "memory")


class Comparison:
    """All runs on one topic; what they found, by system."""

    def __init__(self, args: argparse.Namespace, folder: Path, servers: str, postgres: PostgresServer, connection: Any):
        self._args = args
        self._folder = folder
        self._servers = servers
        self._postgres = postgres
        self._connection = connection
        self._meter = Meter(connection, postgres)
        self._runs = 0
        self.found: dict[str, list[Figures]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        self.grid: list[dict[str, Any]] = []

    def wants(self, name: str) -> bool:
        return not self._args.only or any(part in name for part in self._args.only)

    def run(self, system: System, seconds: float) -> Figures:
        """Raises one of TROUBLE."""
        self._runs += 1
        folder = self._folder / f"run-{self._runs}"
        folder.mkdir()
        empty(self._connection)
        place = Place(folder, self._servers, self._postgres, f"run-{self._runs}")
        return self._meter.measure(system, place, self._args.records, seconds)

    def best(self, candidates: list[System]) -> System | None:
        """The fastest of them in one short run each."""
        rated: list[tuple[float, System]] = []
        for system in candidates:
            try:
                rate = self.run(system, GRID_SECONDS)["rate"]
            except TROUBLE as error:
                self.failures[f"{system.name}, {_told(system)}"] = str(error)
                print(f"  {system.name} {_told(system)}: {error}", flush=True)
                continue
            rated.append((rate, system))
            self.grid.append({"system": system.name, "settings": system.settings, "rate": rate})
            print(f"  {system.name} {_told(system)}: {rate:,.0f} rows/s", flush=True)
        return max(rated, key=lambda each: each[0])[1] if rated else None

    def contenders(self, python: Callable[[], Path]) -> list[System]:
        """The systems of every round, the alternatives at the best of their grids."""
        systems: list[System] = [Ours(), Ours(2)]
        print("trying the alternatives' settings", flush=True)
        for mode in ("insert", "upsert"):
            if self.wants(f"Kafka Connect, {mode}"):
                best = self.best([KafkaConnect(mode, tasks, batch) for tasks in TASKS for batch in BATCHES])
                systems += [best] if best else []
        systems.append(KafkaConnect("insert", tasks=1, batch_size=500, unnest=False))
        if self.wants("quixstreams"):
            try:
                installed = python()
                best = self.best([QuixStreams(installed, every) for every in COMMIT_EVERY])
                systems += [best] if best else []
            except SystemExit as error:
                self.failures["quixstreams PostgreSQLSink"] = str(error)
                print(f"  {error}", flush=True)
        systems += [RowByRow(100), RowByRow(1)]
        return [system for system in systems if self.wants(system.name)]

    def round(self, systems: list[System], pieces: list[bytes]) -> None:
        empty(self._connection)
        before = self._meter.postgres_cpu()
        rate = floor_rate(self._connection, pieces)
        spent = self._meter.postgres_cpu() - before
        floor = {"rate": rate, "second_half": rate, "postgres_cpu": 1e6 * spent / self._args.records}
        self.found.setdefault("floor", []).append(floor)
        print(f"  floor: {rate:,.0f} rows/s", flush=True)
        for system in systems:
            self.settings[system.name] = system.settings
            try:
                figures = self.run(system, self._args.seconds)
            except TROUBLE as error:
                self.failures[system.name] = str(error)
                print(f"  {system.name}: {error}", flush=True)
                continue
            self.found.setdefault(system.name, []).append(figures)
            # of the round's own: another round may have had another machine
            figures["of_floor"] = figures["rate"] / rate
            if ours := self.found.get(OURS):
                figures["of_ours"] = figures["rate"] / ours[-1]["rate"]
            print(f"  {system.name}: {figures['rate']:,.0f} rows/s of {figures['rows']:,} rows", flush=True)


def _told(system: System) -> str:
    return ", ".join(f"{name.removeprefix('consumer.override.')}={value}" for name, value in system.settings.items())


def tell(comparison: Comparison) -> None:
    print("\n| | rows/s | 2nd half | of the floor | of ours | CPU s per million | PostgreSQL's | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rounds in comparison.found.items():
        figures = medians(rounds)
        ratios = [f"{figures[key]:.3f}" if key in figures else "" for key in ("of_floor", "of_ours")]
        rate, half, cpu, postgres, memory = (figures.get(key, float("nan")) for key in COLUMNS)
        cells = [f"{rate:,.0f}", f"{half:,.0f}", *ratios, f"{cpu:.1f}", f"{postgres:.1f}", f"{memory:,.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    compared = {name: medians(rounds) for name, rounds in comparison.found.items() if not name.startswith(OURS)}
    others = {name: figures["of_ours"] for name, figures in compared.items() if "of_ours" in figures}
    if others:
        best = max(others, key=lambda name: others[name])
        print(f"\none consumer : {best} = {1 / others[best]:.2f}\n")
    for name, settings in comparison.settings.items():
        if settings:
            print(f"{name}: " + ", ".join(f"{key}={value}" for key, value in settings.items()))
    for name, failure in comparison.failures.items():
        print(f"{name} failed: {failure}")


def versions(connection: Any) -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        (postgres,) = cursor.fetchone()
    return {
        "kafka": COORDINATES.partition("+")[0].rpartition(":")[2],
        "postgresql": postgres,
        "kafka connect": kafka_connect.CONNECT_VERSION,
        "debezium": kafka_connect.DEBEZIUM_VERSION,
        "quixstreams": QUIXSTREAMS.rpartition("=")[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="events in the topic (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    parser.add_argument("--seconds", type=float, default=25, help="longest run of one system (default: 25)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="systems whose name has one of these in it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw figures")
    args = parser.parse_args()
    with temporary_tables() as (folder, postgres, connection), running_broker(folder / "broker", BROKER) as broker:
        fill(broker, Dataset(), args.records)
        pieces = floor_lines(args.records)
        comparison = Comparison(args, folder, broker.bootstrap_servers, postgres, connection)
        systems = comparison.contenders(lambda: quixstreams_python(folder))
        raw = {
            "when": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
            "records": args.records,
            "machine": machine(),
            "versions": versions(connection),
            "settings": comparison.settings,
            "grid": comparison.grid,
            "failures": comparison.failures,
            "rounds": comparison.found,
        }
        for number in range(args.rounds):
            print(f"round {number + 1}", flush=True)
            comparison.round(systems, pieces)
            file = keep(raw, args.results / "alternatives.json")  # after each: what is measured is not lost
        tell(comparison)
        print(f"\nraw figures: {file}")


if __name__ == "__main__":
    main()
