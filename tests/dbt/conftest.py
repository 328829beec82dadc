"""dbt in this process against a fresh database: a run takes two seconds where a child process takes six.

The project is parsed once: what dbt made of it names the database, so that one has the same name in every test here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dbt.cli.main import dbtRunner, dbtRunnerResult
from dbt_common.behavior_flags import BehaviorFlagRendered

import pipeline_settings

if TYPE_CHECKING:
    from local_servers.postgres_server import PostgresServer

PROJECT = pipeline_settings.ROOT / "dbt"


@pytest.fixture(scope="session")
def database_name() -> str:
    return f"test_{uuid.uuid4().hex}"


@pytest.fixture
def database(postgres: PostgresServer, database_name: str) -> Iterator[dict[str, str]]:
    """A new database with the project's tables and no rows; yields libpq's variables that name it."""
    postgres.create_database(database_name)
    with closing(postgres.connect(database_name)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
    yield postgres.environment(database_name)
    postgres.drop_database(database_name)


@pytest.fixture(scope="session")
def parsed_project() -> dict[str, Any]:
    """dbt's manifest, once a test has made it."""
    return {}


@pytest.fixture
def dbt(
    database: dict[str, str], parsed_project: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dbtRunnerResult]:
    """Calls dbt with the given arguments on the test's database."""
    folders = {"DBT_PROJECT_DIR": PROJECT, "DBT_PROFILES_DIR": PROJECT, "DBT_TARGET_PATH": tmp_path / "target"}
    # dbt leaves its log file open, and pytest makes an error of that
    quiet = {"DBT_LOG_LEVEL_FILE": "none", "DBT_LOG_PATH": tmp_path}
    for name, value in {**database, **folders, **quiet, "DBT_SCHEMA": "marts"}.items():
        monkeypatch.setenv(name, str(value))
    # each run asks for the module that calls it, 46 times, which takes half a second where so many are loaded
    monkeypatch.setattr(BehaviorFlagRendered, "_default_source", staticmethod(lambda: "dbt"))
    if not parsed_project:
        parsed = dbtRunner().invoke(["--quiet", "parse"])
        assert parsed.success, parsed.exception
        parsed_project["manifest"] = parsed.result
    return lambda *arguments: dbtRunner(**parsed_project).invoke(["--quiet", *arguments])


@pytest.fixture
def warehouse(dbt: Any) -> Iterator[Any]:
    """A connection to the same database that commits each statement."""
    connection = pipeline_settings.connect_postgres("tests")
    connection.autocommit = True
    yield connection
    connection.close()
