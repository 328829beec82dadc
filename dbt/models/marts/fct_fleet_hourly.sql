-- What thousands of devices did in an hour, in a few rows: a chart of a week need not add up a million of theirs.
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['hour_starts_at', 'local_date', 'local_hour'],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with
{% if is_incremental() %}
-- all hours of a device that is now in another time zone; an hour has moved by less than one
hours_of_moved as (
    select hours.hour_starts_at
    from ({{ changed_devices(seen('noticed_at'), 'moved_at') }}) as moved
    cross join {% call look_up(ref('fct_access_hourly')) %}
        candidates.device_id = moved.device_id
    {% endcall %} as hours
    union
    select hours.hour_starts_at
    from ({{ changed_devices(seen('noticed_at'), 'moved_at') }}) as moved
    cross join {% call look_up(ref('fct_device_health_hourly')) %}
        candidates.device_id = moved.device_id
    {% endcall %} as hours
),

touched as (
    select hour_starts_at
    from {{ ref('fct_access_hourly') }}
    where {{ is_new('source_ingested_at', 'hour_starts_at') }}
    union
    select hour_starts_at
    from {{ ref('fct_device_health_hourly') }}
    where {{ is_new('source_ingested_at', 'hour_starts_at') }}
    union
    select hour_starts_at
    from hours_of_moved
    union
    select earlier.hour_starts_at
    from hours_of_moved
    cross join {% call look_up(this) %}
        candidates.hour_starts_at > hours_of_moved.hour_starts_at - interval '1 hour'
        and candidates.hour_starts_at < hours_of_moved.hour_starts_at + interval '1 hour'
    {% endcall %} as earlier
    union
    -- of a backfill also the hours whose devices are gone
    select hour_starts_at
    from {{ this }}
    where false {{ or_in_backfill('hour_starts_at') }}
),

existing as (
    select rows.*
    from touched
    cross join {% call look_up(this) %}
        candidates.hour_starts_at = touched.hour_starts_at
    {% endcall %} as rows
),
{% endif %}

access_hours as (
    {% if is_incremental() %}
    select hours.*
    from touched
    cross join {% call look_up(ref('fct_access_hourly')) %}
        candidates.hour_starts_at = touched.hour_starts_at
    {% endcall %} as hours
    {% else %}
    select * from {{ ref('fct_access_hourly') }}
    {% endif %}
),

health_hours as (
    {% if is_incremental() %}
    select hours.*
    from touched
    cross join {% call look_up(ref('fct_device_health_hourly')) %}
        candidates.hour_starts_at = touched.hour_starts_at
    {% endcall %} as hours
    {% else %}
    select * from {{ ref('fct_device_health_hourly') }}
    {% endif %}
),

accesses as (
    select
        cast(sum(opens) as bigint) as opens,
        cast(sum(closes) as bigint) as closes,
        cast(sum(fails) as bigint) as fails,
        cast(sum(attempts) as bigint) as attempts,
        cast(sum(late_events) as bigint) as late_events,
        local_hour,
        local_date,
        hour_starts_at,
        max(source_ingested_at) as source_ingested_at
    from access_hours
    group by hour_starts_at, local_date, local_hour
),

signals as (
    select
        count(*) as reporting_devices,
        count(*) filter (where signal_band = 'excellent') as excellent_devices,
        count(*) filter (where signal_band = 'good') as good_devices,
        count(*) filter (where signal_band = 'fair') as fair_devices,
        count(*) filter (where signal_band = 'weak') as weak_devices,
        count(*) filter (where signal_band = 'unusable') as unusable_devices,
        local_hour,
        local_date,
        hour_starts_at,
        max(source_ingested_at) as source_ingested_at
    from health_hours
    group by hour_starts_at, local_date, local_hour
),

computed as (
    select
        coalesce(accesses.opens, 0) as opens,
        coalesce(accesses.closes, 0) as closes,
        coalesce(accesses.fails, 0) as fails,
        coalesce(accesses.attempts, 0) as attempts,
        coalesce(accesses.late_events, 0) as late_events,
        coalesce(signals.reporting_devices, 0) as reporting_devices,
        coalesce(signals.excellent_devices, 0) as excellent_devices,
        coalesce(signals.good_devices, 0) as good_devices,
        coalesce(signals.fair_devices, 0) as fair_devices,
        coalesce(signals.weak_devices, 0) as weak_devices,
        coalesce(signals.unusable_devices, 0) as unusable_devices,
        coalesce(accesses.local_hour, signals.local_hour) as local_hour,
        coalesce(accesses.local_date, signals.local_date) as local_date,
        coalesce(accesses.hour_starts_at, signals.hour_starts_at) as hour_starts_at,
        greatest(accesses.source_ingested_at, signals.source_ingested_at) as source_ingested_at
    from accesses
    full join signals
        on
            accesses.hour_starts_at = signals.hour_starts_at
            and accesses.local_date = signals.local_date
            and accesses.local_hour = signals.local_hour
)

{{ with_vanished('computed', 'existing', ['hour_starts_at', 'local_date', 'local_hour']) }}
