"""A sweep of the retention as docs/retention.md has it, in one piece and with nothing going on beside it."""

from __future__ import annotations

from datetime import date
from typing import Any

# The last moment before the cutoff at which no session, burst, silence or flapping spell is cut in two
HORIZONS = """
WITH moves AS (
    SELECT device_id, event_ts AS at, event_type,
           lag(event_type) OVER (PARTITION BY device_id ORDER BY event_ts, event_id) AS before,
           lag(event_ts) OVER (PARTITION BY device_id ORDER BY event_ts, event_id) AS before_at
    FROM raw_access_events AS raw
    WHERE event_type <> 'fail' AND event_ts < %(cutoff)s AND event_ts >= coalesce((
        SELECT horizon FROM device_horizons AS known
        WHERE known.stream = 'events' AND known.device_id = raw.device_id), '-infinity')
), reports AS (
    SELECT device_id, reported_at AS at,
           count(*) OVER latest = 21 AND bool_and(is_online) OVER latest AS is_calm
    FROM raw_device_health AS raw
    WHERE reported_at < %(cutoff)s AND reported_at >= coalesce((
        SELECT horizon FROM device_horizons AS known
        WHERE known.stream = 'health' AND known.device_id = raw.device_id), '-infinity')
    WINDOW latest AS (PARTITION BY device_id ORDER BY reported_at ROWS BETWEEN 20 PRECEDING AND CURRENT ROW)
)
SELECT 'events' AS stream, device_id, max(at) AS horizon
FROM moves
WHERE event_type = 'open' AND coalesce(before = 'close' AND before_at < at, before IS NULL)
  AND NOT EXISTS (
      SELECT FROM raw_access_events AS same
      WHERE same.device_id = moves.device_id AND same.event_ts = moves.at AND same.event_type <> 'open')
GROUP BY device_id
UNION ALL SELECT 'health', device_id, max(at) FROM reports WHERE is_calm GROUP BY device_id
UNION ALL SELECT stream, device_id, horizon FROM device_horizons
"""

RAW = """
WITH gone AS (
    DELETE FROM {table} AS raw USING (
        SELECT stream, device_id, max(horizon) AS horizon FROM ({horizons}) AS all_of_them GROUP BY 1, 2
    ) AS h
    WHERE h.stream = '{stream}' AND h.device_id = raw.device_id AND raw.{time} < h.horizon
      AND coalesce(raw.file_load_id NOT IN (SELECT file_load_id FROM file_loads WHERE pinned), true)
    RETURNING raw.device_id, raw.{time} AS at, h.horizon
)
INSERT INTO device_horizons AS known (stream, device_id, swept_from, horizon)
SELECT '{stream}', device_id, date_trunc('hour', min(at), 'UTC'), max(horizon) FROM gone GROUP BY device_id
ON CONFLICT (stream, device_id) DO UPDATE
SET swept_from = least(known.swept_from, excluded.swept_from), horizon = greatest(known.horizon, excluded.horizon)
"""

FOLLOWING = [  # mart, stream, its time, where its raw rows are
    ("marts.fct_open_sessions", "events", "opened_at", "raw_access_events r WHERE r.event_id = t.session_id"),
    (
        "intermediate.int_failed_bursts",
        "events",
        "started_at",
        "raw_access_events r WHERE r.event_id = t.first_event_id",
    ),
    ("marts.fct_access_events", "events", "event_at", "raw_access_events r WHERE r.event_id = t.event_id"),
    (
        "intermediate.int_unusual_opens", "events", "hour_starts_at", "raw_access_events r WHERE r.device_id = "
        "t.device_id AND r.event_ts >= t.hour_starts_at AND r.event_ts < t.hour_starts_at + interval '1 hour'",
    ),
    (
        "intermediate.int_battery_cliffs", "health", "hour_starts_at", "raw_device_health r WHERE r.device_id = "
        "t.device_id AND r.reported_at >= t.hour_starts_at AND r.reported_at < t.hour_starts_at + interval '1 hour'",
    ),
    *(
        (table, "health", "started_at",
         "raw_device_health r WHERE r.device_id = t.device_id AND r.reported_at = t.started_at")
        for table in ("intermediate.int_flapping", "marts.fct_offline_sessions")
    ),
]  # fmt: skip

