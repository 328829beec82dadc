"""Servers destroyed and brought back by scripts/backup and scripts/restore: no loss, no double; and what is refused."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import Launcher, Stream, event, event_id, stop, wait_until
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from running_consumer import PARTITIONS, ROOT, Consumer, Database

import backfill
import kafka_contact
from contracts import DEVICES, EVENTS, HOUSEHOLDS
from local_servers import ServerError, free_port
from pipeline_settings import apply_schema
from recovery import database_copy, registry_copy
from topics import cluster_id, ensure_topics

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker
    from local_servers.postgres_server import PostgresServer

# a broker that ends leaves kafka-python with sockets that it forgets to close
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

NOON_MS = 1_748_779_200_000  # 2025-06-01T12:00:00Z


class MixedStream(Stream):
    """Events of which some are sent a second time, and poison between them."""

    copies = 0
    poison: list[bytes]

    def _send_next(self) -> Any:
        number = self.sent
        if number % 20 == 10:
            self.copies += 1
            self.send(EVENTS.topic, event(number // 2), partition=number % PARTITIONS)
        if number % 50 == 25:
            self.poison = [*getattr(self, "poison", []), b"poison %d" % number]
            self.send(EVENTS.topic, self.poison[-1], partition=number % PARTITIONS)
        return super()._send_next()

    def wait_until_at_the_end(self, running: Consumer) -> None:
        """Until the ledger stands at the end of every partition of the cluster that is there now."""
        self.flush()
        ends = {place: end for place, end in self.ends().items() if end}
        statement = (
            "SELECT topic, partition, next_offset FROM ingest_offsets"
            " WHERE (consumer_group, cluster_id) = (%s, %s) AND next_offset > 0"
        )
        wait_until(lambda: {(t, p): at for t, p, at in self.rows(statement, self.group, self.cluster)} == ends, running)

    def assert_each_once(self) -> None:
        assert self.stored() == sorted(event_id(number) for number in range(self.sent))
        assert self.copies > 10
        assert len(self.poison) > 10
        assert self.ledger()[EVENTS.topic] == {
            "consumed": self.sent + self.copies + len(self.poison), "stored": self.sent,
            "duplicates": self.copies, "dead": len(self.poison), "gaps": 0,
        }  # fmt: skip
        letters = [bytes(value) for (value,) in self.rows("SELECT value FROM dead_letters")]
        assert sorted(letters) == sorted(self.poison)


def run(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"recovery.{script}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def back_up(folder: Path, *arguments: str, **environment: str) -> Path:
    """The new backup in that folder."""
    made = run("backup", folder, *arguments, **environment)
    assert made.returncode == 0, made.stderr
    [place] = re.findall(r"^complete: (.*?), ", made.stdout, re.MULTILINE)
    return Path(place)


def back_up_slowly(stream: Stream, running: Consumer, folder: Path, **environment: str) -> Path:
    """A backup between whose first look at the tables and whose dump the consumer goes on."""
    stream.execute("CREATE TABLE seen_last (empty int)")
    with closing(stream.connect()) as connection, ThreadPoolExecutor() as beside:
        connection.cursor().execute("LOCK TABLE seen_last IN ACCESS EXCLUSIVE MODE")
        made = beside.submit(back_up, folder, **environment)
        wait_until(lambda: stream.waiting("smart-access-backup"), running)
        stream.wait_for_progress(running, 500)
        connection.rollback()
        return made.result()


def restored(backup: Path, *arguments: str, **environment: str) -> str:
    """What it has said."""
    done = run("restore", backup, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(script: str, *arguments: str | Path, **environment: str) -> str:
    """The one line that says why."""
    done = run(script, *arguments, **environment)
    assert done.returncode == 1, done.stdout
    [line] = done.stderr.splitlines()
    return line


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_postgresql_destroyed_under_load_comes_back_with_nothing_lost_and_nothing_doubled(
    kafka: KafkaBroker,
    make_postgres: Callable[..., PostgresServer],
    launch: Launcher,
    tmp_path: Path,
    backups: Path,
) -> None:
    server = make_postgres()
    with closing(MixedStream(kafka, server.environment(), tmp_path)) as stream:
        environment = stream.environment | {"CONSUMER_GROUP": stream.group}
        running = launch(stream, BATCH_SIZE="200")
        with stream.load(rate=1000):
            stream.wait_for_progress(running, 1000)
            backup = back_up_slowly(stream, running, backups, **environment)
            stream.wait_for_progress(running, 1000)
            server.kill()
            running.process.kill()
            server.wipe()
        in_backup = json.loads((backup / "manifest.json").read_text())["database"]["rows"]["public.raw_access_events"]
        assert 0 < in_backup < stream.sent - 500

        server.start()
        said = restored(backup, "--only", "database", **environment)
        [behind] = re.findall(r"Kafka holds ([\d,]+) records after the backup", said)
        assert int(behind.replace(",", "")) == sum(stream.ends().values()) - stream.one(
            "SELECT sum(next_offset)::bigint FROM ingest_offsets"
        )
        assert len(stream.stored()) == in_backup
        successor = launch(stream)
        stream.wait_until_consumed(successor)
        stop(successor)
        stream.assert_each_once()


def device(number: int, **fields: Any) -> bytes:
    return json.dumps({"device_id": f"lock-{number}", "household_id": f"home-{number}"} | fields).encode()


def fill_registry(stream: Stream) -> None:
    def send(topic: str, key: bytes, value: bytes | None, headers: Any = ()) -> None:
        stream.send(topic, value, key, headers, timestamp_ms=NOON_MS)

    for number in range(20):
        send(HOUSEHOLDS.topic, b"home-%d" % number, b'{"household_id": "home-%d"}' % number)
        send(DEVICES.topic, b"lock-%d" % number, device(number, model="first"))
        send(DEVICES.topic, b"lock-%d" % number, device(number, model="second", colour="grün"), [("by", b"\xff\x00")])
    send(DEVICES.topic, b"lock-19", None)
    send(DEVICES.topic, b"\xfe broken", b"\xff no text")
    stream.flush()


def registry_rows(stream: Stream) -> list[Any]:
    return stream.rows(
        "SELECT device_id, household_id, model, extra::text, updated_at, deleted_at, ingested_at FROM raw_devices"
        " UNION ALL SELECT household_id, region, NULL, NULL, updated_at, deleted_at, ingested_at FROM raw_households"
        " ORDER BY 1"
    )


def delete_everything_of(topic: str, stream: Stream) -> None:
    """What retention does."""
    admin = KafkaAdminClient(bootstrap_servers=stream.bootstrap_servers)
    ends = {place: end for place, end in stream.ends().items() if place[0] == topic}
    admin.delete_records({TopicPartition(*place): end for place, end in ends.items()})
    admin.close()


@pytest.mark.slow
def test_both_servers_destroyed_come_back_with_all_that_was_in_the_backup(
    make_broker: Callable[..., KafkaBroker],
    make_postgres: Callable[..., PostgresServer],
    launch: Launcher,
    tmp_path: Path,
    backups: Path,
) -> None:
    broker, server = make_broker(), make_postgres()
    connection = {"bootstrap_servers": broker.bootstrap_servers}
    with closing(MixedStream(broker, server.environment(), tmp_path)) as stream:
        environment = stream.environment | {"CONSUMER_GROUP": stream.group}
        stream.execute("CREATE ROLE viewer LOGIN IN ROLE dashboard_read")
        stream.execute("ALTER ROLE viewer SET statement_timeout = '5s'")
        fill_registry(stream)
        stream.send_events(600)
        running = launch(stream)
        stream.wait_until_at_the_end(running)
        rows, records = registry_rows(stream), registry_copy.read_registry(connection)
        assert len(rows) == 40
        assert len(records) == 41
        backup = back_up(backups, **environment)
        lost_from = stream.sent
        stream.send_events(300)  # after the backup, and Kafka is lost too: nothing can bring these back
        stream.wait_until_at_the_end(running)
        stop(running)
        old_cluster = stream.cluster

        delete_everything_of(EVENTS.topic, stream)
        said = restored(backup, "--check", "--only", "database", "--set-aside", **environment)
        assert said.count("GAP: ") == PARTITIONS
        assert "the consumer needs --accept-gap" in said
        assert len(stream.stored()) == stream.sent  # it was only a check

        stream.producer.close()
        for destroyed in (server, broker):
            destroyed.kill()
            destroyed.wipe()
            destroyed.start()
        said = restored(backup, **environment)
        assert "is another one than the backup's ledger speaks of" in said
        assert "made the role viewer: set its password" in said

    stream.producer = KafkaProducer(**connection, metrics_enabled=False)
    with closing(stream):
        stream.cluster = cluster_id(connection)
        assert stream.cluster != old_cluster
        assert registry_copy.read_registry(connection) == records
        assert stream.one("SELECT has_table_privilege('dashboard_read', 'live.devices', 'SELECT')")
        assert stream.rows("SELECT rolcanlogin, rolconfig FROM pg_roles WHERE rolname = 'viewer'") == [
            (True, ["statement_timeout=5s"])
        ]
        successor = launch(stream)
        stream.send_events(300)
        stream.wait_until_at_the_end(successor)
        stop(successor)
        numbers = [*range(lost_from), *range(lost_from + 300, stream.sent)]
        copies_of_lost = {number // 2 for number in range(lost_from + 300, stream.sent) if number % 20 == 10}
        numbers += sorted(copies_of_lost - set(numbers))
        assert stream.stored() == sorted(map(event_id, numbers))
        assert registry_rows(stream) == rows
        counts = {
            topic: counts
            for topic, *counts in stream.rows(
                "SELECT topic, sum(stored)::int, sum(duplicates)::int, sum(dead)::int, bool_and(balanced)"
                " FROM ingest_ledger WHERE cluster_id = %s GROUP BY 1",
                stream.cluster,
            )
        }
        assert counts[DEVICES.topic] == [0, 20, 1, True]
        assert counts[HOUSEHOLDS.topic] == [0, 20, 0, True]
        assert counts[EVENTS.topic][0] == len(numbers) - lost_from
        stream.ledger()  # balances, of both clusters


# --- small ones, on the session's servers ---


@pytest.fixture(scope="module")
def source(kafka: KafkaBroker, postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """The settings of a database with a hundred events, which nobody writes to."""
    name = f"test_{uuid.uuid4().hex}"
    environment = postgres.environment(name) | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    ensure_topics({"bootstrap_servers": kafka.bootstrap_servers}, PARTITIONS, 1)
    postgres.create_database(name)
    with closing(Database(environment).connect()) as connection:
        apply_schema(connection)
    Database(environment).execute(
        "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
        " SELECT gen_random_uuid(), 'lock-1', now(), 'open', 'app' FROM generate_series(1, 100)"
    )
    yield environment
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def original(source: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its backup, with the registry."""
    return back_up(tmp_path_factory.mktemp("backups"), **source)


