"""What the exporter tells of the fleet is what the dashboard's overview shows, read with no other right."""

from __future__ import annotations

import ast
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from shown_fleet import HEALTH_INTERVAL, ROOT

if TYPE_CHECKING:
    from shown_fleet import Fleet

QUERIES = yaml.safe_load((ROOT / "monitoring/warehouse_queries.yml").read_text(encoding="utf-8"))


def overviews(name: str) -> str:
    """A statement of the page, for the whole fleet. A page is a script: to import it would be to run it."""
    page = ast.parse((ROOT / "analytics/dashboard_pages/overview.py").read_text(encoding="utf-8"))
    [text] = [node.value for node in page.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name]
    return str(ast.literal_eval(text)).format(fleet="true")


def rows(cursor: Any, query: str, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    cursor.execute(query, parameters)
    return [dict(zip([column.name for column in cursor.description], row, strict=True)) for row in cursor.fetchall()]


@pytest.fixture
def cursor(fleet: Fleet) -> Any:
    """In one transaction, so that there is one now(); as an exporter that is told the fleet's health interval."""
    with closing(fleet.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET ROLE dashboard_read")
        cursor.execute(f"SET smart_access.health_check_interval = '{HEALTH_INTERVAL}'")
        yield cursor


def test_the_fleet_is_counted_as_on_the_overview(cursor: Any) -> None:
    [told] = rows(cursor, QUERIES["warehouse_fleet"]["query"])
    [shown] = rows(cursor, overviews("ONLINE"), {"health_interval_s": HEALTH_INTERVAL})
    assert (told["devices"], told["online"]) == (shown["devices"], shown["online"])
    assert 0 < told["offline"] == told["devices"] - told["online"] < told["devices"]


def test_the_marts_are_counted_as_on_the_overview(cursor: Any) -> None:
    [told] = rows(cursor, QUERIES["warehouse_marts"]["query"])
    going_on = {row["severity"]: row["going_on"] for row in rows(cursor, QUERIES["warehouse_anomalies"]["query"])}
    [shown] = rows(cursor, overviews("STANDING"))
    assert told["doors_left_open"] == shown["left_open"] > 0
    assert told["batteries_low"] == shown["batteries"] > 0
    assert told["batteries_empty"] == shown["empty"]
    assert going_on["critical"] == shown["critical"] > 0
    assert set(going_on) == {"info", "warning", "critical"}


def test_the_rest_is_counted_too(cursor: Any) -> None:
    found = {name: rows(cursor, query["query"]) for name, query in QUERIES.items()}
    [ledger] = found["warehouse_ledger"]
    assert (ledger["consumed_total"], ledger["stored_total"], ledger["dead_total"]) == (67, 65, 2)
    assert ledger["unbalanced"] == 0
    assert {(row["topic"], row["reason"]): row["open"] for row in found["warehouse_dead_letters"]} == {
        ("smart-access.events", "bad_json"): 2,
        ("smart-access.health", "bad_time"): 1,
    }
    [dbt] = found["warehouse_dbt"]
    assert dbt["last_run_failed"] == 0
    assert 0 < dbt["seconds_since_success"] < 3600
    assert found["warehouse_sweeps"] == []  # this fleet keeps everything
    assert {"public.raw_access_events", "marts.dim_devices"} <= {row["table"] for row in found["warehouse_table"]}


def test_a_sweep_that_did_not_end_does_not_count(cursor: Any) -> None:
    cursor.execute("""
        RESET ROLE;
        INSERT INTO sweeps (retention_days, cutoff, started_at, ended_at)
        VALUES (90, now(), now() - interval '73 hours', now() - interval '72 hours'),
               (90, now(), now() - interval '49 hours', now() - interval '48 hours'), (90, now(), now(), NULL);
        SET ROLE dashboard_read
    """)
    [told] = rows(cursor, QUERIES["warehouse_sweeps"]["query"])
    assert 48 * 3600 <= told["seconds_since_end"] < 48 * 3600 + 600
