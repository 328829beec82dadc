"""What the benchmarks of ingestion share: a topic that is full already, the tables, and the floor under every rate."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "streaming")]

from kafka import KafkaProducer, TopicPartition  # noqa: E402
from kafka.partitioner.default import murmur2  # noqa: E402

from local_servers import free_port  # noqa: E402
from local_servers.kafka_broker import KafkaBroker  # noqa: E402
from local_servers.postgres_server import PostgresServer  # noqa: E402
from pipeline_settings import apply_schema  # noqa: E402
from record_encoder import encoded_headers, fast_batches  # noqa: E402
from topics import ensure_topics  # noqa: E402

PARTITIONS = 6
FLOOR_ROWS = 20_000
TOPIC = "smart-access.events"
LOADERS = 2


class Dataset(NamedTuple):
    """Events, of which some, spread evenly, are sent twice (duplicates), refused by the contract and the table's CHECK
    (poison), or cut off in the middle of their JSON (cut)."""

    kind: str = "plain"
    percent: float = 0

    @property
    def name(self) -> str:
        return f"{self.percent:g} % {self.kind}" if self.percent else self.kind

    @property
    def folder(self) -> str:
        return f"{self.kind}-{self.percent:g}"

    @property
    def every(self) -> int:
        """So many events apart; 0 for never."""
        return round(100 / self.percent) if self.percent else 0

    def marked(self, count: int) -> int:
        """How many of `count` events are of the kind."""
        return LOADERS * (count // LOADERS // self.every) if self.every else 0

    def records(self, count: int) -> int:
        """How many records `count` events are."""
        return count + (self.marked(count) if self.kind == "duplicates" else 0)

    def values(self, number: int, value: bytes) -> list[bytes]:
        """What is sent of the event of that number."""
        if not self.every or (number + 1) % self.every:
            return [value]
        if self.kind == "poison":
            return [value.replace(b'"event_type":"', b'"event_type":"not-')]
        return [value[: len(value) // 2]] if self.kind == "cut" else [value, value]


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


def records(dataset: Dataset, count: int, seed: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the share of one loader."""
    for number, (device, event) in enumerate(events(count, seed, time.time())):
        for value in dataset.values(number, json.dumps(event, separators=(",", ":")).encode()):
            yield device.encode(), value


def load(servers: str, dataset: Dataset, count: int, seed: int, partitions: int) -> None:
    """Fills the topic with `count` events of a data set (one process of LOADERS)."""
    producer = KafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, acks="all", compression_type="lz4",
        batch_size=512 * 1024, linger_ms=20,
    )  # fmt: skip
    fast = fast_batches(producer, lambda *_: None)
    assert fast is not None
    places = [TopicPartition(TOPIC, number) for number in range(partitions)]
    place_of = cache(lambda key: places[(murmur2(key) & 0x7FFFFFFF) % partitions])
    no_headers = encoded_headers([])
    for number, (key, value) in enumerate(records(dataset, count, seed)):
        fast.send(place_of(key), key, value, [], no_headers)
        if number % 50_000 == 0:
            producer.flush()  # its buffer has no bound of its own
    producer.flush()
    producer.close()


def fill(broker: KafkaBroker, dataset: Dataset, count: int, partitions: int = PARTITIONS) -> None:
    began = time.perf_counter()
    ensure_topics({"bootstrap_servers": broker.bootstrap_servers}, partitions, 1)
    servers = broker.bootstrap_servers
    loaders = [
        multiprocessing.Process(target=load, args=(servers, dataset, count // LOADERS, seed, partitions))
        for seed in range(1, LOADERS + 1)
    ]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
        if loader.exitcode:
            raise SystemExit(f"loading {dataset.name} failed")
    print(f"loaded {dataset.name}: {count:,} events in {time.perf_counter() - began:.0f} s", flush=True)


@contextmanager
def running_broker(folder: Path, settings: dict[str, str] | None = None) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(folder, free_port(), free_port(), heap="1g", settings=settings)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@contextmanager
def temporary_tables(settings: dict[str, str] | None = None) -> Iterator[tuple[Path, PostgresServer, Any]]:
    """A folder for everything, in it a PostgreSQL with the project's tables, and a connection that commits each
    statement."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are ended then, too
    with tempfile.TemporaryDirectory(prefix="smart-access-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = PostgresServer(folder / "postgres", free_port(), settings=settings)
        postgres.start()
        try:
            with closing(postgres.connect(postgres.database)) as connection:
                connection.autocommit = False
                apply_schema(connection)
                connection.autocommit = True
                yield folder, postgres, connection
        finally:
            postgres.stop()
            for process in psutil.Process().children():  # whatever an interruption has left over
                process.kill()


def empty(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE raw_access_events, dead_letters, ingest_offsets, ingest_minutes")
        cursor.execute("CHECKPOINT")


def floor_lines(count: int) -> list[bytes]:
    """The lines of COPY of `count` events, FLOOR_ROWS in each piece."""
    lines = [
        f"{e['event_id']}\t{e['device_id']}\t{e['event_ts']}\t{e['event_type']}\t{e['trigger_source']}\t\\N\t0\t{n}\n"
        for n, (_, e) in enumerate(events(count, 3, time.time()))
    ]
    return ["".join(lines[at : at + FLOOR_ROWS]).encode() for at in range(0, count, FLOOR_ROWS)]


def floor_rate(connection: Any, pieces: list[bytes]) -> float:
    """Rows/s of the bare COPY of the same rows, prepared beforehand."""
    statement = (
        "COPY raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, extra,"
        " kafka_partition, kafka_offset) FROM STDIN"
    )
    rows = sum(piece.count(b"\n") for piece in pieces)
    with connection.cursor() as cursor:
        began = time.perf_counter()
        for piece in pieces:
            cursor.execute("BEGIN")
            cursor.copy_expert(statement, io.BytesIO(piece), size=len(piece))
            cursor.execute("COMMIT")
        return rows / (time.perf_counter() - began)


def peak_memory(pid: int) -> float:
    """MB of resident memory at the most (Linux; elsewhere what it is now)."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return float(psutil.Process(pid).memory_info().rss / 1e6)
