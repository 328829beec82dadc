"""What do more consumers, more partitions and a longer history cost, and how many machines do how many devices need?

    python benchmarks/scale.py [--only consumers|history|devices] [--records N] [--rounds R] [--history N,N]

Starts a Kafka and a PostgreSQL of its own in a temporary folder. All of it shares this machine's cores, so more
consumers can be no faster than the cores allow; what each part spends says what a machine of its own would bear.

consumers   1 to 4 in one group, on topics of 6, 12 and 24 partitions that are full already: records/s, and the CPU
            seconds a million of the consumers, of PostgreSQL and of Kafka
history     one consumer into a table that has so many million rows, beside one into an empty table of another database
            of the same server, in turns: the ratio
devices     CPU seconds a second of each part at rates up to 50,000 records a second, and between them taken as linear;
            a device sends a health report every 30 s and ten events a day. Checked at the rates of 1,000, 10,000,
            100,000 and a million devices: what was predicted beside what was measured. Machines are of two cores that
            are half used, so that what an hour's outage has left waiting is caught up within the next hour
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from alternatives import BROKER
from figures import RESULTS, keep, machine, medians
from ingest import consumer_rate
from latency import HEADINGS, Bench, Latency
from meter import Meter
from preloaded_topic import Dataset, empty, fill, running_broker, temporary_tables
from retention import put
from systems import Ours, Place

from local_servers.postgres_server import PostgresServer
from pipeline_settings import apply_schema

CONSUMERS = (1, 2, 3, 4)
PARTITIONS = (6, 12, 24)
RUN_SECONDS = 120.0
MILLION = 1_000_000
REPORTS_A_DAY = 86_400 / 30 + 10  # of a device
DEVICES = (1_000, 10_000, 100_000, MILLION)
KNOWN_RATES = (10, 100, 1_000, 10_000, 50_000)
CORES, USED = 2, 0.5
PARTS = ("cpu", "postgres_cpu", "kafka_cpu")


class Scale:
    def __init__(self, args: argparse.Namespace, folder: Path, postgres: PostgresServer, connection: Any) -> None:
        self._args, self._folder, self._postgres, self._connection = args, folder, postgres, connection
        self._meter = Meter(connection, postgres)
        self._runs = 0

    def consumers(self) -> dict[str, Any]:
        found: dict[str, list[dict[str, float]]] = {}
        for partitions in PARTITIONS:
            topic = self._folder / f"partitions-{partitions}"
            with running_broker(topic, BROKER) as broker:
                fill(broker, Dataset(), self._args.records, partitions)
            for _ in range(self._args.rounds):
                for count in CONSUMERS:
                    found.setdefault(f"{partitions} {count}", []).append(self._run(topic, count))
        first = next(iter(found))
        print("\n| partitions | consumers | records/s | of one | CPU s per million | PostgreSQL's | Kafka's |")
        print("|---|---|---|---|---|---|---|")
        for name, rounds in found.items():
            figures = medians(rounds)
            pairs = zip(rounds, found[first], strict=True)
            ratio = statistics.median(one["rate"] / base["rate"] for one, base in pairs)
            spent = " | ".join(f"{figures[part]:.2f}" for part in PARTS)
            print(f"| {name.replace(' ', ' | ')} | {figures['rate']:,.0f} | {ratio:.2f} | {spent} |", flush=True)
        return found

    def _run(self, topic: Path, count: int) -> dict[str, float]:
        self._runs += 1
        empty(self._connection)
        folder = self._folder / f"run-{self._runs}"
        folder.mkdir()
        with running_broker(topic, BROKER) as broker:
            kafka = broker.daemon.process()
            assert kafka is not None
            before = sum(kafka.cpu_times()[:2])
            place = Place(folder, broker.bootstrap_servers, self._postgres, f"run-{self._runs}")
            figures = self._meter.measure(Ours(count), place, self._args.records, RUN_SECONDS)
            figures["kafka_cpu"] = MILLION * (sum(kafka.cpu_times()[:2]) - before) / self._args.records
        print(f"  {count} consumers: {figures['rate']:,.0f}/s", flush=True)
        return figures

    def history(self) -> dict[str, Any]:
        """A new topic for each run, as its rows stay in the table."""
        found: dict[str, list[dict[str, float]]] = {}
        with self._connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE history")
        with closing(self._postgres.connect("history")) as full:
            apply_schema(full)
            full.commit()
            full.autocommit = True
            rows = 0
            for millions in self._args.history:
                put(full, millions * MILLION - rows, 400 - rows // MILLION, 399 - millions)
                rows = millions * MILLION
                with full.cursor() as cursor:
                    cursor.execute("VACUUM ANALYZE raw_access_events")
                    cursor.execute("CHECKPOINT")
                runs = [self._beside(full, f"{millions}-{number}") for number in range(self._args.rounds)]
                found[str(millions)] = runs
                print(f"  {millions} M rows: " + ", ".join(f"{run['of_empty']:.2f}" for run in runs), flush=True)
                rows += self._args.rounds * self._args.records  # which stay
        print("\n| rows before | records/s | into an empty table | ratio |\n|---|---|---|---|")
        for millions, runs in found.items():
            rate, base, ratio = (medians(runs)[name] for name in ("rate", "empty", "of_empty"))
            print(f"| {millions} M | {rate:,.0f} | {base:,.0f} | {ratio:.2f} |", flush=True)
        return found

    def _beside(self, full: Any, name: str) -> dict[str, float]:
        """The same topic into the table with the history, and into an empty one."""
        topic, log = self._folder / f"history-{name}", self._folder / "consumer.log"
        with running_broker(topic) as broker:
            fill(broker, Dataset(), self._args.records)
        with full.cursor() as cursor:
            cursor.execute("TRUNCATE ingest_offsets, ingest_minutes")
            cursor.execute("CHECKPOINT")
        empty(self._connection)
        rates = []
        for connection, database in ((full, "history"), (self._connection, self._postgres.database)):
            settings = {"CONSUMER_GROUP": f"{database}-{name}", "PGDATABASE": database}
            with running_broker(topic) as broker:
                figures = consumer_rate(broker, self._postgres, connection, self._args.records, log, **settings)
            rates.append(figures["rate"])
        rate, base = rates
        return {"rate": rate, "empty": base, "of_empty": rate / base}

    def devices(self) -> dict[str, Any]:
        bench = Bench(self._folder, self._postgres, self._connection, self._args.seconds)
        measured: dict[float, Latency] = {}
        asked = {devices: round(devices * REPORTS_A_DAY / 86_400) for devices in DEVICES}
        print(f"\n| records/s | {HEADINGS} |\n|---|---|---|---|---|---|---|---|---|", flush=True)
        for rate in sorted({*KNOWN_RATES, *asked.values()}):
            measured[rate] = bench.latency(rate)
            print(f"| {rate:,} | {measured[rate].cells()} |", flush=True)
        known = pd.DataFrame({rate: measured[rate]._asdict() for rate in KNOWN_RATES}).T
        print("\n| devices | records/s | CPU s/s predicted: consumer, PostgreSQL, Kafka | measured | sum | machines |")
        print("|---|---|---|---|---|---|")
        for devices, rate in asked.items():
            every = known.reindex(sorted({*KNOWN_RATES, rate})).interpolate(method="index")
            predicted = [float(every.loc[rate, part]) for part in PARTS]
            real = [getattr(measured[rate], part) for part in PARTS]
            told = [", ".join(f"{share:.3f}" for share in shares) for shares in (predicted, real)]
            cores = sum(real)
            machines = -(-cores // (CORES * USED))
            print(f"| {devices:,} | {rate:,} | {' | '.join(told)} | {cores:.2f} | {machines:.0f} |", flush=True)
        return {str(rate): latency._asdict() for rate, latency in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["consumers", "history", "devices"], help="one of them (default: all)")
    parser.add_argument("--records", type=int, default=MILLION, help="of each run (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    whole_numbers = "0,10,100"
    parser.add_argument(
        "--history", type=lambda text: [int(part) for part in text.split(",")], default=whole_numbers,
        metavar="N,N", help=f"million rows, rising (default: {whole_numbers}, for which the disk needs 40 GB)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=int, default=30, help="of each rate of `devices` (default: 30)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw figures")
    args = parser.parse_args()
    file = args.results / "scale.json"
    raw: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}  # what is not asked for stays
    with temporary_tables({"track_commit_timestamp": "on"}) as (folder, postgres, connection):
        scale = Scale(args, folder, postgres, connection)
        for name, measure in (("consumers", scale.consumers), ("history", scale.history), ("devices", scale.devices)):
            if args.only in (None, name):
                when = f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}"
                raw[name] = {"when": when, "machine": machine(), "found": measure()}
                keep(raw, file)
    print(f"\nraw figures: {file}")


if __name__ == "__main__":
    main()
