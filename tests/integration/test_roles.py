"""What a login that is in one role only may do, and what PostgreSQL refuses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from event_stream import event, wait_until
from running_consumer import Database

from contracts import DEVICES, EVENTS, HEALTH, HOUSEHOLDS
from pipeline_settings import ROOT, SettingError, apply_schema

if TYPE_CHECKING:
    from event_stream import Launcher, Stream

PASSWORD = "of one role"
Logins = dict[str, dict[str, str]]


@pytest.fixture
def logins(database: dict[str, str]) -> Iterator[Logins]:
    """libpq's variables of a login for each role, by the role's name; the database has a mart, made as dbt makes it."""
    owner = Database(database)
    made = {}
    for role in ("pipeline_ingest", "pipeline_transform", "pipeline_maintain", "dashboard_read", "analyst_read"):
        login = f"only_{role}"
        owner.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{PASSWORD}' IN ROLE {role}")
        made[role] = {**database, "PGUSER": login, "PGPASSWORD": PASSWORD}
    transform = Database(made["pipeline_transform"])
    owner.execute("ALTER ROLE only_pipeline_transform SET role = pipeline_transform")
    transform.execute("CREATE TABLE marts.visits AS SELECT 'home' AS household_id")
    transform.execute("CREATE VIEW marts_pseudonymous.visits AS SELECT count(*) FROM marts.visits")
    transform.execute("CREATE TABLE intermediate.steps (step integer)")
    yield made
    owner.execute("DROP OWNED BY pipeline_transform")
    for login in made.values():
        owner.execute(f"DROP OWNED BY {login['PGUSER']}")
        owner.execute(f"DROP ROLE {login['PGUSER']}")


REFUSED = {
    "pipeline_ingest": [
        "UPDATE raw_access_events SET event_type = 'open'",
        "DELETE FROM raw_access_events",
        "TRUNCATE raw_access_events",
        "UPDATE raw_device_health SET is_online = true",
        "DELETE FROM raw_device_health",
        "DELETE FROM raw_devices",
        "DELETE FROM raw_households",
        "DELETE FROM ingest_offsets",
        "DELETE FROM ingest_minutes",
        "DELETE FROM dead_letters",
        "SELECT FROM device_horizons",
        "SELECT FROM sweeps",
        "TRUNCATE dead_letters",
        "UPDATE dead_letters SET value = NULL",
        "UPDATE dead_letters SET reason = 'none'",
        "SELECT FROM pseudonyms",
        "INSERT INTO suppressions SELECT * FROM suppressions",
        "UPDATE suppressions SET valid_to = now()",
        "DELETE FROM suppressions",
        "UPDATE suppression_list SET version = 0",
        "SELECT FROM erasures",
        "ALTER TABLE raw_access_events DROP COLUMN extra",
        "ALTER TABLE raw_access_events DISABLE TRIGGER ALL",
        "DROP TABLE raw_access_events",
        "DROP VIEW ingest_ledger",
        "CREATE INDEX ON raw_access_events (device_id)",
        "CREATE TABLE public.mine ()",
        "CREATE SCHEMA mine",
        "SELECT public.summarize_arrivals()",
        "SELECT FROM live.devices",
        "SELECT FROM marts.visits",
        "CREATE TABLE marts.mine ()",
        "SELECT FROM intermediate.steps",
        "SELECT FROM marts_pseudonymous.visits",
        "SET ROLE pipeline_transform",
        "CREATE ROLE mine",
    ],
    "pipeline_transform": [
        "INSERT INTO raw_access_events SELECT * FROM raw_access_events",
        "UPDATE raw_access_events SET event_type = 'open'",
        "DELETE FROM raw_access_events",
        "TRUNCATE raw_access_events",
        "INSERT INTO raw_device_health SELECT * FROM raw_device_health",
        "DELETE FROM raw_device_health",
        "UPDATE raw_devices SET household_id = 'mine'",
        "UPDATE raw_households SET region = 'mine'",
        "UPDATE ingest_minutes SET stored = 0",
        "SELECT FROM ingest_offsets",
        "SELECT FROM ingest_ledger",
        "SELECT FROM dead_letters",
        "SELECT FROM file_loads",
        "UPDATE device_horizons SET horizon = now()",
        "DELETE FROM device_horizons",
        "UPDATE sweeps SET deleted = '{}'",
        "SELECT brin_summarize_new_values('raw_access_events_ingested_at')",
        "UPDATE pseudonyms SET pseudonym = 'mine'",
        "DELETE FROM pseudonyms",
        "SELECT FROM suppressions",
        "SELECT FROM suppression_list",
        "ALTER TABLE raw_access_events ADD COLUMN mine integer",
        "DROP TABLE raw_access_events",
        "CREATE TABLE public.mine ()",
        "CREATE SCHEMA mine",
        "DROP SCHEMA marts CASCADE",
        "SELECT FROM live.devices",
        "SET ROLE pipeline_ingest",
    ],
    "pipeline_maintain": [
        "INSERT INTO raw_access_events SELECT * FROM raw_access_events",
        "UPDATE raw_access_events SET event_type = 'open'",
        "TRUNCATE raw_access_events",
        "UPDATE raw_device_health SET is_online = true",
        "SELECT FROM raw_devices",
        "DELETE FROM raw_devices",
        "DELETE FROM raw_households",
        "DELETE FROM ingest_offsets",
        "UPDATE ingest_minutes SET stored = 0",
        "UPDATE dead_letters SET value = NULL",
        "TRUNCATE dead_letters",
        "UPDATE file_loads SET pinned = false",
        "DELETE FROM device_horizons",
        "DELETE FROM sweeps",
        "SELECT FROM pseudonyms",
        "DROP TABLE raw_access_events",
        "CREATE TABLE public.mine ()",
        "CREATE TABLE marts.mine ()",
        "CREATE SCHEMA mine",
        "SELECT FROM live.devices",
        "SELECT FROM marts_pseudonymous.visits",
        "SET ROLE pipeline_transform",
        "SET ROLE pipeline_ingest",
    ],
    "dashboard_read": [
        "SELECT FROM raw_access_events",
        "SELECT FROM sweeps",
        "SELECT FROM device_horizons",
        "SELECT FROM raw_devices",
        "SELECT FROM dead_letters",
        "SELECT FROM ingest_offsets",
        "SELECT FROM pseudonyms",
        "SELECT FROM suppressions",
        "SELECT FROM intermediate.steps",
        "SELECT FROM marts_pseudonymous.visits",
        "INSERT INTO marts.visits VALUES ('mine')",
        "DELETE FROM live.access_events",
        "CREATE TABLE marts.mine ()",
        "CREATE TABLE public.mine ()",
        "SET ROLE pipeline_transform",
    ],
    "analyst_read": [
        "SELECT FROM pseudonyms",
        "SELECT FROM suppressions",
        "SELECT FROM raw_access_events",
        "SELECT FROM raw_devices",
        "SELECT FROM raw_households",
        "SELECT FROM dead_letters",
        "SELECT FROM live.devices",
        "SELECT FROM marts.visits",
        "SELECT FROM intermediate.steps",
        "SELECT FROM pg_statistic",
        "SELECT pg_read_file('PG_VERSION')",
        "CREATE VIEW marts_pseudonymous.mine AS SELECT 1",
        "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "SET ROLE pipeline_transform",
        "SET ROLE dashboard_read",
    ],
}


def test_what_each_role_may_not_do_is_refused(logins: Logins) -> None:
    answers = {}
    for role, statements in REFUSED.items():
        with closing(Database(logins[role]).connect()) as connection:
            for statement in statements:
                answers[role, statement] = answer(connection, statement)
    assert {key: said for key, said in answers.items() if said != "42501"} == {}


def answer(connection: Any, statement: str) -> str:
    """The SQLSTATE, and of what was not refused nothing stays."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        return "allowed"
    except psycopg2.Error as error:
        return error.pgcode or "connection"
    finally:
        connection.rollback()


