"""The models run by a login that is only pipeline_transform, from the first run on, and what analysts see of them.

By the real script, so that the pseudonyms come as they do in production.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from analysts_columns import shown_and_left_out

import pipeline_settings
from pipeline_settings import ROOT
from pseudonyms import add_missing

if TYPE_CHECKING:
    from local_servers.postgres_server import PostgresServer

pytestmark = pytest.mark.slow

KEY = "a key of thirty-two characters!!"
# printf device:lock-1 | openssl dgst -sha256 -hmac "a key of thirty-two characters!!"
LOCK_1 = "aaba77bfb0cb35308b907ce90f3ab7ea40229301fd1fd54f719d5a9543f9ab52"
HOME_2 = "9d24ff7ba6b4f37378df3892f365dd8af5b43d2a75a30a1b6387761c7018affe"
LOGINS = {
    "transform": "pipeline_transform",
    "maintain": "pipeline_maintain",
    "analyst": "analyst_read",
    "dashboard": "dashboard_read",
}
DEVICES = """INSERT INTO raw_devices (device_id, household_id, device_type, updated_at)
    SELECT 'lock-' || n, 'home-' || 1 + n % 3, 'lock', now() - interval '9 days'
    FROM generate_series({first}, {last}) AS n"""

ROWS = """
    INSERT INTO raw_households (household_id, region, timezone, updated_at)
    SELECT 'home-' || n, 'north', 'Europe/Berlin', now() - interval '9 days' FROM generate_series(1, 3) AS n;

    {devices};

    INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
    SELECT gen_random_uuid(), device_id, now() - n * interval '3 hours',
           (array['open', 'open', 'close', 'fail'])[1 + n % 4], (array['keypad', 'anna'])[1 + n % 2]
    FROM unnest(array['lock-1', 'lock-2', 'lock-3', 'stray-lock']) AS device_id, generate_series(1, 40) AS n;

    INSERT INTO raw_device_health (device_id, reported_at, battery_pct, signal_strength_dbm, is_online)
    SELECT device_id, now() - n * interval '2 hours', 100 - n, -60, true
    FROM unnest(array['lock-1', 'lock-2', 'lock-3', 'stray-lock']) AS device_id, generate_series(1, 40) AS n;

    INSERT INTO ingest_minutes
    VALUES ('cluster', 'group', 'smart-access.events', 0, date_trunc('minute', now()), 160, 0, 0)
