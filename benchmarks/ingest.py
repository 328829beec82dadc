"""How fast is one consumer, against the floor that PostgreSQL sets?

    python benchmarks/ingest.py [--records N] [--rounds R] [--percent P,P]

Starts a Kafka and a PostgreSQL of its own in a temporary folder. In each round, one after the other on the same tables:

floor          COPY of prepared bytes of the same rows into raw_access_events, 20,000 a transaction, one connection
consumer       streaming/kafka_consumer.py with its defaults, from a topic that is full already
plain poll()   the same with KAFKA_FAST_DECODER=off: kafka-python decodes the records
P % duplicates so many of the events, spread evenly, are sent twice, one right after the other
P % poison     so many of the records, spread evenly, are not valid

A rate is rows and dead letters over the time from the first transaction's begin to the last one's, leaving the last
one's out; with duplicates it is raised by their share. CPU and memory are the process's own, start-up included in
memory and left out of CPU. Ratios are taken within a round. Event ids are UUIDv7. How late a row is tells latency.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

import psutil
from figures import medians
from preloaded_topic import (
    ROOT,
    Dataset,
    empty,
    fill,
    floor_lines,
    floor_rate,
    peak_memory,
    running_broker,
    temporary_tables,
)

from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer

# A dead letter has no ingested_at, but is made in the same transaction
TRANSACTIONS = """
SELECT at, count(*)
FROM (
    SELECT ingested_at AS at FROM raw_access_events WHERE ingested_at > %(since)s
    UNION ALL
    SELECT created_at FROM dead_letters WHERE created_at > %(since)s
) AS kept
GROUP BY at ORDER BY at"""


@contextmanager
def running_consumer(
    broker: KafkaBroker, postgres: PostgresServer, log: Path, **settings: str
) -> Iterator[Popen[bytes]]:
    """A consumer of its own process, ended by SIGTERM; it must exit with 0."""
    process = Popen(
        [sys.executable, str(ROOT / "streaming/kafka_consumer.py")],
        env=os.environ
        | postgres.environment()
        | {"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "CONSUMER_METRICS_PORT": "0"}
        | settings,
        stdout=log.open("ab"),
        stderr=STDOUT,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
    if process.returncode:
        raise SystemExit(f"the consumer exited with {process.returncode}: {log.read_text()[-2000:]}")


def consumed(connection: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(next_offset - start_offset), 0) FROM ingest_offsets")
        return int(cursor.fetchone()[0])


def consumer_rate(broker: KafkaBroker, postgres: PostgresServer, connection: Any, total: int, log: Path,
                  **settings: str) -> dict[str, float]:  # fmt: skip
    """Records/s, CPU seconds per million records and peak memory in MB of one consumer over the whole topic.

    The ledger must be empty; other rows may be there.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (since,) = cursor.fetchone()
    with running_consumer(broker, postgres, log, **settings) as process:
        status = psutil.Process(process.pid)
        cpu_at_start = None
        while (done := consumed(connection)) < total:
            if process.poll() is not None:
                raise SystemExit(f"the consumer ended: {log.read_text()[-2000:]}")
            if cpu_at_start is None and done:
                cpu_at_start = (done, sum(status.cpu_times()[:2]))
            time.sleep(0.1)
        cpu = sum(status.cpu_times()[:2])
        memory = peak_memory(process.pid)
    before, cpu_before = cpu_at_start or (0, 0.0)
    with connection.cursor() as cursor:
        cursor.execute(TRANSACTIONS, {"since": since})
        *others, (last, of_last) = cursor.fetchall()
        cursor.execute("SELECT bool_and(balanced) FROM ingest_ledger")
        if cursor.fetchone() != (True,):
            raise SystemExit("the ledger does not balance")
    kept = sum(count for _, count in others)
    return {
        "rate": kept * total / (kept + of_last) / (last - others[0][0]).total_seconds(),
        "cpu": 1e6 * (cpu - cpu_before) / max(1, total - before),
        "memory": memory,
    }


def rates(args: argparse.Namespace, folder: Path, postgres: PostgresServer, connection: Any) -> None:
    plain = Dataset()
    runs: list[tuple[str, Dataset, dict[str, str]]] = [
        ("consumer", plain, {}),
        ("plain poll()", plain, {"KAFKA_FAST_DECODER": "off"}),
    ]
    spoilt = (Dataset(kind, percent) for kind in ("duplicates", "poison") for percent in args.percent)
    runs += [(dataset.name, dataset, {}) for dataset in spoilt]
    for dataset in dict.fromkeys(run[1] for run in runs):
        with running_broker(folder / dataset.folder) as broker:
            fill(broker, dataset, args.records)
    pieces = floor_lines(args.records)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("floor", *(run[0] for run in runs))}
    for number in range(args.rounds):
        empty(connection)
        found["floor"].append({"rate": floor_rate(connection, pieces)})
        for name, dataset, settings in runs:
            empty(connection)
            with running_broker(folder / dataset.folder) as broker:
                group = {"CONSUMER_GROUP": f"{name}-{number}"}
                total, log = dataset.records(args.records), folder / "consumer.log"
                found[name].append(consumer_rate(broker, postgres, connection, total, log, **settings, **group))
        told = ", ".join(f"{name} {rounds[-1]['rate']:,.0f}/s" for name, rounds in found.items())
        print(f"round {number + 1}: {told}", flush=True)
    print("\n| | records/s | of the floor | CPU s per million | peak MB |\n|---|---|---|---|---|")
    for name, rounds in found.items():
        ratio = statistics.median(r["rate"] / f["rate"] for r, f in zip(rounds, found["floor"], strict=True))
        figures = medians(rounds)
        spent = f"{figures['cpu']:.2f} | {figures['memory']:.0f}" if "cpu" in figures else " | "
        print(f"| {name} | {figures['rate']:,.0f} | {ratio:.2f} | {spent} |")
    pairs = zip(found["consumer"], found["plain poll()"], strict=True)
    print(f"\nconsumer : plain poll() = {statistics.median(a['rate'] / b['rate'] for a, b in pairs):.2f}")


def percentages(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="events in the topic (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    parser.add_argument(
        "--percent", type=percentages, default=[1.0], metavar="P,P", help="duplicates, and poison (default: 1)"
    )
    args = parser.parse_args()
    with temporary_tables() as (folder, postgres, connection):
        rates(args, folder, postgres, connection)


if __name__ == "__main__":
    main()
