"""What docs/scaling.md advises for PostgreSQL, as it is written there: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from event_stream import Launcher, Stream, stop
from running_consumer import PARTITIONS, ROOT

import pipeline_settings
from contracts import EVENTS, HEALTH
from local_servers.postgres_server import binaries_folder

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.postgres_server import PostgresServer

# An instant of each month that the document makes partitions for, and one of none
TIMES = ("2026-01-15T12:00:00Z", "2026-02-28T23:59:59Z", "2020-05-05T05:05:05Z")
PARTS = "SELECT tableoid::regclass::text, count(*)::int FROM {} GROUP BY 1 ORDER BY 1"


def block_of_document(begin: str) -> str:
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```sql\n(.*?)```", text, re.DOTALL) if block.startswith(begin)]
    return str(block)


def uuid_of(at: str) -> str:
    """A UUIDv7 that was made then."""
    milliseconds = int(datetime.fromisoformat(at).timestamp() * 1000)
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0x8 << 60 | 1))


def test_tables_partitioned_by_month_take_the_stream_as_one_table_would(
    kafka: KafkaBroker, postgres: PostgresServer, launch: Launcher, tmp_path: Path
) -> None:
    name = f"partitioned_{uuid.uuid4().hex}"
    postgres.create_database(name)
    environment = postgres.environment(name)
    psql = [binaries_folder() / "psql", "-q", "-v", "ON_ERROR_STOP=1"]
    tables = block_of_document("create table raw_access_events")
    subprocess.run(psql, env={**os.environ, **environment}, input=tables, text=True, check=True)
    with closing(postgres.connect(name)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
    with closing(Stream(kafka, environment, tmp_path)) as stream:
        running = launch(stream)
        stream.send_events(300)
        for number, at in enumerate(TIMES * 2):  # each one comes twice
            ids = {"device_id": "d", "event_id": uuid_of(at)}
            event = {**ids, "event_ts": at, "event_type": "open", "trigger_source": "app"}
            report = {"device_id": "d", "reported_at": at, "is_online": True}
            for topic, record in ((EVENTS.topic, event), (HEALTH.topic, report)):
                stream.send(topic, json.dumps(record).encode(), b"d", partition=number % PARTITIONS)
        stream.wait_until_consumed(running)
        stop(running)
        ledger = stream.ledger()
        assert ledger[EVENTS.topic] == {"consumed": 306, "stored": 303, "duplicates": 3, "dead": 0, "gaps": 0}
        assert ledger[HEALTH.topic] == {"consumed": 6, "stored": 3, "duplicates": 3, "dead": 0, "gaps": 0}
        for table, in_the_rest in (("raw_access_events", 301), ("raw_device_health", 1)):
            parts = [(f"{table}_202601", 1), (f"{table}_202602", 1), (f"{table}_rest", in_the_rest)]
            assert stream.rows(PARTS.format(table)) == parts
        # as each run of the models does
        stream.rows("SELECT summarize_arrivals()")
    postgres.drop_database(name)


def test_commits_that_a_crash_takes_back_are_read_again(
    kafka: KafkaBroker, make_postgres: Callable[..., PostgresServer], launch: Launcher, tmp_path: Path
) -> None:
    # so that it keeps its log in memory for long, and a crash takes much of it
    own = make_postgres(
        settings={"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    )
    with closing(Stream(kafka, own.environment(), tmp_path)) as stream:
        stream.execute("CHECKPOINT")  # the tables and the ledger's first rows stay
        running = launch(stream)
        with stream.load(rate=500):
            stream.wait_for_progress(running, 1000)
            running.process.send_signal(signal.SIGSTOP)
            committed = stream.progress()
            own.kill()
            own.start()
            assert stream.progress() < committed
            running.process.send_signal(signal.SIGCONT)
            stream.wait_for_progress(running, 1000)
        stream.wait_until_consumed(running)
        stop(running)
        stream.assert_each_once()
