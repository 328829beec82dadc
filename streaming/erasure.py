"""An erasure in PostgreSQL, step by step. Each step may be repeated, and one that was killed is gone on with.

What is deleted and the audit's count of it commit together. The registry, by which the household's devices are found,
goes last: until then the same household gives the same devices, after it nothing but the marts' sums is left to do.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from psycopg2 import sql
from psycopg2.extras import execute_values

import erased_tables
from erased_tables import RAW, REGISTRY, Deleted, Household, Table
from record import Record
from suppression import ALWAYS, DEVICE, HOUSEHOLD, Span, Suppressions, digest

PAGES = 16_384  # of a table that has no index by device: so much is looked through in one transaction
LETTERS = 500

# The versions as dim_devices has them: the first one also stands for the time before it. What the registry holds and no
# run of the models has seen yet comes last.
SPANS = """
WITH versions AS ({history}
    SELECT device_id, household_id, updated_at AS valid_from, 'infinity'::timestamptz AS told_at,
           'infinity'::timestamptz AS noticed_at FROM raw_devices
),
spans AS (
    SELECT device_id, household_id,
           CASE WHEN row_number() OVER by_device = 1 THEN '-infinity' ELSE valid_from END AS since,
           lead(valid_from, 1, 'infinity') OVER by_device AS until
    FROM versions
    WHERE device_id IN (SELECT device_id FROM versions WHERE household_id = %(household)s)
    WINDOW by_device AS (PARTITION BY device_id ORDER BY told_at, noticed_at)
)
SELECT device_id, is_moved, lower(span)::text, upper(span)::text
FROM (
    SELECT device_id, bool_or(household_id <> %(household)s) AS is_moved,
           unnest(range_agg(tstzrange(since, until)) FILTER (WHERE household_id = %(household)s)) AS span
    FROM spans
    WHERE since < until
    GROUP BY device_id
) AS together
ORDER BY device_id, lower(span)"""
HISTORY = """
    SELECT device_id, household_id, updated_at AS valid_from, dbt_valid_from::timestamptz AS told_at, noticed_at
    FROM snapshots.devices_history
    UNION ALL"""

ACCOUNT = """
UPDATE erasures
SET rows = CASE WHEN %(rows)s > 0
        THEN rows || jsonb_build_object(%(table)s, coalesce((rows ->> %(table)s)::bigint, 0) + %(rows)s) ELSE rows END,
    recompute_from = least(recompute_from, %(first)s::timestamptz),
    recompute_to = greatest(recompute_to, %(last)s::timestamptz)
WHERE erasure_id = %(erasure)s"""


class Recompute(NamedTuple):
    first: datetime | None
    last: datetime | None
    is_all: bool  # and not only the fleet's sums


def find(cursor: Any, name: str, tables: list[Table]) -> Household:
    household = Household(name)
    has_history = erased_tables.exists(cursor, sql.Identifier("snapshots", "devices_history"))
    cursor.execute(SPANS.replace("{history}", HISTORY if has_history else ""), {"household": name})
    for device, is_moved, since, until in cursor.fetchall():
        if is_moved:
            household.moved.setdefault(device, []).append((since, until))
        elif device not in household.whole:
            household.whole.append(device)
    cursor.execute("SELECT device_id FROM raw_devices WHERE household_id = %s ORDER BY 1", (name,))
    household.present = [device for (device,) in cursor.fetchall()]
    if household.moved and any(table.name == "device_horizons" for table in tables):
        statement = "SELECT device_id, max(horizon)::text FROM device_horizons WHERE device_id = ANY(%s) GROUP BY 1"
        cursor.execute(statement, (list(household.moved),))
        household.horizons = dict(cursor.fetchall())
    household.is_known = bool(household.devices) or any(
        erased_tables.count(cursor, table, Household(name)) for table in tables if "household_id" in table.columns
    )
    return household


def account(cursor: Any, erasure: int, table: str, deleted: Deleted) -> None:
    values = {"erasure": erasure, "table": table, **deleted._asdict()}
    cursor.execute(ACCOUNT, values)


def parts(tables: list[Table]) -> Iterator[tuple[Table, tuple[int, int] | None]]:
    """All but the registry, in pieces that a transaction has time for."""
    for table in tables:
        if table.kind in REGISTRY:
            continue
        if table.kind not in RAW:
            yield table, None
            continue
        for page in range(0, table.pages, PAGES):
            yield table, (page, page + PAGES)


def letters(cursor: Any, household: Household) -> Iterator[list[int]]:
    """The dead letters that name the household or a device of it, a few at a time."""
    suppressions, after = _list_of_one(cursor, household), 0
    while True:
        cursor.execute(
            "SELECT dead_letter_id, coalesce(record_ts, created_at), key, value, headers FROM dead_letters"
            " WHERE dead_letter_id > %s ORDER BY dead_letter_id LIMIT %s",
            (after, LETTERS),
        )
        rows = cursor.fetchall()
        if not rows:
            return
        yield [row[0] for row in rows if suppressions.are_mentioned(_record(*row[1:]))]
        after = rows[-1][0]


def _record(at: datetime, key: memoryview | None, value: memoryview | None, headers: list[list[Any]] | None) -> Record:
    parts = [(name, None if text is None else base64.b64decode(text)) for name, text in headers or ()]
    raw_key, raw_value = (None if part is None else bytes(part) for part in (key, value))
    return Record(0, int(at.timestamp() * 1000), raw_key, raw_value, parts)


def _list_of_one(cursor: Any, household: Household) -> Suppressions:
    """As the writers' list, with this household alone on it."""
    rows = [(device, *span) for device, times in household.moved.items() for span in times]
    rows += [(device, "-infinity", "infinity") for device in household.whole]
    names, since, until = zip(*rows, strict=True) if rows else ((), (), ())
    cursor.execute(
        "SELECT name, extract(epoch FROM since)::float8, extract(epoch FROM until)::float8"
        " FROM unnest(%s::text[], %s::timestamptz[], %s::timestamptz[]) AS spans (name, since, until)",
        (list(names), list(since), list(until)),
    )
    listed: defaultdict[bytes, list[Span]] = defaultdict(list)
    for name, first, last in cursor.fetchall():
        listed[digest(b"", DEVICE, name)].append((first, last))
    listed[digest(b"", HOUSEHOLD, household.name)] = [ALWAYS]
    return Suppressions(b"", listed)


