"""Holds the marts against the raw tables and the ledger, which the independent count has held against Kafka before."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2

from backfill import keep_models_away

# Of each mart that counts every record, its numbers and what they are to be
SUMS = {
    "fct_access_hourly, events": (
        "SELECT sum(opens + closes + fails) FROM marts.fct_access_hourly",
        "SELECT count(*) FROM raw_access_events",
    ),
    "fct_fleet_hourly, events": (
        "SELECT sum(opens + closes + fails) FROM marts.fct_fleet_hourly",
        "SELECT count(*) FROM raw_access_events",
    ),
    "fct_device_daily_summary, events and reports": (
        "SELECT sum(opens + closes + fails), sum(health_reports) FROM marts.fct_device_daily_summary",
        "SELECT (SELECT count(*) FROM raw_access_events), count(*) FROM raw_device_health",
    ),
    "fct_device_health_hourly, reports": (
        "SELECT sum(reports) FROM marts.fct_device_health_hourly",
        "SELECT count(*) FROM raw_device_health",
    ),
    "rpt_pipeline_health, rows, duplicates and dead letters": (
        "SELECT sum(rows_in), sum(duplicates), sum(dead_letters) FROM marts.rpt_pipeline_health",
        "SELECT sum(stored), sum(duplicates), sum(dead) FROM ingest_offsets",
    ),
}
EVENTS = "SELECT event_id, device_id, event_type, trigger_source, {at} FROM {table}"
RAW = EVENTS.format(at="event_ts", table="raw_access_events")
MART = EVENTS.format(at="event_at", table="marts.fct_access_events")
ROWS = {
    "fct_access_events lacks": f"SELECT count(*) FROM ({RAW} EXCEPT ALL {MART}) AS missing",  # noqa: S608 - our own
    "fct_access_events has too many": f"SELECT count(*) FROM ({MART} EXCEPT ALL {RAW}) AS surplus",  # noqa: S608
}
# Temporary tables are PostgreSQL's own to clear away
LEFT_OVER = r"""
SELECT relnamespace::regnamespace || '.' || relname FROM pg_class
WHERE relname ~ '__dbt_(tmp|backup)' AND relkind IN ('r', 'v', 'm') AND relpersistence <> 't'
"""
LOCKS = """
SELECT pid, classid, objid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def differences(connection: Any) -> list[str]:
    """A line for each thing that is not as it should be. To be asked when a run has seen all that there is.

    connection: of its own; it keeps runs of the models away until it is closed, which is at the end.
    """
    connection.autocommit = False
    with closing(connection):
        try:
            keep_models_away(connection)
        except psycopg2.errors.LockNotAvailable as error:
            return [f"the lock of the models is not to be had: {str(error).strip()}"]
        with connection, connection.cursor() as cursor:

            def rows(statement: str) -> list[Any]:
                cursor.execute(statement)
                return list(cursor.fetchall())

            found = [
                f"marts.{what} {count} rows"
                for what, statement in ROWS.items()
                for (count,) in rows(statement)
                if count
            ]
            for what, (there, to_be) in SUMS.items():
                has, should_have = ([int(number or 0) for number in rows(side)[0]] for side in (there, to_be))
                if has != should_have:
                    found.append(f"marts.{what}: {has}, to be: {should_have}")
            found += [f"left by dbt: {name}" for (name,) in rows(LEFT_OVER)]
            return found + [f"a lock of the models is held: {lock}" for lock in rows(LOCKS)]
