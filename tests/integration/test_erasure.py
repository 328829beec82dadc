"""A household is erased with real servers and scripts, and neither Kafka, files, dead letters nor dbt bring it back."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from event_stream import Stream, event_id, metric, wait_until
from psycopg2 import sql
from running_consumer import ROOT, Database, get

import erase_household
import pipeline_settings
from contracts import DEVICES, EVENTS, HEALTH, HOUSEHOLDS
from erased_tables import CannotErase
from local_servers import free_port

if TYPE_CHECKING:
    from csv_loads import Loads

NOW = datetime.now(UTC).replace(microsecond=0)
ERASED = ("hh-gone", "dv-gone-1", "dv-gone-2")
OTHERS = ("hh-stays", "dv-stays-1")
TABLES = """
SELECT nspname, relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE relkind IN ('r', 'm', 'p') AND nspname <> 'information_schema' AND nspname !~ '^pg_'"""


WAITING = """
SELECT FROM pg_stat_activity
WHERE application_name = %s AND datname = current_database() AND wait_event_type = 'Lock'"""


def at(minutes: float) -> str:
    return (NOW - timedelta(minutes=minutes)).isoformat()


def event(number: int, device: str, minutes: float, kind: str = "open") -> dict[str, Any]:
    return {
        "event_id": event_id(number), "device_id": device, "event_ts": at(minutes), "event_type": kind,
        "trigger_source": "app",
    }  # fmt: skip


def send(stream: Stream, topic: str, key: str, value: dict[str, Any] | None, **options: Any) -> None:
    stream.send(topic, None if value is None else json.dumps(value).encode(), key.encode(), **options)


def send_registry(stream: Stream) -> None:
    for household, *devices in (ERASED, OTHERS):
        zone = {"household_id": household, "region": "north", "timezone": "Europe/Berlin", "updated_at": at(500)}
        send(stream, HOUSEHOLDS.topic, household, zone)
        for device in devices:
            entry = {"device_id": device, "household_id": household, "updated_at": at(500)}
            send(stream, DEVICES.topic, device, entry)


def send_reports(stream: Stream, first: int, *devices: str) -> None:
    """Of each device: events, a duplicate, health reports, and two of what is not valid."""
    for device in devices:
        for minutes in range(200, 0, -20):
            for minute, kind in ((minutes, "open"), (minutes - 5, "close"), (minutes - 6, "fail")):
                first += 1
                send(stream, EVENTS.topic, device, event(first, device, minute, kind))
            report = {"device_id": device, "reported_at": at(minutes), "battery_pct": 50, "is_online": True}
            send(stream, HEALTH.topic, device, report)
        send(stream, EVENTS.topic, device, event(first, device, 0, "fail"))
        send(stream, EVENTS.topic, "key", {**event(first, device, 0), "event_type": "vanish"})
        stream.send(EVENTS.topic, f'{{"device_id": "{device}"'.encode(), b"key", headers=[("from", device.encode())])
    stream.flush()


def file_rows(*more: str) -> list[str]:
    places = [(device, day) for device in (ERASED[1], OTHERS[1]) for day in range(1, 9)]
    rows = [event(1000 + number, device, 60 * 24 * day) for number, (device, day) in enumerate(places)]
    broken = [f"x,{ERASED[1]},never,open,app", f"x,{OTHERS[1]},never,open,app"]
    return [*(",".join(row.values()) for row in rows), *broken, *more]


def run(database: Database, *command: str, code: int = 0, **environment: str) -> str:
    """What a script says on its output."""
    env = {**os.environ, **database.environment, **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stdout + (done.stderr if code else "")


def erase(database: Database, *arguments: str, code: int = 0, **environment: str) -> str:
    return run(database, "streaming/erase_household.py", *arguments, code=code, **environment)


def found(database: Database, *names: str) -> list[str]:
    """Where one of the ids stands in any column of any table, also within bytes, and in a header's base64."""
    places = []
    for schema, table in database.rows(TABLES):
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, table)))
            text = "\n".join(row for (row,) in cursor.fetchall())
        for name in names:
            forms = (name, name.encode().hex(), base64.b64encode(name.encode()).decode())
            places += [f"{schema}.{table}: {name}" for form in forms if form in text]
    return places


def rows_of_others(database: Database) -> dict[str, list[Any]]:
    """What the tables hold of the other household, down to the transaction that wrote the raw rows."""
    tables = ("raw_access_events", "raw_device_health", "raw_devices", "raw_households", "dead_letters")
    marts = ("fct_access_events", "fct_access_hourly", "fct_open_sessions", "fct_device_health_hourly")
    kept = {name: database.rows(f"SELECT xmin::text, t::text FROM {name} AS t") for name in tables}  # noqa: S608
    kept |= {name: database.rows(f"SELECT '', t::text FROM marts.{name} AS t") for name in marts}  # noqa: S608
    forms = [form for name in OTHERS for form in (name, name.encode().hex())]
    return {name: sorted(row for row in rows if any(form in row[1] for form in forms)) for name, rows in kept.items()}


