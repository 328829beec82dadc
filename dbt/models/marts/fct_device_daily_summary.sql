-- A run recomputes, of every device, the days that were not over at the last run, and of devices of which something
-- arrived all days from the earliest that it touches on: what follows a late event may change with it. The hours are
-- added up already, so that costs little.
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'local_date'],
        indexes=[{'columns': ['local_date']}, {'columns': ['device_id', 'local_date', 'battery_last_pct']}],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with data_clock as (
    select data_clock_at from {{ ref('int_data_clock') }}
),

devices as (
    select
        activity.device_id,
        activity.first_report_at,
        coalesce(versions.time_zone, 'UTC') as time_zone
    from {{ ref('int_device_activity') }} as activity
    left join {{ ref('dim_devices') }} as versions on activity.device_id = versions.device_id and versions.is_current
),

{% if is_incremental() %}
touched as (
    select
        device_id,
        -- a silence or a session that begins with the new row may have begun on the day before
        min(local_date) - 1 as touched_from
    from {{ ref('fct_access_hourly') }}
    where {{ is_new('source_ingested_at', 'hour_starts_at') }}
    group by device_id
    union all
    select
        device_id,
        min(local_date) - 1 as touched_from
    from {{ ref('fct_device_health_hourly') }}
    where {{ is_new('source_ingested_at', 'hour_starts_at') }}
    group by device_id
    union all
    select
        device_id,
        local_date
    from {{ ref('fct_open_sessions') }}
    where closed_at is null or {{ is_new('source_ingested_at', 'opened_at') }}
    union all
    select
        silences.device_id,
        {{ local_date('silences.started_at', 'devices.time_zone') }} as touched_from
    from {{ ref('fct_offline_sessions') }} as silences
    inner join devices on silences.device_id = devices.device_id
    where {{ is_new('silences.source_ingested_at', 'silences.started_at') }}
    union all
    -- no local date is more than a day behind that of UTC
    select
        device_id,
        cast(least({{ seen('data_clock_at') }}, {{ backfill_from() }}) at time zone 'UTC' as date) - 1 as touched_from
    from devices
    union all
    select
        device_id,
        '-infinity' as touched_from
    from ({{ changed_devices(seen('noticed_at')) }}) as changed
),

starts as (
    select
        device_id,
        min(touched_from) as starts_on
    from touched
    group by device_id
),

existing as (
    select rows.*
    from starts
    cross join {% call look_up(this) %}
        candidates.device_id = starts.device_id and candidates.local_date >= starts.starts_on
    {% endcall %} as rows
),
{% else %}
starts as (
    select
        device_id,
        cast('-infinity' as date) as starts_on
    from devices
),
{% endif %}

access_days as (
    select
        hours.device_id,
        hours.local_date,
        sum(hours.opens) as opens,
        sum(hours.closes) as closes,
        sum(hours.fails) as fails,
        max(hours.source_ingested_at) as source_ingested_at
    from starts
    cross join {% call look_up(ref('fct_access_hourly')) %}
        candidates.device_id = starts.device_id and candidates.local_date >= starts.starts_on
    {% endcall %} as hours
    group by hours.device_id, hours.local_date
),

health_days as (
    select
        hours.device_id,
        hours.local_date,
        sum(hours.reports) as reports,
        min(hours.battery_min_pct) as battery_min_pct,
        (
            array_agg(hours.battery_last_pct order by hours.hour_starts_at desc)
            filter (where hours.battery_last_pct is not null)
        )[1] as battery_last_pct,
        max(hours.source_ingested_at) as source_ingested_at
    from starts
    cross join {% call look_up(ref('fct_device_health_hourly')) %}
        candidates.device_id = starts.device_id and candidates.local_date >= starts.starts_on
    {% endcall %} as hours
    group by hours.device_id, hours.local_date
),

session_days as (
    select
        sessions.device_id,
        sessions.local_date,
        -- added up as numeric: a sum of floating-point numbers depends on their order
        cast(
            sum(cast(sessions.duration_seconds as numeric)) filter (where sessions.left_open <> 'no') / 60
            as double precision
        ) as left_open_minutes,
        max(sessions.source_ingested_at) as source_ingested_at
    from starts
    cross join {% call look_up(ref('fct_open_sessions')) %}
        candidates.device_id = starts.device_id and candidates.local_date >= starts.starts_on
    {% endcall %} as sessions
    group by sessions.device_id, sessions.local_date
),

silences as (
    select
        silences.device_id,
        devices.time_zone,
        starts.starts_on,
        silences.started_at,
        coalesce(silences.ended_at, data_clock.data_clock_at) as ended_at,
        silences.source_ingested_at
    from starts
    inner join devices on starts.device_id = devices.device_id
    cross join data_clock
    cross join {% call look_up(ref('fct_offline_sessions')) %}
        candidates.device_id = starts.device_id
        and (
            candidates.ended_at is null
            or candidates.ended_at >= cast(starts.starts_on as timestamp) at time zone devices.time_zone
        )
    {% endcall %} as silences
),

