-- Every table that the stream, the CSV load and the replay write. Applied at each start: safe to run again, and it
-- waits for nobody once the objects exist. All times are timestamptz. Columns come in the contracts' order
-- (streaming/contracts.py); a test compares the two.

CREATE TABLE IF NOT EXISTS raw_access_events (
    event_id        uuid        NOT NULL,
    device_id       text        NOT NULL,
    event_ts        timestamptz NOT NULL,
    event_type      text        NOT NULL CHECK (event_type IN ('open', 'close', 'fail')),
    trigger_source  text        NOT NULL,
    extra           jsonb,
    kafka_partition integer,
    kafka_offset    bigint,
    ingested_at     timestamptz NOT NULL DEFAULT now(),
    file_load_id    bigint,  -- the file that it came from
    PRIMARY KEY (event_id)
);

CREATE TABLE IF NOT EXISTS raw_device_health (
    device_id           text        NOT NULL,
    reported_at         timestamptz NOT NULL,
    battery_pct         real,
    signal_strength_dbm real,
    is_online           boolean     NOT NULL,
    extra               jsonb,
    kafka_partition     integer,
    kafka_offset        bigint,
    ingested_at         timestamptz NOT NULL DEFAULT now(),
    file_load_id        bigint,
    PRIMARY KEY (device_id, reported_at)
);

-- The fleet registry: the newest record of each key; a tombstone leaves the row and sets deleted_at.
CREATE TABLE IF NOT EXISTS raw_devices (
    device_id        text        NOT NULL,
    household_id     text,
    device_type      text,
    model            text,
    firmware_version text,
    installed_at     timestamptz,
    updated_at       timestamptz NOT NULL,
    deleted_at       timestamptz,
    extra            jsonb,
    kafka_partition  integer,
    kafka_offset     bigint,
    ingested_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id),
    CHECK (household_id IS NOT NULL OR deleted_at IS NOT NULL)
);

CREATE TABLE IF NOT EXISTS raw_households (
    household_id    text        NOT NULL,
    region          text,
    timezone        text,
    updated_at      timestamptz NOT NULL,
    deleted_at      timestamptz,
    extra           jsonb,
    kafka_partition integer,
    kafka_offset    bigint,
    ingested_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (household_id)
);

-- BRIN on the arrival time, for the incremental models: arrival order is the order on disk, so the index stays tiny
-- and costs an insert next to nothing, where a btree would cost a third of the rate.
-- Asked for first: even IF NOT EXISTS would wait for every open write, and hold up all that come after.
DO $$
BEGIN
    IF to_regclass('raw_access_events_ingested_at') IS NULL THEN
        CREATE INDEX raw_access_events_ingested_at ON raw_access_events USING brin (ingested_at)
            WITH (pages_per_range = 32, autosummarize = on);
    END IF;
    IF to_regclass('raw_device_health_ingested_at') IS NULL THEN
        CREATE INDEX raw_device_health_ingested_at ON raw_device_health USING brin (ingested_at)
            WITH (pages_per_range = 32, autosummarize = on);
    END IF;
END $$;

-- The ledger: for each partition, from where to where it was consumed and what became of every offset in between.
-- It advances in the transaction that stores the rows, so it is the truth about the position, not Kafka's commit.
CREATE TABLE IF NOT EXISTS ingest_offsets (
    cluster_id     text        NOT NULL,
    consumer_group text        NOT NULL,
    topic          text        NOT NULL,
    partition      integer     NOT NULL,
    start_offset   bigint      NOT NULL,
    next_offset    bigint      NOT NULL,
    stored         bigint      NOT NULL DEFAULT 0,
    duplicates     bigint      NOT NULL DEFAULT 0,
    dead           bigint      NOT NULL DEFAULT 0,
    gaps           bigint      NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    suppressed     bigint      NOT NULL DEFAULT 0,  -- of erased households and devices, and so not taken
    PRIMARY KEY (cluster_id, consumer_group, topic, partition),
    CHECK (next_offset >= start_offset)
) WITH (fillfactor = 50);