@pytest.fixture
def dbt_environment(tmp_path: Path) -> dict[str, str]:
    return {
        "DBT_TARGET_PATH": str(tmp_path / "target"), "DBT_LOG_PATH": str(tmp_path), "DBT_LOG_LEVEL_FILE": "none",
        "DBT_SCHEMA": "marts", "PSEUDONYM_KEY": "k" * 32,
    }  # fmt: skip


def test_an_erased_household_does_not_come_back(
    own_stream: Stream, loads: Loads, dbt_environment: dict[str, str]
) -> None:
    build = ("dbt/one_at_a_time.py", "--quiet", "build", "--selector", "models")
    send_registry(own_stream)
    send_reports(own_stream, 0, *ERASED[1:], *OTHERS[1:])
    loads.run(loads.put("history.csv", *file_rows()))
    loads.run(loads.put("hh-gone.csv", "x,other,never,open,app"))
    port = free_port()
    with own_stream.consumer(CONSUMER_METRICS_PORT=str(port)) as running:
        own_stream.wait_until_consumed(running)
        run(own_stream, *build, **dbt_environment)
        before = rows_of_others(own_stream)
        assert all(before.values())
        places = found(own_stream, *ERASED)
        assert len({place.split(":")[0] for place in places}) >= 18, places
        would_go = erase(own_stream, ERASED[0], "--dry-run")
        assert found(own_stream, *ERASED) == places

        said = erase(own_stream, ERASED[0], **dbt_environment)
        assert said.replace(" rows deleted\n", " rows would be deleted\n").startswith(would_go.rsplit("devices:", 1)[0])
        assert "What this cannot reach: Kafka's topics of events" in said
        assert found(own_stream, *ERASED) == []
        assert rows_of_others(own_stream) == before

        # A producer that has not heard of it, and the tombstones, which the consumer reads as well
        send_registry(own_stream)
        send_reports(own_stream, 5000, *ERASED[1:])
        own_stream.wait_until_consumed(running)
        counted = metric(get(port, "/metrics"), "consumer_records_suppressed_total")
    fresh = {"CONSUMER_GROUP": "afresh", "CONSUMER_METRICS_PORT": "0"}
    run(own_stream, "streaming/kafka_consumer.py", "--until-caught-up", **fresh)
    out, _ = loads.run(loads.put("again.csv", *file_rows(f"y,{ERASED[1]},never,open,app")))
    assert " rows=19 stored=0 duplicates=8 dead=1 suppressed=10 " in out
    run(own_stream, "streaming/replay_dead_letters.py", "replay")
    run(own_stream, *build, **dbt_environment)

    assert found(own_stream, *ERASED) == []
    assert rows_of_others(own_stream)["fct_access_events"] == before["fct_access_events"]
    sums = "sum(opens)::int, sum(closes)::int, sum(fails)::int"
    assert own_stream.rows(f"SELECT {sums} FROM marts.fct_fleet_hourly") == own_stream.rows(  # noqa: S608
        f"SELECT {sums} FROM marts.fct_access_hourly"  # noqa: S608
    )
    assert own_stream.rows("SELECT FROM ingest_ledger WHERE NOT balanced") == []
    assert own_stream.rows("SELECT FROM file_loads WHERE NOT balanced") == []
    suppressed = "SELECT sum(suppressed)::int FROM ingest_ledger WHERE consumer_group = %s"
    # entries of the registry, 33 events and 10 reports of each of two devices, their two invalid ones; tombstones
    again = 3 + 2 * (31 + 10 + 2)
    assert own_stream.one(suppressed, own_stream.group) == counted == again + 3
    assert own_stream.one(suppressed, "afresh") == 2 * again + 3
    [(rows, tombstones, *rest)] = own_stream.rows(
        "SELECT rows, tombstones, erased_by, recompute_from, recompute_to, ended_at IS NOT NULL FROM erasures"
    )
    assert (tombstones, rest) == (3, ["postgres", None, None, True])
    assert rows["public.raw_access_events"] == 2 * 30 + 8


@contextmanager
def locked(database: Database, statement: str) -> Iterator[None]:
    with closing(database.connect()) as connection:
        connection.cursor().execute(statement)
        yield
        connection.rollback()


