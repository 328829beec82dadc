-- From when on each device's raw rows are kept, in the temporary table `horizons`: one line for each device and stream
-- that has rows before the cutoff, or has had. Chosen so that nothing is cut in two, and that a device's present state
-- stays however long it has been silent (docs/retention.md). Only rows after the former horizon count: what lies before
-- it is pinned, or came late.

CREATE TEMPORARY TABLE IF NOT EXISTS horizons (
    stream     text,
    device_id  text,
    swept_from timestamptz,
    horizon    timestamptz,
    PRIMARY KEY (stream, device_id)
);
TRUNCATE horizons;
INSERT INTO horizons SELECT stream, device_id, swept_from, horizon FROM device_horizons;

-- Events: the last session that begins before the cutoff begins there, and no burst of failures reaches over it, as an
-- open ends them all. An open that is not later than all before it is no such place: a time cannot part them. Without
-- any open, what came within ten minutes of each other belongs together, and the last of it stays.
INSERT INTO horizons
WITH candidates AS (
    SELECT events.device_id, events.event_id, events.event_ts, events.event_type, events.file_load_id
    FROM raw_access_events AS events
    LEFT JOIN device_horizons AS swept ON swept.stream = 'events' AND swept.device_id = events.device_id
    WHERE events.event_ts < %(cutoff)s AND (swept.horizon IS NULL OR events.event_ts >= swept.horizon)
),
placed AS (
    SELECT
        candidates.*,
        lag(event_ts) OVER device AS before_at,
        max(event_ts) FILTER (WHERE event_type = 'open') OVER earlier AS opened_at,
        max(event_ts) FILTER (WHERE event_type = 'close') OVER earlier AS closed_at,
        max(event_ts) FILTER (WHERE event_type <> 'fail') OVER (PARTITION BY device_id) AS moved_at
    FROM candidates
    WINDOW
        device AS (PARTITION BY device_id ORDER BY event_ts, event_id),
        earlier AS (device ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
judged AS (
    SELECT
        placed.*,
        event_type = 'open' AND (opened_at IS NULL OR closed_at > opened_at)
            AND (before_at IS NULL OR before_at < event_ts) AS begins_session,
        (before_at IS NULL OR before_at < event_ts - interval '10 minutes')
            AND (moved_at IS NULL OR event_ts <= moved_at) AS begins_anew
    FROM placed
),
chosen AS (
    SELECT
        device_id,
        min(event_ts) FILTER (WHERE file_load_id IS NULL OR file_load_id NOT IN (
            SELECT file_load_id FROM file_loads WHERE pinned
        )) AS swept_from,
        CASE
            WHEN bool_or(event_type = 'open') THEN max(event_ts) FILTER (WHERE begins_session)
            ELSE max(event_ts) FILTER (WHERE begins_anew)
        END AS horizon
    FROM judged
    GROUP BY device_id
)
SELECT 'events', device_id, date_trunc('hour', swept_from, 'UTC'), horizon FROM chosen WHERE horizon IS NOT NULL
ON CONFLICT (stream, device_id) DO UPDATE
SET swept_from = least(horizons.swept_from, excluded.swept_from), horizon = greatest(horizons.horizon, excluded.horizon);

-- Health: a silence begins with an online report, and no flapping reaches over one that ends 21 online reports in a
-- row. A device that has flapped through more reports than the model looks back over (200) is cut at the last online
-- one; of fewer all stay. Without an online report a silence has no beginning, and all stay.
INSERT INTO horizons
WITH candidates AS (
    SELECT health.device_id, health.reported_at, health.is_online, health.file_load_id
    FROM raw_device_health AS health
    LEFT JOIN device_horizons AS swept ON swept.stream = 'health' AND swept.device_id = health.device_id
    WHERE health.reported_at < %(cutoff)s AND (swept.horizon IS NULL OR health.reported_at >= swept.horizon)
),
judged AS (
    SELECT
        candidates.*,
        count(*) OVER latest_21 = 21 AND bool_and(is_online) OVER latest_21 AS is_calm
    FROM candidates
    WINDOW latest_21 AS (PARTITION BY device_id ORDER BY reported_at ROWS BETWEEN 20 PRECEDING AND CURRENT ROW)
),
chosen AS (
    SELECT
        device_id,
        min(reported_at) FILTER (WHERE file_load_id IS NULL OR file_load_id NOT IN (
            SELECT file_load_id FROM file_loads WHERE pinned
        )) AS swept_from,
        coalesce(
            max(reported_at) FILTER (WHERE is_calm),
            CASE WHEN count(*) > 200 THEN max(reported_at) FILTER (WHERE is_online) END
        ) AS horizon
    FROM judged
    GROUP BY device_id
)
SELECT 'health', device_id, date_trunc('hour', swept_from, 'UTC'), horizon FROM chosen WHERE horizon IS NOT NULL
ON CONFLICT (stream, device_id) DO UPDATE
SET swept_from = least(horizons.swept_from, excluded.swept_from), horizon = greatest(horizons.horizon, excluded.horizon);

ANALYZE horizons;
