"""How fast is one consumer, against the floor that PostgreSQL sets, and how late is a row?

    python benchmarks/ingest.py [--records N] [--rounds R] [--percent P,P] [--latency-seconds S] [--only rate|latency]

Starts a Kafka and a PostgreSQL of its own in a temporary folder. In each round, one after the other on the same tables:

floor          COPY of prepared bytes of the same rows into raw_access_events, 20,000 a transaction, one connection
consumer       streaming/kafka_consumer.py with its defaults, from a topic that is full already
plain poll()   the same with KAFKA_FAST_DECODER=off: kafka-python decodes the records
P % duplicates so many of the events, spread evenly, are sent twice, one right after the other
P % poison     so many of the records, spread evenly, are not valid

A rate is rows and dead letters over the time from the first transaction's begin to the last one's, leaving the last
one's out; with duplicates it is raised by their share. CPU and memory are the process's own, start-up included in
memory and left out of CPU. Ratios are taken within a round. Event ids are UUIDv7. Latency is from the event's time,
which is the moment of sending, to its transaction's commit (PostgreSQL's track_commit_timestamp), with the producer's
and the consumer's defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

import psutil
from preloaded_topic import (
    ROOT,
    TOPIC,
    Dataset,
    empty,
    fill,
    floor_lines,
    floor_rate,
    peak_memory,
    running_broker,
    temporary_tables,
    uuid7,
)

from delivery import Delivery
from local_servers.kafka_broker import KafkaBroker
from local_servers.postgres_server import PostgresServer

# A dead letter has no ingested_at, but is made in the same transaction
TRANSACTIONS = """
SELECT at, count(*)
FROM (SELECT ingested_at AS at FROM raw_access_events UNION ALL SELECT created_at FROM dead_letters) AS kept
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
    """Records/s, CPU seconds per million records and peak memory in MB of one consumer over the whole topic."""
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
        cursor.execute(TRANSACTIONS)
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
        rate, cpu, memory = (
            statistics.median(r.get(key, float("nan")) for r in rounds) for key in ("rate", "cpu", "memory")
        )
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {cpu:.2f} | {memory:.0f} |")
    pairs = zip(found["consumer"], found["plain poll()"], strict=True)
    print(f"\nconsumer : plain poll() = {statistics.median(a['rate'] / b['rate'] for a, b in pairs):.2f}")


def latencies(args: argparse.Namespace, folder: Path, postgres: PostgresServer, connection: Any) -> None:
    print("\n| events/s | p50 ms | p95 ms | p99 ms | max ms |\n|---|---|---|---|---|", flush=True)
    for rate in (30, 1000):
        empty(connection)
        with (
            running_broker(folder / f"latency-{rate}") as broker,
            running_consumer(broker, postgres, folder / "latency.log", CONSUMER_GROUP=f"l{rate}"),
        ):
            send_paced(broker.bootstrap_servers, rate, 15)  # the group forms, and Java compiles what is hot
            after = datetime.now(UTC)
            send_paced(broker.bootstrap_servers, rate, args.latency_seconds)
            time.sleep(2)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT percentile_disc(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY late), count(*) FROM ("
                " SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(xmin) - event_ts) AS late"
                " FROM raw_access_events WHERE event_ts > %s) AS rows",
                (after,),
            )
            percentiles, count = cursor.fetchone()
        if count != rate * args.latency_seconds:
            raise SystemExit(f"{count} rows of {rate * args.latency_seconds} arrived")
        print(f"| {rate} | " + " | ".join(f"{value:.1f}" for value in percentiles) + " |", flush=True)


def send_paced(servers: str, rate: int, seconds: int) -> None:
    """Events at an even rate through the producer's own delivery; each one's time is the moment of its sending."""
    delivery = Delivery({"bootstrap_servers": servers}, None, {})
    rng = random.Random()
    began = time.perf_counter()
    for number in range(rate * seconds):
        ahead = began + number / rate - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)
        now = time.time()
        device = f"device-{rng.randrange(300):05d}"
        at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        event = {"event_id": uuid7(int(now * 1000), rng), "device_id": device, "event_ts": at,
                 "event_type": "open", "trigger_source": "app"}  # fmt: skip
        delivery.send(TOPIC, device.encode(), json.dumps(event).encode())
    delivery.finish()
    delivery.close()


def percentages(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="events in the topic (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    parser.add_argument(
        "--percent", type=percentages, default=[1.0], metavar="P,P", help="duplicates, and poison (default: 1)"
    )
    parser.add_argument("--latency-seconds", type=int, default=30, help="per rate (default: 30)")
    parser.add_argument("--only", choices=["rate", "latency"], help="one half (default: both)")
    args = parser.parse_args()
    with temporary_tables({"track_commit_timestamp": "on"}) as (folder, postgres, connection):
        if args.only != "latency":
            rates(args, folder, postgres, connection)
        if args.only != "rate":
            latencies(args, folder, postgres, connection)


if __name__ == "__main__":
    main()