@pytest.fixture
def warehouse(database: dict[str, str]) -> Database:
    """Two households with two devices and 20,000 events each; no run of the models yet."""
    made = Database(database)
    made.execute("""
        INSERT INTO raw_households (household_id, updated_at)
        SELECT 'home-' || n, now() FROM generate_series(1, 2) AS n;
        INSERT INTO raw_devices (device_id, household_id, updated_at)
        SELECT 'lock-' || n, 'home-' || mod(n, 2) + 1, now() FROM generate_series(1, 4) AS n;
        INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
        SELECT gen_random_uuid(), 'lock-' || mod(n, 4) + 1, now(), 'open', 'app' FROM generate_series(1, 80000) AS n;
        INSERT INTO raw_device_health (device_id, reported_at, is_online)
        SELECT 'lock-' || mod(n, 4) + 1, now() - n * interval '1 s', true FROM generate_series(1, 400) AS n;
        INSERT INTO dead_letters (topic, key, value, reason, detail)
        SELECT 'smart-access.events', convert_to('lock-' || mod(n, 4) + 1, 'UTF8'), convert_to('{', 'UTF8'), 'bad', ''
        FROM generate_series(1, 1200) AS n
    """)
    return made


COUNTS = """
SELECT count(*) FILTER (WHERE of IN ('home-1', 'lock-2', 'lock-4'))::int,
       count(*) FILTER (WHERE of NOT IN ('home-1', 'lock-2', 'lock-4'))::int
FROM (
    SELECT device_id FROM raw_access_events
    UNION ALL SELECT device_id FROM raw_device_health
    UNION ALL SELECT device_id FROM raw_devices
    UNION ALL SELECT household_id FROM raw_households
    UNION ALL SELECT encode(key, 'escape') FROM dead_letters
) AS found (of)"""


def counts(warehouse: Database) -> list[int]:
    """Rows of the first household and of the other one."""
    return list(warehouse.rows(COUNTS)[0])


WHOLE = 40_000 + 200 + 2 + 600 + 1


def audit(warehouse: Database) -> tuple[bool, int]:
    """Whether it has ended, and the rows deleted."""
    [(is_ended, rows)] = warehouse.rows("SELECT ended_at IS NOT NULL, rows FROM erasures")
    return is_ended, sum(rows.values())


def test_one_that_was_killed_midway_is_gone_on_with(warehouse: Database) -> None:
    assert counts(warehouse) == [WHOLE, WHOLE]
    command = [sys.executable, "streaming/erase_household.py", "home-1", "--without-kafka"]
    for number, (blocked, left) in enumerate((
        ("LOCK TABLE pseudonyms IN ACCESS EXCLUSIVE MODE", 3),
        ("SELECT FROM raw_devices FOR UPDATE", 3),
    )):  # fmt: skip
        with locked(warehouse, blocked):
            env = {**os.environ, **warehouse.environment}
            process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE)
            wait_until(lambda: warehouse.rows(WAITING, "smart-access-erase"))
            process.send_signal(signal.SIGKILL if number else signal.SIGINT)
            _, said = process.communicate(timeout=30)
        if not number:
            assert process.returncode == 1
            assert b"interrupted\n" in said
            assert b"it is not complete: start the same command again" in said
        assert counts(warehouse) == [left, WHOLE]
        assert audit(warehouse) == (False, WHOLE - left)
    wait_until(lambda: not warehouse.rows("SELECT FROM pg_stat_activity WHERE application_name = 'smart-access-erase'"))
    assert "40,000" in erase(warehouse, "home-1", "--without-kafka")
    assert counts(warehouse) == [0, WHOLE]
    assert audit(warehouse) == (True, WHOLE)
    assert warehouse.one("SELECT tombstones FROM erasures") is None


def test_a_device_that_is_just_being_registered_is_erased_too(warehouse: Database, loads: Loads) -> None:
    """Its entry is in an open transaction of a writer when the erasure begins."""
    file = loads.put("new.csv", f"new,home-1,{at(5)}", header="device_id,household_id,updated_at")
    event = "INSERT INTO raw_access_events SELECT gen_random_uuid(), 'new', now(), 'open', 'app'"
    warehouse.execute(event)
    command = [sys.executable, "streaming/erase_household.py", "home-1", "--without-kafka"]
    env = {**os.environ, **warehouse.environment}
    with loads.script(file):
        with locked(
            warehouse, "INSERT INTO raw_devices (device_id, household_id, updated_at) VALUES ('new', 'x', now())"
        ):
            wait_until(lambda: warehouse.rows(WAITING, "smart-access-load"))
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE)
            wait_until(lambda: warehouse.rows(WAITING, "smart-access-erase"))
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert warehouse.rows("SELECT FROM raw_access_events WHERE device_id = 'new'") == []
    assert counts(warehouse) == [0, WHOLE]


Here = Callable[..., str]


