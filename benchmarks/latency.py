"""How late is a row, at which rate of events and with which BATCH_SIZE and BATCH_TIMEOUT?

    python benchmarks/latency.py [--rates N,N] [--sizes N,N] [--timeouts S,S] [--seconds S] [--only rates|batches]

Starts a Kafka and a PostgreSQL of its own in a temporary folder. Events come at an even rate through the producer's own
delivery. Latency is from the event's time, which is the moment of its sending, to its transaction's commit
(PostgreSQL's track_commit_timestamp); 15 s of warm-up are left out.

rates     the consumer's defaults, at each rate; beside the latencies the rows of a transaction and the CPU seconds of a
          second: the consumer's, PostgreSQL's, Kafka's
batches   each BATCH_SIZE with each BATCH_TIMEOUT, at 1,000 events a second; and how many records a second the consumer
          takes with the size from a topic that is full already, beside the default's (ratio)
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from figures import RESULTS, keep, machine
from ingest import consumer_rate, running_consumer
from meter import Meter
from preloaded_topic import PARTITIONS, TOPIC, Dataset, empty, fill, running_broker, temporary_tables, uuid7

from delivery import Delivery
from local_servers.postgres_server import PostgresServer
from topics import ensure_topics

WARM_UP_S = 15  # the group forms, Java compiles what is hot
SENDER_RATE = 25_000  # events/s that one process sends evenly
SWEEP_RATE = 1000
DEFAULT_SIZE, DEFAULT_TIMEOUT = 20_000, 1.0
LATENESS = """
SELECT percentile_disc(ARRAY[0.5, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY late), count(*), count(DISTINCT ingested_at)
FROM (
    SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(xmin) - event_ts) AS late, ingested_at
    FROM raw_access_events WHERE event_ts > %s
) AS rows"""


class Latency(NamedTuple):
    """Milliseconds; rows of a transaction; CPU seconds of a second, by whom."""

    p50: float
    p95: float
    p99: float
    longest: float
    rows: float
    cpu: float
    postgres_cpu: float
    kafka_cpu: float

    def cells(self) -> str:
        return " | ".join([*(f"{value:,.1f}" for value in self[:5]), *(f"{share:.3f}" for share in self[5:])])


HEADINGS = "p50 ms | p95 ms | p99 ms | max ms | rows a transaction | CPU s/s | PostgreSQL's | Kafka's"


def send_paced(servers: str, rate: float, seconds: float, seed: int) -> None:
    """One sender's share; each event's time is the moment of its sending."""
    delivery = Delivery({"bootstrap_servers": servers}, None, {})
    rng = random.Random(seed)
    devices = [f"device-{number:05d}" for number in range(300)]
    keys = [device.encode() for device in devices]
    began, number, total = time.perf_counter(), 0, round(rate * seconds)
    while number < total:
        due = min(total, int((time.perf_counter() - began) * rate) + 1)
        if number >= due:
            time.sleep(max(0.0, number / rate - (time.perf_counter() - began)))
            continue
        now = time.time()
        at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        d = rng.randrange(300)
        value = (
            f'{{"event_id":"{uuid7(int(now * 1000), rng)}","device_id":"{devices[d]}","event_ts":"{at}",'
            '"event_type":"open","trigger_source":"app"}'
        )
        delivery.send(TOPIC, keys[d], value.encode())
        number += 1
    delivery.finish()
    delivery.close()


def send_together(servers: str, rate: float, seconds: float) -> None:
    count = -(-int(rate) // SENDER_RATE)
    senders = [
        multiprocessing.Process(target=send_paced, args=(servers, rate / count, seconds, seed)) for seed in range(count)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
        if sender.exitcode:
            raise SystemExit("a sender failed")


class Bench:
    def __init__(self, folder: Path, postgres: PostgresServer, connection: Any, seconds: int) -> None:
        self._folder, self._postgres, self._connection, self._seconds = folder, postgres, connection, seconds
        self._meter = Meter(connection, postgres)
        self._runs = 0

    def latency(self, rate: int, **settings: str) -> Latency:
        self._runs += 1
        empty(self._connection)
        log = self._folder / "latency.log"
        with (
            running_broker(self._folder / f"latency-{self._runs}") as broker,
            running_consumer(broker, self._postgres, log, CONSUMER_GROUP=f"l{self._runs}", **settings) as process,
        ):
            ensure_topics({"bootstrap_servers": broker.bootstrap_servers}, PARTITIONS, 1)
            send_together(broker.bootstrap_servers, rate, WARM_UP_S)
            after = datetime.now(UTC)
            spenders = psutil.Process(process.pid), broker.daemon.process()
            before = time.perf_counter(), *self._spent(*spenders)
            send_together(broker.bootstrap_servers, rate, self._seconds)
            after_it = time.perf_counter(), *self._spent(*spenders)
            took, own, servers, kafka = (b - a for a, b in zip(before, after_it, strict=True))
            self._wait_for(rate * (WARM_UP_S + self._seconds))
        ((percentiles, count, transactions),) = self._meter.ask(LATENESS, after)
        if count != rate * self._seconds:
            raise SystemExit(f"{count} rows of {rate * self._seconds} are later than the warm-up")
        p50, p95, p99, longest = map(float, percentiles)
        return Latency(p50, p95, p99, longest, count / transactions, own / took, servers / took, kafka / took)

    def _spent(self, consumer: psutil.Process, kafka: Any) -> tuple[float, float, float]:
        """CPU seconds: the consumer's, PostgreSQL's, Kafka's."""
        return _cpu(consumer), self._meter.postgres_cpu(), _cpu(kafka)

    def _wait_for(self, rows: int) -> None:
        deadline = time.monotonic() + 120
        while self._meter.rows() < rows:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self._meter.rows()} of {rows} rows arrived")
            time.sleep(0.5)

    def rate(self, topic: Path, records: int, **settings: str) -> float:
        """Records/s from a topic that is full already, in the broker of that folder."""
        self._runs += 1
        empty(self._connection)
        group = {"CONSUMER_GROUP": f"r{self._runs}"}
        with running_broker(topic) as broker:
            log = self._folder / "rate.log"
            return consumer_rate(broker, self._postgres, self._connection, records, log, **settings, **group)["rate"]

    def fill(self, records: int) -> Path:
        topic = self._folder / "full"
        with running_broker(topic) as broker:
            fill(broker, Dataset(), records)
        return topic


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def rates(bench: Bench, args: argparse.Namespace) -> dict[int, Latency]:
    print(f"\n| events/s | {HEADINGS} |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    found = {}
    for rate in args.rates:
        found[rate] = bench.latency(rate)
        print(f"| {rate:,} | {found[rate].cells()} |", flush=True)
    return found


def batches(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    topic = bench.fill(args.records)
    print("\n| BATCH_SIZE | records/s | of the default's |\n|---|---|---|", flush=True)
    throughput: dict[int, list[float]] = {}
    ratios: dict[int, list[float]] = {}
    for _ in range(args.rounds):
        base = bench.rate(topic, args.records)
        for size in args.sizes:
            measured = base if size == DEFAULT_SIZE else bench.rate(topic, args.records, BATCH_SIZE=str(size))
            throughput.setdefault(size, []).append(measured)
            ratios.setdefault(size, []).append(measured / base)
    for size in args.sizes:
        print(f"| {size:,} | {statistics.median(throughput[size]):,.0f} | {statistics.median(ratios[size]):.2f} |")
    print(f"\n| BATCH_SIZE | BATCH_TIMEOUT | {HEADINGS} |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)
    waits = []
    for size, timeout in _sweep(args.sizes, args.timeouts):
        found = bench.latency(SWEEP_RATE, BATCH_SIZE=str(size), BATCH_TIMEOUT=str(timeout))
        waits.append({"size": size, "timeout": timeout, **found._asdict()})
        print(f"| {size:,} | {timeout:g} | {found.cells()} |", flush=True)
    return {"throughput": throughput, "of_default": ratios, "latency": waits}


def _sweep(sizes: list[int], timeouts: list[float]) -> Iterator[tuple[int, float]]:
    """One after the other from the defaults: both matter alone, or not at all."""
    yield DEFAULT_SIZE, DEFAULT_TIMEOUT
    yield from ((size, DEFAULT_TIMEOUT) for size in sizes if size != DEFAULT_SIZE)
    yield from ((DEFAULT_SIZE, timeout) for timeout in timeouts if timeout != DEFAULT_TIMEOUT)


def main() -> None:
    def numbers(kind: Any) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rates_of = [30, 1000, 10_000, 50_000]
    parser.add_argument("--rates", type=numbers(int), default=rates_of, help="default: 30,1000,10000,50000")
    parser.add_argument("--sizes", type=numbers(int), default=[100, 1000, 5000, 20_000], help="100,1000,5000,20000")
    parser.add_argument("--timeouts", type=numbers(float), default=[0.0, 0.1, 1.0, 5.0], help="0,0.1,1,5")
    parser.add_argument("--seconds", type=int, default=30, help="of each run (default: 30)")
    parser.add_argument("--records", type=int, default=500_000, help="in the full topic (default: 500000)")
    parser.add_argument("--rounds", type=int, default=3, help="of the rates by BATCH_SIZE (default: 3)")
    parser.add_argument("--only", choices=["rates", "batches"], help="one half (default: both)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw figures")
    args = parser.parse_args()
    raw: dict[str, Any] = {"when": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", "machine": machine()}
    with temporary_tables({"track_commit_timestamp": "on"}) as (folder, postgres, connection):
        bench = Bench(folder, postgres, connection, args.seconds)
        for name, measure in (("rates", rates), ("batches", batches)):
            if args.only in (None, name):
                raw[name] = measure(bench, args)
    print(f"\nraw figures: {keep(raw, args.results / 'latency.json')}")


if __name__ == "__main__":
    main()
