"""How fast is one consumer, against the floor that PostgreSQL sets, and how late is a row?

    python benchmarks/ingest.py [--records N] [--rounds R] [--latency-seconds S] [--only rate|latency]

Starts a Kafka and a PostgreSQL of its own in a temporary folder. In each round, one after the other on the same tables:

floor       COPY of prepared bytes of the same rows into raw_access_events, 20,000 a transaction, one connection
consumer    streaming/kafka_consumer.py with its defaults, from a topic that is full already
plain       the same with KAFKA_FAST_DECODER=off: kafka-python decodes the records
duplicates  1 % of the records, spread evenly, are sent twice
poison      1 % of the records, spread evenly, are not valid

A rate is rows over the time from the first transaction's begin to the last one's, leaving the last one's rows out; CPU
and memory are the process's own, start-up included in memory and left out of CPU. Ratios are taken within a round.
Event ids are UUIDv7. Latency is from the event's time, which is the moment of sending, to its transaction's commit
(PostgreSQL's track_commit_timestamp), with the producer's and the consumer's defaults.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

import psutil
import psycopg2

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "streaming")]

from kafka import KafkaProducer  # noqa: E402
from kafka.partitioner.default import murmur2  # noqa: E402

from delivery import Delivery  # noqa: E402
from local_servers import free_port  # noqa: E402
from local_servers.kafka_broker import KafkaBroker  # noqa: E402
from local_servers.postgres_server import PostgresServer  # noqa: E402
from pipeline_settings import apply_schema  # noqa: E402
from topics import ensure_topics  # noqa: E402

PARTITIONS = 6
FLOOR_ROWS = 20_000
TOPIC = "smart-access.events"
DATASETS = {"plain": 0.0, "duplicates": 0.01, "poison": 0.01}


def uuid7(milliseconds: int, rng: random.Random) -> str:
    """RFC 9562, section 5.7: 48 bits of time, the version, 12 random bits, the variant, 62 random bits."""
    value = milliseconds << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)
    return str(uuid.UUID(int=value))


def events(count: int, seed: int, now: float) -> Iterator[tuple[str, dict[str, str]]]:
    """Events of 3,000 devices over the last minutes before `now`, in the order of their ids."""
    rng = random.Random(seed)
    types, sources = ("open", "close", "fail"), ("app", "keypad", "schedule", "remote", "manual")
    for number in range(count):
        at = now - 60 + 60 * number / count
        device = f"device-{rng.randrange(3000):05d}"
        yield (
            device,
            {
                "event_id": uuid7(int(at * 1000), rng),
                "device_id": device,
                "event_ts": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "event_type": rng.choice(types),
                "trigger_source": rng.choice(sources),
            },
        )


def load(servers: str, dataset: str, count: int, seed: int) -> None:
    """Fills the topic with `count` records of one data set (one process of two)."""
    producer = KafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, acks="all", compression_type="lz4",
        batch_size=512 * 1024, linger_ms=20,
    )  # fmt: skip
    share = DATASETS[dataset]
    every = round(1 / share) if share else count + 1
    for number, (device, event) in enumerate(events(count, seed, time.time())):
        key = device.encode()
        value = json.dumps(event, separators=(",", ":")).encode()
        partition = (murmur2(key) & 0x7FFFFFFF) % PARTITIONS
        if dataset == "poison" and number % every == 0:
            value = value.replace(b'"event_type":"', b'"event_type":"not-')
        producer.send(TOPIC, value, key, partition=partition)
        if dataset == "duplicates" and number % every == 0:
            producer.send(TOPIC, value, key, partition=partition)
        if number % 50_000 == 0:
            producer.flush()  # its buffer has no bound of its own
    producer.flush()
    producer.close()


def fill(broker: KafkaBroker, dataset: str, count: int) -> None:
    ensure_topics({"bootstrap_servers": broker.bootstrap_servers}, PARTITIONS, 1)
    loaders = [
        multiprocessing.Process(target=load, args=(broker.bootstrap_servers, dataset, count // 2, seed))
        for seed in (1, 2)
    ]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
        if loader.exitcode:
            raise SystemExit(f"loading {dataset} failed")


def empty(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE raw_access_events, dead_letters, ingest_offsets, ingest_minutes")
        cursor.execute("CHECKPOINT")


def floor_rate(connection: Any, count: int) -> float:
    """Rows/s of the bare COPY of the same rows, prepared beforehand."""
    lines = [
        f"{e['event_id']}\t{e['device_id']}\t{e['event_ts']}\t{e['event_type']}\t{e['trigger_source']}\t\\N\t0\t{n}\n"
        for n, (_, e) in enumerate(events(count, 3, time.time()))
    ]
    pieces = ["".join(lines[at : at + FLOOR_ROWS]).encode() for at in range(0, count, FLOOR_ROWS)]
    statement = (
        "COPY raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, extra,"
        " kafka_partition, kafka_offset) FROM STDIN"
    )
    with connection.cursor() as cursor:
        began = time.perf_counter()
        for piece in pieces:
            cursor.execute("BEGIN")
            cursor.copy_expert(statement, io.BytesIO(piece), size=len(piece))
            cursor.execute("COMMIT")
        return count / (time.perf_counter() - began)


@contextmanager
def running_broker(folder: Path) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(folder, free_port(), free_port(), heap="1g")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


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
        cursor.execute("SELECT min(ingested_at), max(ingested_at) FROM raw_access_events")
        first, last = cursor.fetchone()
        cursor.execute("SELECT count(*) FROM raw_access_events WHERE ingested_at < %s", (last,))
        (rows,) = cursor.fetchone()
        cursor.execute("SELECT bool_and(balanced) FROM ingest_ledger")
        if cursor.fetchone() != (True,):
            raise SystemExit("the ledger does not balance")
    return {
        "rate": rows / (last - first).total_seconds(),
        "cpu": 1e6 * (cpu - cpu_before) / max(1, total - before),
        "memory": memory,
    }


def peak_memory(pid: int) -> float:
    """MB of resident memory at the most (Linux; elsewhere what it is now)."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return float(psutil.Process(pid).memory_info().rss / 1e6)


