{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'hour_starts_at'],
        indexes=[
            {'columns': ['device_id', 'local_date', 'local_hour', 'opens']},
            {'columns': ['hour_starts_at', 'device_id', 'fails', 'attempts']},
            {'columns': ['source_ingested_at']},
        ],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with
{% if is_incremental() %}
touched as (
    select
        device_id,
        hour_starts_at
    from {{ ref('fct_access_events') }}
    where {{ is_new('ingested_at', 'event_at') }}
    union
    select
        events.device_id,
        events.hour_starts_at
    from ({{ changed_devices(seen('noticed_at')) }}) as changed
    cross join {% call look_up(ref('fct_access_events')) %}
        candidates.device_id = changed.device_id
    {% endcall %} as events
    union
    select
        rows.device_id,
        rows.hour_starts_at
    from ({{ changed_devices(seen('noticed_at')) }}) as changed
    cross join {% call look_up(this) %}
        candidates.device_id = changed.device_id
    {% endcall %} as rows
),
{% endif %}

events as (
    {% if is_incremental() %}
    select events.*
    from touched
    cross join {% call look_up(ref('fct_access_events')) %}
        candidates.device_id = touched.device_id
        and candidates.event_at >= touched.hour_starts_at
        and candidates.event_at < touched.hour_starts_at + interval '1 hour'
        and candidates.hour_starts_at = touched.hour_starts_at
    {% endcall %} as events
    {% else %}
    select * from {{ ref('fct_access_events') }}
    {% endif %}
),

counted as (
    select
        device_id,
        count(*) filter (where event_type = 'open') as opens,
        count(*) filter (where event_type = 'close') as closes,
        count(*) filter (where event_type = 'fail') as fails,
        count(*) filter (where event_type in ('open', 'fail')) as attempts,
        count(*) filter (where is_late) as late_events,
        -- one of two households if the device moved within it; not the day of the one and the hour of the other
        max(local_date + make_interval(hours => local_hour)) as local_time,
        hour_starts_at,
        max(ingested_at) as source_ingested_at
    from events
    group by device_id, hour_starts_at
),

computed as (
    select
        device_id,
        opens,
        closes,
        fails,
        attempts,
        late_events,
        cast(fails as double precision) / nullif(attempts, 0) as fail_rate,
        {{ wilson_lower_bound('fails', 'attempts') }} as fail_rate_lower_bound,
        cast(extract(hour from local_time) as integer) as local_hour,
        cast(local_time as date) as local_date,
        hour_starts_at,
        source_ingested_at
    from counted
)

{% set frozen = [is_swept('events', 'rows.hour_starts_at', "rows.hour_starts_at + interval '1 hour'")] %}
{{ with_vanished('computed', 'touched', ['device_id', 'hour_starts_at'], frozen) }}
