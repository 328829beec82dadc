with devices as (
    select
        device_id,
        household_id,
        device_type,
        model,
        firmware_version,
        region,
        time_zone,
        is_deleted
    from {{ ref('dim_devices') }}
    where is_current
),

activity as (
    select * from {{ ref('int_device_activity') }}
),

known as (
    select
        coalesce(devices.device_id, activity.device_id) as device_id,
        devices.household_id,
        devices.device_type,
        devices.model,
        devices.firmware_version,
        devices.region,
        coalesce(devices.time_zone, 'UTC') as time_zone,
        activity.first_report_at,
        activity.last_report_at,
        greatest(activity.last_report_at, activity.last_event_at) as last_seen_at
    from devices
    full outer join activity on devices.device_id = activity.device_id
    where activity.device_id is not null or not devices.is_deleted
),

silent as (
    select device_id
    from {{ ref('fct_offline_sessions') }}
    where ended_at is null
),

open_anomalies as (
    select
        device_id,
        count(*) as open_anomalies
    from {{ ref('fct_anomalies') }}
    where is_open
    group by device_id
),

described as (
    select
        known.*,
        known.first_report_at is not null and silent.device_id is null as is_online,
        silent.device_id is not null as is_silent,
        moved.event_type as moved,
        moved.event_at as moved_at,
        hours.signal_band,
        hours.signal_median_dbm,
        charged.battery_last_pct,
        forecast.band as battery_band,
        horizons.swept_from,
        horizons.horizon_at as swept_until,
        coalesce(open_anomalies.open_anomalies, 0) as open_anomalies
    from known
    left join silent on known.device_id = silent.device_id
    left join open_anomalies on known.device_id = open_anomalies.device_id
    left join {{ ref('fct_battery_forecast') }} as forecast on known.device_id = forecast.device_id
    left join {{ ref('stg_device_horizons') }} as horizons
        on known.device_id = horizons.device_id and horizons.stream = 'events'
    left join lateral (
        select
            events.event_type,
            events.event_at
        from {{ ref('fct_access_events') }} as events
        where events.device_id = known.device_id and events.event_type in ('open', 'close')
        order by events.event_at desc, events.event_id desc
        limit 1
    ) as moved on true
    left join lateral (
        select
            health.signal_band,
            health.signal_median_dbm
        from {{ ref('fct_device_health_hourly') }} as health
        where health.device_id = known.device_id
        order by health.hour_starts_at desc
        limit 1
    ) as hours on true
    left join lateral (
        select health.battery_last_pct
        from {{ ref('fct_device_health_hourly') }} as health
        where health.device_id = known.device_id and health.battery_last_pct is not null
        order by health.hour_starts_at desc
        limit 1
    ) as charged on true
)

select
    device_id,
    household_id,
    device_type,
    model,
    firmware_version,
    region,
    time_zone,
    case
        when is_silent or moved is null then 'unknown'
        when moved = 'open' then 'open'
        else 'closed'
    end as state,
    coalesce(battery_band, 'unknown') as battery_band,
    signal_band,
    battery_last_pct as battery_pct,
    signal_median_dbm as signal_dbm,
    open_anomalies,
    is_online,
    case when not is_silent then moved_at end as state_since,
    last_seen_at,
    swept_from,
    swept_until
from described
