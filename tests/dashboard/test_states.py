"""Whatever is missing, every page says once what it is and what to do next, and comes back by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import streamlit as st
from shown_fleet import PAGES, Fleet, Visit, run_dbt
from sqlalchemy.exc import DBAPIError
from test_pages import metrics, said

import dashboard_queries as queries
import pipeline_settings
from local_servers import free_port

if TYPE_CHECKING:
    from local_servers.postgres_server import PostgresServer

Execute = Callable[[str], None]

SOME_EVENTS = """
INSERT INTO raw_households (household_id, updated_at) VALUES ('h1', now());
INSERT INTO raw_devices (device_id, household_id, updated_at, deleted_at) VALUES
    ('lock', 'h1', now(), NULL), ('deleted', 'h1', now(), now());
INSERT INTO raw_device_health (device_id, reported_at, is_online) VALUES ('lock', now(), true);
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source)
VALUES (gen_random_uuid(), 'lock', now(), 'open', 'app');
"""


def boxes(page: Any) -> list[str]:
    return [each.value for kind in (page.error, page.warning, page.info) for each in kind]


@pytest.mark.parametrize("name", PAGES)
def test_without_marts_a_page_says_how_to_run_dbt(
    database: dict[str, str], execute: Execute, visit: Visit, name: str
) -> None:
    execute(SOME_EVENTS)
    shown = boxes(visit(database, name))
    assert shown, name
    assert all(box.startswith("**dbt has not run yet**") for box in shown)
    assert "python dbt/one_at_a_time.py build --selector models" in shown[0]


@pytest.fixture(scope="module")
def empty(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A database on whose empty tables dbt has run."""
    postgres.create_database("dashboard_empty")
    with closing(postgres.connect("dashboard_empty")) as connection:
        connection.autocommit = False
        pipeline_settings.apply_schema(connection)
    environment = postgres.environment("dashboard_empty")
    run_dbt(environment, tmp_path_factory.mktemp("dbt"))
    yield environment
    postgres.drop_database("dashboard_empty")


@pytest.mark.parametrize("name", PAGES)
def test_with_empty_marts_a_page_says_what_to_start(empty: dict[str, str], visit: Visit, name: str) -> None:
    page = visit(empty, name)
    assert "No data yet" in said(page)
    assert "python streaming/kafka_producer.py" in page.info[0].value


