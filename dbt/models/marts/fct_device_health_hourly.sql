{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'hour_starts_at'],
        indexes=[
            {'columns': ['device_id', 'local_date']},
            {'columns': ['hour_starts_at']},
            {'columns': ['source_ingested_at']},
        ],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with data_clock as (
    select data_clock_at from {{ ref('int_data_clock') }}
),

activity as (
    select
        device_id,
        first_report_at
    from {{ ref('int_device_activity') }}
),

{% if is_incremental() %}
arrived as (
    select
        device_id,
        hour_starts_at,
        reported_at
    from {{ ref('int_health_reports') }}
    where {{ is_new('ingested_at', 'reported_at') }}
),

-- all hours of a device whose first report has only arrived now: it says from when on reports are expected
changed_devices as (
    {{ changed_devices(seen('noticed_at')) }}
    union
    select arrived.device_id
    from arrived
    inner join activity on arrived.device_id = activity.device_id and arrived.reported_at = activity.first_report_at
),

touched as (
    select
        device_id,
        hour_starts_at
    from arrived
    union
    -- hours that were not over by the last run's data clock
    select
        device_id,
        hour_starts_at
    from {{ this }}
    where hour_starts_at > {{ seen('data_clock_at') }} - interval '1 hour'
    union
    select
        reports.device_id,
        reports.hour_starts_at
    from changed_devices
    cross join {% call look_up(ref('int_health_reports')) %}
        candidates.device_id = changed_devices.device_id
    {% endcall %} as reports
    union
    select
        rows.device_id,
        rows.hour_starts_at
    from changed_devices
    cross join {% call look_up(this) %}
        candidates.device_id = changed_devices.device_id
    {% endcall %} as rows
),
{% endif %}

reports as (
    {% if is_incremental() %}
    select reports.*
    from touched
    cross join {% call look_up(ref('int_health_reports')) %}
        candidates.device_id = touched.device_id
        and candidates.reported_at >= touched.hour_starts_at
        and candidates.reported_at < touched.hour_starts_at + interval '1 hour'
        and candidates.hour_starts_at = touched.hour_starts_at
    {% endcall %} as reports
    {% else %}
    select * from {{ ref('int_health_reports') }}
    {% endif %}
),

measured as (
    select
        device_id,
        cast(min(battery_pct) as double precision) as battery_min_pct,
        cast(
            (array_agg(battery_pct order by reported_at desc) filter (where battery_pct is not null))[1]
            as double precision
        ) as battery_last_pct,
        percentile_cont(0.5) within group (order by signal_strength_dbm) as signal_median_dbm,
        percentile_cont(0.1) within group (order by signal_strength_dbm) as signal_p10_dbm,
        stddev_samp(cast(signal_strength_dbm as double precision)) as signal_sd_dbm,
        count(*) as reports,
        count(*) filter (where is_online) as online_reports,
        -- one of two households if the device moved within it; not the day of the one and the hour of the other
        max(local_date + make_interval(hours => local_hour)) as local_time,
        hour_starts_at,
        max(ingested_at) as source_ingested_at
    from reports
    group by device_id, hour_starts_at
),

computed as (
    select
        measured.device_id,
        {{ signal_band('measured.signal_median_dbm') }} as signal_band,
        measured.battery_min_pct,
        measured.battery_last_pct,
        measured.signal_median_dbm,
        measured.signal_p10_dbm,
        measured.signal_sd_dbm,
        measured.reports,
        measured.online_reports,
        greatest(
            0,
            cast(
                extract(
                    epoch from least(measured.hour_starts_at + interval '1 hour', data_clock.data_clock_at)
                    - greatest(measured.hour_starts_at, activity.first_report_at)
                ) as double precision
            ) / {{ health_interval_seconds() }}
        ) as reports_expected,
        cast(extract(hour from measured.local_time) as integer) as local_hour,
        cast(measured.local_time as date) as local_date,
        measured.hour_starts_at,
        measured.source_ingested_at
    from measured
    inner join activity on measured.device_id = activity.device_id
    cross join data_clock
)

{% set frozen = [is_swept('health', 'rows.hour_starts_at', "rows.hour_starts_at + interval '1 hour'")] %}
{{ with_vanished('computed', 'touched', ['device_id', 'hour_starts_at'], frozen) }}
