"""Dead letters come back to life once a fix is in: each at most once, none ever lost, whatever interrupts it."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2.extras import execute_values
from running_consumer import ROOT, Database, Pipeline

import contracts
import pipeline_settings
import replay_dead_letters
from contracts import DEVICES, EVENTS, HEALTH

if TYPE_CHECKING:
    from local_servers.kafka_broker import KafkaBroker

NOW = datetime.now(UTC)
EVERYTHING = {
    "raw_access_events": "event_id",
    "raw_device_health": "device_id, reported_at",
    "raw_devices": "device_id",
    "ingest_offsets": "topic, partition",
    "dead_letters": "dead_letter_id",
}


def event(**changes: Any) -> bytes:
    record = {
        "event_id": str(uuid.uuid4()),
        "device_id": "lock-1",
        "event_ts": "2024-05-04T12:00:00Z",
        "event_type": "open",
        "trigger_source": "app",
    }
    return json.dumps(record | changes).encode()


def device(updated_at: str, **changes: Any) -> bytes:
    return json.dumps({"device_id": "lock-1", "household_id": "home-1", "updated_at": updated_at} | changes).encode()


class Letters(Database):
    """The table dead_letters, and the script that looks after it."""

    def __init__(self, environment: dict[str, str]):
        super().__init__(environment)
        self._offsets = itertools.count()

    def put(self, value: bytes | None, topic: str = EVENTS.topic, key: bytes | None = b"lock-1", reason: str = "old",
            record_ts: datetime | None = NOW, created_at: datetime = NOW) -> int:  # fmt: skip
        return self._insert([(topic, record_ts, key, value, reason, created_at)])[0]

    def put_many(self, count: int) -> list[str]:
        names = [str(uuid.uuid4()) for _ in range(count)]
        self._insert([(EVENTS.topic, NOW, b"lock-1", event(event_id=name), "old", NOW) for name in names])
        return names

    def _insert(self, letters: list[tuple[Any, ...]]) -> list[int]:
        statement = (
            'INSERT INTO dead_letters (cluster_id, consumer_group, partition, detail, "offset",'
            " topic, record_ts, key, value, reason, created_at) VALUES %s RETURNING dead_letter_id"
        )
        rows = [("c", "g", 0, "why", next(self._offsets), *letter) for letter in letters]
        with closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            return [number for (number,) in execute_values(cursor, statement, rows, fetch=True)]

    def fates(self) -> dict[int, str | None]:
        return dict(self.rows("SELECT dead_letter_id, fate FROM dead_letters"))

    def everything(self) -> dict[str, list[Any]]:
        """The tables as they are, down to which transaction wrote each row."""
        return {
            table: self.rows(f"SELECT xmin::text, t::text FROM {table} AS t ORDER BY {key}")  # noqa: S608
            for table, key in EVERYTHING.items()
        }

    @contextmanager
    def script(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "streaming/replay_dead_letters.py", *arguments]
        env, pipe = {**os.environ, **self.environment, **environment}, subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, **environment: str) -> str:
        with self.script(*arguments, **environment) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out

    def refused(self, *arguments: str, **environment: str) -> tuple[int, str]:
        with self.script(*arguments, **environment) as process:
            out, err = process.communicate(timeout=60)
        assert out == ""
        return process.returncode, err


@pytest.fixture
def letters(database: dict[str, str]) -> Letters:
    return Letters(database)


@pytest.fixture
def pipeline(kafka: KafkaBroker, database: dict[str, str], tmp_path: Path) -> Iterator[Pipeline]:
    with closing(Pipeline(kafka, database, tmp_path)) as made:
        yield made


def test_each_letter_gets_its_fate_and_a_second_replay_changes_nothing_more(letters: Letters) -> None:
    twin = str(uuid.uuid4())
    valid, first, second = letters.put(event()), letters.put(event(event_id=twin)), letters.put(event(event_id=twin))
    invalid = letters.put(event(event_type="ajar"))
    assert letters.run("replay") == "replayed 2, duplicate 1, still invalid 1\n"
    assert letters.fates() == {valid: "replayed", first: "replayed", second: "duplicate", invalid: "still_invalid"}
    assert letters.one("SELECT fate_detail FROM dead_letters WHERE dead_letter_id = %s", invalid).startswith(
        "bad_value"
    )
    assert letters.one("SELECT reason FROM dead_letters WHERE dead_letter_id = %s", invalid) == "old"
    before = letters.everything()
    assert letters.run("replay") == "replayed 0, duplicate 0, still invalid 1\n"
    after = letters.everything()
    assert len(after["raw_access_events"]) == 2
    assert after["raw_access_events"] == before["raw_access_events"]
    assert after["dead_letters"][:3] == before["dead_letters"][:3]
    assert [attempts for (attempts,) in letters.rows("SELECT replay_attempts FROM dead_letters ORDER BY 1")] == [
        1, 1, 1, 2,
    ]  # fmt: skip


def test_a_row_says_where_its_record_came_from(letters: Letters) -> None:
    letters.put(event(event_type="ajar"))
    letters.put(event(trigger_source="keypad", x=1), key=b"\xff")
    letters.run("replay")
    columns = "device_id, event_ts, event_type, trigger_source, extra, kafka_partition, kafka_offset"
    assert letters.rows(f"SELECT {columns} FROM raw_access_events") == [  # noqa: S608
        ("lock-1", datetime(2024, 5, 4, 12, tzinfo=UTC), "open", "keypad", {"x": 1}, 0, 1)
    ]


def test_a_dry_run_says_what_would_happen_and_changes_nothing(letters: Letters) -> None:
    letters.put(event())
    letters.put(event(event_type="ajar"))
    letters.put(device("2024-01-01T00:00:00Z"), DEVICES.topic)
    before = letters.everything()
    assert letters.run("replay", "--dry-run") == "would be replayed 2, duplicate 0, still invalid 1\n"
    assert letters.everything() == before
    assert letters.run("replay") == "replayed 2, duplicate 0, still invalid 1\n"


def test_a_wider_contract_lets_the_old_letters_in(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    ajar = letters.put(event(event_type="ajar"), reason="bad_value")
    letters.put(event(event_type="broken"), reason="bad_value")
    args = argparse.Namespace(reason="bad_value", topic=None, since=None, max=None, dry_run=False, retention_days=None)
    with closing(letters.connect()) as connection:
        replay_dead_letters.replay(connection, args)
        assert letters.fates()[ajar] == "still_invalid"
        monkeypatch.setitem(contracts.EVENT_TYPES, "ajar", "open")
        replay_dead_letters.replay(connection, args)
        replay_dead_letters.replay(connection, args)
    assert sorted(letters.fates().values(), key=str) == ["replayed", "still_invalid"]
    assert letters.rows("SELECT event_type FROM raw_access_events") == [("open",)]


def test_filters_choose_the_letters(letters: Letters) -> None:
    old = NOW - timedelta(days=2)
    a = letters.put(event(), reason="a", created_at=old)
    b = letters.put(event(), reason="b")
    health = {"device_id": "lock-1", "reported_at": "2024-05-04T12:00:00Z", "is_online": True}
    c = letters.put(json.dumps(health).encode(), HEALTH.topic, reason="b")
    d, e = letters.put(event(), reason="c"), letters.put(event(), reason="c")

    def replayed(*arguments: str) -> set[int]:
        before = letters.fates()
        letters.run("replay", *arguments)
        return {number for number, fate in letters.fates().items() if fate != before[number]}

    assert replayed("--reason", "nothing") == set()
    assert replayed("--since", (NOW + timedelta(hours=1)).isoformat()) == set()
    assert replayed("--topic", HEALTH.topic) == {c}
    assert replayed("--reason", "b") == {b}
    assert replayed("--since", (NOW - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S"), "--max", "1") == {d}
    assert replayed("--max", "1") == {a}
    assert replayed() == {e}


def test_a_letters_own_kafka_timestamp_bounds_its_times(letters: Letters) -> None:
    letters.put(event(event_ts="2024-05-04T12:05:01Z"), record_ts=datetime(2024, 5, 4, 12, tzinfo=UTC))
    letters.put(event(event_ts="2024-05-04T12:05:00Z"), record_ts=datetime(2024, 5, 4, 12, tzinfo=UTC))
    letters.put(event(event_ts="2024-05-04T12:05:01Z"), record_ts=None, created_at=datetime(2024, 5, 4, 12, tzinfo=UTC))
    assert letters.run("replay") == "replayed 1, duplicate 0, still invalid 2\n"


def test_an_old_registry_entry_replaces_no_newer_one(letters: Letters) -> None:
    letters.put(device("2024-02-01T00:00:00Z", model="new"), DEVICES.topic)
    letters.put(device("2024-01-01T00:00:00Z", model="old"), DEVICES.topic)
    letters.put(device("2024-03-01T00:00:00Z", model="another's"), DEVICES.topic, key=b"lock-2")
    assert letters.run("replay") == "replayed 1, duplicate 1, still invalid 1\n"
    assert letters.rows("SELECT model, deleted_at FROM raw_devices") == [("new", None)]
    letters.put(None, DEVICES.topic)
    assert letters.run("replay", "--max", "9") == "replayed 1, duplicate 0, still invalid 1\n"
    assert letters.one("SELECT deleted_at FROM raw_devices") == NOW.replace(microsecond=NOW.microsecond // 1000 * 1000)


def test_list_counts_and_show_shows(letters: Letters) -> None:
    assert letters.run("list") == letters.run("show") == "no dead letters\n"
    letters.put(event(), reason="a")
    letters.put(b'{"open": \xff' + b"x" * 400, reason="b", key=None)
    letters.put(None, reason="b", key=b"k")
    letters.run("replay", "--reason", "a")
    counts = [line.split()[:4] for line in letters.run("list").splitlines()[1:]]
    assert sorted(counts) == [[EVENTS.topic, "a", "replayed", "1"], [EVENTS.topic, "b", "open", "2"]]
    assert letters.run("list", "--topic", DEVICES.topic) == "no dead letters that match\n"
    tombstone, bytes_, replayed, rest = letters.run("show").split("\n\n")
    assert rest == ""
    assert f"{EVENTS.topic}[0]@2" in tombstone
    assert "key:   'k'" in tombstone
    assert "value: none" in tombstone
    assert "b: why" in bytes_
    assert "fate:  open" in bytes_
    assert "key:   none" in bytes_
    assert """value: '{"open": \\xff""" in bytes_
    assert bytes_.endswith("… 410 bytes")
    assert "fate:  replayed" in replayed
    assert letters.run("show", "--max", "1").count("#") == 1