ALLOWED = {
    "pipeline_transform": [
        "SELECT * FROM raw_access_events, raw_device_health, raw_devices, raw_households, ingest_minutes",
        "SELECT * FROM device_horizons, sweeps",
        "SELECT public.summarize_arrivals()",
        "SELECT pg_try_advisory_lock(1, 2)",
        "INSERT INTO pseudonyms VALUES ('device', 'lock', 'somebody')",
        "DROP TABLE marts.visits CASCADE",
        "CREATE VIEW staging.new AS SELECT * FROM raw_devices",
        "CREATE TABLE snapshots.new AS SELECT * FROM raw_devices",
        "CREATE TEMP TABLE new AS SELECT * FROM raw_devices",
    ],
    "dashboard_read": ["SELECT * FROM live.devices, live.ledger, live.dead_letters"],
}


def test_what_each_role_needs_is_allowed(logins: Logins) -> None:
    for role, statements in ALLOWED.items():
        with closing(Database(logins[role]).connect()) as connection:
            for statement in statements:
                assert (role, statement, answer(connection, statement)) == (role, statement, "allowed")


def test_a_consumer_and_a_replay_need_no_more_than_pipeline_ingest(stream: Stream, logins: Logins) -> None:
    registry = {"device_id": "lock-1", "household_id": "home", "updated_at": "2025-06-01T12:00:00Z"}
    health = {"device_id": "lock-1", "reported_at": "2025-06-01T12:00:00Z", "is_online": True}
    stream.send(DEVICES.topic, json.dumps(registry).encode(), b"lock-1")
    stream.send(DEVICES.topic, json.dumps(registry | {"model": "new"}).encode(), b"lock-1")
    stream.send(HOUSEHOLDS.topic, json.dumps(registry).replace("device_id", "was").encode(), b"home")
    stream.send(HEALTH.topic, json.dumps(health).encode(), b"lock-1")
    for number in (0, 1, 1):
        stream.send(EVENTS.topic, event(number))
    stream.send(EVENTS.topic, b"poison")
    stream.flush()
    ingest = logins["pipeline_ingest"]
    with stream.consumer(**{name: ingest[name] for name in ("PGUSER", "PGPASSWORD")}) as running:
        stream.wait_until_consumed(running)
        assert running.complaints() == []
    assert {topic: [*counts.values()] for topic, counts in stream.ledger().items()} == {
        # consumed, stored, duplicates, dead, gaps
        EVENTS.topic: [4, 2, 1, 1, 0],
        HEALTH.topic: [1, 1, 0, 0, 0],
        DEVICES.topic: [2, 2, 0, 0, 0],
        HOUSEHOLDS.topic: [1, 1, 0, 0, 0],
    }

    stream.execute("UPDATE dead_letters SET value = %s", event(2))  # as if a fix had made it valid
    command = [sys.executable, "streaming/replay_dead_letters.py", "replay"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ingest}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "replayed 1, duplicate 0, still invalid 0\n"), done.stderr


