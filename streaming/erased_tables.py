"""Which rows of which table belong to a household. Every table with a device or a household in it is decided upon here:
one that the catalogue has and this module does not know stops an erasure before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from psycopg2 import sql

from backfill import marts

HOUR = ("{t}.hour_starts_at", "{t}.hour_starts_at + interval '1 hour' - interval '1 microsecond'")
DAY = (  # anywhere on earth
    "{t}.local_date::timestamp AT TIME ZONE 'UTC' - interval '14 hours'",
    "{t}.local_date::timestamp AT TIME ZONE 'UTC' + interval '36 hours'",
)
# What happened at a time: the first and the last moment of a row, so that of a device that moved only what falls into
# its time in the household goes.
FACTS = {
    "raw_access_events": ("{t}.event_ts", "{t}.event_ts"),
    "raw_device_health": ("{t}.reported_at", "{t}.reported_at"),
    "fct_access_events": ("{t}.event_at", "{t}.event_at"),
    "fct_access_hourly": HOUR,
    "fct_device_health_hourly": HOUR,
    "int_unusual_opens": HOUR,
    "int_battery_cliffs": HOUR,
    "fct_device_daily_summary": DAY,
    "fct_triggers_daily": DAY,
    "fct_open_sessions": ("{t}.opened_at", "coalesce({t}.closed_at, 'infinity')"),
    "fct_offline_sessions": ("{t}.started_at", "coalesce({t}.ended_at, 'infinity')"),
    "int_failed_bursts": ("{t}.started_at", "{t}.ended_at"),
    "int_flapping": ("{t}.started_at", "coalesce({t}.ended_at, 'infinity')"),
}
# Where raw rows have been swept, nothing makes the rows of marts anew: there, too, only the household's time goes
RAW = ("raw_access_events", "raw_device_health")
# A row of a device that moved is somebody else's if it names another household
VERSIONS = ("dim_devices", "dim_households", "rpt_device_current")
# Of a device as a whole, whoever had it; each run of the models makes them anew
WHOLE_DEVICES = ("int_device_activity", "int_device_changes", "fct_battery_forecast")
# What has been swept of a device: of one that moved it goes on being true
SWEPT = ("device_horizons",)
# Where the household's devices are found, and so the last to go
REGISTRY = ("raw_devices", "raw_households", "devices_history", "households_history")

KNOWN = {*FACTS, *VERSIONS, *WHOLE_DEVICES, *SWEPT, *REGISTRY}

WITH_DEVICES = """
SELECT nspname, relname, array_agg(attname::text), has_table_privilege(c.oid, 'DELETE'), pg_relation_size(c.oid) / 8192
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE relkind IN ('r', 'p', 'm', 'f') AND NOT relispartition AND attname IN ('device_id', 'household_id')
  AND NOT attisdropped AND nspname <> 'information_schema' AND nspname !~ '^pg_'
