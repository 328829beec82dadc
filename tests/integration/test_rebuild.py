"""From an empty PostgreSQL, what Kafka holds gives the same tables again, down to the ledger and the dead letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from event_stream import Stream
from running_consumer import ROOT, Database

from contracts import DEVICES, EVENTS, HEALTH, HOUSEHOLDS

if TYPE_CHECKING:
    from local_servers.postgres_server import PostgresServer

# but for when a transaction ran, and the numbers that PostgreSQL gives
COMPARED = {
    "raw_access_events": "ingested_at",
    "raw_device_health": "ingested_at",
    "raw_devices": "ingested_at",
    "raw_households": "ingested_at",
    "dead_letters": "dead_letter_id, created_at",
    "ingest_offsets": "updated_at",
}


def contents(database: Database) -> dict[str, list[str]]:
    found = {}
    for table, apart in COMPARED.items():
        rows = database.rows(f"SELECT (to_jsonb(t) - '{{{apart}}}'::text[])::text FROM {table} AS t ORDER BY 1")  # noqa: S608
        found[table] = [row for (row,) in rows]
    return found


def send_something_of_everything(stream: Stream) -> None:
    stream.send_events(8000)  # several polls of each partition
    for number in range(200):
        report = {"device_id": f"lock-{number % 7}", "reported_at": f"2025-06-01T12:00:{number % 60:02}Z", "x": number}
        stream.send(HEALTH.topic, json.dumps(report | {"is_online": True}).encode(), b"k")
        entry = {
            "device_id": f"lock-{number % 7}",
            "household_id": "home",
            "updated_at": f"2025-01-01T00:{number % 60:02}:00Z",
        }
        stream.send(DEVICES.topic, json.dumps(entry).encode(), entry["device_id"].encode())
    stream.send(HOUSEHOLDS.topic, b'{"household_id": "home"}', b"home", timestamp_ms=1_750_000_000_000)
    stream.send(DEVICES.topic, None, b"lock-3", timestamp_ms=1_750_000_000_000)
    stream.send(EVENTS.topic, b"not json", b"k", headers=[("a", b"b")])
    stream.flush()


@pytest.mark.slow
def test_an_empty_postgres_is_rebuilt_from_what_kafka_holds(own_stream: Stream, postgres: PostgresServer) -> None:
    send_something_of_everything(own_stream)
    with own_stream.consumer() as running:
        own_stream.wait_until_consumed(running)
    before = contents(own_stream)
    assert all(before.values())

    name = f"rebuilt_{uuid.uuid4().hex}"
    postgres.create_database(name)
    environment = {**own_stream.environment, **postgres.environment(name), "CONSUMER_GROUP": own_stream.group}
    command = [sys.executable, "streaming/kafka_consumer.py", "--until-caught-up", "--metrics-port", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "caught up with what Kafka held at the start" in done.stderr
    assert contents(Database(environment)) == before
    postgres.drop_database(name)
