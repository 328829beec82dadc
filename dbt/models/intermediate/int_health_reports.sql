-- Every report with the time zone and the hour of the household that its device belonged to. A view, and one without a
-- WITH: the index of the raw table serves who asks for a device and a time.
select
    reports.device_id,
    coalesce(versions.time_zone, 'UTC') as time_zone,
    reports.battery_pct,
    reports.signal_strength_dbm,
    {{ local_hour('reports.reported_at', "coalesce(versions.time_zone, 'UTC')") }} as local_hour,
    reports.is_online,
    {{ local_date('reports.reported_at', "coalesce(versions.time_zone, 'UTC')") }} as local_date,
    {{ hour_starts_at('reports.reported_at', "coalesce(versions.time_zone, 'UTC')") }} as hour_starts_at,
    reports.reported_at,
    reports.ingested_at
from {{ ref('stg_device_health') }} as reports
left join {{ ref('dim_devices') }} as versions
    on
        reports.device_id = versions.device_id
        and {{ in_force('versions', 'reports.reported_at') }}
