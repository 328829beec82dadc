"""On a streaming replica, made as docs/scaling.md says, every page shows what it shows on the primary."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from shown_fleet import PAGES, Fleet, Visit
from test_pages import metrics
from test_states import boxes

from local_servers import free_port
from local_servers.postgres_server import PostgresServer, binaries_folder

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.slow

WITHIN_S = 30


@pytest.fixture(scope="module")
def replica(fleet: Fleet, postgres: PostgresServer, servers_folder: Path) -> Iterator[PostgresServer]:
    folder = servers_folder / "replica" / "data"
    folder.parent.mkdir()
    command = [binaries_folder() / "pg_basebackup", "--pgdata", folder, "--write-recovery-conf", "--checkpoint=fast"]
    subprocess.run(command, env={**os.environ, **fleet.environment}, check=True)
    owner = postgres.data_dir.resolve().stat()  # of root PostgreSQL will not be
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    server = PostgresServer(folder, free_port())
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


def connect(environment: dict[str, str]) -> Any:
    return psycopg2.connect(
        host=environment["PGHOST"], port=environment["PGPORT"], user=environment["PGUSER"],
        password=environment["PGPASSWORD"], dbname=environment["PGDATABASE"],
    )  # fmt: skip


def catch_up(primary: dict[str, str], replica: dict[str, str]) -> None:
    with closing(connect(primary)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_wal_lsn()")
        [(goal,)] = cursor.fetchall()
    deadline = time.monotonic() + WITHIN_S
    with closing(connect(replica)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        while True:
            cursor.execute("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn() >= %s", (goal,))
            [(is_replica, has_it)] = cursor.fetchall()
            assert is_replica
            if has_it:
                return
            assert time.monotonic() < deadline, "the replica does not catch up"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_on_a_replica_what_it_shows_on_the_primary(
    fleet: Fleet, replica: PostgresServer, visit: Visit, name: str
) -> None:
    environment = {**fleet.environment, "PGPORT": str(replica.port)}
    catch_up(fleet.environment, environment)
    page, primarys = visit(environment, name, **fleet.link()), visit(fleet.environment, name, **fleet.link())
    assert boxes(page) == boxes(primarys)
    assert metrics(page) == metrics(primarys)
    assert [len(each.value) for each in page.dataframe] == [len(each.value) for each in primarys.dataframe]
