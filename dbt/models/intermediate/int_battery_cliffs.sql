-- Recomputed are, of each device with a new or changed hour, the cliffs from the hour with a reading before it on, or
-- from 24 hours before, as an older reading makes no cliff (and a device on the mains has none to be looked for).
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'hour_starts_at'],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with
{% if is_incremental() %}
earliest as (
    select
        device_id,
        min(hour_starts_at) as hour_starts_at
    from (
        select
            device_id,
            hour_starts_at
        from {{ ref('fct_device_health_hourly') }}
        where {{ is_new('source_ingested_at', 'hour_starts_at') }}
        union all
        select
            device_id,
            '-infinity' as hour_starts_at
        from ({{ changed_devices(seen('noticed_at')) }}) as changed
    ) as touched
    group by device_id
),

starts as (
    select
        earliest.device_id,
        coalesce(
            (
                select max(hours.hour_starts_at)
                from {{ ref('fct_device_health_hourly') }} as hours
                where
                    hours.device_id = earliest.device_id
                    and hours.hour_starts_at >= earliest.hour_starts_at - interval '24 hours'
                    and hours.hour_starts_at < earliest.hour_starts_at
                    and hours.battery_last_pct is not null
            ),
            earliest.hour_starts_at - interval '24 hours'
        ) as starts_at
    from earliest
),

-- the hour that it begins with is only there to be compared with
existing as (
    select cliffs.*
    from {{ this }} as cliffs
    inner join starts on cliffs.device_id = starts.device_id and cliffs.hour_starts_at > starts.starts_at
),
{% endif %}

readings as (
    select
        hours.device_id,
        hours.battery_last_pct as to_pct,
        hours.hour_starts_at,
        hours.source_ingested_at,
        lag(hours.battery_last_pct) over each_device as from_pct,
        lag(hours.hour_starts_at) over each_device as from_hour,
        lag(hours.source_ingested_at) over each_device as from_ingested_at
    {% if is_incremental() %}
    from starts
    cross join {% call look_up(ref('fct_device_health_hourly')) %}
        candidates.device_id = starts.device_id and candidates.hour_starts_at >= starts.starts_at
    {% endcall %} as hours
    {% else %}
    from {{ ref('fct_device_health_hourly') }} as hours
    {% endif %}
    where hours.battery_last_pct is not null
    window each_device as (partition by hours.device_id order by hours.hour_starts_at)
),

computed as (
    select
        device_id,
        from_pct,
        to_pct,
        hour_starts_at,
        greatest(source_ingested_at, from_ingested_at) as source_ingested_at
    from readings
    where from_pct - to_pct >= 10 and hour_starts_at - from_hour <= interval '24 hours'
)

{% set hour_ends_at = "rows.hour_starts_at + interval '1 hour'" %}
{% set frozen = [
    is_swept('health', 'rows.hour_starts_at', hour_ends_at),
    lacks_aggregates('health', 'rows.hour_starts_at', hour_ends_at, before='2 days'),
] %}
{{ with_vanished('computed', 'existing', ['device_id', 'hour_starts_at'], frozen) }}
