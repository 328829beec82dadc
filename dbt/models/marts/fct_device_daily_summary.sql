-- A run recomputes, whole, the device days that its new rows touch. New are the rows that arrived since the newest row
-- in this table, less an overlap: by arrival, not by event time, so a late event corrects the day it belongs to. The
-- watermark is this table's own column: it moves in the transaction that writes the days, and a full refresh sets it.
-- A device whose time zone differs from the one its days were cut by is recomputed from its first row.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key=['device_id', 'local_date'],
        on_schema_change='fail',
        indexes=[{'columns': ['local_date']}],
        post_hook='delete from {{ this }} where source_ingested_at is null'
    )
}}

with device_time_zones as (
    select
        devices.device_id,
        coalesce(households.time_zone, 'UTC') as time_zone
    from {{ ref('stg_devices') }} as devices
    left join {{ ref('stg_households') }} as households on devices.household_id = households.household_id
),

-- not materialized: read several times below, each time for few rows that an index finds
observations as not materialized (
    select
        device_id,
        event_type,
        cast(null as real) as battery_pct,
        false as is_health_report,
        event_at as observed_at,
        ingested_at
    from {{ ref('stg_access_events') }}
    union all
    select
        device_id,
        null as event_type,
        battery_pct,
        true as is_health_report,
        reported_at as observed_at,
        ingested_at
    from {{ ref('stg_device_health') }}
),

local_observations as not materialized (
    select
        observations.device_id,
        coalesce(device_time_zones.time_zone, 'UTC') as time_zone,
        observations.event_type,
        observations.battery_pct,
        observations.is_health_report,
        cast(
            observations.observed_at at time zone coalesce(device_time_zones.time_zone, 'UTC') as date
        ) as local_date,
        observations.observed_at,
        observations.ingested_at
    from observations
    left join device_time_zones on observations.device_id = device_time_zones.device_id
),

{% if is_incremental() %}
watermark as (
    select
        coalesce(max(source_ingested_at), '-infinity') - interval '{{ var("overlap_seconds") }} seconds'
            as overlap_starts_at
    from {{ this }}
),

moved_devices as (
    select distinct
        summaries.device_id,
        coalesce(device_time_zones.time_zone, 'UTC') as time_zone
    from {{ this }} as summaries
    left join device_time_zones on summaries.device_id = device_time_zones.device_id
    where summaries.time_zone <> coalesce(device_time_zones.time_zone, 'UTC')
),

touched_days as (
    select
        device_id,
        time_zone,
        local_date
    from local_observations
    where ingested_at > (select watermark.overlap_starts_at from watermark)
    union
    select
        moved_devices.device_id,
        moved_devices.time_zone,
        local_observations.local_date
    from moved_devices
    inner join local_observations on moved_devices.device_id = local_observations.device_id
    -- asked once, before anything is read: most runs find no device moved
    where (select count(any_moved.device_id) > 0 from moved_devices as any_moved)
    union
    select
        moved_devices.device_id,
        moved_devices.time_zone,
        summaries.local_date
    from moved_devices
    inner join {{ this }} as summaries on moved_devices.device_id = summaries.device_id
),

-- bounds in UTC that hold every local day: one day more on either side than the dates say
touched_spans as (
    select
        device_id,
        cast(min(local_date) - 1 as timestamp) at time zone 'UTC' as starts_at,
        cast(max(local_date) + 2 as timestamp) at time zone 'UTC' as ends_at
    from touched_days
    group by device_id
),
{% endif %}

observations_to_summarize as (
    select local_observations.*
    from local_observations
    {% if is_incremental() %}
    inner join touched_spans
        on
            local_observations.device_id = touched_spans.device_id
            and local_observations.observed_at >= touched_spans.starts_at
            and local_observations.observed_at < touched_spans.ends_at
    inner join touched_days
        on
            local_observations.device_id = touched_days.device_id
            and local_observations.local_date = touched_days.local_date
    union all
    -- a day that lost all its rows to another time zone: summarized to nothing, it replaces the old day and then goes
    select
        device_id,
        time_zone,
        null as event_type,
        null as battery_pct,
        false as is_health_report,
        local_date,
        null as observed_at,
        null as ingested_at
    from touched_days
    {% endif %}
),

summarized as (
    select
        device_id,
        time_zone,
        count(*) filter (where event_type = 'open') as opens,
        count(*) filter (where event_type = 'close') as closes,
        count(*) filter (where event_type = 'fail') as fails,
        cast(count(*) filter (where event_type = 'fail') as double precision)
        / nullif(count(*) filter (where event_type in ('open', 'fail')), 0) as fail_rate,
        count(*) filter (where is_health_report) as health_reports,
        min(battery_pct) as battery_min_pct,
        (array_agg(battery_pct order by observed_at desc) filter (where battery_pct is not null))[1]
            as battery_last_pct,
        local_date,
        max(ingested_at) as source_ingested_at
    from observations_to_summarize
    group by device_id, time_zone, local_date
)

select * from summarized