@pytest.mark.parametrize("name", PAGES)
def test_with_postgresql_down_a_page_says_so_once_and_comes_back(
    fleet: Fleet, visit: Visit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    port = free_port()
    page = visit({**fleet.environment, "PGPORT": str(port)}, name)
    [box] = boxes(page)
    assert box.startswith(f"**PostgreSQL cannot be reached** at 127.0.0.1:{port}/")
    assert "Connection refused" in box
    assert metrics(page) == {}

    monkeypatch.setenv("PGPORT", fleet.environment["PGPORT"])
    page.run()
    assert [error.value for error in page.exception] == []
    assert boxes(page) == []
    assert metrics(page)


@pytest.mark.parametrize("name", PAGES)
def test_a_query_over_its_time_limit_is_stopped_and_said(
    fleet: Fleet, visit: Visit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(queries, "TIME_LIMIT_S", 0.3)
    with closing(fleet.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE raw_devices, ingest_offsets")
        shown = boxes(visit(fleet.environment, name))
    assert any(box.startswith("**A query took longer than 0.3 s**") for box in shown), shown


def test_after_a_query_over_its_time_limit_another_range_can_be_chosen(
    fleet: Fleet, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "TIME_LIMIT_S", 2)
    with closing(fleet.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE marts.fct_triggers_daily")
        page = visit(fleet.environment, "access", range="30d")
        assert any(box.startswith("**A query took longer") for box in boxes(page))
    assert boxes(page.selectbox(key="range").set_value("7d").run()) == []


def test_without_tables_the_page_says_to_start_the_consumer(
    database: dict[str, str], execute: Execute, visit: Visit
) -> None:
    execute("DROP SCHEMA public, live CASCADE; CREATE SCHEMA public")
    [box] = boxes(visit(database))
    assert box.startswith("**The tables are not there yet**")


def test_a_user_who_may_not_act_as_the_dashboard_is_told_which_right_is_missing(
    database: dict[str, str], execute: Execute, visit: Visit
) -> None:
    execute("DROP ROLE IF EXISTS somebody; CREATE ROLE somebody LOGIN PASSWORD 'somebody'")
    shown = boxes(visit({**database, "PGUSER": "somebody", "PGPASSWORD": "somebody"}))
    execute("DROP ROLE somebody")
    assert any("GRANT dashboard_read TO" in box for box in shown), shown


def test_a_login_that_is_only_the_dashboards_role_is_enough(fleet: Fleet, execute: Execute, visit: Visit) -> None:
    execute("CREATE ROLE viewer LOGIN PASSWORD 'viewer' IN ROLE dashboard_read")
    page = visit({**fleet.environment, "PGUSER": "viewer", "PGPASSWORD": "viewer"}, "pipeline")
    execute("DROP ROLE viewer")
    assert boxes(page) == ["Balanced"] or boxes(page) == []
    assert metrics(page)["Consumed"] == "67"


@pytest.mark.parametrize("statement", ["DELETE FROM live.access_events", "CREATE TABLE marts.mine (x int)"])
def test_the_dashboard_cannot_write(fleet: Fleet, visit: Visit, statement: str) -> None:
    visit(fleet.environment)
    engine = queries.connect()
    with pytest.raises(DBAPIError, match=r"read-only transaction|permission denied"):
        queries.fetch(engine, statement, {})
    engine.dispose()


@pytest.mark.parametrize("name", ["raw_access_events", "raw_devices", "dead_letters", "staging.stg_devices"])
def test_the_dashboard_cannot_read_what_lies_beneath(fleet: Fleet, visit: Visit, name: str) -> None:
    visit(fleet.environment)
    engine = queries.connect()
    with pytest.raises(DBAPIError, match="permission denied"):
        queries.fetch(engine, f"SELECT * FROM {name}", {})  # noqa: S608
    engine.dispose()


def test_sessions_that_the_server_ended_are_replaced(fleet: Fleet, visit: Visit) -> None:
    page = visit(fleet.environment)
    ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'dashboard'"
    assert fleet.value(ended) > 0
    st.cache_data.clear()
    page.run()
    assert boxes(page) == []
    assert metrics(page)


@pytest.mark.parametrize(("minutes", "word"), [(0, "Live: data to"), (2, "Live delayed: data to"), (10, "Live stale:")])
def test_data_that_grows_old_is_delayed_and_then_stale(
    database: dict[str, str], execute: Execute, visit: Visit, minutes: int, word: str
) -> None:
    execute(
        f"""INSERT INTO raw_device_health (device_id, reported_at, ingested_at, is_online)
            SELECT 'lock', at, at, true FROM (SELECT now() - interval '{minutes} minutes' AS at) AS ago"""  # noqa: S608
    )
    assert word in said(visit(database))


def test_old_data_that_arrives_now_does_not_make_the_stream_look_older_than_it_is(
    database: dict[str, str], execute: Execute, visit: Visit
) -> None:
    execute(
        """INSERT INTO raw_device_health (device_id, reported_at, ingested_at, is_online) VALUES
               ('lock', now() - interval '7 minutes', now() - interval '7 minutes', true),
               ('lock', now() - interval '3 hours', now(), true)"""
    )
    assert "7 min behind" in said(visit(database))


def test_a_ledger_out_of_balance_is_an_error_that_names_the_partition(
    database: dict[str, str], execute: Execute, visit: Visit
) -> None:
    execute(SOME_EVENTS)
    execute(
        "INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset, stored)"
        " VALUES ('c', 'g', 'smart-access.events', 0, 0, 5, 5), ('c', 'g', 'smart-access.events', 1, 0, 5, 4)"
    )
    page = visit(database, "pipeline")
    assert "**Out of balance**: smart-access.events[1]." in page.error[0].value
    assert list(page.success) == []


@pytest.mark.slow
def test_a_run_of_dbt_that_failed_is_shown_with_its_reason(
    database: dict[str, str], execute: Execute, build: Callable[[], None], visit: Visit
) -> None:
    execute(SOME_EVENTS)
    build()
    execute("ALTER TABLE marts.fct_triggers_daily RENAME share TO part")
    with pytest.raises(AssertionError):
        build()
    runs = next(each.value for each in visit(database, "pipeline").dataframe if "first_error" in each.value)
    assert list(runs.result[:2]) == ["failed", "success"]
    assert runs.first_error[0].startswith("fct_triggers_daily: ")
