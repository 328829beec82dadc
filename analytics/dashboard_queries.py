"""The one way in which the dashboard reaches PostgreSQL, and the SQL that its pages share.

Each statement aggregates in the database and returns what a page shows, never a whole table. Sessions act as the role
dashboard_read, which may read the marts and the views of the schema `live` and nothing else; they are read-only and
bound to TIME_LIMIT_S per statement, so that a page cannot hold up the pipeline.

`{fleet}` in a statement stands for the viewer's choice of devices, `{bucket}` for the hour of a mart's row on the
clock that the viewer chose, `{access_hours}`, `{health_hours}` and `{signal_hours}` for the hours of those devices;
dashboard_view.View.parameters() has their parameters. `{uptime}` and `{completeness}` are aggregates over rows of
fct_device_daily_summary.

An event is stored after it happened, or 5 minutes before it by a clock that runs ahead. So each bound on a live event's
time comes with one on ingested_at, which has an index (BRIN, in the order of arrival). What comes from a clock further
ahead, the producer's included, is left out here; the marts count it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Engine, create_engine

sys.path.append(str(Path(__file__).resolve().parent.parent / "streaming"))
import pipeline_settings

TIME_LIMIT_S = 5
ROLE = "dashboard_read"

FLEET = """(%(whole_fleet)s OR device_id IN (
    SELECT device_id FROM live.devices
    WHERE (%(regions)s::text[] IS NULL OR region = ANY(%(regions)s))
      AND (%(device_types)s::text[] IS NULL OR device_type = ANY(%(device_types)s))
      AND (%(models)s::text[] IS NULL OR model = ANY(%(models)s))
      AND (%(households)s::text[] IS NULL OR household_id = ANY(%(households)s))
))"""
BUCKET = """CASE WHEN %(local)s THEN local_date + make_interval(hours => local_hour)
            ELSE date_trunc('hour', hour_starts_at AT TIME ZONE 'UTC') END"""
# of the observed time, the share that lies in no silence; and health reports over the number expected in it
UPTIME = "1 - sum(offline_minutes) / nullif(sum(observed_minutes), 0)"
COMPLETENESS = """sum(completeness * observed_minutes)
               / nullif(sum(observed_minutes) FILTER (WHERE completeness IS NOT NULL), 0)"""
FRAGMENTS = {"{bucket}": BUCKET, "{uptime}": UPTIME, "{completeness}": COMPLETENESS}
# Hours of the whole fleet are there in sums; those of a part of it are added up from its devices
HOURS_OF_THE_FLEET = {
    "{access_hours}": "marts.fct_fleet_hourly AS access_hours",
    "{health_hours}": "(SELECT * FROM marts.fct_fleet_hourly WHERE reporting_devices > 0) AS health_hours",
    "{signal_hours}": """(
        SELECT hour_starts_at, local_date, local_hour, signal_band, devices
        FROM marts.fct_fleet_hourly,
        LATERAL (VALUES ('excellent', excellent_devices), ('good', good_devices), ('fair', fair_devices),
                        ('weak', weak_devices), ('unusable', unusable_devices)) AS bands (signal_band, devices)
    ) AS signal_hours""",
}
HOURS_OF_DEVICES = {
    "{access_hours}": "(SELECT * FROM marts.fct_access_hourly WHERE {fleet}) AS access_hours",
    "{health_hours}": "(SELECT * FROM marts.fct_device_health_hourly WHERE {fleet}) AS health_hours",
    "{signal_hours}": """(
        SELECT hour_starts_at, local_date, local_hour, signal_band, 1 AS devices
        FROM marts.fct_device_health_hourly
        WHERE signal_band IS NOT NULL AND {fleet}
    ) AS signal_hours""",
}

CHOICES = """
SELECT 'region' AS kind, region AS value FROM live.devices WHERE region IS NOT NULL
UNION SELECT 'device_type', device_type FROM live.devices WHERE device_type IS NOT NULL
UNION SELECT 'model', model FROM live.devices WHERE model IS NOT NULL
UNION SELECT 'household', household_id FROM live.devices WHERE household_id IS NOT NULL
ORDER BY kind, value
"""

# Freshness and the latest events are looked for in these spans, one after the other: a stream that flows is answered by
# its last minute, and only one that stopped long ago costs more.
TAIL = 20
SPANS = ("1 minute", "1 hour", "1 day", "100 years")

# No row if nothing happened within the span. A device's clock may run ahead; data cannot be newer than now.
FRESHNESS = """
WITH newest AS (
    SELECT max(event_ts) AS at FROM live.access_events
    WHERE event_ts > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
    UNION ALL
    SELECT max(reported_at) FROM live.health_reports
    WHERE reported_at > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
)
SELECT now() AS checked_at, least(now(), max(at)) AS newest_at FROM newest HAVING max(at) IS NOT NULL
"""

# Of the models that take events and reports in; NULL after a run on empty tables.
MART_FRESHNESS = """
SELECT now() AS checked_at,
       greatest((SELECT max(source_ingested_at) FROM marts.fct_access_hourly),
                (SELECT max(source_ingested_at) FROM marts.fct_device_health_hourly)) AS newest_at
"""

LATEST_EVENTS = """
SELECT events.event_id, events.event_ts, events.event_type, events.device_id, devices.household_id,
       events.trigger_source, coalesce(devices.time_zone, 'UTC') AS time_zone,
       extract(epoch FROM events.ingested_at - events.event_ts)::float8 AS seconds_to_row
FROM (SELECT * FROM live.access_events
      WHERE event_ts > now() - %(span)s::interval AND ingested_at > now() - %(span)s::interval - interval '5 minutes'
        AND {fleet}
      ORDER BY event_ts DESC, event_id DESC LIMIT {tail}) AS events
LEFT JOIN live.devices USING (device_id)
ORDER BY events.event_ts DESC, events.event_id DESC
""".replace("{tail}", str(TAIL))


def health_interval_s() -> float:
    """Seconds between two health reports of a device; silent for 2.5 times as long, it counts as offline."""
    return float(os.environ.get("HEALTH_CHECK_INTERVAL") or 30)


def connect() -> Engine:
    """A pool of read-only sessions, opened at need; one that died is replaced when it is next asked for."""
    options = f"-c default_transaction_read_only=on -c statement_timeout={TIME_LIMIT_S}s -c timezone=UTC"

    def session() -> Any:
        connection = pipeline_settings.connect_postgres("dashboard", options=options, connect_timeout=3)
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE " + ROLE)
        connection.commit()
        return connection

    # as many as there are threads: a page's fragments may run side by side
    return create_engine("postgresql+psycopg2://", creator=session, pool_pre_ping=True, pool_size=10, max_overflow=20)


def fetch(engine: Engine, query: str, parameters: dict[str, Any]) -> pd.DataFrame:
    """The rows of one of the dashboard's statements. Raises sqlalchemy.exc.DBAPIError."""
    hours = HOURS_OF_THE_FLEET if parameters.get("whole_fleet") else HOURS_OF_DEVICES
    for name, text in {**hours, **FRAGMENTS, "{fleet}": FLEET}.items():
        query = query.replace(name, text)
    with engine.connect() as connection:
        result = connection.exec_driver_sql(query, parameters)
        return pd.DataFrame(result.all(), columns=list(result.keys()))
