-- What the dashboard reads beside the marts, and the role that it reads it as. The views run with their owner's rights:
-- whoever is only dashboard_read sees no raw table, no payload of a dead letter, and can write nothing.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dashboard_read') THEN
        CREATE ROLE dashboard_read NOLOGIN;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN  -- then the server's owner makes it (docs/operations.md)
        RAISE NOTICE 'the role dashboard_read is missing, and % may not create it', current_user;
    WHEN duplicate_object OR unique_violation THEN NULL;  -- a role is the whole server's: another database was faster
END $$;

DO $$
BEGIN
    IF to_regclass('live.devices') IS NOT NULL THEN
        RETURN;  -- replacing a view would wait for whoever is reading it
    END IF;
    CREATE SCHEMA IF NOT EXISTS live;

    CREATE VIEW live.devices AS
    SELECT device_id, devices.household_id, device_type, model, firmware_version, region,
           coalesce(timezone, 'UTC') AS time_zone
    FROM raw_devices AS devices
    LEFT JOIN raw_households AS households USING (household_id)
    WHERE devices.deleted_at IS NULL;

    -- The newest health report of each device of the registry; NULLs where there is none.
    CREATE VIEW live.device_health AS
    SELECT devices.device_id, newest.reported_at, newest.is_online, newest.battery_pct, newest.signal_strength_dbm
    FROM raw_devices AS devices
    LEFT JOIN LATERAL (
        SELECT reported_at, is_online, battery_pct, signal_strength_dbm
        FROM raw_device_health AS health
        WHERE health.device_id = devices.device_id
        ORDER BY reported_at DESC LIMIT 1
    ) AS newest ON true
    WHERE devices.deleted_at IS NULL;

    CREATE VIEW live.access_events AS
    SELECT event_id, device_id, event_ts, event_type, trigger_source, ingested_at
    FROM raw_access_events;

    CREATE VIEW live.health_reports AS
    SELECT device_id, reported_at, battery_pct, signal_strength_dbm, is_online, ingested_at
    FROM raw_device_health;

    CREATE VIEW live.dead_letters AS
    SELECT dead_letter_id, topic, partition, "offset", source_file, source_line, reason, detail, created_at, fate
    FROM dead_letters;
END $$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('live.ledger') AND attname = 'suppressed') THEN
        CREATE OR REPLACE VIEW live.ledger AS
        SELECT cluster_id, consumer_group, topic, partition, start_offset, next_offset, consumed, stored, duplicates,
               dead, gaps, balanced, updated_at, suppressed
        FROM ingest_ledger;

        CREATE OR REPLACE VIEW live.minutes AS
        SELECT topic, minute_starts_at, sum(stored)::bigint AS stored, sum(duplicates)::bigint AS duplicates,
               sum(dead)::bigint AS dead, sum(suppressed)::bigint AS suppressed
        FROM ingest_minutes
        GROUP BY topic, minute_starts_at;
    END IF;
END $$;

DO $$
BEGIN
    IF to_regclass('live.sweeps') IS NULL THEN
        CREATE VIEW live.sweeps AS
        SELECT sweep_id, retention_days, started_at, ended_at
        FROM sweeps;
    END IF;
END $$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'dashboard_read')
       AND NOT (has_schema_privilege('dashboard_read', 'live', 'USAGE')
                AND has_table_privilege('dashboard_read', 'live.sweeps', 'SELECT')) THEN
        GRANT USAGE ON SCHEMA live TO dashboard_read;
        GRANT SELECT ON ALL TABLES IN SCHEMA live TO dashboard_read;
    END IF;
END $$;