"""
IDS = re.compile(r"lock-\d|stray-lock|home-\d|anna")


class Warehouse:
    """A database of the module's own, asked by name of a login."""

    def __init__(self, environment: dict[str, str], folder: Path):
        self.environment = environment
        self._folder = folder

    def start(self, *selection: str) -> subprocess.Popen[str]:
        """Begins to build models by the login `transform`, with KEY in a file."""
        key = self._folder / "key"
        key.write_text(KEY + "\n", encoding="utf-8")
        environment = {
            **os.environ,
            **self.environment,
            "PGUSER": "transform",
            "PGPASSWORD": "transform",
            "PSEUDONYM_KEY_FILE": str(key),
            "DBT_SCHEMA": "marts",
            "DBT_TARGET_PATH": str(self._folder / "target"),
            "DBT_LOG_PATH": str(self._folder),
        }
        command = [sys.executable, "dbt/one_at_a_time.py", "--quiet", "build", *selection]
        both = subprocess.STDOUT
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=both, text=True)

    def connect(self, login: str) -> Any:
        env = self.environment
        user, password = (login, login) if login in LOGINS else (env["PGUSER"], env["PGPASSWORD"])
        return psycopg2.connect(
            host=env["PGHOST"], port=env["PGPORT"], dbname=env["PGDATABASE"], user=user, password=password
        )

    def ask(self, statement: str, login: str = "owner") -> list[Any]:
        with closing(self.connect(login)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def relations(self, condition: str) -> dict[str, int]:
        """Tables and views of the models' schemas: their oids by name."""
        schemas = "'staging', 'intermediate', 'snapshots', 'marts', 'marts_pseudonymous'"
        return dict(
            self.ask(
                f"""SELECT oid::regclass::text, oid FROM pg_class
                    WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ({schemas}))
                      AND relkind IN ('r', 'v') AND {condition}"""  # noqa: S608
            )
        )

    def marts(self) -> list[str]:
        return [name.removeprefix("marts.") for name in self.relations("relnamespace = 'marts'::regnamespace")]


@pytest.fixture(scope="module")
def warehouse(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """After a first run of the models over ROWS."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.create_database(name)
    with closing(postgres.connect(name)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
    warehouse = Warehouse(postgres.environment(name), tmp_path_factory.mktemp("dbt"))
    for login, role in LOGINS.items():
        warehouse.ask(f"CREATE ROLE {login} LOGIN PASSWORD '{login}' IN ROLE {role}")
    warehouse.ask("ALTER ROLE transform SET role = pipeline_transform")
    warehouse.ask(f"ALTER DATABASE {name} SET log_statement = 'all'")
    warehouse.ask(ROWS.format(devices=DEVICES.format(first=1, last=3)))
    said, _ = warehouse.start("--selector", "models").communicate(timeout=120)
    assert said == "pseudonyms: 7 new\n"
    yield warehouse
    postgres.drop_database(name)
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("DROP ROLE " + ", ".join(LOGINS))


def test_all_that_the_models_make_belongs_to_the_role(warehouse: Warehouse) -> None:
    made = warehouse.relations("relowner = 'pipeline_transform'::regrole")
    assert len(made) > 40
    assert warehouse.relations("true") == made


def test_the_key_is_told_to_nobody(warehouse: Warehouse, postgres: PostgresServer) -> None:
    log = (postgres.data_dir.parent / "postgres.log").read_text(encoding="utf-8")
    assert "INSERT INTO public.pseudonyms" in log
    assert LOCK_1 in log
    assert KEY not in log


def test_analysts_see_the_columns_that_were_decided_upon(warehouse: Warehouse) -> None:
    seen: dict[str, list[str]] = {}
    for view, column in warehouse.ask(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'marts_pseudonymous'"
        " ORDER BY table_name, ordinal_position"
    ):
        seen.setdefault(view, []).append(column)
    assert seen == {mart: shown for mart, (shown, _) in shown_and_left_out().items()}


def test_analysts_see_every_row_and_no_id(warehouse: Warehouse) -> None:
    for mart in warehouse.marts():
        rows = warehouse.ask(f"SELECT v::text FROM marts_pseudonymous.{mart} AS v", "analyst")  # noqa: S608
        [(count,)] = warehouse.ask(f"SELECT count(*) FROM marts.{mart}")  # noqa: S608
        assert (mart, len(rows)) == (mart, count)
        assert count > 0, mart
        assert [row for (row,) in rows if IDS.search(row)] == [], mart
    for column in ("event_id::text", "md5(device_id)"):
        shown = str(warehouse.ask("SELECT * FROM marts_pseudonymous.fct_access_events", "analyst"))
        hidden = warehouse.ask(f"SELECT DISTINCT {column} FROM raw_access_events")  # noqa: S608
        assert [name for (name,) in hidden if name in shown] == []


def test_a_pseudonym_is_the_hmac_of_kind_and_id(warehouse: Warehouse) -> None:
    statement = """
        SELECT DISTINCT device_id, household_id FROM marts_pseudonymous.fct_access_events
        WHERE device_version_id = device_id || '#1' AND trigger_source IN ('keypad', 'other')"""
    pairs = warehouse.ask(statement, "analyst")
    assert len(pairs) == 3
    assert (LOCK_1, HOME_2) in pairs


@pytest.mark.parametrize("statement", [
    "SELECT FROM public.pseudonyms",
    "SELECT FROM marts.dim_devices",
    "SELECT FROM staging.stg_devices",
    "SELECT FROM snapshots.devices_history",
    "SELECT FROM intermediate.int_device_activity",
    "SELECT FROM intermediate.dbt_runs",
    "SELECT FROM raw_devices",
    "SELECT FROM live.devices",
    "DELETE FROM marts_pseudonymous.fct_fleet_hourly",
])  # fmt: skip
def test_the_rest_is_refused_to_analysts(statement: str, warehouse: Warehouse) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        warehouse.ask(statement, "analyst")


def test_the_dashboard_reads_every_mart_that_the_role_has_made(warehouse: Warehouse) -> None:
    for mart in [*map("marts.{}".format, warehouse.marts()), "intermediate.dbt_runs"]:
        warehouse.ask(f"SELECT FROM {mart} LIMIT 1", "dashboard")


VIEWS = "relnamespace = 'marts_pseudonymous'::regnamespace"


def test_whoever_maintains_may_delete_from_every_mart_and_vacuum_it(warehouse: Warehouse) -> None:
    of_schemas = "relkind = 'r' AND relnamespace::regnamespace::text IN ('marts', 'intermediate')"
    made = warehouse.ask(
        f"""SELECT relname, array_agg(may ORDER BY may) FILTER (WHERE has_table_privilege('maintain', oid, may))
            FROM pg_class, unnest(ARRAY['DELETE', 'MAINTAIN', 'SELECT']) AS may
            WHERE {of_schemas} AND relname NOT IN ('dbt_runs', 'model_watermarks') GROUP BY 1"""  # noqa: S608
    )
    assert len(made) > 15
    assert [table for table, rights in made if rights != ["DELETE", "MAINTAIN", "SELECT"]] == []
    assert warehouse.ask("SELECT count(*) FROM marts.fct_access_events", "maintain") == [(160,)]


def test_the_next_run_shows_what_is_new_and_makes_a_view_anew_only_with_its_mart(warehouse: Warehouse) -> None:
    before = warehouse.relations(VIEWS)
    warehouse.ask(DEVICES.format(first=4, last=6))
    said, _ = warehouse.start("--select", "devices_history", "dim_devices", "fct_access_events").communicate(
        timeout=120
    )
    assert said == "pseudonyms: 3 new\n"
    after = warehouse.relations(VIEWS)
    assert after.keys() == before.keys()
    assert after["marts_pseudonymous.dim_devices"] != before["marts_pseudonymous.dim_devices"]
    assert after["marts_pseudonymous.fct_access_events"] == before["marts_pseudonymous.fct_access_events"]
    assert warehouse.ask("SELECT count(*) FROM marts_pseudonymous.dim_devices", "analyst") == [(6,)]
    # of one transaction with the mart, so that analysts never find it missing
    assert len(set(warehouse.ask("SELECT xmin::text FROM pg_class WHERE relname = 'dim_devices'"))) == 1


def test_without_its_pseudonym_nothing_of_a_device_or_household_is_shown(warehouse: Warehouse) -> None:
    pairs = "SELECT DISTINCT device_id, household_id FROM marts_pseudonymous.fct_access_events"
    assert len(warehouse.ask(pairs, "analyst")) == 4
    warehouse.ask("DELETE FROM pseudonyms WHERE id IN ('lock-1', 'home-3')")  # lock-2 is in home-3
    known = dict(warehouse.ask("SELECT id, pseudonym FROM pseudonyms"))
    left = {(known["lock-3"], known["home-1"]), (known["stray-lock"], None)}
    assert set(warehouse.ask(pairs, "analyst")) == left
    assert warehouse.ask("SELECT count(*) FROM marts_pseudonymous.dim_households", "analyst") == [(2,)]


def test_pseudonyms_of_two_keys_are_not_mixed(warehouse: Warehouse) -> None:
    with (
        closing(warehouse.connect("transform")) as connection,
        pytest.raises(SystemExit, match="PSEUDONYM_KEY is not the key that the pseudonyms were made with"),
    ):
        add_missing(connection, KEY[::-1])


def test_what_another_user_has_made_is_handed_over_as_the_documents_say(warehouse: Warehouse) -> None:
    [statement] = re.findall(
        r"^```sql\n(do \$\$.*?owner to pipeline_transform.*?)^```",
        (ROOT / "docs/security.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    warehouse.ask(statement.replace("owner to pipeline_transform", "owner to postgres"))
    assert warehouse.relations("relowner = 'pipeline_transform'::regrole") == {}
    warehouse.ask(statement)
    assert warehouse.relations("relowner <> 'pipeline_transform'::regrole") == {}
