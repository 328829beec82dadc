"""Puts a dump in the place of PGDATABASE without overwriting anything that holds rows.

It is restored into NAME_restoring, compared with the manifest, and renamed: whatever goes wrong before, PGDATABASE is
what it was, or missing where it was empty, so that no consumer can begin on half of it.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from local_servers import ServerError
from local_servers.stack import say
from pipeline_settings import postgres_parameters
from recovery import backup_folder, database_copy
from recovery.backup_folder import DatabasePart

CONSUMER = {"smart-access-consumer", "smart-access-writer"}
NAMES_SHOWN = 3


def require_target(part: DatabasePart, set_aside: bool) -> None:
    """Raises ServerError unless PGDATABASE can be given up for the backup, or be set aside."""
    ours = database_copy.program_version("pg_restore")
    if ours < part.dump_version:
        raise ServerError(
            f"the dump was made by pg_dump {part.dump_version}, {database_copy.program('pg_restore')} is {ours}: name"
            f" the programs of {part.dump_version} or newer with POSTGRES_BIN_DIR"
        )
    name = _target()
    if name != part.name:
        say(f"the backup is of the database {part.name}; it goes into {name} (PGDATABASE)")
    with database_copy.server("postgres") as cursor:
        version = database_copy.server_version(cursor)
        if version < part.server_version:
            raise ServerError(f"the backup is of PostgreSQL {part.server_version}, this server is {version}: too old")
        _require_nobody_on(cursor, name)
        holds = _holds(cursor, name, part)
    if holds and not set_aside:
        raise ServerError(
            f"the database {name} holds {holds}. Nothing was changed. To keep it under another name and restore in its"
            f" place: --set-aside. To restore beside it: PGDATABASE={name}_restored scripts/restore …"
        )


def _require_nobody_on(cursor: Any, name: str) -> None:
    sessions = database_copy.sessions(cursor, name)
    if sessions:
        what = "a consumer still runs on" if CONSUMER & set(sessions.values()) else "somebody is connected to"
        who = ", ".join(f"{application} (pid {pid} of the server)" for pid, application in sessions.items())
        raise ServerError(f"{what} the database {name}: {who}. Stop it first. Nothing was changed")


def _holds(cursor: Any, name: str, part: DatabasePart) -> str:
    """What would be lost with the database, in words; empty if nothing: it is missing, or has the empty tables only."""
    if not database_copy.exists(cursor, name):
        return ""
    with database_copy.server(name) as inside:
        full = database_copy.tables_with_rows(inside)
        foreign = [table for table in database_copy.tables(inside) if table not in part.rows]
    if full:
        return f"rows in {_some(full)}"
    return f"tables that the backup does not know: {_some(foreign)}" if foreign else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def restore_database(file: Path, part: DatabasePart) -> None:
    """Raises ServerError, psycopg2.Error; a database that held rows is then where it was."""
    name, began = _target(), time.monotonic()
    fresh = f"{name}_restoring"
    with database_copy.server("postgres") as cursor:
        made = database_copy.make_missing_roles(cursor, part.roles)
        database_copy.drop(cursor, fresh)  # of a restore that was killed
        aside = _make_room(cursor, name, part)
        try:
            database_copy.create(cursor, fresh)
            say(f"database: pg_restore into {fresh} …")
            database_copy.load(file, fresh, say)
            _require_same_rows(fresh, part)
            database_copy.rename(cursor, fresh, name)
        except BaseException:
            database_copy.drop(cursor, fresh, force=True)  # pg_restore's own sessions may end a moment later
            if aside:
                database_copy.rename(cursor, aside, name)
            raise
    rows, took = sum(part.rows.values()), time.monotonic() - began
    say(f"database: {rows:,} rows, in every table as many as were backed up, in {took:.0f} s")
    if aside:
        say(f"the database that was there is {aside} now; when nobody misses it: dropdb {shlex.quote(aside)}")
    for role in made:
        say(f"made the role {role.name}" + (": set its password (psql: \\password)" if role.can_login else ""))


def _make_room(cursor: Any, name: str, part: DatabasePart) -> str:
    """Takes the database away, so that nobody begins on it meanwhile. Returns its new name, if it is kept."""
    if not _holds(cursor, name, part):  # asked again: it was some time ago
        database_copy.drop(cursor, name)
        return ""
    aside = f"{name}_until_{backup_folder.now():%Y%m%d_%H%M%S}"
    database_copy.rename(cursor, name, aside)
    return aside


def _require_same_rows(database: str, part: DatabasePart) -> None:
    with database_copy.server(database) as cursor:
        found = database_copy.row_counts(cursor)
    wrong = [f"{table} ({found.get(table)} of {rows})" for table, rows in part.rows.items() if found.get(table) != rows]
    if wrong:
        raise ServerError(f"what was restored is not what was backed up: {_some(wrong)}")


def _target() -> str:
    return postgres_parameters()["PGDATABASE"]
