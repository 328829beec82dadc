"""The dashboard's SQL, and the one way it reaches PostgreSQL.

Each statement aggregates in the database and returns what a page shows, never a whole table. Sessions are read-only
and bound to TIME_LIMIT_S per statement, so that a page cannot hold up the pipeline.

An event is stored after it happened, or 5 minutes before it by a clock that runs ahead. So each bound on event_ts comes
with one on ingested_at, which has an index (BRIN, in the order of arrival). What comes from a clock further ahead, the
producer's included, is left out here; the marts count it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Engine, create_engine

sys.path.append(str(Path(__file__).resolve().parent.parent / "streaming"))
import pipeline_settings

TIME_LIMIT_S = 5

# Freshness and the latest events are looked for in these spans, one after the other: a stream that flows is answered by
# its last minute, and only one that stopped long ago costs more.
SPANS = ("1 minute", "1 hour", "1 day", "100 years")

# No row if nothing happened within the span. A device's clock may run ahead; data cannot be newer than now.
FRESHNESS = """
WITH newest AS (
    SELECT max(event_ts) AS at FROM raw_access_events
    WHERE event_ts > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
    UNION ALL
    SELECT max(reported_at) FROM raw_device_health
    WHERE reported_at > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
)
SELECT now() AS checked_at, least(now(), max(at)) AS newest_at FROM newest HAVING max(at) IS NOT NULL
"""

LATEST_EVENTS = """
SELECT events.event_ts, events.event_type, events.device_id, devices.household_id, events.trigger_source,
       extract(epoch FROM events.ingested_at - events.event_ts)::float8 AS seconds_to_row
FROM (SELECT * FROM raw_access_events
      WHERE event_ts > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
      ORDER BY event_ts DESC, event_id DESC LIMIT 20) AS events
LEFT JOIN raw_devices AS devices USING (device_id)
ORDER BY events.event_ts DESC, events.event_id DESC
"""

# A device counts as online if its newest report says so and is not older than 2.5 health intervals: what fell silent
# does not keep its last state.
KPIS = """
WITH day AS (
    SELECT count(*) AS events,
           count(*) FILTER (WHERE event_type = 'fail') AS fails,
           count(*) FILTER (WHERE event_type IN ('open', 'fail')) AS attempts
    FROM raw_access_events
    WHERE event_ts > now() - interval '24 hours' AND ingested_at > now() - interval '24 hours 5 minutes'
),
fleet AS (
    SELECT count(*) AS devices, count(*) FILTER (WHERE newest.is_online) AS online
    FROM raw_devices AS devices
    LEFT JOIN LATERAL (
        SELECT is_online AND reported_at > now() - 2.5 * %(health_interval_s)s * interval '1 second' AS is_online
        FROM raw_device_health AS health
        WHERE health.device_id = devices.device_id
        ORDER BY reported_at DESC LIMIT 1
    ) AS newest ON true
    WHERE devices.deleted_at IS NULL
)
SELECT fleet.devices, fleet.online, day.events, day.fails, day.attempts,
       (SELECT count(*) FROM dead_letters WHERE fate IS NULL) AS dead_letters
FROM day, fleet
"""

EVENTS_OVER_TIME = """
SELECT since, since + %(bin)s::interval AS until, event_type, count(*) AS events
FROM raw_access_events, date_bin(%(bin)s::interval, event_ts, 'epoch') AS since
WHERE event_ts > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
GROUP BY since, event_type
ORDER BY since, event_type
"""

LEDGER = """
SELECT topic, count(*) AS partitions, sum(consumed)::bigint AS consumed, sum(stored)::bigint AS stored,
       sum(duplicates)::bigint AS duplicates, sum(dead)::bigint AS dead, sum(gaps)::bigint AS gaps,
       bool_and(balanced) AS balanced
FROM ingest_ledger
GROUP BY topic
ORDER BY topic
"""

MART_FRESHNESS = "SELECT now() AS checked_at, max(source_ingested_at) AS newest_at FROM marts.fct_device_daily_summary"

WORST_DEVICES = """
SELECT device_id, sum(opens + fails)::bigint AS attempts, sum(fails)::bigint AS fails,
       (sum(fails) / nullif(sum(opens + fails), 0))::float8 AS fail_rate,
       min(battery_min_pct)::float8 AS battery_min_pct
FROM marts.fct_device_daily_summary
WHERE local_date > (now() AT TIME ZONE 'UTC')::date - 7
GROUP BY device_id
HAVING sum(fails) > 0
ORDER BY fails DESC, device_id
LIMIT 10
"""


def connect() -> Engine:
    """A pool of read-only sessions, opened at need; one that died is replaced when it is next asked for."""
    options = f"-c default_transaction_read_only=on -c statement_timeout={TIME_LIMIT_S}s -c timezone=UTC"
    return create_engine(
        "postgresql+psycopg2://",
        creator=lambda: pipeline_settings.connect_postgres("dashboard", options=options, connect_timeout=3),
        pool_pre_ping=True,
    )


def fetch(engine: Engine, query: str, parameters: dict[str, Any]) -> pd.DataFrame:
    """The rows of one of the statements above. Raises sqlalchemy.exc.DBAPIError."""
    with engine.connect() as connection:
        result = connection.exec_driver_sql(query, parameters)
        return pd.DataFrame(result.all(), columns=list(result.keys()))