DO $$
BEGIN
    -- asked for first: altering a table or replacing a view waits for whoever is using it
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'ingest_offsets'::regclass AND attname = 'suppressed') THEN
        ALTER TABLE ingest_offsets ADD COLUMN suppressed bigint NOT NULL DEFAULT 0;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('ingest_ledger') AND attname = 'suppressed') THEN
        CREATE OR REPLACE VIEW ingest_ledger AS
        SELECT cluster_id, consumer_group, topic, partition, start_offset, next_offset,
               stored, duplicates, dead, gaps,
               next_offset - start_offset AS consumed,
               stored + duplicates + dead + gaps + suppressed = next_offset - start_offset AS balanced,
               updated_at, suppressed
        FROM ingest_offsets;
    END IF;
END $$;

-- The ledger's counts by minute, written with it: what became of the records over time. The partition is part of the
-- key, so that no two consumers wait for each other's row.
CREATE TABLE IF NOT EXISTS ingest_minutes (
    cluster_id       text        NOT NULL,
    consumer_group   text        NOT NULL,
    topic            text        NOT NULL,
    partition        integer     NOT NULL,
    minute_starts_at timestamptz NOT NULL,
    stored           bigint      NOT NULL DEFAULT 0,
    duplicates       bigint      NOT NULL DEFAULT 0,
    dead             bigint      NOT NULL DEFAULT 0,
    suppressed       bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (cluster_id, consumer_group, topic, partition, minute_starts_at)
) WITH (fillfactor = 50);

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'ingest_minutes'::regclass AND attname = 'suppressed') THEN
        ALTER TABLE ingest_minutes ADD COLUMN suppressed bigint NOT NULL DEFAULT 0;
    END IF;
    IF to_regclass('ingest_minutes_minute_starts_at') IS NULL THEN
        CREATE INDEX ingest_minutes_minute_starts_at ON ingest_minutes USING brin (minute_starts_at)
            WITH (pages_per_range = 32, autosummarize = on);
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS dead_letters (
    dead_letter_id  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cluster_id      text,
    consumer_group  text,
    topic           text        NOT NULL,
    partition       integer,
    "offset"        bigint,
    record_ts       timestamptz,
    headers         jsonb,
    source_file     text,
    source_line     bigint,
    key             bytea,
    value           bytea,
    reason          text        NOT NULL,
    detail          text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    -- What became of it: NULL is open; else replayed, duplicate (the row was there already) or still_invalid.
    fate            text        CHECK (fate IN ('replayed', 'duplicate', 'still_invalid')),
    fate_detail     text,
    fate_at         timestamptz,
    replay_attempts integer     NOT NULL DEFAULT 0,
    file_load_id    bigint,
    UNIQUE (cluster_id, consumer_group, topic, partition, "offset")
);

-- The history of files: what became of every row of each. `rows` is the position, too: it advances in the transaction
-- that stores the rows, so a load that was killed goes on exactly there. Of one content and reading there is one load.
CREATE TABLE IF NOT EXISTS file_loads (
    file_load_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sha256       text        NOT NULL,  -- of the content, decompressed
    table_name   text        NOT NULL,
    columns      text        NOT NULL,  -- a JSON array: what each column was read as
    file_name    text        NOT NULL,
    size_bytes   bigint      NOT NULL,  -- of the content, decompressed
    rows         bigint      NOT NULL DEFAULT 0,
    stored       bigint      NOT NULL DEFAULT 0,
    duplicates   bigint      NOT NULL DEFAULT 0,
    dead         bigint      NOT NULL DEFAULT 0,
    suppressed   bigint      NOT NULL DEFAULT 0,
    balanced     boolean     GENERATED ALWAYS AS (stored + duplicates + dead + suppressed = rows) STORED,
    started_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz,  -- NULL: not at the file's end yet
    pinned       boolean     NOT NULL DEFAULT false  -- its rows stay, whatever their age
) WITH (fillfactor = 50);

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'file_loads'::regclass AND attname = 'suppressed') THEN
        ALTER TABLE file_loads
            ADD COLUMN suppressed bigint NOT NULL DEFAULT 0,
            ALTER COLUMN balanced SET EXPRESSION AS (stored + duplicates + dead + suppressed = rows);
    END IF;
    IF to_regclass('file_loads_once') IS NULL THEN
        CREATE UNIQUE INDEX file_loads_once ON file_loads (sha256, table_name, md5(columns));
    END IF;
