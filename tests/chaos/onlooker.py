"""What is asked of Kafka and PostgreSQL while faults befall them, past all links, and the waiting for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from numbered_events import PARTITIONS
from script import NotRecovered

from contracts import CONTRACTS
from local_servers.postgres_server import PostgresServer

GROUP = "chaos"
DATABASE = "chaos"
LEDGER = "SELECT topic, partition, next_offset FROM ingest_offsets WHERE consumer_group = %s"
Place = tuple[str, int]  # a topic and a partition


class Database:
    """Asks one, with a connection that is made anew after a failure."""

    def __init__(self, postgres: PostgresServer, name: str) -> None:
        self.postgres = postgres
        self._name = name
        self._connection: Any = None

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Raises psycopg2.Error when PostgreSQL is away; the next call connects anew."""
        try:
            if self._connection is None:
                self._connection = self.postgres.connect(self._name)
            with self._connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return list(cursor.fetchall()) if cursor.description else []
        except psycopg2.Error:
            self.forget_connection()
            raise

    def forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Onlooker(Database):
    """kafka: the broker or the cluster, as it is asked by somebody who may do everything."""

    def __init__(self, postgres: PostgresServer, kafka: Any) -> None:
        super().__init__(postgres, DATABASE)
        self._kafka = kafka

    def ledger(self) -> dict[Place, int]:
        return {(topic, partition): at for topic, partition, at in self.rows(LEDGER, GROUP)}

    def ends(self) -> dict[Place, int]:
        """Where Kafka's log ends."""
        partitions = [TopicPartition(topic, number) for topic in CONTRACTS for number in range(PARTITIONS)]
        with closing(
            KafkaConsumer(**self._kafka.admin_connection(), enable_auto_commit=False, metrics_enabled=False)
        ) as consumer:
            found = consumer.end_offsets(partitions)
        return {(place.topic, place.partition): end for place, end in found.items()}

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Until `done`; an answer that a server owes is none. Raises NotRecovered."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if done():
                    return
            except (psycopg2.Error, KafkaError) as error:
                what = f"{what.split(' (')[0]} ({str(error).strip().splitlines()[0]})"
            if time.monotonic() > deadline:
                raise NotRecovered(f"{what}: not within {timeout_s:.0f} s")
            time.sleep(0.05)