def test_refused_rows_land_once_when_the_constraint_is_gone_beside_a_running_consumer(pipeline: Pipeline) -> None:
    letters = Letters(pipeline.environment)
    pipeline.execute("ALTER TABLE raw_access_events ADD CONSTRAINT no_voice CHECK (trigger_source <> 'voice')")
    with pipeline.consumer() as running:
        for number in range(60):
            pipeline.send(EVENTS.topic, event(trigger_source="voice" if number % 3 == 0 else "app"), b"lock-1")
        pipeline.flush()
        pipeline.wait_until_consumed(running)
        assert pipeline.rows("SELECT reason, count(*) FROM dead_letters GROUP BY 1") == [("refused_by_database", 20)]
        assert "SQLSTATE 23514" in pipeline.one("SELECT min(detail) FROM dead_letters")
        assert letters.run("replay", "--max", "5") == "replayed 0, duplicate 0, still invalid 5\n"
        assert "SQLSTATE 23514" in pipeline.one("SELECT min(fate_detail) FROM dead_letters")

        pipeline.execute("ALTER TABLE raw_access_events DROP CONSTRAINT no_voice")
        with letters.script("replay", "--reason", "refused_by_database") as replay:
            for _ in range(200):
                pipeline.send(EVENTS.topic, event(), b"lock-1")
            pipeline.flush()
            out, err = replay.communicate(timeout=60)
        assert out == "replayed 20, duplicate 0, still invalid 0\n", err
        assert letters.run("replay") == "replayed 0, duplicate 0, still invalid 0\n"
        pipeline.wait_until_consumed(running)
    assert running.complaints() == []
    assert pipeline.rows("SELECT trigger_source, count(*) FROM raw_access_events GROUP BY 1 ORDER BY 1") == [
        ("app", 240), ("voice", 20),
    ]  # fmt: skip
    assert pipeline.one("SELECT count(DISTINCT (kafka_partition, kafka_offset)) FROM raw_access_events") == 260
    assert pipeline.ledger()[EVENTS.topic] == {"consumed": 260, "stored": 240, "duplicates": 0, "dead": 20, "gaps": 0}
    assert set(letters.fates().values()) == {"replayed"}


