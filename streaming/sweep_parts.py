"""What a sweep deletes, table by table: conditions on a row `t` and on its device's line `h` of the horizons.

A row of the marts that follows raw rows goes when the raw row that it begins with is gone. Hours and days stay longer,
and go only where their raw rows are gone: what the models can compute anew, they would make again.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from psycopg2 import sql


@dataclass(frozen=True)
class Retention:
    """days: of raw rows and what follows them; months: of devices' hours and days."""

    days: int
    months: int
    today: date

    @property
    def cutoff(self) -> datetime:
        return midnight(self.today - timedelta(days=self.days))

    @property
    def aggregates_cutoff(self) -> datetime:
        """Never after the other: hours whose raw rows are there would come back."""
        year, month = divmod(self.today.year * 12 + self.today.month - 1 - self.months, 12)
        day = min(self.today.day, monthrange(year, month + 1)[1])
        return min(self.cutoff, midnight(date(year, month + 1, day)))


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


PINNED = sql.SQL("(SELECT file_load_id FROM file_loads WHERE pinned)")


# Together, in one transaction: the rows of some pages, the horizons of their devices, the audit's count
DELETE = """
WITH gone AS (
    DELETE FROM {table} AS t {using} WHERE t.ctid >= %(low)s::tid AND t.ctid < %(high)s::tid AND {where}
    RETURNING {returned}
){noted}
UPDATE sweeps
SET deleted = deleted || jsonb_build_object({name}, coalesce((deleted ->> {name})::bigint, 0) + counted.rows)
FROM (SELECT count(*) AS rows FROM gone) AS counted
WHERE sweep_id = %(sweep)s AND counted.rows > 0
RETURNING counted.rows"""
NOTED = """, noted AS (
    INSERT INTO device_horizons AS known (stream, device_id, swept_from, horizon)
    SELECT {stream}, device_id, date_trunc('hour', min(at), 'UTC'), max(horizon) FROM gone GROUP BY device_id
    ON CONFLICT (stream, device_id) DO UPDATE
    SET swept_from = least(known.swept_from, excluded.swept_from), horizon = greatest(known.horizon, excluded.horizon)
)"""
COUNT = """
SELECT count(DISTINCT t.ctid) FROM {table} AS t{others}
WHERE t.ctid >= %(low)s::tid AND t.ctid < %(high)s::tid AND {where}"""


class Part(NamedTuple):
    """One table's: `others` are joined; `stream` and `time` of a raw table, whose devices' horizons are noted."""

    schema: str
    table: str
    where: sql.Composable
    others: sql.Composable | None = None
    stream: str = ""
    time: str = ""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.table)

    @property
    def deletion(self) -> sql.Composed:
        """Of the pages low <= page < high; the number of rows, or nothing where there was none."""
        returned = sql.SQL("t.device_id, t.{} AS at, h.horizon").format(sql.Identifier(self.time))
        return sql.SQL(DELETE).format(
            table=self.identifier,
            using=sql.SQL("USING {}").format(self.others) if self.others else sql.SQL(""),
            where=self.where,
            returned=returned if self.stream else sql.SQL("1"),
            noted=sql.SQL(NOTED).format(stream=sql.Literal(self.stream)) if self.stream else sql.SQL(""),
            name=sql.Literal(self.table),
        )

    @property
    def counting(self) -> sql.Composed:
        """As `deletion`, and it changes nothing."""
        others = sql.SQL(", {}").format(self.others) if self.others else sql.SQL("")
        return sql.SQL(COUNT).format(table=self.identifier, others=others, where=self.where)


def public_parts() -> list[Part]:
    return [
        _raw("raw_access_events", "events", "event_ts"),
        _raw("raw_device_health", "health", "reported_at"),
        Part("public", "dead_letters", sql.SQL("t.created_at < %(cutoff)s")),
        Part("public", "ingest_minutes", sql.SQL("t.minute_starts_at < %(aggregates_cutoff)s")),
    ]