END $$;

-- The pseudonym of each device and household, for the views that analysts read (docs/security.md#analysts). It is an HMAC
-- whose key never comes here; whoever may read this table needs no key.
CREATE TABLE IF NOT EXISTS pseudonyms (
    kind      text NOT NULL CHECK (kind IN ('device', 'household')),
    id        text NOT NULL,
    pseudonym text NOT NULL UNIQUE,
    PRIMARY KEY (kind, id)
);

-- Tables that were made before these columns came. Asked for first, as above.
DO $$
DECLARE
    missing record;
BEGIN
    FOR missing IN
        SELECT name, definition
        FROM (VALUES
            ('raw_access_events', 'file_load_id bigint'),
            ('raw_device_health', 'file_load_id bigint'),
            ('dead_letters', 'file_load_id bigint'),
            ('file_loads', 'pinned boolean NOT NULL DEFAULT false')
        ) AS columns (name, definition)
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = to_regclass(name) AND attname = split_part(definition, ' ', 1) AND NOT attisdropped
        )
    LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN %s', missing.name, missing.definition);
    END LOOP;
END $$;

-- What the sweeps have removed of each device (docs/retention.md): its raw rows from swept_from (the oldest that was
-- there, by the hour) up to before horizon are gone, but for those of pinned files. Written with each deletion.
CREATE TABLE IF NOT EXISTS device_horizons (
    stream     text        NOT NULL CHECK (stream IN ('events', 'health')),
    device_id  text        NOT NULL,
    swept_from timestamptz NOT NULL,
    horizon    timestamptz NOT NULL,
    PRIMARY KEY (stream, device_id)
) WITH (fillfactor = 50);

-- The audit: one line for each sweep, also for one that found nothing. `deleted` grows in the transactions that delete.
CREATE TABLE IF NOT EXISTS sweeps (
    sweep_id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    retention_days    integer     NOT NULL,
    cutoff            timestamptz NOT NULL,  -- of raw rows, dead letters, and what follows the raw rows in the marts
    aggregates_cutoff timestamptz,  -- of hours and days; so far, while it is at work; NULL where there are no marts
    deleted           jsonb       NOT NULL DEFAULT '{}',  -- rows by table
    started_at        timestamptz NOT NULL DEFAULT now(),
    ended_at          timestamptz  -- NULL: at work, or stopped; the next one goes on
) WITH (fillfactor = 50);
-- One row for each household that was erased (docs/erasure.md): when, by whom, how many rows. It names nobody.
CREATE TABLE IF NOT EXISTS erasures (
    erasure_id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    erased_by      text        NOT NULL DEFAULT session_user,
    rows           jsonb       NOT NULL DEFAULT '{}',  -- deleted, by table
    tombstones     integer,  -- sent to Kafka; NULL: none, it was done without Kafka
    recompute_from timestamptz,  -- what is still to be computed anew; NULL at the end
    recompute_to   timestamptz,
    recompute_all  boolean     NOT NULL DEFAULT false,  -- and not only the fleet's sums: a device of it moved
    started_at     timestamptz NOT NULL DEFAULT now(),
    ended_at       timestamptz  -- NULL: it was interrupted, and is to be started again
);

-- Whose records are no longer taken, and for what times: half-open, by the record's own time. A digest is HMAC-SHA256 of
-- `household:ID` or `device:ID` under the salt.
CREATE TABLE IF NOT EXISTS suppressions (
    kind       text        NOT NULL CHECK (kind IN ('household', 'device')),
    digest     bytea       NOT NULL,
    valid_from timestamptz NOT NULL DEFAULT '-infinity',
    valid_to   timestamptz NOT NULL DEFAULT 'infinity',
    erasure_id bigint      NOT NULL REFERENCES erasures,
    PRIMARY KEY (digest, valid_from)
);

-- One row, made with the first suppression. Every writer asks for the version in each of its transactions, and reads
-- the list again when it has changed.
CREATE TABLE IF NOT EXISTS suppression_list (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    salt    bytea   NOT NULL,
    version bigint  NOT NULL
);