def rates(args: argparse.Namespace, folder: Path, postgres: PostgresServer, connection: Any) -> None:
    for name in DATASETS:
        with running_broker(folder / name) as broker:
            began = time.perf_counter()
            fill(broker, name, args.records)
            print(f"loaded {name}: {args.records:,} events in {time.perf_counter() - began:.0f} s", flush=True)
    runs: list[tuple[str, str, int, dict[str, str]]] = [
        ("consumer", "plain", args.records, {}),
        ("plain", "plain", args.records, {"KAFKA_FAST_DECODER": "off"}),
        ("duplicates", "duplicates", round(args.records * 1.01), {}),
        ("poison", "poison", args.records, {}),
    ]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("floor", *(run[0] for run in runs))}
    for number in range(args.rounds):
        empty(connection)
        found["floor"].append({"rate": floor_rate(connection, args.records)})
        for name, dataset, total, settings in runs:
            empty(connection)
            with running_broker(folder / dataset) as broker:
                settings["CONSUMER_GROUP"] = f"{name}-{number}"
                log = folder / "consumer.log"
                found[name].append(consumer_rate(broker, postgres, connection, total, log, **settings))
        told = ", ".join(f"{name} {rounds[-1]['rate']:,.0f}/s" for name, rounds in found.items())
        print(f"round {number + 1}: {told}", flush=True)
    print("\n| | records/s | of the floor | CPU s per million | peak MB |\n|---|---|---|---|---|")
    for name, rounds in found.items():
        ratio = statistics.median(r["rate"] / f["rate"] for r, f in zip(rounds, found["floor"], strict=True))
        rate, cpu, memory = (
            statistics.median(r.get(key, float("nan")) for r in rounds) for key in ("rate", "cpu", "memory")
        )
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {cpu:.2f} | {memory:.0f} |")
    pairs = zip(found["consumer"], found["plain"], strict=True)
    print(f"\nconsumer : plain = {statistics.median(a['rate'] / b['rate'] for a, b in pairs):.2f}")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="events in the topic (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    parser.add_argument("--latency-seconds", type=int, default=30, help="per rate (default: 30)")
    parser.add_argument("--only", choices=["rate", "latency"], help="one half (default: both)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are ended then, too
    with tempfile.TemporaryDirectory(prefix="smart-access-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = PostgresServer(folder / "postgres", free_port(), settings={"track_commit_timestamp": "on"})
        postgres.start()
        try:
            connection = psycopg2.connect(
                **{key[2:].lower().replace("database", "dbname"): text for key, text in postgres.environment().items()}
            )
            apply_schema(connection)
            connection.autocommit = True
            if args.only != "latency":
                rates(args, folder, postgres, connection)
            if args.only != "rate":
                latencies(args, folder, postgres, connection)
        finally:
            postgres.stop()


if __name__ == "__main__":
    main()
