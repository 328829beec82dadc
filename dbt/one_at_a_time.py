"""dbt on this project, one run at a time on each database: python dbt/one_at_a_time.py build --selector models

Takes what `dbt` takes and exits as `dbt` does. Two runs at once fail each other: each makes the views anew, and what
rests on an old one vanishes with it while the other reads it. So this takes a lock in the database first, and waits
for another run to end, 90 s at most. The lock is that of a connection which stays open until this process ends,
however it ends: nothing is left behind by one that was killed. A plain `dbt` does not ask for it.

With PSEUDONYM_KEY set, or PSEUDONYM_KEY_FILE, a build that succeeds is followed by the pseudonyms of what is new in the
marts (pseudonyms.py). dbt itself does not see the key.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psycopg2
from dbt.cli.main import cli

from pseudonyms import SHORTEST_KEY, add_missing

WAIT_S = 90
# "dbt" and a number, in the space of locks of two numbers; the models' own locks are of one
LOCK = (0x646274, 1)
# as in profiles.yml; libpq reads its other variables itself
DEFAULTS = {
    "PGHOST": "127.0.0.1",
    "PGPORT": "5432",
    "PGDATABASE": "smart_access",
    "PGUSER": "postgres",
    "PGPASSWORD": "postgres",
}
PARAMETERS = {"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname", "PGUSER": "user", "PGPASSWORD": "password"}


def take_lock() -> Any:
    """The connection that holds the lock. Raises psycopg2.OperationalError, after WAIT_S because of another run."""
    settings = {PARAMETERS[name]: os.environ.get(name) or default for name, default in DEFAULTS.items()}
    connection = psycopg2.connect(**settings, connect_timeout=10, application_name="dbt one_at_a_time")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK)
        if not cursor.fetchone()[0]:
            print(f"another dbt run is at work on this database: waiting for its end, at most {WAIT_S} s", flush=True)
            cursor.execute("SET lock_timeout = %s", (f"{WAIT_S}s",))
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", LOCK)
    return connection


def read_file_of(name: str) -> None:
    """NAME_FILE, as the scripts take it: neither libpq nor the profile knows it."""
    file = os.environ.get(f"{name}_FILE")
    if file and not os.environ.get(name):
        try:
            os.environ[name] = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"{name}_FILE={file} cannot be read: {error}")
        if not os.environ[name]:
            sys.exit(f"{name}_FILE={file} is empty")


def take_key() -> str:
    """Empty if there is none. Taken out of the environment, which dbt's own code and projects can read."""
    read_file_of("PSEUDONYM_KEY")
    key = os.environ.pop("PSEUDONYM_KEY", "")
    if 0 < len(key) < SHORTEST_KEY:
        sys.exit(f"PSEUDONYM_KEY is too short: {SHORTEST_KEY} characters at least, as `openssl rand -hex 32` gives")
    return key


def pseudonymise(connection: Any, key: str) -> None:
    """Says on the error output how many there were, as the last line of the other one is dbt's result."""
    try:
        print(f"pseudonyms: {add_missing(connection, key)} new", file=sys.stderr)
    except psycopg2.Error as error:
        sys.exit(f"no pseudonyms: {str(error).strip()}")


def main() -> None:
    read_file_of("PGPASSWORD")
    key = take_key()
    try:
        connection = take_lock()
    except psycopg2.errors.LockNotAvailable:
        sys.exit(f"another dbt run has been at work on this database for more than {WAIT_S} s: gave up")
    except psycopg2.OperationalError as error:
        sys.exit(f"no lock, so no dbt: {str(error).strip()}")
    for name in ("DBT_PROJECT_DIR", "DBT_PROFILES_DIR"):
        os.environ[name] = os.environ.get(name) or str(Path(__file__).resolve().parent)
    try:
        cli(prog_name="dbt")
    except SystemExit as end:
        if key and not end.code and {"build", "run"} & set(sys.argv):
            pseudonymise(connection, key)
        raise
    finally:
        connection.close()


if __name__ == "__main__":
    main()