def _raw(table: str, stream: str, time: str) -> Part:
    where = sql.SQL(
        "h.stream = {stream} AND h.device_id = t.device_id AND t.{time} < h.horizon AND t.{time} < %(cutoff)s"
        " AND (t.file_load_id IS NULL OR t.file_load_id NOT IN {pinned})"
    ).format(stream=sql.Literal(stream), time=sql.Identifier(time), pinned=PINNED)
    return Part("public", table, where, sql.SQL("horizons AS h"), stream, time)


# By the raw row or rows that a row of the marts begins with
EVENT = "SELECT FROM public.raw_access_events AS r WHERE r.event_id = t.{key}"
REPORT = "SELECT FROM public.raw_device_health AS r WHERE r.device_id = t.device_id AND r.reported_at = t.{key}"
REPORTS_OF_HOUR = (
    "SELECT FROM public.raw_device_health AS r WHERE r.device_id = t.device_id"
    " AND r.reported_at >= t.{key} AND r.reported_at < t.{key} + interval '1 hour'"
)
# by way of the mart, as the raw table has no index by device
EVENTS_OF_HOUR = (
    "SELECT FROM {marts}.fct_access_events AS e JOIN public.raw_access_events AS r ON r.event_id = e.event_id"
    " WHERE e.device_id = t.device_id AND e.event_at >= t.{key} AND e.event_at < t.{key} + interval '1 hour'"
)


def mart_parts(marts: str, dry_run: bool) -> list[Part]:
    """In an order in which no row is left without what it refers to."""
    # of a dry run: the raw rows that would stay
    staying = {
        stream: sql.SQL(" AND (r.file_load_id IN {pinned} OR r.{time} >= h.horizon)").format(
            pinned=PINNED, time=sql.Identifier(time)
        )
        for stream, time in (("events", "event_ts"), ("health", "reported_at"))
    }

    def follows(schema: str, table: str, stream: str, time: str, raw: str, key: str = "") -> Part:
        # The horizon within, and the offset: looked up only for rows that pass all else, one by one in the raw table's
        # key; as a join it might be read as a whole for each batch
        where = sql.SQL(
            "h.stream = {stream} AND h.device_id = t.device_id AND t.{time} < h.horizon AND t.{time} < %(cutoff)s"
            f" AND NOT EXISTS ({raw}{{staying}} AND t.{{time}} < h.horizon OFFSET 0)"
        ).format(
            stream=sql.Literal(stream),
            time=sql.Identifier(time),
            key=sql.Identifier(key or time),
            marts=sql.Identifier(marts),
            staying=staying[stream] if dry_run else sql.SQL(""),
        )
        return Part(schema, table, where, sql.SQL("horizons AS h"))

    def aggregate(table: str, where: str, others: str) -> Part:
        names = {
            "marts": sql.Identifier(marts),
            "swept": sql.Identifier("horizons" if dry_run else "device_horizons"),
        }
        return Part(marts, table, sql.SQL(where).format(**names), sql.SQL(others).format(**names))

    hours = (
        " AND h.device_id = t.device_id AND t.hour_starts_at < %(aggregates_cutoff)s"
        " AND h.swept_from < t.hour_starts_at + interval '1 hour' AND t.hour_starts_at + interval '1 hour' <= h.horizon"
    )
    day_ends_at = "((t.local_date + 1)::timestamp AT TIME ZONE coalesce(d.time_zone, 'UTC'))"
    days = (
        " AND t.local_date < (%(aggregates_cutoff)s AT TIME ZONE 'UTC')::date"
        f" AND h.swept_from < {day_ends_at} AND {day_ends_at} <= h.horizon"
    )
    return [
        follows(marts, "fct_open_sessions", "events", "opened_at", EVENT, "session_id"),
        follows("intermediate", "int_failed_bursts", "events", "started_at", EVENT, "first_event_id"),
        follows("intermediate", "int_unusual_opens", "events", "hour_starts_at", EVENTS_OF_HOUR),
        follows("intermediate", "int_flapping", "health", "started_at", REPORT),
        follows("intermediate", "int_battery_cliffs", "health", "hour_starts_at", REPORTS_OF_HOUR),
        follows(marts, "fct_offline_sessions", "health", "started_at", REPORT),
        follows(marts, "fct_access_events", "events", "event_at", EVENT, "event_id"),
        aggregate("fct_access_hourly", "h.stream = 'events'" + hours, "{swept} AS h"),
        aggregate("fct_device_health_hourly", "h.stream = 'health'" + hours, "{swept} AS h"),
        aggregate(
            "fct_device_daily_summary",
            "h.device_id = t.device_id" + days,
            "{swept} AS h LEFT JOIN {marts}.dim_devices AS d ON d.device_id = h.device_id AND d.is_current",
        ),
        aggregate(
            "fct_triggers_daily",
            "h.stream = 'events' AND d.household_id = t.household_id" + days,
            "{swept} AS h JOIN {marts}.dim_devices AS d ON d.device_id = h.device_id",
        ),
        Part(marts, "rpt_pipeline_health", sql.SQL("t.minute_starts_at < %(aggregates_cutoff)s")),
    ]


