-- What arrived since the last run, and the events of devices whose version, household or time zone has changed since.
-- The marts on events read this table and not the raw one, which has no index by device: it would cost the stream a
-- third of its rate.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='event_id',
        indexes=[
            {'columns': ['device_id', 'event_at']},
            {'columns': ['household_id', 'local_date']},
            {'columns': ['ingested_at']},
        ],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with versions as (
    select * from {{ ref('dim_devices') }}
),

events as (
    select
        event_id,
        device_id,
        event_type,
        trigger_source,
        event_at,
        ingested_at
    from {{ ref('stg_access_events') }}
    {% if is_incremental() %}
    where {{ is_new('ingested_at', 'event_at') }}
    union
    select
        earlier.event_id,
        earlier.device_id,
        earlier.event_type,
        earlier.trigger_source,
        earlier.event_at,
        earlier.ingested_at
    from ({{ changed_devices(seen('noticed_at')) }}) as changed
    cross join {% call look_up(this) %}
        candidates.device_id = changed.device_id
    {% endcall %} as earlier
    {% endif %}
),

located as (
    select
        events.*,
        versions.device_version_id,
        versions.household_id,
        coalesce(versions.time_zone, 'UTC') as time_zone
    from events
    left join versions
        on
            events.device_id = versions.device_id
            and {{ in_force('versions', 'events.event_at') }}
)

select
    event_id,
    device_id,
    device_version_id,
    household_id,
    event_type,
    trigger_source,
    time_zone,
    {{ local_hour('event_at', 'time_zone') }} as local_hour,
    cast(extract(epoch from ingested_at - event_at) as double precision) as seconds_to_row,
    ingested_at - event_at > interval '{{ var("late_after_seconds") }} seconds' as is_late,
    {{ local_date('event_at', 'time_zone') }} as local_date,
    {{ hour_starts_at('event_at', 'time_zone') }} as hour_starts_at,
    event_at,
    ingested_at
from located