@pytest.fixture
def backup(original: Path, tmp_path: Path) -> Path:
    """One that the test may damage."""
    return Path(shutil.copytree(original, tmp_path / original.name))


@pytest.fixture
def target(source: dict[str, str], other_name: str) -> dict[str, str]:
    """The settings that name a database which does not exist yet."""
    return source | {"PGDATABASE": other_name}


@pytest.fixture
def other_name(postgres: PostgresServer) -> Iterator[str]:
    """Of a database that does not exist yet."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    yield name
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        for found in names_like(cursor, name):
            postgres.drop_database(found)


def names_like(cursor: Any, name: str) -> list[str]:
    cursor.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (name,))
    return sorted(found for (found,) in cursor.fetchall())


def count_events(environment: dict[str, str], database: str) -> int:
    found: int = Database(environment | {"PGDATABASE": database}).one("SELECT count(*) FROM raw_access_events")
    return found


def databases_like(postgres: PostgresServer, name: str) -> list[str]:
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        return names_like(cursor, name)


def test_a_backup_is_for_its_owner_alone(original: Path) -> None:
    assert sorted(file.name for file in original.iterdir()) == ["database.dump", "manifest.json", "registry.jsonl"]
    assert [file.stat().st_mode & 0o077 for file in (original, *original.iterdir())] == [0] * 4


def test_a_database_that_holds_rows_is_refused_and_can_be_set_aside(
    target: dict[str, str], postgres: PostgresServer, other_name: str, backup: Path
) -> None:
    restored(backup, "--only", "database", **target)
    Database(target).execute("DELETE FROM raw_access_events WHERE ctid IN (SELECT ctid FROM raw_access_events LIMIT 1)")

    line = refused("restore", backup, "--only", "database", **target)
    assert "holds rows in" in line
    assert "--set-aside" in line
    assert count_events(target, other_name) == 99

    restored(backup, "--only", "database", "--set-aside", **target)
    assert count_events(target, other_name) == 100
    restored_one, kept = databases_like(postgres, other_name)
    assert restored_one == other_name
    assert count_events(target, kept) == 99

    # what does not come out as it was backed up is not put in place, and what was set aside for it comes back
    manifest = (backup / "manifest.json").read_text()
    manifest = manifest.replace('"public.raw_access_events": 100', '"public.raw_access_events": 101')
    (backup / "manifest.json").write_text(manifest)
    line = refused("restore", backup, "--only", "database", "--set-aside", **target)
    assert "public.raw_access_events (100 of 101)" in line
    assert databases_like(postgres, other_name) == [other_name, kept]
    assert count_events(target, other_name) == 100


def test_a_restore_that_is_interrupted_leaves_what_was_there(
    target: dict[str, str], postgres: PostgresServer, other_name: str, backup: Path
) -> None:
    restored(backup, "--only", "database", **target)
    command = [sys.executable, "-m", "recovery.restore", backup, "--only", "database", "--set-aside"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | target, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: f"{other_name}_restoring" in databases_like(postgres, other_name))
        assert other_name not in databases_like(postgres, other_name)  # nobody begins on it meanwhile
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert b"no database that holds rows was changed" in process.stderr.read()
    assert databases_like(postgres, other_name) == [other_name]
    assert count_events(target, other_name) == 100


def test_a_database_with_empty_tables_is_taken_and_one_with_a_strangers_table_is_not(
    target: dict[str, str], postgres: PostgresServer, other_name: str, backup: Path
) -> None:
    postgres.create_database(other_name)
    with closing(Database(target).connect()) as connection:
        apply_schema(connection)
    Database(target).execute("CREATE TABLE somebody_elses (empty int)")
    assert "does not know: public.somebody_elses" in refused("restore", backup, "--only", "database", **target)
    Database(target).execute("DROP TABLE somebody_elses")
    restored(backup, "--only", "database", **target)
    assert databases_like(postgres, other_name) == [other_name]
    assert count_events(target, other_name) == 100


def test_a_running_consumer_is_noticed(stream: Stream, launch: Launcher, backup: Path) -> None:
    running = launch(stream)
    stream.send_events(10)
    stream.wait_for_progress(running, 10)
    line = refused("restore", backup, "--only", "database", "--set-aside", **stream.environment)
    assert "a consumer still runs on the database" in line
    assert "smart-access-writer (pid " in line
    stop(running)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda backup: flip_a_byte(backup / "database.dump"), "database.dump is damaged"),
        (lambda backup: (backup / "registry.jsonl").unlink(), "registry.jsonl is missing"),
        (lambda backup: (backup / "manifest.json").write_text('{"created_at'), "manifest.json is damaged"),
        (lambda backup: (backup / "manifest.json").unlink(), "is no backup"),
    ],
    ids=["a flipped bit", "a file missing", "a torn manifest", "no manifest"],
)
def test_a_damaged_backup_is_refused(
    target: dict[str, str], backup: Path, damage: Callable[[Path], Any], words: str
) -> None:
    damage(backup)
    assert words in refused("restore", backup, **target)


def test_topics_that_hold_records_are_refused_and_can_be_filled_up(
    stream: Stream, own_broker: KafkaBroker, backups: Path
) -> None:
    fill_registry(stream)
    source = {"bootstrap_servers": stream.bootstrap_servers}
    backup = back_up(backups, "--only", "registry", **stream.environment)
    everything = {(record.topic, record.key): record.value for record in registry_copy.read_registry(source)}

    connection = {"bootstrap_servers": own_broker.bootstrap_servers}
    target = {"KAFKA_BOOTSTRAP_SERVERS": own_broker.bootstrap_servers}
    restored(backup, "--check", "--only", "registry", **target)
    with closing(KafkaAdminClient(**connection)) as admin:
        assert admin.list_topics() == []  # a check makes nothing
    ensure_topics(connection, PARTITIONS, 1)
    newer = device(3, model="third")
    with closing(KafkaProducer(**connection, metrics_enabled=False)) as producer:
        producer.send(DEVICES.topic, newer, b"lock-3")
        producer.flush()
    assert "hold 1 keys already" in refused("restore", backup, "--only", "registry", **target)
    for sent in (len(everything) - 1, 0):
        said = restored(backup, "--only", "registry", "--missing-keys", **target)
        assert f"registry: {sent:,} records, all acknowledged" in said
    found = {(record.topic, record.key): record.value for record in registry_copy.read_registry(connection)}
    assert found == everything | {(DEVICES.topic, b"lock-3"): newer}


def test_a_backup_that_is_interrupted_or_fails_leaves_nothing(stream: Stream, backups: Path) -> None:
    command = [sys.executable, "-m", "recovery.backup", backups, "--only", "database"]
    with (
        stream.rows_held_up(),
        subprocess.Popen(command, cwd=ROOT, env=os.environ | stream.environment, stderr=subprocess.PIPE) as process,
    ):
        wait_until(lambda: stream.waiting("smart-access-backup"))
        assert list(backups.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b"interrupted: no backup was made\n"
    assert list(backups.iterdir()) == []
    line = refused("backup", backups, "--only", "database", **stream.environment | {"PGPASSWORD": "wrong"})
    assert "password authentication failed" in line
    assert list(backups.iterdir()) == []


def test_a_backup_waits_for_a_run_of_the_models(stream: Stream, backups: Path) -> None:
    lock = re.search(r"^LOCK = (.*)$", (ROOT / "dbt/one_at_a_time.py").read_text(), re.MULTILINE)
    assert lock is not None
    assert ast.literal_eval(lock[1]) == database_copy.DBT_LOCK == backfill.DBT_LOCK
    with closing(stream.connect()) as models, models.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", database_copy.DBT_LOCK)
        command = [sys.executable, "-m", "recovery.backup", backups, "--only", "database"]
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | stream.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            wait_until(lambda: stream.waiting("smart-access-backup"))
            models.close()
            assert process.wait(20) == 0
            assert process.stdout is not None
            assert "a run of the models is at work" in process.stdout.read()


def test_what_cannot_work_is_said_in_one_line(
    source: dict[str, str], backups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is the disk mounted?" in refused("backup", tmp_path / "nowhere", **source)
    old = tmp_path / "old"
    old.mkdir()
    only_database = ("backup", backups, "--only", "database")
    assert "has no pg_dump in it" in refused(*only_database, **source, POSTGRES_BIN_DIR=str(old))
    (old / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 16.4 (Debian 16.4-1)'\n")
    (old / "pg_dump").chmod(0o755)
    line = refused(*only_database, **source, POSTGRES_BIN_DIR=str(old))
    assert re.search("is of PostgreSQL 16, the server is 1[7-9]", line)
    assert list(backups.iterdir()) == []
    backup = back_up(backups, "--only", "database", **source)
    assert "this backup has no registry: take another one, or restore --only database" in refused(
        "restore", backup, **source
    )
    monkeypatch.setattr(kafka_contact, "PATIENCE_S", 0)
    nobody = {"bootstrap_servers": [f"127.0.0.1:{free_port()}"]}
    words = r"no Kafka at .*KAFKA_BOOTSTRAP_SERVERS.*ECONNREFUSED"
    with pytest.raises(ServerError, match=words), registry_copy.at_kafka(nobody):
        registry_copy.read_registry(nobody)
