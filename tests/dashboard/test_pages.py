"""The dashboard's page on the real PostgreSQL: it shows what SQL says, and every lack has its next step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from dbt.cli.main import dbtRunner
from sqlalchemy.exc import DBAPIError
from streamlit.testing.v1 import AppTest

import pipeline_settings
from local_servers import free_port

ANALYTICS = pipeline_settings.ROOT / "analytics"
sys.path.append(str(ANALYTICS))
import dashboard_queries as queries  # noqa: E402

FLEET = """
INSERT INTO raw_households (household_id, timezone, updated_at) VALUES ('h1', 'UTC', now());
INSERT INTO raw_devices (device_id, household_id, updated_at, deleted_at) VALUES
    ('online', 'h1', now(), NULL), ('offline', 'h1', now(), NULL), ('silent', 'h1', now(), NULL),
    ('never heard of', 'h1', now(), NULL), ('deleted', 'h1', now(), now());
INSERT INTO raw_device_health (device_id, reported_at, is_online, ingested_at) VALUES
    ('online', now() - interval '10 seconds', true, now()), ('online', now() - interval '1 hour', false, now()),
    ('offline', now() - interval '10 seconds', false, now()), ('offline', now() - interval '1 minute', true, now()),
    ('silent', now() - interval '10 minutes', true, now() - interval '10 minutes'),
    ('deleted', now() - interval '10 seconds', true, now());
INSERT INTO raw_access_events (event_id, device_id, event_ts, event_type, trigger_source, ingested_at)
SELECT gen_random_uuid(), 'online', at, (ARRAY['open', 'close', 'open', 'fail'])[1 + number % 4], 'app', at
FROM generate_series(0, 59) AS number, LATERAL (SELECT now() - number * interval '30 minutes' AS at) AS ago;
INSERT INTO dead_letters (topic, reason, detail, fate) VALUES
    ('smart-access.events', 'bad_json', '', NULL), ('smart-access.events', 'bad_json', '', NULL),
    ('smart-access.events', 'bad_json', '', 'replayed');