def test_a_consumer_that_lacks_a_table_or_a_right_says_which(stream: Stream, logins: Logins, launch: Launcher) -> None:
    login = {name: logins["pipeline_ingest"][name] for name in ("PGUSER", "PGPASSWORD")}
    stream.execute("REVOKE INSERT ON raw_access_events FROM pipeline_ingest")
    running = launch(stream, **login)
    stream.send_events(1)
    wait_until(lambda: running.process.poll() is not None)
    assert running.process.returncode == 1
    refusal = "PostgreSQL refuses PGUSER=only_pipeline_ingest: permission denied for table raw_access_events"
    assert f"ERROR   consumer: {refusal}" in running.log
    assert "Traceback" not in running.log

    stream.execute("DROP TABLE dead_letters CASCADE")
    running = launch(stream, **login)
    wait_until(lambda: running.process.poll() is not None)
    assert running.process.returncode == 1
    said = (
        f"the database {stream.environment['PGDATABASE']} lacks dead_letters, and PGUSER=only_pipeline_ingest may not"
    )
    assert running.log.startswith(said)


def test_a_sweep_needs_no_more_than_pipeline_maintain(database: dict[str, str], logins: Logins) -> None:
    owner = Database(database)
    owner.execute(
        "INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)"
        " SELECT uuidv7(), 'lock', timestamptz '2025-06-01' + n * interval '1 h', kind, 'app'"
        " FROM unnest(ARRAY['open', 'close', 'open']) WITH ORDINALITY AS events (kind, n)"
    )
    command = [sys.executable, "streaming/apply_retention.py", "--retention-days", "90"]
    env = {**os.environ, **logins["pipeline_maintain"]}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("gone: raw_access_events=2 before="), done.stderr
    statistics = "SELECT last_vacuum IS NOT NULL FROM pg_stat_user_tables WHERE relname = 'raw_access_events'"
    assert owner.one(statistics)

    owner.execute("INSERT INTO raw_device_health (device_id, reported_at, is_online) VALUES ('lock', now(), true)")
    owner.execute("REVOKE DELETE ON raw_device_health FROM pipeline_maintain")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "PostgreSQL refuses PGUSER=only_pipeline_maintain: permission denied for table raw_device_hea" in done.stderr
    assert "Traceback" not in done.stderr


RIGHTS = """
    SELECT oid::regclass::text AS name, unnest(relacl)::text AS rights, xmin::text AS written_by FROM pg_class
    UNION ALL SELECT attrelid::regclass || '.' || attname, unnest(attacl)::text, xmin::text FROM pg_attribute
    UNION ALL SELECT nspname, unnest(nspacl)::text, xmin::text FROM pg_namespace
    UNION ALL SELECT proname, unnest(proacl)::text, xmin::text FROM pg_proc WHERE proname = 'summarize_arrivals'
    ORDER BY 1, 2"""


def test_the_owners_next_start_grants_what_is_missing_and_writes_nothing_else(
    database: dict[str, str], logins: Logins
) -> None:
    owner = Database(database)

    def start() -> list[Any]:
        with closing(owner.connect()) as connection:
            apply_schema(connection)
        return owner.rows(RIGHTS)

    before = owner.rows(RIGHTS)
    assert start() == before
    for right, role in (
        ("SELECT ON raw_devices", "pipeline_transform"),
        ("CREATE ON SCHEMA marts", "pipeline_transform"),
        ("EXECUTE ON FUNCTION summarize_arrivals", "pipeline_transform"),
        ("UPDATE (fate, fate_at, fate_detail, replay_attempts) ON dead_letters", "pipeline_ingest"),
    ):
        owner.execute(f"REVOKE {right} FROM {role}")
    assert [line[:2] for line in start()] == [line[:2] for line in before]


def test_who_may_make_only_a_part_of_what_is_missing_makes_nothing_and_says_so(
    database: dict[str, str], logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Database(database)
    owner.execute("DROP TABLE raw_access_events CASCADE")
    owner.execute("GRANT CREATE ON SCHEMA public TO only_pipeline_ingest")
    monkeypatch.setenv("PGUSER", "only_pipeline_ingest")
    with (
        closing(Database(logins["pipeline_ingest"]).connect()) as connection,
        pytest.raises(SettingError, match="PGUSER=only_pipeline_ingest: permission denied for schema live"),
    ):
        apply_schema(connection)
    assert owner.one("SELECT to_regclass('raw_access_events')") is None