@pytest.fixture
def erase_here(
    warehouse: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """As the script, in this process: what it says, or why it refuses."""

    def call(*arguments: str, **environment: str) -> str:
        with monkeypatch.context() as patched:
            for name, value in {**warehouse.environment, **environment}.items():
                patched.setenv(name, value)
            patched.setattr(sys, "argv", ["erase_household.py", *arguments])
            args = erase_household.parse_arguments()
            with closing(pipeline_settings.connect_postgres("tests", options="-c timezone=UTC")) as connection:
                act = erase_household.release if args.release else erase_household.erase
                try:
                    act(connection, args.release or args)
                except CannotErase as refusal:
                    return str(refusal)
        return capsys.readouterr().out

    return call


def test_one_whose_sums_could_not_be_computed_is_gone_on_with(
    warehouse: Database, erase_here: Here, tmp_path: Path
) -> None:
    """The household's devices cannot be found any more then."""
    warehouse.execute("CREATE TABLE marts.fct_fleet_hourly ()")  # as if the models had run
    said = erase(warehouse, "home-1", "--without-kafka", code=1, DBT_PROJECT_DIR=str(tmp_path))
    assert "the rows are gone, but dbt has not computed the marts' sums anew (above)" in said
    assert "it is not complete: start the same command again" in said
    assert (counts(warehouse), audit(warehouse)) == ([0, WHOLE], (False, WHOLE))
    warehouse.execute("DROP TABLE marts.fct_fleet_hourly")
    assert "40,000" in erase_here("home-1", "--without-kafka")
    assert audit(warehouse) == (True, WHOLE)
    said = erase_here("home-1", "--without-kafka")
    assert said.startswith("it was erased on 2")
    assert said.endswith(" UTC, and no table has it\n")
    assert audit(warehouse) == (True, WHOLE)


def test_nothing_is_begun_where_it_could_not_be_ended(
    warehouse: Database, erase_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(expected: str, *arguments: str, **environment: str) -> None:
        said = erase_here(*arguments, **environment)
        assert expected in said
        assert len(said.splitlines()) == 1, said
        assert counts(warehouse) == [WHOLE, WHOLE]
        assert warehouse.one("SELECT count(*) FROM suppressions") == warehouse.one("SELECT count(*) FROM erasures") == 0

    home = ("home-1", "--without-kafka")
    monkeypatch.setattr("kafka_contact.PATIENCE_S", 0.1)
    refused(
        "no Kafka at 127.0.0.1:1 (KAFKA_BOOTSTRAP_SERVERS): 111 ECONNREFUSED. Nothing was begun; --without-kafka does"
        " it without tombstones", "home-1", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1",
    )  # fmt: skip
    refused("no table knows this household. To keep it out all the same: --suppress-unknown", "x", "--without-kafka")
    with locked(warehouse, "SELECT pg_advisory_lock(hashtext('smart-access erasure'))"):
        refused("another erasure is at work on this database", *home)
    warehouse.execute("CREATE SCHEMA anna CREATE TABLE copies (device_id text)")
    refused("anna.copies has a device_id or household_id and is not known to streaming/erased_tables.py", *home)
    warehouse.execute("DROP SCHEMA anna CASCADE; CREATE ROLE only_ingest LOGIN PASSWORD 'x' IN ROLE pipeline_ingest")
    try:
        login = {"PGUSER": "only_ingest", "PGPASSWORD": "x"}
        refused("PGUSER=only_ingest lacks the right to delete rows of public.device_horizons, ", *home, **login)
    finally:
        warehouse.execute("DROP ROLE only_ingest")


def test_an_unknown_household_is_kept_out_and_a_device_is_released(
    warehouse: Database, erase_here: Here, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erasure.PAGES", 100)  # of some 1,000
    monkeypatch.setattr("erasure.LETTERS", 100)

    def load(name: str, *rows: str) -> str:
        return loads.run(loads.put(name, *rows, header="device_id,household_id,updated_at"))[0]

    erase_here("home-3", "--without-kafka", "--suppress-unknown")
    assert "stored=0 duplicates=0 dead=0 suppressed=1" in load("one.csv", f"new,home-3,{at(5)}")
    erase_here("home-1", "--without-kafka")
    assert "stored=0 duplicates=0 dead=0 suppressed=1" in load("two.csv", f"lock-2,home-2,{at(5)}")
    assert "released" in erase(warehouse, "--release", "lock-2")
    now = warehouse.one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')")
    said = load("three.csv", f"lock-2,home-2,{at(5)}", f"lock-2,home-2,{now}")
    assert "stored=1 duplicates=0 dead=0 suppressed=1" in said
    assert "it is not on the list" in erase_here("--release", "lock-2")
    assert counts(warehouse) == [1, WHOLE]