@contextmanager
def stuck_at(letters: Letters, name: str) -> Iterator[None]:
    """Makes the replay wait for as long as the block lasts when it comes to this event."""
    with closing(letters.connect()) as blocker:
        with blocker.cursor() as cursor:
            cursor.execute(
                "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
                " VALUES (%s, 'x', now(), 'open', 'x')",
                (name,),
            )
        yield
        blocker.rollback()


def test_starting_waits_for_no_writer_and_no_reader(letters: Letters) -> None:
    with stuck_at(letters, str(uuid.uuid4())), closing(letters.connect()) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ingest_ledger, dead_letters, raw_devices")
        with closing(letters.connect()) as starter:
            with starter.cursor() as at_once:
                at_once.execute("SET lock_timeout = '2s'")
            pipeline_settings.apply_schema(starter)


def wait_until_it_has_done(process: subprocess.Popen[str], count: int) -> None:
    assert process.stderr
    while f"{count} letters so far" not in (line := process.stderr.readline()):
        assert line, "it ended"


def assert_rows_are_the_replayed(letters: Letters, count: int) -> None:
    assert sum(fate == "replayed" for fate in letters.fates().values()) == count
    assert letters.one("SELECT count(*) FROM raw_access_events") == count


@pytest.mark.parametrize("end", ["killed", "terminated", "cut_off"])
def test_a_replay_that_is_ended_in_the_middle_leaves_rows_and_fates_in_step(letters: Letters, end: str) -> None:
    names = letters.put_many(500)
    with stuck_at(letters, names[300]), letters.script("replay") as process:
        wait_until_it_has_done(process, 200)
        if end == "cut_off":
            letters.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'smart-access-replay'"
            )
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out) == (1, "")
            assert "PostgreSQL ended it: " in err
            assert "Traceback" not in err
        else:
            process.kill() if end == "killed" else process.terminate()
            process.wait(30)
    assert_rows_are_the_replayed(letters, 200)
    assert len(letters.fates()) == 500
    assert letters.run("replay") == "replayed 300, duplicate 0, still invalid 0\n"
    assert_rows_are_the_replayed(letters, 500)


