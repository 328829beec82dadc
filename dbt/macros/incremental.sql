{#-
  What the incremental models share.

  A run takes the rows that arrived since its model's last run, works out what they touch (hours, days, sessions from
  some moment on), and computes just that anew. What a model has seen is written into intermediate.model_watermarks in
  the transaction that writes the model's rows: a failed run moves nothing, and the next one makes up for it.
-#}

{#- The table of the watermarks. noticed_at: up to when changes of the registry have been taken into account. -#}
{% macro create_model_watermarks() %}
    {% if execute and flags.WHICH in ('run', 'build', 'test') %}
        {% do make_schema('intermediate') %}
        {% do run_query(
            'create table if not exists intermediate.model_watermarks ('
            ~ 'relation text primary key, data_clock_at timestamptz, noticed_at timestamptz)'
        ) %}
    {% endif %}
{% endmacro %}

{#-
  What this model has seen, as a literal and not a subquery, so that PostgreSQL knows how few rows come. Of
  'arrived_after' (less the overlap within which a slow transaction may still commit behind it), 'data_clock_at' and
  'noticed_at'. A model that has seen nothing begins at -infinity.
-#}
{% macro seen(what) %}
    {% set found = none %}
    {% if execute %}
        {% set query %}
            select
                cast(data_clock_at - interval '{{ var("overlap_seconds") }} seconds' as text) as arrived_after,
                cast(data_clock_at as text) as data_clock_at,
                cast(noticed_at as text) as noticed_at
            from intermediate.model_watermarks
            where relation = '{{ this.schema }}.{{ this.identifier }}'
        {% endset %}
        {% set rows = run_query(query).rows %}
        {% if rows %}{% set found = rows[0][what] %}{% endif %}
    {% endif %}
    {{ return("timestamptz '" ~ (found or '-infinity') ~ "'") }}
{% endmacro %}

{#-
  Whether a row is this run's to look at: it has arrived since the model's last run, or happened in the days that are to
  be made anew. Those are backfill_since and backfill_until, the first and the last of them, in UTC; either may be left out:
  dbt build … --vars '{backfill_since: 2026-05-01, backfill_until: 2026-05-07}'
-#}
{% macro is_new(arrived_at, happened_at) -%}
    ({{ arrived_at }} > {{ seen('arrived_after') }} {{ or_in_backfill(happened_at) }})
{%- endmacro %}

{% macro or_in_backfill(happened_at) -%}
    {%- set since, until = var('backfill_since'), var('backfill_until') -%}
    {%- if since or until %}
        or (
            -- local hours that begin or end within the days: those of a zone may be half an hour off
            {{ happened_at }} >= {{ backfill_from() }} - interval '1 hour'
            and {{ happened_at }}
            < (cast('{{ until or "infinity" }}' as timestamp) + interval '25 hours') at time zone 'UTC'
        )
    {%- endif -%}
{%- endmacro %}

{#- From when on rows are to be made anew: infinity in an ordinary run. -#}
{% macro backfill_from() -%}
    {%- set since, until = var('backfill_since'), var('backfill_until') -%}
    (cast('{{ since or ("-infinity" if until else "infinity") }}' as timestamp) at time zone 'UTC')
{%- endmacro %}

{#-
  As `seen`, for int_device_activity, which the data clock itself comes from: its newest row's arrival, less the overlap.
-#}
{% macro newest_known() %}
    {% set found = none %}
    {% if execute %}
        {% set query %}
            select cast(max(source_ingested_at) - interval '{{ var("overlap_seconds") }} seconds' as text) from {{ this }}
        {% endset %}
        {% set found = run_query(query).rows[0][0] %}
    {% endif %}
    {{ return("timestamptz '" ~ (found or '-infinity') ~ "'") }}
{% endmacro %}

{#- The relation's own lock until its transaction ends: of two runs at once the later one waits. -#}
{% macro own_lock() -%}
    pg_advisory_xact_lock(hashtext('dbt {{ this.schema }}.{{ this.identifier }}'))
{%- endmacro %}

{#- As a snapshot's pre-hook, in its transaction: two at once would both add the same version. -#}
{% macro take_lock() %}
    select {{ own_lock() }}
{% endmacro %}

{#-
  As a pre-hook, in the model's transaction: takes the model's lock, so that of two runs at once the later one waits, and
  notes what the model is about to see: of the raw tables all up to the data clock, of other models what those have seen.
-#}
{% macro begin_run() %}
    {% set models = [] %}
    {% for id in model.depends_on.nodes if id in graph.nodes %}
        {% set node = graph.nodes[id] %}
        {% if node.config.materialized == 'incremental' and node.name != 'int_device_activity' %}
            {% do models.append("'" ~ node.schema ~ "." ~ node.alias ~ "'") %}
        {% endif %}
    {% endfor %}
    select
        {{ own_lock() }},
        set_config('smart_access.data_clock_at', coalesce(cast(seen.data_clock_at as text), ''), true),
        set_config('smart_access.noticed_at', coalesce(cast(seen.noticed_at as text), ''), true)
    from (
        select
            min(data_clock_at) as data_clock_at,
            min(noticed_at) as noticed_at
        from (
            select
                (select data_clock_at from {{ ref('int_data_clock') }}) as data_clock_at,
                (select max(changed_at) from {{ ref('int_device_changes') }}) as noticed_at
            {% if models %}
                union all
                select
                    coalesce(data_clock_at, '-infinity'),
                    coalesce(noticed_at, '-infinity')
                from intermediate.model_watermarks
                where relation in ({{ models | join(', ') }})
            {% endif %}
        ) as sources
    ) as seen
{% endmacro %}

{#- As a post-hook, in the same transaction: keeps it. -#}
{% macro remember_run() %}
    insert into intermediate.model_watermarks (relation, data_clock_at, noticed_at)
    select
        '{{ this.schema }}.{{ this.identifier }}',
        cast(nullif(current_setting('smart_access.data_clock_at'), '') as timestamptz),
        cast(nullif(current_setting('smart_access.noticed_at'), '') as timestamptz)
    on conflict (relation) do update
    set data_clock_at = excluded.data_clock_at, noticed_at = excluded.noticed_at
{% endmacro %}

{#-
  The incremental strategy replace_touched: the model's rows replace those of the same key. A row without
  source_ingested_at only deletes: it stands for one that no longer exists (with_vanished makes them).
-#}
{% macro get_incremental_replace_touched_sql(arg_dict) %}
    {% set columns = arg_dict['dest_columns'] | map(attribute='quoted') | join(', ') %}
    delete from {{ arg_dict['target_relation'] }} as old
    using {{ arg_dict['temp_relation'] }} as fresh
    where
        {% for name in arg_dict['unique_key'] %}
            {{ 'and ' if not loop.first }}old.{{ name }} = fresh.{{ name }}
        {% endfor %};
    insert into {{ arg_dict['target_relation'] }} ({{ columns }})
    select {{ columns }} from {{ arg_dict['temp_relation'] }} where source_ingested_at is not null
{% endmacro %}

{#-
  Ends a model, after its last CTE: all of `computed`; and, of the keys in `existing`, those that it lacks, with NULL in
  every other column. Neither changes what is `frozen` (a list of conditions on `rows`, dbt/macros/retention.sql); in a
  full refresh such rows come from the old table.

  is_sequence: of rows that go on for as long as they do. Then one that is finished in what is there now may have gone
  on into what was swept; as it was then, it stays.
-#}
{% macro with_vanished(computed, existing, key, frozen, is_sequence=false) %}
    {% set changeable = 'not (' ~ frozen | join(') and not (') ~ ')' %}
    , fresh as (
        select rows.*
        from {{ computed }} as rows
        where
            {{ changeable }}
            {% if is_sequence and is_anything_swept() and (is_incremental() or replaced_table()) %}
                and not exists (
                    select 1
                    from (
                        select {{ key | join(', ') }}
                        from {{ existing if is_incremental() else this }} as rows
                        where not ({{ changeable }})
                    ) as frozen
                    where
                        {% for name in key %}
                            {{ 'and ' if not loop.first }}frozen.{{ name }} = rows.{{ name }}
                        {% endfor %}
                )
            {% endif %}
    )

    select * from fresh
    {% if is_incremental() %}
        union all
        select (jsonb_populate_record(cast(null as {{ this }}), to_jsonb(vanished))).*
        from (
            select {{ key | join(', ') }} from {{ existing }} as rows where {{ changeable }}
            except
            select {{ key | join(', ') }} from fresh
        ) as vanished
    {% else %}
        {{ take_over(frozen) }}
    {% endif %}
{% endmacro %}

{#-
  Devices whose version, household or time zone has changed since this model's last run: their rows are made anew. With
  what='moved_at' only those of another household, region or time zone.
-#}
{% macro changed_devices(noticed_at, what='changed_at') %}
    select device_id from {{ ref('int_device_changes') }} where {{ what }} > {{ noticed_at }}
{% endmacro %}

{#-
  To be cross joined: the rows of a relation for which the condition within the call holds (they are `candidates` there),
  found by one look into an index for each row on the left. `offset 0` keeps PostgreSQL from making a join of it: of the
  few rows on the left, new in this run, it has no statistics, and might read the whole of a large table.
-#}
{% macro look_up(relation) -%}
    lateral (
        select *
        from {{ relation }} as candidates
        where {{ caller() }}
        offset 0
    )
{%- endmacro %}
