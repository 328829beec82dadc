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
        where {{ is_new('source_ingested_at', 'hour_starts_at') }}
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

-- one bit for each hour of the day with an open: a window joins 28 days of them faster than it would join arrays
days as (
    {% if is_incremental() %}
    select
        days.*,
        days.local_date >= starts.starts_on as is_touched
    from starts
    cross join
        lateral (
            select
                device_id,
                local_date,
                sum(opens) as opens,
                bit_or(1 << local_hour) as open_hours
            from {{ ref('fct_access_hourly') }} as candidates
            where
                candidates.device_id = starts.device_id
                and candidates.local_date >= starts.starts_on - 28
                and candidates.opens > 0
            group by device_id, local_date
            offset 0  -- one look into the index for each device, where a join might read the whole table
        ) as days
    {% else %}
    select
        device_id,
        local_date,
        sum(opens) as opens,
        bit_or(1 << local_hour) as open_hours,
        true as is_touched
    from {{ ref('fct_access_hourly') }}
    where opens > 0
    group by device_id, local_date
    {% endif %}
),

-- what was usual: opens by hour of the day, in the 28 days before each of these days
profiles as (
    select
        device_id,
        local_date,
        is_touched,
        sum(opens) over days_before as opens_before,
        count(*) over days_before as days_before,
        bit_or(open_hours) over days_before as usual_hours
    from days
    window days_before as (
        partition by device_id
        order by local_date
        range between interval '28 days' preceding and interval '1 day' preceding
    )
),

computed as (
    select
        hours.device_id,
        hours.opens,
        cast(profiles.opens_before as bigint) as opens_before,
        hours.local_date,
        hours.hour_starts_at,
        hours.source_ingested_at
    from profiles
    cross join {% call look_up(ref('fct_access_hourly')) %}
        candidates.device_id = profiles.device_id
        and candidates.local_date = profiles.local_date
        and candidates.opens > 0
    {% endcall %} as hours
    where
        profiles.is_touched
        and profiles.opens_before >= 50
        and profiles.days_before >= 14
        -- neither in that hour nor in the one before or after it
        and profiles.usual_hours & (1 << hours.local_hour) = 0
        and profiles.usual_hours & (1 << ((hours.local_hour + 23) % 24)) = 0
        and profiles.usual_hours & (1 << ((hours.local_hour + 1) % 24)) = 0
)

{% set hour_ends_at = "rows.hour_starts_at + interval '1 hour'" %}
{% set frozen = [
    is_swept('events', 'rows.hour_starts_at', hour_ends_at),
    lacks_aggregates('events', 'rows.hour_starts_at', hour_ends_at, before='30 days'),
] %}
{{ with_vanished('computed', 'existing', ['device_id', 'hour_starts_at'], frozen) }}