INSERT INTO ingest_offsets (cluster_id, consumer_group, topic, partition, start_offset, next_offset, stored, dead)
VALUES ('c', 'g', 'smart-access.events', 0, 10, 72, 60, 2), ('c', 'g', 'smart-access.events', 1, 0, 5, 5, 0);
"""


@pytest.fixture
def connection(database: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in database.items():
        monkeypatch.setenv(name, value)
    connection = pipeline_settings.connect_postgres("tests")
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], AppTest]]:
    """Opens the page as a first visitor would, with nothing cached."""
    engines = []

    def remember() -> Any:
        engines.append(connect())
        return engines[-1]

    connect = queries.connect
    monkeypatch.setattr(queries, "connect", remember)

    def open_page() -> AppTest:
        st.cache_data.clear()
        st.cache_resource.clear()
        page = AppTest.from_file(str(ANALYTICS / "streamlit_app.py"), default_timeout=30).run()
        assert [error.value for error in page.exception] == []
        return page

    yield open_page
    for engine in engines:
        engine.dispose()


def execute(connection: Any, statements: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statements)


def one_row(connection: Any, query: str) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()


def run_dbt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = str(pipeline_settings.ROOT / "dbt")
    folders = {"DBT_PROJECT_DIR": project, "DBT_PROFILES_DIR": project, "DBT_TARGET_PATH": str(folder)}
    # dbt leaves its log file open, and pytest makes an error of that
    for name, value in {**folders, "DBT_LOG_PATH": str(folder), "DBT_LOG_LEVEL_FILE": "none"}.items():
        monkeypatch.setenv(name, value)
    assert dbtRunner().invoke(["--quiet", "build", "--selector", "models"]).success


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def said(page: AppTest) -> str:
    kinds = (page.markdown, page.info, page.error, page.warning, page.success, page.caption)
    return "\n".join(element.value for kind in kinds for element in kind)


def test_the_page_shows_what_sql_says(
    connection: Any, open_page: Callable[[], AppTest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(connection, FLEET)
    run_dbt(tmp_path, monkeypatch)
    page = open_page()

    events, fails, opens = one_row(
        connection,
        """SELECT count(*), count(*) FILTER (WHERE event_type = 'fail'), count(*) FILTER (WHERE event_type = 'open')
           FROM raw_access_events WHERE event_ts > now() - interval '24 hours'""",
    )
    assert events < 60  # the oldest are older than a day
    assert metrics(page) == {
        "Devices": "4",
        "Online": "25%",
        "Events, 24 h": str(events),
        "Fail rate, 24 h": f"{fails / (fails + opens):.1%}",
        "Dead letters": "2",
    }
    latest, ledger, worst = (table.value for table in page.dataframe)
    assert len(latest) == 20
    assert latest.event_ts.is_monotonic_decreasing
    assert set(latest.household_id) == {"h1"}
    assert ledger.to_dict("records") == [
        {"topic": "smart-access.events", "partitions": 2, "consumed": 67, "stored": 65, "duplicates": 0, "dead": 2}
        | {"gaps": 0, "balanced": True}
    ]
    assert worst[["device_id", "attempts", "fails"]].values.tolist() == [["online", 45, 15]]
    assert worst.fail_rate.tolist() == pytest.approx([15 / 45])
    assert "Live: data to" in said(page)
    assert "Balanced" in page.success[0].value
    assert "From the marts: data to" in said(page)


def test_the_range_changes_what_the_chart_counts(connection: Any, open_page: Callable[[], AppTest]) -> None:
    execute(connection, FLEET)
    counted = {}
    for name, (span, width) in {"hour": ("1 hour", "1 minute"), "day": ("24 hours", "15 minutes")}.items():
        engine = queries.connect()
        rows = queries.fetch(engine, queries.EVENTS_OVER_TIME, {"span": span, "bin": width})
        counted[name] = rows.groupby("event_type").events.sum().to_dict()
        assert (rows.until - rows.since == width.replace("minutes", "min")).all()
        engine.dispose()
    assert counted == {"hour": {"open": 1, "close": 1}, "day": {"open": 24, "close": 12, "fail": 12}}

    page = open_page()
    page.segmented_control[0].set_value("Last 24 hours").run()
    assert [error.value for error in page.exception] == []
    assert page.segmented_control[0].value == "Last 24 hours"


def test_data_that_grows_old_is_delayed_and_then_stale(connection: Any, open_page: Callable[[], AppTest]) -> None:
    execute(connection, FLEET)
    for minutes, word in ((2, "Delayed: data to"), (10, "Stale: data to")):
        for table, at in (("raw_access_events", "event_ts"), ("raw_device_health", "reported_at")):
            execute(connection, f"DELETE FROM {table} WHERE {at} > now() - interval '{minutes} minutes'")  # noqa: S608
        execute(
            connection,
            f"""INSERT INTO raw_device_health (device_id, reported_at, ingested_at, is_online)
                SELECT 'online', at, at, true FROM (SELECT now() - interval '{minutes} minutes' AS at) AS ago""",  # noqa: S608
        )
        assert word in said(open_page())


def test_old_data_that_arrives_now_does_not_make_the_stream_look_older_than_it_is(
    connection: Any, open_page: Callable[[], AppTest]
) -> None:
    execute(
        connection,
        """INSERT INTO raw_device_health (device_id, reported_at, ingested_at, is_online) VALUES
               ('lock', now() - interval '7 minutes', now() - interval '7 minutes', true),
               ('lock', now() - interval '3 hours', now(), true)""",
    )
    assert "7 min behind" in said(open_page())


def test_a_ledger_out_of_balance_is_an_error_that_names_the_topic(
    connection: Any, open_page: Callable[[], AppTest]
) -> None:
    execute(connection, FLEET)
    execute(connection, "UPDATE ingest_offsets SET stored = stored - 1 WHERE partition = 1")
    page = open_page()
    assert "Out of balance**: smart-access.events" in page.error[0].value
    assert list(page.success) == []


def test_empty_tables_say_which_two_scripts_to_start(connection: Any, open_page: Callable[[], AppTest]) -> None:
    page = open_page()
    assert "No data yet" in said(page)
    assert "python streaming/kafka_producer.py" in page.info[0].value
    assert metrics(page)["Devices"] == "0"
    assert metrics(page)["Online"] == metrics(page)["Fail rate, 24 h"] == "–"


def test_without_marts_the_page_says_how_to_run_dbt(connection: Any, open_page: Callable[[], AppTest]) -> None:
    execute(connection, FLEET)
    page = open_page()
    assert "**dbt has not run yet.**" in page.info[0].value
    assert metrics(page)["Devices"] == "4"


def test_without_tables_the_page_says_to_start_the_consumer(connection: Any, open_page: Callable[[], AppTest]) -> None:
    execute(connection, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    page = open_page()
    assert [info.value.startswith("**The tables are not there yet**") for info in page.info] == [True]


def test_with_postgresql_down_the_page_says_so_once_and_comes_back_by_itself(
    connection: Any, open_page: Callable[[], AppTest], database: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(connection, FLEET)
    port = free_port()
    monkeypatch.setenv("PGPORT", str(port))
    page = open_page()
    assert len(page.error) == 1
    assert f"**PostgreSQL cannot be reached** at 127.0.0.1:{port}/" in page.error[0].value
    assert "Connection refused" in page.error[0].value
    assert metrics(page) == {}
    assert [heading.value for heading in page.subheader] == []

    monkeypatch.setenv("PGPORT", database["PGPORT"])
    page.run()
    assert list(page.error) == []
    assert metrics(page)["Devices"] == "4"


def test_sessions_that_the_server_ended_are_replaced(connection: Any, open_page: Callable[[], AppTest]) -> None:
    execute(connection, FLEET)
    page = open_page()
    ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = 'dashboard'"
    assert one_row(connection, ended)[0] > 0
    st.cache_data.clear()
    page.run()
    assert list(page.error) == []
    assert [error.value for error in page.exception] == []
    assert metrics(page)["Devices"] == "4"


def test_a_query_over_its_time_limit_is_stopped_and_said(
    connection: Any, open_page: Callable[[], AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "TIME_LIMIT_S", 0.3)
    execute(connection, "BEGIN; LOCK TABLE ingest_offsets")
    page = open_page()
    execute(connection, "ROLLBACK")
    assert [warning.value.startswith("**A query took longer than 0.3 s**") for warning in page.warning] == [True]


def test_the_dashboard_cannot_write(connection: Any) -> None:
    engine = queries.connect()
    with pytest.raises(DBAPIError, match="read-only transaction"):
        queries.fetch(engine, "DELETE FROM raw_devices", {})
    engine.dispose()
