"""A fleet of three days with its marts, built once, and pages that open as a first visitor's would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import streamlit as st
from shown_fleet import HEALTH_INTERVAL, ROOT, Fleet, Visit, fill, run_dbt
from streamlit.testing.v1 import AppTest

import dashboard_parts
import dashboard_queries as queries
import pipeline_settings

if TYPE_CHECKING:
    from local_servers.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def fleet(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    name = "dashboard_fleet"
    postgres.create_database(name)
    start = datetime.now(UTC) - timedelta(days=3)
    with closing(postgres.connect(name)) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
        connection.autocommit = True
        # a morning after which nothing but the three in trouble stays open, silent or fails in a burst
        fill(connection, start, simulated_from=datetime(2026, 11, 24, 10, tzinfo=UTC))
    environment = {**postgres.environment(name), "HEALTH_CHECK_INTERVAL": str(HEALTH_INTERVAL)}
    run_dbt(environment, tmp_path_factory.mktemp("dbt"))
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    yield Fleet(environment, until - timedelta(hours=24), until)
    postgres.drop_database(name)


@pytest.fixture(autouse=True)
def _fleet_lives_on(request: pytest.FixtureRequest) -> None:
    if "fleet" in request.fixturenames:
        request.getfixturevalue("fleet").report_again()


@pytest.fixture
def build(database: dict[str, str], tmp_path: Path) -> Callable[[], None]:
    """Runs dbt on the test's own database."""
    return lambda: run_dbt({**database, "HEALTH_CHECK_INTERVAL": str(HEALTH_INTERVAL)}, tmp_path)


@pytest.fixture
def execute(database: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Runs statements on the test's own database, as its owner."""
    for name, value in database.items():
        monkeypatch.setenv(name, value)
    connection = pipeline_settings.connect_postgres("tests")
    connection.autocommit = True

    def execute(statements: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statements)

    yield execute
    connection.close()


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    """visit(environment, page, **parameters of the URL): what a first visitor sees, with nothing cached."""
    engines = []
    connect = queries.connect

    def remember() -> Any:
        engines.append(connect())
        return engines[-1]

    monkeypatch.setattr(queries, "connect", remember)
    monkeypatch.setattr(dashboard_parts, "FIRST_PAINT_S", 0)  # no browser here that would need it

    def visit(environment: dict[str, str], page: str = "overview", **parameters: Any) -> AppTest:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        st.cache_data.clear()
        st.cache_resource.clear()
        app = AppTest.from_file(str(ROOT / "analytics/streamlit_app.py"), default_timeout=60)
        for name, value in parameters.items():
            app.query_params[name] = value
        if page != "overview":
            app.switch_page(f"dashboard_pages/{page}.py")
        app.run()
        assert [error.value for error in app.exception] == []
        return app

    yield visit
    for engine in engines:
        engine.dispose()
