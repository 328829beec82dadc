-- Who may do what (docs/security.md#roles), as roles that nobody logs in as: a login is made a member of one. Applied
-- by the tables' owner, at each of its starts: only what is missing is made or granted. The dashboard's role is made in
-- live_views.sql, which works without this file.

DO $$
DECLARE
    missing text;
BEGIN
    FOREACH missing IN ARRAY ARRAY['pipeline_ingest', 'pipeline_transform', 'pipeline_maintain', 'analyst_read'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = missing) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', missing);
            EXCEPTION
                WHEN insufficient_privilege THEN  -- then the server's owner makes it (docs/security.md)
                    RAISE NOTICE 'the role % is missing, and % may not create it', missing, current_user;
                WHEN duplicate_object OR unique_violation THEN NULL;  -- another database was faster
            END;
        END IF;
    END LOOP;
END $$;

-- Only an index's owner may summarize it; each run of the models wants that of the tables that it reads
-- (dbt/macros/summarize_arrivals.sql). Not while a vacuum does the same, which this would have to wait for.
DO $do$
BEGIN
    IF to_regprocedure('public.summarize_arrivals()') IS NULL THEN
        CREATE FUNCTION public.summarize_arrivals() RETURNS bigint
        LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$
            SELECT sum(brin_summarize_new_values(indexes.indexrelid))
            FROM pg_index AS indexes
            JOIN pg_class AS relations ON relations.oid = indexes.indexrelid
            JOIN pg_am AS methods ON methods.oid = relations.relam AND methods.amname = 'brin'
            WHERE relations.relnamespace = 'public'::regnamespace
              AND relations.relkind = 'i'  -- of a partitioned table those of its partitions
              AND pg_has_role(relations.relowner, 'USAGE')
              AND NOT EXISTS (
                  SELECT FROM pg_locks
                  WHERE pg_locks.relation = indexes.indrelid AND pg_locks.mode = 'ShareUpdateExclusiveLock'
              )
        $$;
        REVOKE EXECUTE ON FUNCTION public.summarize_arrivals() FROM PUBLIC;
    END IF;
END $do$;

-- The models' schemas are made here, as pipeline_transform may not: it may fill these and no others.
DO $$
DECLARE
    missing text;
BEGIN
    FOREACH missing IN ARRAY ARRAY['staging', 'intermediate', 'snapshots', 'marts', 'marts_pseudonymous'] LOOP
        IF to_regnamespace(missing) IS NULL THEN
            EXECUTE format('CREATE SCHEMA %I', missing);
        END IF;
    END LOOP;
END $$;

-- Each granted once, as a grant rewrites the catalogue.
DO $$
DECLARE
    missing text;
BEGIN
    FOR missing IN
        SELECT format('GRANT %s ON SCHEMA %I TO %I', privilege, name, rolname)
        FROM (VALUES
            ('pipeline_transform', '{staging,intermediate,snapshots,marts,marts_pseudonymous}'::text[],
             '{USAGE,CREATE}'::text[]),
            ('pipeline_maintain', '{intermediate,marts}', '{USAGE}'),
            ('dashboard_read', '{intermediate,marts}', '{USAGE}'),
            ('analyst_read', '{marts_pseudonymous}', '{USAGE}')
        ) AS rights (role, names, privileges)
        JOIN pg_roles ON rolname = role, unnest(names) AS name, unnest(privileges) AS privilege
        WHERE NOT has_schema_privilege(pg_roles.oid, name, privilege)
        UNION ALL
        SELECT format('GRANT %s ON public.%I TO %I', privilege, name, rolname)
        FROM (VALUES
            -- a duplicate is found, and a temporary table like a raw one is made, by reading it
            ('pipeline_ingest', '{raw_access_events,raw_device_health,raw_devices,raw_households,ingest_offsets,
              ingest_minutes,dead_letters,file_loads}'::text[], '{SELECT,INSERT}'::text[]),
            ('pipeline_ingest', '{raw_devices,raw_households,ingest_offsets,ingest_minutes,file_loads}', '{UPDATE}'),
            ('pipeline_ingest', '{ingest_ledger,suppressions,suppression_list}', '{SELECT}'),
            ('pipeline_transform', '{raw_access_events,raw_device_health,raw_devices,raw_households,ingest_minutes,
              device_horizons,sweeps,pseudonyms}', '{SELECT}'),
            ('pipeline_transform', '{pseudonyms}', '{INSERT}'),
            ('pipeline_maintain', '{raw_access_events,raw_device_health,dead_letters,ingest_minutes}',
             '{SELECT,DELETE,MAINTAIN}'),
            ('pipeline_maintain', '{device_horizons,sweeps}', '{SELECT,INSERT,UPDATE}'),
            ('pipeline_maintain', '{file_loads}', '{SELECT}')
        ) AS rights (role, names, privileges)
        JOIN pg_roles ON rolname = role, unnest(names) AS name, unnest(privileges) AS privilege
        WHERE NOT has_table_privilege(pg_roles.oid, to_regclass('public.' || name), privilege)
        UNION ALL
        SELECT 'GRANT UPDATE (fate, fate_detail, fate_at, replay_attempts) ON public.dead_letters TO pipeline_ingest'
        FROM pg_roles
        WHERE rolname = 'pipeline_ingest' AND NOT has_column_privilege(oid, 'public.dead_letters', 'fate', 'UPDATE')
        UNION ALL
        SELECT 'GRANT EXECUTE ON FUNCTION public.summarize_arrivals() TO pipeline_transform'
        FROM pg_roles
        WHERE rolname = 'pipeline_transform' AND NOT has_function_privilege(oid, 'public.summarize_arrivals()', 'EXECUTE')
    LOOP
        EXECUTE missing;
    END LOOP;
EXCEPTION
    WHEN insufficient_privilege THEN  -- of a schema that somebody else has made
        RAISE NOTICE '% may not grant what is missing: %', current_user, SQLERRM;
END $$;