def test_two_replays_at_once_share_the_work(letters: Letters) -> None:
    names = letters.put_many(450)
    with letters.script("replay") as one:
        with stuck_at(letters, names[50]):
            deadline = time.monotonic() + 30
            waiting = "SELECT FROM pg_stat_activity WHERE query LIKE 'WITH stored%' AND wait_event_type = 'Lock'"
            while not letters.rows(waiting):
                assert time.monotonic() < deadline
                assert one.poll() is None
            # what the first one holds is not waited for, and is not replayed a second time
            assert letters.run("replay") == "replayed 250, duplicate 0, still invalid 0\n"
        assert one.communicate(timeout=60)[0] == "replayed 200, duplicate 0, still invalid 0\n"
    assert_rows_are_the_replayed(letters, 450)


@pytest.mark.parametrize(
    "arguments",
    [(), ("mend",), ("replay", "--max", "0"), ("list", "--max", "1"), ("show", "--since", "soon"),
     ("list", "--topic", "doors"), ("show", "--dry-run")],
    ids=" ".join,
)  # fmt: skip
def test_what_it_does_not_understand_is_refused(letters: Letters, arguments: tuple[str, ...]) -> None:
    code, err = letters.refused(*arguments)
    assert code == 2
    assert "usage: " in err


def test_a_wrong_password_is_one_line_without_the_password(letters: Letters) -> None:
    code, err = letters.refused("replay", PGPASSWORD="not-the-secret")
    assert code == 1
    assert "no PostgreSQL: " in err
    assert "PGPASSWORD" in err
    assert "not-the-secret" not in err
    assert "Traceback" not in err