FLEET = """
DELETE FROM marts.fct_fleet_hourly AS t WHERE t.hour_starts_at < %(aggregates_cutoff)s
  AND t.hour_starts_at >= coalesce((SELECT max(aggregates_cutoff) FROM sweeps), '-infinity')
  AND (
    SELECT count(DISTINCT d.household_id)
    FROM (
        SELECT device_id, hour_starts_at, local_date, local_hour FROM marts.fct_access_hourly
        UNION ALL SELECT device_id, hour_starts_at, local_date, local_hour FROM marts.fct_device_health_hourly
    ) AS hours
    JOIN marts.dim_devices AS d ON d.device_id = hours.device_id
        AND (d.version = 1 OR d.valid_from <= hours.hour_starts_at)
        AND (d.valid_to IS NULL OR hours.hour_starts_at < d.valid_to)
    WHERE (hours.hour_starts_at, hours.local_date, hours.local_hour) = (t.hour_starts_at, t.local_date, t.local_hour)
  ) < 5"""

SPANS = {  # the device, the stream, and the time of a row that goes with the devices' aggregates
    "fct_access_hourly": ("h.stream = 'events' AND h.device_id = t.device_id", "hour"),
    "fct_device_health_hourly": ("h.stream = 'health' AND h.device_id = t.device_id", "hour"),
    "fct_device_daily_summary": ("h.device_id = t.device_id", "day"),
    "fct_triggers_daily": ("h.stream = 'events' AND d.household_id = t.household_id", "day"),
}
ENDS = {
    "hour": ("t.hour_starts_at", "t.hour_starts_at + interval '1 hour'"),
    "day": (
        "t.local_date::timestamp AT TIME ZONE 'UTC'",
        "(t.local_date + 1)::timestamp AT TIME ZONE coalesce(d.time_zone, 'UTC')",
    ),
}


def sweep(connection: Any, days: int, today: date, months: int = 13) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT (%s::timestamp - make_interval(days => %s)) AT TIME ZONE 'UTC'", (today, days))
        (cutoff,) = cursor.fetchone()
        cursor.execute("SELECT (%s::timestamp - make_interval(months => %s)) AT TIME ZONE 'UTC'", (today, months))
        values = {"days": days, "cutoff": cutoff, "aggregates_cutoff": min(cutoff, cursor.fetchone()[0])}
        for stream, table, time in (
            ("events", "raw_access_events", "event_ts"),
            ("health", "raw_device_health", "reported_at"),
        ):
            cursor.execute(RAW.format(table=table, stream=stream, time=time, horizons=HORIZONS), values)
        for table, stream, time, raw in FOLLOWING:
            cursor.execute(
                f"DELETE FROM {table} AS t USING device_horizons AS h WHERE h.stream = '{stream}'"  # noqa: S608
                f" AND h.device_id = t.device_id AND t.{time} < h.horizon AND NOT EXISTS (SELECT FROM {raw})"
            )
        cursor.execute(FLEET, values)
        for mart, (joined, span) in SPANS.items():
            starts_at, ends_at = ENDS[span]
            cursor.execute(
                f"DELETE FROM marts.{mart} AS t USING device_horizons AS h"  # noqa: S608
                " LEFT JOIN marts.dim_devices AS d ON d.device_id = h.device_id"
                f"{' AND d.is_current' if mart == 'fct_device_daily_summary' else ''}"
                f" WHERE {joined} AND {starts_at} < %(aggregates_cutoff)s"
                f" AND h.swept_from < {ends_at} AND {ends_at} <= h.horizon",
                values,
            )
        cursor.execute(
            "INSERT INTO sweeps (retention_days, cutoff, aggregates_cutoff, ended_at)"
            " VALUES (%(days)s, %(cutoff)s, %(aggregates_cutoff)s, now())",
            values,
        )
