-- Recomputed are, from the last online report before anything new on, the silences of devices that reported, that are
-- silent, or that have fallen silent by the data clock.
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'started_at'],
        indexes=[
            {'columns': ['started_at']},
            {'columns': ['ended_at']},
            {'columns': ['device_id', 'ended_at']},
            {'columns': ['source_ingested_at']},
        ],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}
-- depends_on: {{ ref('int_device_activity') }}
{% set longest_gap = "interval '1 second' * 2.5 * " ~ health_interval_seconds() %}

with data_clock as (
    select data_clock_at from {{ ref('int_data_clock') }}
),

{% if is_incremental() %}
touched as (
    select
        device_id,
        min(reported_at) as touched_from
    from {{ ref('stg_device_health') }}
    where {{ is_new('ingested_at', 'reported_at') }}
    group by device_id
    union all
    select
        device_id,
        started_at
    from {{ this }}
    where ended_at is null
    union all
    select
        activity.device_id,
        activity.last_online_at
    from {{ ref('int_device_activity') }} as activity
    inner join data_clock on data_clock.data_clock_at - activity.last_online_at > {{ longest_gap }}
),

starts as (
    select
        earliest.device_id,
        coalesce(
            (
                select before.reported_at
                from {{ ref('stg_device_health') }} as before
                where
                    before.device_id = earliest.device_id
                    and before.reported_at < earliest.touched_from
                    and before.is_online
                order by before.reported_at desc
                limit 1
            ),
            '-infinity'
        ) as starts_at
    from (
        select
            device_id,
            min(touched_from) as touched_from
        from touched
        group by device_id
    ) as earliest
),

existing as (
    select sessions.*
    from {{ this }} as sessions
    inner join starts on sessions.device_id = starts.device_id and sessions.started_at >= starts.starts_at
),
{% endif %}

reports as (
    {% if is_incremental() %}
    select health.*
    from starts
    cross join {% call look_up(ref('stg_device_health')) %}
        candidates.device_id = starts.device_id
        and candidates.reported_at >= starts.starts_at
    {% endcall %} as health
    {% else %}
    select * from {{ ref('stg_device_health') }}
    {% endif %}
),

-- a stretch: an online report and the offline ones that follow it; number 0 has offline ones only
numbered as (
    select
        *,
        count(*) filter (where is_online) over (partition by device_id order by reported_at) as stretch
    from reports
),

stretches as (
    select
        device_id,
        stretch,
        count(*) filter (where not is_online) as offline_reports,
        min(reported_at) as began_at,
        max(ingested_at) filter (where is_online) as online_ingested_at,
        max(ingested_at) as ingested_at
    from numbered
    group by device_id, stretch
),

followed as (
    select
        *,
        lead(began_at) over (partition by device_id order by stretch) as ended_at,
        lead(online_ingested_at) over (partition by device_id order by stretch) as end_ingested_at
    from stretches
),

computed as (
    select
        followed.device_id,
        case when followed.offline_reports > 0 then 'reported_offline' else 'no_report' end as cause,
        followed.offline_reports,
        greatest(
            0,
            cast(
                extract(
                    epoch from coalesce(followed.ended_at, data_clock.data_clock_at) - followed.began_at
                ) as double precision
            )
        ) as duration_seconds,
        followed.began_at as started_at,
        followed.ended_at,
        greatest(followed.ingested_at, followed.end_ingested_at) as source_ingested_at
    from followed
    cross join data_clock
    where
        followed.offline_reports > 0
        or coalesce(followed.ended_at, data_clock.data_clock_at) - followed.began_at > {{ longest_gap }}
)

-- one that reaches over what was swept is frozen, too; with the horizon, an online report, a stretch begins
{% set frozen = [is_swept('health', 'rows.started_at', "rows.ended_at + interval '1 microsecond'")] %}
{{ with_vanished('computed', 'existing', ['device_id', 'started_at'], frozen, is_sequence=true) }}
