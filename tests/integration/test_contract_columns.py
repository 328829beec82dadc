"""The tables are what the contracts say, and PostgreSQL takes, unchanged, whatever the decoder lets through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from contract_cases import ACCEPTED, AT_MS, encoded, key_of, record
from contract_strategies import valid_records
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2 import sql

from contracts import CONTRACTS, DEVICES, EVENTS, HEALTH, HOUSEHOLDS, Columns, Contract, time_zones

KAFKA_COLUMNS = {"kafka_partition": "integer", "kafka_offset": "bigint", "ingested_at": "timestamp with time zone"}
TYPES = {
    "event_id": "uuid",
    "event_ts": "timestamp with time zone",
    "reported_at": "timestamp with time zone",
    "installed_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone",
    "deleted_at": "timestamp with time zone",
    "battery_pct": "real",
    "signal_strength_dbm": "real",
    "is_online": "boolean",
    "extra": "jsonb",
}
by_topic = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)


@pytest.fixture
def connection(database: dict[str, str]) -> Iterator[Any]:
    names = {"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname", "PGUSER": "user", "PGPASSWORD": "password"}
    with closing(psycopg2.connect(**{names[key]: value for key, value in database.items() if key in names})) as opened:
        yield opened


def rows(connection: Any, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def columns_of(connection: Any, table: str) -> dict[str, tuple[str, bool]]:
    """The columns in their order: type, and whether NULL may stand there."""
    statement = """
        SELECT column_name, data_type, is_nullable = 'YES' FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name = %s ORDER BY ordinal_position
    """
    return {name: (kind, nullable) for name, kind, nullable in rows(connection, statement, table)}


@by_topic
def test_a_table_has_the_contracts_columns_and_where_the_row_came_from(contract: Contract, connection: Any) -> None:
    found = columns_of(connection, contract.table)
    origin = KAFKA_COLUMNS | ({} if contract.compacted else {"file_load_id": "bigint"})
    assert list(found) == [*contract.columns, *origin]
    expected = {name: TYPES.get(name, "text") for name in contract.columns} | origin
    assert {name: kind for name, (kind, _) in found.items()} == expected


@by_topic
def test_what_the_contract_requires_is_not_null(contract: Contract, connection: Any) -> None:
    required = {field.name for field in contract.fields if field.required}
    if contract.compacted:
        required = {*contract.key, "updated_at"}  # a tombstone has nothing else
    found = columns_of(connection, contract.table)
    assert {name for name, (_, nullable) in found.items() if not nullable} == required | {"ingested_at"}


@by_topic
def test_the_primary_key_is_the_contracts(contract: Contract, connection: Any) -> None:
    statement = """
        SELECT a.attname FROM pg_index i
        JOIN unnest(i.indkey) WITH ORDINALITY AS k (attnum, place) ON true
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indisprimary AND i.indrelid = %s::regclass ORDER BY k.place
    """
    assert tuple(name for (name,) in rows(connection, statement, contract.table)) == contract.key


def test_every_topic_has_a_table_and_every_raw_table_a_topic(connection: Any) -> None:
    statement = "SELECT table_name FROM information_schema.tables WHERE starts_with(table_name, 'raw_')"
    assert {table for (table,) in rows(connection, statement)} == {contract.table for contract in CONTRACTS.values()}


def stored(connection: Any, contract: Contract, columns: Columns) -> list[Any]:
    """What PostgreSQL makes of one row, as text; the row is rolled back."""
    names = sql.SQL(", ").join(map(sql.Identifier, contract.columns))
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in contract.columns)
    holes = sql.SQL(", ").join(sql.Placeholder() for _ in contract.columns)
    insert = sql.SQL("INSERT INTO {table} ({names}) VALUES ({holes}) RETURNING {texts}").format(
        table=sql.Identifier(contract.table), names=names, holes=holes, texts=texts
    )
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
        cursor.execute(insert, columns)
        row: list[Any] = list(cursor.fetchone())
    connection.rollback()
    return row


def meaning(name: str, text: str | None) -> Any:
    """A column's text as a value, so that two spellings of one value compare equal."""
    kind = TYPES.get(name, "text")
    if text is None:
        return None
    if kind == "timestamp with time zone":
        day, _, fraction = text.removesuffix("+00").partition(".")
        return day, fraction.ljust(6, "0")
    if kind == "real":
        return pytest.approx(float(text), rel=1e-6, abs=1e-30)
    if kind == "boolean":
        return text[0]
    return json.loads(text, parse_int=float) if kind == "jsonb" else text


def assert_stored_unchanged(connection: Any, contract: Contract, columns: Columns) -> None:
    for name, said, found in zip(contract.columns, columns, stored(connection, contract, columns), strict=True):
        assert (name, meaning(name, said)) == (name, meaning(name, found))


def test_postgres_stores_every_accepted_case_unchanged(connection: Any) -> None:
    for case in ACCEPTED.values():
        said = record(case.contract, case.changes)
        columns = case.contract.decode(encoded(said), key_of(case.contract, said), AT_MS)
        assert_stored_unchanged(connection, case.contract, columns)


@by_topic
def test_postgres_stores_any_valid_record_unchanged(contract: Contract, connection: Any) -> None:
    @settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(valid_records(contract))
    def store(said: dict[str, Any]) -> None:
        columns = contract.decode(encoded(said), key_of(contract, said), AT_MS)
        assert_stored_unchanged(connection, contract, columns)

    store()


def test_postgres_stores_any_reading_in_range(connection: Any) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.floats(0, 100), st.floats(-150, 0))
    @example(5e-324, -5e-324)
    @example(1e-30, -1e-30)
    @example(1.2e-38, -1.2e-38)
    def store(battery: float, signal: float) -> None:
        said = record(HEALTH, {"battery_pct": battery, "signal_strength_dbm": signal})
        assert_stored_unchanged(connection, HEALTH, HEALTH.decode(encoded(said), None, AT_MS))

    store()


@pytest.mark.parametrize("contract", [DEVICES, HOUSEHOLDS], ids=lambda contract: contract.topic)
@pytest.mark.parametrize("timestamp_ms", [AT_MS, -1, 253_370_764_799_999], ids=["now", "none", "far_ahead"])
def test_postgres_stores_a_tombstone(contract: Contract, timestamp_ms: int, connection: Any) -> None:
    assert_stored_unchanged(connection, contract, contract.decode(None, b"home-1", timestamp_ms))


def test_postgres_keeps_the_last_instant_that_a_device_may_claim(connection: Any) -> None:
    said = record(EVENTS, {"event_ts": "9999-01-01T00:04:59.999Z"})
    assert_stored_unchanged(connection, EVENTS, EVENTS.decode(encoded(said), None, 253_370_764_799_999))


def test_postgres_knows_every_time_zone_that_the_contract_takes(connection: Any) -> None:
    """The marts compute local hours in PostgreSQL: one name that it does not know would fail the whole run."""
    known = {name for (name,) in rows(connection, "SELECT name FROM pg_timezone_names")}
    assert time_zones() - known == set()