GROUP BY c.oid, nspname, relname
ORDER BY 1, 2"""


class CannotErase(Exception):
    """Nothing was begun, or it is to be started again; the text is one line that says why."""


class Table(NamedTuple):
    schema: str
    name: str
    columns: frozenset[str]
    pages: int

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def kind(self) -> str:
        """Its name, without what dbt adds to that of a table in the making."""
        return self.name.split("__dbt_")[0]

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


@dataclass
class Household:
    """whole: devices that were of nobody else. moved: of the others, from when to when they were of this household."""

    name: str
    whole: list[str] = field(default_factory=list)
    moved: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    present: list[str] = field(default_factory=list)  # devices that are still of it
    horizons: dict[str, str] = field(default_factory=dict)  # of devices that moved: before it marts stay as they are
    is_known: bool = False

    @property
    def devices(self) -> list[str]:
        return [*self.whole, *self.moved]

    @property
    def tombstones(self) -> list[str]:
        """The devices that the registry is to forget."""
        return sorted({*self.whole, *self.present})


class Deleted(NamedTuple):
    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None


def tables_with_devices(cursor: Any) -> list[Table]:
    """Raises CannotErase for one that nobody has decided upon, or that this user may not delete from."""
    cursor.execute(WITH_DEVICES)
    rows = cursor.fetchall()
    tables = [Table(schema, name, frozenset(columns), pages) for schema, name, columns, _, pages in rows]
    unknown = [table for table in tables if table.kind not in KNOWN]
    if unknown:
        raise CannotErase(
            f"{', '.join(map(str, unknown))} has a device_id or household_id and is not known to"
            " streaming/erased_tables.py: drop it, or say there which of its rows go. Nothing was begun"
        )
    refused = [f"{schema}.{name}" for schema, name, _, may_delete, _ in rows if not may_delete]
    if refused:
        user = cursor.connection.info.user
        raise CannotErase(
            f"PGUSER={user} lacks the right to delete rows of {', '.join(refused)}: log in as who owns the tables"
            " (docs/erasure.md). Nothing was begun"
        )
    return tables


def belongs(table: Table, household: Household) -> sql.Composable:
    """The condition for a row to go."""
    conditions: list[sql.Composable] = []
    if "household_id" in table.columns:
        conditions.append(sql.SQL("t.household_id = {}").format(sql.Literal(household.name)))
    if "device_id" in table.columns:
        devices = household.devices if table.kind in WHOLE_DEVICES else household.whole
        conditions.append(sql.SQL("t.device_id = ANY({}::text[])").format(sql.Literal(devices)))
        if table.kind in FACTS and household.moved:
            conditions.append(_in_its_time(table, household))
    return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions))


def _in_its_time(table: Table, household: Household) -> sql.Composable:
    """Of devices that moved. From what can be made anew out of the raw rows the whole device goes."""
    spans = [(device, *span) for device, times in household.moved.items() for span in times]
    if table.kind not in RAW:
        spans += [(device, household.horizons.get(device, "-infinity"), "infinity") for device in household.moved]
    starts, ends = _moments(table)
    return sql.SQL(
        "EXISTS (SELECT FROM unnest({}::text[], {}::timestamptz[], {}::timestamptz[]) AS span (device, since, until)"
        " WHERE span.device = t.device_id AND {} < span.until AND {} >= span.since)"
    ).format(*(sql.Literal(list(values)) for values in zip(*spans, strict=True)), starts, ends)


def _moments(table: Table) -> tuple[sql.SQL, sql.SQL]:
    starts, ends = FACTS[table.kind]
    return sql.SQL(starts.format(t="t")), sql.SQL(ends.format(t="t"))


def count(cursor: Any, table: Table, household: Household) -> int:
    cursor.execute(sql.SQL("SELECT count(*) FROM {} AS t WHERE {}").format(table.identifier, belongs(table, household)))
    rows: int = cursor.fetchone()[0]
    return rows


def delete(cursor: Any, table: Table, household: Household, pages: tuple[int, int] | None = None) -> Deleted:
    """pages: only of this part of the table, from the one up to but not including the other."""
    part = sql.SQL("t.ctid >= {}::tid AND t.ctid < {}::tid AND ").format(
        *(sql.Literal(f"({page},0)") for page in pages)
    ) if pages else sql.SQL("")  # fmt: skip
    at = _moments(table)[0] if table.kind in FACTS else sql.SQL("NULL::timestamptz")
    arrived = sql.SQL("t.ingested_at" if table.kind in RAW else "NULL::timestamptz")
    cursor.execute(
        sql.SQL(
            "WITH gone AS (DELETE FROM {} AS t WHERE {}{} RETURNING {} AS at, {} AS arrived_at)"
            " SELECT count(*), least(min(at), min(arrived_at)), greatest(max(at), max(arrived_at)),"
            " array_agg(DISTINCT date_trunc('minute', arrived_at, 'UTC')) FROM gone"
        ).format(table.identifier, part, belongs(table, household), at, arrived)
    )
    rows, first, last, minutes = cursor.fetchone()
    if rows and table.kind in RAW:
        _forget_minutes(cursor, table, minutes)
    return Deleted(rows, first, last)


def _forget_minutes(cursor: Any, table: Table, minutes: list[datetime]) -> None:
    """The minutes of arrival, of which the models count the rows; but for those that they count no more (swept)."""
    report = sql.Identifier(marts(), "rpt_pipeline_health")
    if not exists(cursor, report):
        return
    stream = "events" if table.kind == "raw_access_events" else "health"
    cursor.execute("SELECT to_regclass('sweeps') IS NOT NULL")
    swept = "(SELECT max(ended_at) FROM sweeps)" if cursor.fetchone()[0] else "NULL::timestamptz"
    cursor.execute(
        sql.SQL(
            "DELETE FROM {} WHERE stream = %s AND minute_starts_at = ANY(%s)"
            " AND minute_starts_at >= coalesce({}, '-infinity')"
        ).format(report, sql.SQL(swept)),
        (stream, minutes),
    )


def exists(cursor: Any, relation: sql.Identifier) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (relation.as_string(cursor),))
    found: bool = cursor.fetchone()[0]
    return found
