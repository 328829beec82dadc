-- Minutes are those of arrival, so only the newest change. A minute of which a sweep has removed rows stays as it was:
-- without them it would have fewer than the table has.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key=['stream', 'minute_starts_at'],
        indexes=[{'columns': ['minute_starts_at']}],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with arrivals as (
    select
        'events' as stream,
        event_at as happened_at,
        ingested_at
    from {{ ref('stg_access_events') }}
    {% if is_incremental() %}
    where ingested_at >= date_trunc('minute', {{ seen('arrived_after') }}){{ or_in_backfill('ingested_at') }}
    {% endif %}
    union all
    select
        'health' as stream,
        reported_at as happened_at,
        ingested_at
    from {{ ref('stg_device_health') }}
    {% if is_incremental() %}
    where ingested_at >= date_trunc('minute', {{ seen('arrived_after') }}){{ or_in_backfill('ingested_at') }}
    {% endif %}
),

stored as (
    select
        stream,
        date_trunc('minute', ingested_at, 'UTC') as minute_starts_at,
        count(*) as rows_in,
        count(*) filter (
            where ingested_at - happened_at > interval '{{ var("late_after_seconds") }} seconds'
        ) as late_rows,
        percentile_cont(array[0.5, 0.95, 0.99]) within group (
            order by cast(extract(epoch from ingested_at - happened_at) as double precision)
        ) as lags
    from arrivals
    group by stream, minute_starts_at
),

refused as (
    select
        case topic when 'smart-access.events' then 'events' when 'smart-access.health' then 'health' end as stream,
        minute_starts_at,
        sum(duplicates) as duplicates,
        sum(dead) as dead_letters
    from {{ ref('stg_ingest_minutes') }}
    where
        topic in ('smart-access.events', 'smart-access.health')
        and duplicates + dead > 0
        {% if is_incremental() %}
        and {{ is_new("minute_starts_at + interval '1 minute'", 'minute_starts_at') }}
        {% endif %}
    group by stream, minute_starts_at
),

computed as (
    select
        coalesce(stored.stream, refused.stream) as stream,
        coalesce(stored.rows_in, 0) as rows_in,
        cast(coalesce(refused.duplicates, 0) as bigint) as duplicates,
        coalesce(stored.late_rows, 0) as late_rows,
        cast(coalesce(refused.dead_letters, 0) as bigint) as dead_letters,
        stored.lags[1] as lag_p50_seconds,
        stored.lags[2] as lag_p95_seconds,
        stored.lags[3] as lag_p99_seconds,
        coalesce(stored.minute_starts_at, refused.minute_starts_at) as minute_starts_at
    from stored
    full outer join refused on stored.stream = refused.stream and stored.minute_starts_at = refused.minute_starts_at
)

{% set swept_by = "(
    select coalesce(max(coalesce(ended_at, 'infinity')), '-infinity') from " ~ ref('stg_sweeps') ~ "
)" %}
{% set is_beyond = is_beyond_aggregates('rows.minute_starts_at') %}
{% set is_fuller = "rows.minute_starts_at < " ~ swept_by ~ " and not exists (
    select 1
    from computed
    where
        computed.stream = rows.stream
        and computed.minute_starts_at = rows.minute_starts_at
        and computed.rows_in >= rows.rows_in
)" %}
{% set was_fuller = "exists (
    select 1
    from " ~ this ~ " as known
    where
        known.stream = rows.stream
        and known.minute_starts_at = rows.minute_starts_at
        and known.minute_starts_at < " ~ swept_by ~ "
        and known.rows_in > rows.rows_in
)" if is_incremental() or replaced_table() else "false" %}
select rows.*
from computed as rows
where not ({{ is_beyond }}) and not ({{ was_fuller }})
{{ take_over([is_beyond, is_fuller]) }}
