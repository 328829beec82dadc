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
),

-- what was swept of any device that has ever belonged to the household
swept as (
    select distinct
        versions.household_id,
        versions.time_zone,
        horizons.swept_from,
        horizons.horizon_at
    from {{ ref('dim_devices') }} as versions
    inner join {{ ref('stg_device_horizons') }} as horizons
        on versions.device_id = horizons.device_id and horizons.stream = 'events'
)

{% set is_swept = "exists (
    select 1
    from swept
    where
        swept.household_id = rows.household_id
        and swept.horizon_at > cast(rows.local_date as timestamp) at time zone swept.time_zone
        and swept.swept_from < cast(rows.local_date + 1 as timestamp) at time zone swept.time_zone
)" %}
{{ with_vanished('computed', 'existing', ['household_id', 'trigger_source', 'event_type', 'local_date'], [is_swept]) }}
