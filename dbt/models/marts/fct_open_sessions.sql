-- Recomputed are, of each device with a new event, all sessions from the one on that the earliest new event falls into,
-- and the sessions without a close: those depend on the data clock.
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['session_id'],
        indexes=[
            {'columns': ['device_id', 'opened_at', 'session_id']},
            {'columns': ['device_id', 'local_date']},
            {'columns': ['closed_at']},
            {'columns': ['left_open', 'opened_at']},
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

silent_devices as (
    select device_id
    from {{ ref('fct_offline_sessions') }}
    where ended_at is null
),

{% if is_incremental() %}
touched as (
    select
        device_id,
        event_at,
        event_id
    from {{ ref('fct_access_events') }}
    where {{ is_new('ingested_at', 'event_at') }}
    union all
    select
        device_id,
        opened_at,
        session_id
    from {{ this }}
    where closed_at is null
    union all
    select
        device_id,
        '-infinity' as event_at,
        cast('00000000-0000-0000-0000-000000000000' as uuid) as event_id
    from ({{ changed_devices(seen('noticed_at')) }}) as changed
),

earliest as (
    select distinct on (device_id)
        device_id,
        event_at,
        event_id
    from touched
    order by device_id, event_at, event_id
),

-- before a session of the table that began no later the device was closed, whatever comes after
starts as (
    select
        earliest.device_id,
        case
            -- an opening that a sweep has left without its close is no row of the table
            when earliest.event_at < horizons.horizon_at then '-infinity'
            else coalesce(begun.opened_at, earliest.event_at)
        end as starts_at,
        coalesce(begun.session_id, earliest.event_id) as first_event_id
    from earliest
    left join lateral (
        select
            sessions.opened_at,
            sessions.session_id
        from {{ this }} as sessions
        where
            sessions.device_id = earliest.device_id
            and (sessions.opened_at, sessions.session_id) <= (earliest.event_at, earliest.event_id)
        order by sessions.opened_at desc, sessions.session_id desc
        limit 1
    ) as begun on true
    {{ left_join_horizons('earliest', 'events') }}
),

existing as (
    select sessions.*
    from {{ this }} as sessions
    inner join starts
        on
            sessions.device_id = starts.device_id
            and (sessions.opened_at, sessions.session_id) >= (starts.starts_at, starts.first_event_id)
),
{% endif %}

events as (
    {% if is_incremental() %}
    select
        events.*,
        {{ sweeps_before('events.event_at') }} as sweeps_before
    from starts
    cross join {% call look_up(ref('fct_access_events')) %}
        candidates.device_id = starts.device_id
        and candidates.event_at >= starts.starts_at
        and (candidates.event_at, candidates.event_id) >= (starts.starts_at, starts.first_event_id)
        and candidates.event_type in ('open', 'close')
    {% endcall %} as events
    {{ left_join_horizons('events', 'events') }}
    {% else %}
    select
        events.*,
        {{ sweeps_before('events.event_at') }} as sweeps_before
    from {{ ref('fct_access_events') }} as events
    {{ left_join_horizons('events', 'events') }}
    where events.event_type in ('open', 'close')
    {% endif %}
),

-- one number for all events from after a close, or a sweep, up to the next one
numbered as (
    select
        *,
        count(*) filter (where event_type = 'close') over (
            partition by device_id
            order by event_at, event_id
            rows between unbounded preceding and 1 preceding
        ) + sweeps_before as closes_before
    from events
),

sessions as (
    select
        device_id,
        (array_agg(event_id order by event_at, event_id))[1] as session_id,
        (array_agg(household_id order by event_at, event_id))[1] as household_id,
        (array_agg(trigger_source order by event_at, event_id))[1] as open_source,
        (array_agg(local_date order by event_at, event_id))[1] as local_date,
        count(*) filter (where event_type = 'open') - 1 as reopens,
        min(event_at) as opened_at,
        -- the only close there is
        (array_agg(event_id) filter (where event_type = 'close'))[1] as closed_event_id,
        min(trigger_source) filter (where event_type = 'close') as close_source,
        min(event_at) filter (where event_type = 'close') as closed_at,
        max(ingested_at) as source_ingested_at
    from numbered
    group by device_id, closes_before
    having count(*) filter (where event_type = 'open') > 0
),

measured as (
    select
        sessions.*,
        silent_devices.device_id is not null as is_silent,
        greatest(
            0,
            cast(
                extract(
                    epoch from coalesce(sessions.closed_at, data_clock.data_clock_at) - sessions.opened_at
                ) as double precision
            )
        ) as duration_seconds
    from sessions
    cross join data_clock
    left join silent_devices on sessions.device_id = silent_devices.device_id
),

computed as (
    select
        session_id,
        device_id,
        household_id,
        closed_event_id,
        open_source,
        close_source,
        case
            when closed_event_id is not null then 'closed'
            when is_silent then 'unknown_offline'
            else 'still_open'
        end as status,
        case
            when duration_seconds > {{ var('left_open_alert_seconds') }} then 'alert'
            when duration_seconds > {{ var('left_open_warn_seconds') }} then 'warn'
            else 'no'
        end as left_open,
        reopens,
        duration_seconds,
        local_date,
        opened_at,
        closed_at,
        source_ingested_at
    from measured
)

{% set frozen = [is_swept('events', 'rows.opened_at', "rows.closed_at + interval '1 microsecond'")] %}
{{ with_vanished('computed', 'existing', ['session_id'], frozen, is_sequence=true) }}