def pseudonyms(household: Household) -> sql.Composable:
    return sql.SQL("(kind = 'household' AND id = {} OR kind = 'device' AND id = ANY({}::text[]))").format(
        sql.Literal(household.name), sql.Literal(household.whole)
    )


def rename_files(cursor: Any, household: Household) -> int:
    """Files that are called after the household or a device of it have no name any more."""
    renamed = 0
    for table, column in (("file_loads", "file_name"), ("dead_letters", "source_file")):
        values = {"table": sql.Identifier(table), "column": sql.Identifier(column)}
        cursor.execute(sql.SQL("SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL").format(**values))
        theirs = {household.name, *household.whole}
        named = [name for (name,) in cursor.fetchall() if theirs & {name, *re.split(r"[^\w-]+", name)}]
        statement = sql.SQL("UPDATE {table} SET {column} = 'erased' WHERE {column} = ANY(%s)").format(**values)
        cursor.execute(statement, (named,))
        renamed += cursor.rowcount
    return renamed


def delete_registry(cursor: Any, erasure: int, household: Household, tables: list[Table]) -> None:
    """In one transaction, last. A device that came from another household counts as deleted since it left that one."""
    left = [(device, times[-1][0]) for device, times in household.moved.items() if device in household.present]
    left = [(device, since) for device, since in left if since != "-infinity"]
    if left:
        execute_values(
            cursor,
            "UPDATE raw_devices AS d SET household_id = NULL, device_type = NULL, model = NULL,"
            " firmware_version = NULL, installed_at = NULL, extra = NULL, kafka_partition = NULL, kafka_offset = NULL,"
            " updated_at = l.since::timestamptz, deleted_at = l.since::timestamptz, ingested_at = now()"
            " FROM (VALUES %s) AS l (device_id, since) WHERE d.device_id = l.device_id",
            left,
        )
    for table in tables:
        if table.kind in REGISTRY:
            account(cursor, erasure, str(table), erased_tables.delete(cursor, table, household))


def to_recompute(cursor: Any, erasure: int) -> Recompute:
    statement = "SELECT recompute_from, recompute_to, recompute_all FROM erasures WHERE erasure_id = %s"
    cursor.execute(statement, (erasure,))
    return Recompute(*cursor.fetchone())


def rows_deleted(cursor: Any, erasure: int) -> dict[str, int]:
    """By table."""
    cursor.execute("SELECT rows FROM erasures WHERE erasure_id = %s", (erasure,))
    rows: dict[str, int] = cursor.fetchone()[0]
    return rows


def end(cursor: Any, erasure: int) -> None:
    cursor.execute(
        "UPDATE erasures SET ended_at = clock_timestamp(), recompute_from = NULL, recompute_to = NULL"
        " WHERE erasure_id = %s",
        (erasure,),
    )