# The fleet's hours stay where five households or more took part, as then they tell nothing of a single one. Judged
# once, while the devices' hours are still there: aggregates_cutoff moves with it.
FLEET = "fct_fleet_hourly"
SMALL_HOURS = """
SELECT t.ctid FROM {marts}.fct_fleet_hourly AS t
WHERE t.hour_starts_at >= %(low)s AND t.hour_starts_at < %(high)s AND (
    SELECT count(DISTINCT d.household_id)
    FROM (
        SELECT device_id, hour_starts_at, local_date, local_hour FROM {marts}.fct_access_hourly
        UNION ALL
        SELECT device_id, hour_starts_at, local_date, local_hour FROM {marts}.fct_device_health_hourly
    ) AS hours
    JOIN {marts}.dim_devices AS d ON d.device_id = hours.device_id
        AND (d.version = 1 OR d.valid_from <= hours.hour_starts_at)
        AND (d.valid_to IS NULL OR hours.hour_starts_at < d.valid_to)
    WHERE (hours.hour_starts_at, hours.local_date, hours.local_hour) = (t.hour_starts_at, t.local_date, t.local_hour)
) < 5"""
DELETE_SMALL_HOURS = """
WITH gone AS (DELETE FROM {marts}.fct_fleet_hourly WHERE ctid IN ({small}) RETURNING 1)
UPDATE sweeps
SET aggregates_cutoff = greatest(aggregates_cutoff, %(high)s),
    deleted = deleted || jsonb_build_object({name}, coalesce((deleted ->> {name})::bigint, 0) + counted.rows)
FROM (SELECT count(*) AS rows FROM gone) AS counted
WHERE sweep_id = %(sweep)s
RETURNING counted.rows"""
FIRST_DAY = """
SELECT (greatest(min(hour_starts_at), (SELECT max(aggregates_cutoff) FROM sweeps)) AT TIME ZONE 'UTC')::date
FROM {marts}.fct_fleet_hourly"""


def fleet_statements(marts: str, dry_run: bool) -> tuple[sql.Composed, sql.Composed]:
    """Which day is the first to be judged, and what judges the hours low <= hour < high."""
    names = {"marts": sql.Identifier(marts), "name": sql.Literal(FLEET)}
    small = sql.SQL(SMALL_HOURS).format(**names)
    judge = "SELECT count(*) FROM ({small}) AS small" if dry_run else DELETE_SMALL_HOURS
    return sql.SQL(FIRST_DAY).format(**names), sql.SQL(judge).format(**names, small=small)