silence_days as (
    select
        silences.device_id,
        cast(days.local_midnight as date) as local_date,
        silences.started_at,
        silences.ended_at,
        silences.source_ingested_at
    from silences
    cross join lateral generate_series(
        greatest(
            cast({{ local_date('silences.started_at', 'silences.time_zone') }} as timestamp),
            cast(silences.starts_on as timestamp)
        ),
        -- one that ends at midnight does not reach into the next day
        silences.ended_at at time zone silences.time_zone - interval '1 microsecond',
        interval '1 day'
    ) as days (local_midnight)
),

days as (
    select
        device_id,
        local_date
    from access_days
    union
    select
        device_id,
        local_date
    from health_days
    union
    -- a day of its own only if the device moved within the hour of the opening
    select
        device_id,
        local_date
    from session_days
    union
    select
        device_id,
        local_date
    from silence_days
),

bounded as (
    select
        days.device_id,
        days.local_date,
        greatest(
            cast(days.local_date as timestamp) at time zone devices.time_zone,
            devices.first_report_at
        ) as observed_from,
        least(
            cast(days.local_date + 1 as timestamp) at time zone devices.time_zone,
            data_clock.data_clock_at
        ) as observed_to,
        devices.first_report_at is not null as is_observed
    from days
    inner join devices on days.device_id = devices.device_id
    cross join data_clock
),

observed as (
    select
        device_id,
        local_date,
        observed_from,
        observed_to,
        case
            when is_observed
                then greatest(0, cast(extract(epoch from observed_to - observed_from) / 60 as double precision))
            else 0
        end as observed_minutes
    from bounded
),

offline_days as (
    select
        observed.device_id,
        observed.local_date,
        cast(
            sum(
                greatest(
                    0,
                    extract(
                        epoch from least(silence_days.ended_at, observed.observed_to)
                        - greatest(silence_days.started_at, observed.observed_from)
                    )
                )
            ) / 60 as double precision
        ) as offline_minutes,
        max(silence_days.source_ingested_at) as source_ingested_at
    from observed
    inner join silence_days
        on observed.device_id = silence_days.device_id and observed.local_date = silence_days.local_date
    group by observed.device_id, observed.local_date
),

computed as (
    select
        observed.device_id,
        cast(coalesce(access_days.opens, 0) as bigint) as opens,
        cast(coalesce(access_days.closes, 0) as bigint) as closes,
        cast(coalesce(access_days.fails, 0) as bigint) as fails,
        cast(access_days.fails as double precision)
        / cast(nullif(access_days.opens + access_days.fails, 0) as double precision) as fail_rate,
        coalesce(session_days.left_open_minutes, 0) as left_open_minutes,
        cast(coalesce(health_days.reports, 0) as bigint) as health_reports,
        health_days.battery_min_pct,
        health_days.battery_last_pct,
        coalesce(offline_days.offline_minutes, 0) as offline_minutes,
        observed.observed_minutes,
        1 - coalesce(offline_days.offline_minutes, 0) / nullif(observed.observed_minutes, 0) as uptime,
        -- least() passes over a NULL
        case
            when observed.observed_minutes > 0
                then least(
                    1,
                    cast(coalesce(health_days.reports, 0) as double precision)
                    / (observed.observed_minutes * 60 / {{ health_interval_seconds() }})
                )
        end as completeness,
        observed.local_date,
        greatest(
            access_days.source_ingested_at,
            health_days.source_ingested_at,
            session_days.source_ingested_at,
            offline_days.source_ingested_at
        ) as source_ingested_at
    from observed
    left join access_days
        on observed.device_id = access_days.device_id and observed.local_date = access_days.local_date
    left join health_days
        on observed.device_id = health_days.device_id and observed.local_date = health_days.local_date
    left join session_days
        on observed.device_id = session_days.device_id and observed.local_date = session_days.local_date
    left join offline_days
        on observed.device_id = offline_days.device_id and observed.local_date = offline_days.local_date
),

swept as (
    select
        devices.device_id,
        devices.time_zone,
        horizons.swept_from,
        horizons.horizon_at
    from devices
    inner join {{ ref('stg_device_horizons') }} as horizons on devices.device_id = horizons.device_id
)

{% set is_swept = "exists (
    select 1
    from swept
    where
        swept.device_id = rows.device_id
        and swept.horizon_at > cast(rows.local_date as timestamp) at time zone swept.time_zone
        and swept.swept_from < cast(rows.local_date + 1 as timestamp) at time zone swept.time_zone
)" %}
{{ with_vanished('computed', 'existing', ['device_id', 'local_date'], [is_swept]) }}
