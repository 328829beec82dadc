{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['household_id', 'local_date', 'trigger_source', 'event_type'],
        indexes=[{'columns': ['local_date']}],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}
-- depends_on: {{ ref('dim_devices') }}

with
{% if is_incremental() %}
-- of a device that moved, all households that it belonged to
changed_households as (
    select distinct household_id
    from {{ ref('dim_devices') }}
    where household_id is not null and device_id in ({{ changed_devices(seen('noticed_at')) }})
),

touched as (
    select
        household_id,
        local_date
    from {{ ref('fct_access_events') }}
    where household_id is not null and {{ is_new('ingested_at', 'event_at') }}
    union
    select
        events.household_id,
        events.local_date
    from changed_households
    cross join {% call look_up(ref('fct_access_events')) %}
        candidates.household_id = changed_households.household_id
    {% endcall %} as events
    union
    select
        rows.household_id,
        rows.local_date
    from changed_households
    cross join {% call look_up(this) %}
        candidates.household_id = changed_households.household_id
    {% endcall %} as rows
),

existing as (
    select rows.*
    from touched
    cross join {% call look_up(this) %}
        candidates.household_id = touched.household_id and candidates.local_date = touched.local_date
    {% endcall %} as rows
),
{% endif %}

events as (
    {% if is_incremental() %}
    select events.*
    from touched
    cross join {% call look_up(ref('fct_access_events')) %}
        candidates.household_id = touched.household_id and candidates.local_date = touched.local_date
    {% endcall %} as events
    {% else %}
    select *
    from {{ ref('fct_access_events') }}
    where household_id is not null
    {% endif %}
),

computed as (
    select
        household_id,
        trigger_source,
        event_type,
        count(*) as events,
        count(*) / sum(cast(count(*) as double precision)) over (partition by household_id, local_date) as share,
        local_date,
        max(ingested_at) as source_ingested_at
    from events
    group by household_id, local_date, trigger_source, event_type
)

{{ with_vanished('computed', 'existing', ['household_id', 'trigger_source', 'event_type', 'local_date']) }}
