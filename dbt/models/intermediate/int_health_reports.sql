-- Every report with the time zone and the hour of the household that its device belonged to. A view: the index that the
-- raw table has serves who asks for a device and a time.
with reports as (
    select * from {{ ref('stg_device_health') }}
),

versions as (
    select * from {{ ref('dim_devices') }}
),

located as (
    select
        reports.device_id,
        coalesce(versions.time_zone, 'UTC') as time_zone,
        reports.battery_pct,
        reports.signal_strength_dbm,
        reports.is_online,
        reports.reported_at,
        reports.ingested_at
    from reports
    left join versions
        on
            reports.device_id = versions.device_id
            and {{ in_force('versions', 'reports.reported_at') }}
)

select
    device_id,
    time_zone,
    battery_pct,
    signal_strength_dbm,
    {{ local_hour('reported_at', 'time_zone') }} as local_hour,
    is_online,
    {{ local_date('reported_at', 'time_zone') }} as local_date,
    {{ hour_starts_at('reported_at', 'time_zone') }} as hour_starts_at,
    reported_at,
    ingested_at
from located
