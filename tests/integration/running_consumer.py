"""The real consumer between the session's broker and a database of the test's own.

Its ledger is laid down beforehand at the present end of every topic, so that what other tests have sent is not its
business.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from contracts import CONTRACTS
from topics import cluster_id, ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.kafka_cluster import KafkaCluster

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 6
Headers = Sequence[tuple[str, bytes]]


class Consumer:
    """A running consumer script and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def complaints(self) -> list[str]:
        """What it says above INFO; kafka-python's own remarks about a young broker are not its."""
        lines = self.log.splitlines()
        return [line for line in lines if re.search(r"WARNING (?! *kafka)|ERROR|CRITICAL|Traceback", line)]

    def assert_runs(self) -> None:
        assert self.process.poll() is None, self.log


class Database:
    """A database with the project's tables, by libpq's variables."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment

    def connect(self) -> Any:
        env = self.environment
        return psycopg2.connect(
            host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=env["PGUSER"],
            password=env["PGPASSWORD"],
        )  # fmt: skip

    def execute(self, statement: str, *values: Any) -> None:
        with closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement, values)

    def rows(self, statement: str, *values: Any) -> list[Any]:
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

    def one(self, statement: str, *values: Any) -> Any:
        [(found,)] = self.rows(statement, *values)
        return found


class Pipeline(Database):
    def __init__(self, broker: KafkaBroker | KafkaCluster, database: dict[str, str], folder: Path):
        super().__init__({**database, "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers})
        self._kafka = broker.admin_connection()
        self._folder = folder
        self._number = 0
        self.group = f"test-{uuid.uuid4().hex[:8]}"
        ensure_topics(self._kafka, PARTITIONS, 1)
        self.cluster = cluster_id(self._kafka)
        self.producer = KafkaProducer(**self._kafka, linger_ms=5, max_request_size=2**22, metrics_enabled=False)
        for (topic, partition), end in self.ends().items():
            statement = (
                "INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset)"
                " VALUES (%s, %s, %s, %s, %s, %s)"
            )
            self.execute(statement, self.cluster, self.group, topic, partition, end, end)

    def close(self) -> None:
        self.producer.close()

    def ends(self) -> dict[tuple[str, int], int]:
        partitions = [TopicPartition(topic, partition) for topic in CONTRACTS for partition in range(PARTITIONS)]
        with closing(KafkaConsumer(**self._kafka, metrics_enabled=False)) as consumer:
            return {(place.topic, place.partition): end for place, end in consumer.end_offsets(partitions).items()}

    def send(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (),
             timestamp_ms: int | None = None, partition: int | None = None) -> Any:  # fmt: skip
        """A future of the record's place; `flush` waits for all of them."""
        return self.producer.send(
            topic, value=value, key=key, headers=list(headers), timestamp_ms=timestamp_ms, partition=partition
        )

    def flush(self) -> None:
        self.producer.flush(30)

    @contextmanager
    def consumer(self, *arguments: str, **environment: str) -> Iterator[Consumer]:
        """A consumer that must still run at the end of the block, and then stop at SIGTERM with exit code 0."""
        self._number += 1
        log = self._folder / f"consumer-{self._number}.log"
        env = {**os.environ, **self.environment, "CONSUMER_GROUP": self.group, "CONSUMER_METRICS_PORT": "0"}
        command = [sys.executable, "streaming/kafka_consumer.py", *arguments]
        with (
            log.open("w", encoding="utf-8") as output,
            subprocess.Popen(
                command, cwd=ROOT, env=env | environment, stdout=output, stderr=output, text=True
            ) as process,
        ):
            running = Consumer(process, log)
            try:
                yield running
                running.assert_runs()
                process.terminate()
                assert process.wait(30) == 0, running.log
            finally:
                process.kill()  # does nothing to one that has ended

    def wait_until_consumed(self, running: Consumer, timeout: float = 40) -> None:
        """Until the ledger stands at the end of every partition."""
        ends = self.ends()
        statement = "SELECT topic, partition, next_offset FROM ingest_offsets WHERE consumer_group = %s"
        wait_for(
            lambda: {(topic, partition): at for topic, partition, at in self.rows(statement, self.group)} == ends,
            running,
            timeout,
        )

    def ledger(self) -> dict[str, dict[str, int]]:
        """By topic; asserts that it balances on every partition, and that its counts by minute add up to it."""
        statement = """
            SELECT topic, sum(consumed)::int, sum(stored)::int, sum(duplicates)::int, sum(dead)::int, sum(gaps)::int,
                   bool_and(balanced)
            FROM ingest_ledger WHERE consumer_group = %s GROUP BY 1
        """
        found = self.rows(statement, self.group)
        assert all(row[-1] for row in found), found
        different = """
            SELECT topic, partition FROM ingest_ledger AS l
            LEFT JOIN (
                SELECT consumer_group, cluster_id, topic, partition, sum(stored) AS stored,
                       sum(duplicates) AS duplicates, sum(dead) AS dead
                FROM ingest_minutes GROUP BY 1, 2, 3, 4
            ) AS m USING (consumer_group, cluster_id, topic, partition)
            WHERE consumer_group = %s AND (l.stored, l.duplicates, l.dead) IS DISTINCT FROM
                  (coalesce(m.stored, 0), coalesce(m.duplicates, 0), coalesce(m.dead, 0))
        """
        assert self.rows(different, self.group) == []
        names = ("consumed", "stored", "duplicates", "dead", "gaps")
        return {topic: dict(zip(names, counts, strict=False)) for topic, *counts in found}


def wait_for(condition: Callable[[], Any], running: Consumer, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        running.assert_runs()
        assert time.monotonic() < deadline, running.log
        time.sleep(0.05)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text
