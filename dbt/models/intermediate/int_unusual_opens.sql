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
    {% if is_incremental() %}
    select hours.*
    from starts
    cross join
        lateral (
            select *
            from {{ ref('fct_access_hourly') }} as candidates
            where candidates.device_id = starts.device_id and candidates.local_date >= starts.starts_on
            offset 0  -- one look into the index for each device, where a join might read the whole table
        ) as hours
    where hours.opens > 0
    {% else %}
    select *
    from {{ ref('fct_access_hourly') }}
    where opens > 0
    {% endif %}
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
    cross join
        lateral (
            select *
            from {{ ref('fct_access_hourly') }} as candidates
            where
                candidates.device_id = days.device_id
                and candidates.local_date >= days.local_date - 28
                and candidates.local_date < days.local_date
                and candidates.opens > 0
            offset 0
        ) as before
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
