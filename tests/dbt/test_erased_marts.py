"""The marts after an erasure: nothing of the household is in them, and the rest is what a full refresh gives."""

from __future__ import annotations

import argparse
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from random_history import START, histories
from test_late_data import add_event, add_report, assert_equals_full_refresh, execute, register, rows, run

import backfill
import erase_household
import pipeline_settings
from erased_tables import KNOWN

SEED = 71
# In tables without a device_id and a household_id: what may hold text, and whose it is
BY_THEIR_TOKENS = {  # erasure.py looks into each of their rows
    "public.dead_letters": {"headers", "key", "value", "source_file"},
    "public.file_loads": {"file_name"},
    "public.pseudonyms": {"id", "kind", "pseudonym"},
}
NOBODYS = {
    "intermediate.dbt_runs": {"run_id", "command", "first_error"},
    "intermediate.model_watermarks": {"relation"},
    "marts.rpt_pipeline_health": {"stream"},
    "public.dead_letters": {"cluster_id", "consumer_group", "topic", "reason", "detail", "fate", "fate_detail"},
    "public.erasures": {"erased_by", "rows"},
    "public.file_loads": {"sha256", "table_name", "columns"},
    "public.ingest_minutes": {"cluster_id", "consumer_group", "topic"},
    "public.ingest_offsets": {"cluster_id", "consumer_group", "topic"},
    "public.suppression_list": {"salt"},
    "public.suppressions": {"kind", "digest"},
    "public.sweeps": {"deleted"},
}
TEXTS = """
SELECT format('%%I.%%I', nspname, relname), relname::text, array_agg(attname::text)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE relkind IN ('r', 'p', 'm') AND nspname <> 'information_schema' AND nspname !~ '^pg_' AND attnum > 0
  AND NOT attisdropped
  AND atttypid NOT IN (SELECT oid FROM pg_type WHERE typcategory IN ('B', 'D', 'N') AND typname <> 'oid')
GROUP BY 1, 2"""

STAYING = """
SELECT event_id FROM marts.fct_access_events
WHERE household_id IS DISTINCT FROM %s AND device_id <> ALL(%s)"""


@pytest.fixture
def erase(dbt: Any, warehouse: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """erase(household): as the script does, with dbt in this process."""

    def run_dbt(command: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(returncode=0 if dbt(*command[4:]).success else 1)

    monkeypatch.setattr(backfill.subprocess, "run", run_dbt)

    def call(household: str) -> None:
        flags = {"dry_run": False, "suppress_unknown": False, "without_kafka": True, "yes": True}
        args = argparse.Namespace(household=household, **flags)
        with closing(pipeline_settings.connect_postgres("tests", options="-c timezone=UTC")) as connection:
            assert erase_household.erase(connection, args) == 0

    return call


def moved(warehouse: Any, household: str) -> tuple[set[str], set[str]]:
    """The household's devices that were of nobody else, and those that were."""
    found = rows(
        warehouse,
        "SELECT device_id, array_agg(DISTINCT household_id) FILTER (WHERE household_id IS NOT NULL)"
        " FROM marts.dim_devices GROUP BY 1",
    )
    theirs = {device: set(homes) for device, homes in found if homes and household in homes}
    return {d for d, homes in theirs.items() if len(homes) == 1}, {d for d, homes in theirs.items() if len(homes) > 1}


def settle(warehouse: Any) -> str:
    """A household whose device was nobody else's: only the fleet's sums are computed anew. Some hours are its alone."""
    register(warehouse, "settled lock", "settled home", "Asia/Kolkata", START)
    for at in (START - timedelta(days=400), START + timedelta(days=2), START + timedelta(days=9)):
        for minutes in range(0, 200, 20):
            add_event(warehouse, "settled lock", at + timedelta(minutes=minutes), ["open", "fail"][minutes % 40 // 20])
            add_report(warehouse, "settled lock", at + timedelta(minutes=minutes))
    return "settled home"


def move(warehouse: Any, home: str, days: int, *devices: str) -> None:
    at = START + timedelta(days=days)
    statement = (
        "UPDATE raw_devices SET household_id = %s, deleted_at = NULL, updated_at = %s, ingested_at = %s"
        " WHERE device_id = ANY(%s)"
    )
    execute(warehouse, statement, f"{home} of {SEED}", at, at, [f"{device} of {SEED}" for device in devices])


def text_of(warehouse: Any, schemas: tuple[str, ...] = ("public", "snapshots", "marts", "intermediate")) -> str:
    tables = rows(
        warehouse,
        "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = ANY(%s)",
        list(schemas),
    )
    return "\n".join(t for (name,) in tables for (t,) in rows(warehouse, f"SELECT t::text FROM {name} AS t"))  # noqa: S608


@pytest.mark.slow
def test_the_rest_of_the_fleet_is_what_a_full_refresh_gives(dbt: Any, warehouse: Any, erase: Any) -> None:
    """A random fleet, in which two devices move into a household and out again, and one stays there."""
    settled = settle(warehouse)
    first, second, third = histories([SEED], is_restless=False, slices=3)
    first.store(warehouse)
    second.store(warehouse)
    move(warehouse, "home 3", 0, "lock 1", "lock 2", "lock 3")
    run(dbt)
    move(warehouse, "home 1", 8, "lock 1", "lock 2", "lock 3")
    run(dbt)
    move(warehouse, "home 2", 16, "lock 1", "lock 3")
    third.store(warehouse)
    run(dbt)
    for household, count in ((settled, 0), (f"home 1 of {SEED}", 3)):
        whole, shared = moved(warehouse, household)
        assert len(shared) == count
        expected = set(rows(warehouse, STAYING, household, list(whole)))
        erase(household)
        assert set(rows(warehouse, "SELECT event_id FROM raw_access_events")) == expected
        assert set(rows(warehouse, "SELECT event_id FROM marts.fct_access_events")) == expected
        text = text_of(warehouse)
        assert not [name for name in (household, *whole) if name in text]
        assert all(device in text for device in shared)
    run(dbt)
    assert_equals_full_refresh(dbt, warehouse)


def test_every_table_and_column_is_decided_upon(dbt: Any, warehouse: Any) -> None:
    run(dbt)
    others = {name: set(columns) for name, table, columns in rows(warehouse, TEXTS) if table not in KNOWN}
    decided = {name: NOBODYS.get(name, set()) | BY_THEIR_TOKENS.get(name, set()) for name in NOBODYS | BY_THEIR_TOKENS}
    assert others == decided
    execute(warehouse, "CREATE TABLE marts.more (device_id text)")
    with (
        closing(pipeline_settings.connect_postgres("tests")) as connection,
        connection.cursor() as cursor,
        pytest.raises(erase_household.CannotErase, match=r"marts\.more has a device_id or household_id"),
    ):
        erase_household.erased_tables.tables_with_devices(cursor)
