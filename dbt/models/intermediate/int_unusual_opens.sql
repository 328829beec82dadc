-- Recomputed are, of each device with a new or changed hour, all days from that one on: it is part of what was usual
-- for the 28 days after it.
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
starts as (
    select
        device_id,
        min(local_date) as starts_on
    from (
        select
            device_id,
            local_date
        from {{ ref('fct_access_hourly') }}
        where source_ingested_at > {{ seen('arrived_after') }}
        union all
        select
            device_id,
            '-infinity' as local_date
        from ({{ changed_devices(seen('noticed_at')) }}) as changed
    ) as touched
    group by device_id
),

existing as (
    select unusual.*
    from {{ this }} as unusual
    inner join starts on unusual.device_id = starts.device_id and unusual.local_date >= starts.starts_on
),
{% endif %}

hours as (
    select hours.*
    from {{ ref('fct_access_hourly') }} as hours
    {% if is_incremental() %}
    inner join starts on hours.device_id = starts.device_id and hours.local_date >= starts.starts_on
    {% endif %}
    where hours.opens > 0
),

days as (
    select distinct
        device_id,
        local_date
    from hours
),

-- what was usual: opens by hour of the day, in the 28 days before each of these days
profiles as (
    select
        days.device_id,
        days.local_date,
        sum(before.opens) as opens_before,
        count(distinct before.local_date) as days_before,
        array_agg(distinct before.local_hour) as usual_hours
    from days
    inner join {{ ref('fct_access_hourly') }} as before
        on
            days.device_id = before.device_id
            and days.local_date > before.local_date
            and days.local_date - 28 <= before.local_date
    where before.opens > 0
    group by days.device_id, days.local_date
    having sum(before.opens) >= 50 and count(distinct before.local_date) >= 14
),

computed as (
    select
        hours.device_id,
        hours.opens,
        cast(profiles.opens_before as bigint) as opens_before,
        hours.local_date,
        hours.hour_starts_at,
        hours.source_ingested_at
    from hours
    inner join profiles on hours.device_id = profiles.device_id and hours.local_date = profiles.local_date
    where
        not profiles.usual_hours
        && array[(hours.local_hour + 23) % 24, hours.local_hour, (hours.local_hour + 1) % 24]
)

{{ with_vanished('computed', 'existing', ['device_id', 'hour_starts_at']) }}
