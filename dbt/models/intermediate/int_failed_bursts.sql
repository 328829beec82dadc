-- Recomputed are, of each device with a new event, the bursts after the last open before it: an open ends them all.
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'first_event_id'],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with
{% if is_incremental() %}
earliest as (
    select distinct on (device_id)
        device_id,
        event_at,
        event_id
    from {{ ref('fct_access_events') }}
    where {{ is_new('ingested_at', 'event_at') }}
    order by device_id, event_at, event_id
),

starts as (
    select
        earliest.device_id,
        coalesce(opened.event_at, '-infinity') as starts_at,
        coalesce(opened.event_id, cast('00000000-0000-0000-0000-000000000000' as uuid)) as first_event_id
    from earliest
    left join lateral (
        select
            events.event_at,
            events.event_id
        from {{ ref('fct_access_events') }} as events
        where
            events.device_id = earliest.device_id
            and events.event_at <= earliest.event_at
            and (events.event_at, events.event_id) < (earliest.event_at, earliest.event_id)
            and events.event_type = 'open'
        order by events.event_at desc, events.event_id desc
        limit 1
    ) as opened on true
),

existing as (
    select bursts.*
    from {{ this }} as bursts
    inner join starts
        on
            bursts.device_id = starts.device_id
            and (bursts.started_at, bursts.first_event_id) >= (starts.starts_at, starts.first_event_id)
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
        and candidates.event_type in ('open', 'fail')
    {% endcall %} as events
    {{ left_join_horizons('events', 'events') }}
    {% else %}
    select
        events.*,
        {{ sweeps_before('events.event_at') }} as sweeps_before
    from {{ ref('fct_access_events') }} as events
    {{ left_join_horizons('events', 'events') }}
    where events.event_type in ('open', 'fail')
    {% endif %}
),

-- failures between the same two opens, or an open and a sweep, have the same number
numbered as (
    select
        *,
        count(*) filter (where event_type = 'open') over (
            partition by device_id
            order by event_at, event_id
        ) + sweeps_before as opens_before
    from events
),

fails as (
    select
        device_id,
        opens_before,
        event_id,
        event_at,
        ingested_at,
        row_number() over stretch as position,
        lead(event_at, 4) over stretch - event_at <= interval '10 minutes' as begins_window
    from numbered
    where event_type = 'fail'
    window stretch as (partition by device_id, opens_before order by event_at, event_id)
),

-- windows whose first failures are at most four apart share one
windows as (
    select
        *,
        coalesce(position - lag(position) over (partition by device_id, opens_before order by position) > 4, true)
            as begins_burst
    from fails
    where begins_window
),

bursts as (
    select
        *,
        count(*) filter (where begins_burst) over (partition by device_id, opens_before order by position) as burst
    from windows
),

bounds as (
    select
        device_id,
        opens_before,
        min(position) as first_position,
        max(position) + 4 as last_position
    from bursts
    group by device_id, opens_before, burst
),

computed as (
    select
        fails.device_id,
        (array_agg(fails.event_id order by fails.position))[1] as first_event_id,
        count(*) as fails,
        min(fails.event_at) as started_at,
        max(fails.event_at) as ended_at,
        max(fails.ingested_at) as source_ingested_at
    from bounds
    inner join fails
        on
            bounds.device_id = fails.device_id
            and bounds.opens_before = fails.opens_before
            and bounds.first_position <= fails.position
            and bounds.last_position >= fails.position
    group by fails.device_id, bounds.opens_before, bounds.first_position
)

-- a failure within ten minutes would have belonged to it
{% set frozen = [is_swept('events', 'rows.started_at', "rows.ended_at + interval '10 minutes 1 microsecond'")] %}
{{ with_vanished('computed', 'existing', ['device_id', 'first_event_id'], frozen, is_sequence=true) }}
