-- The first and the newest of what a device sent. Each is a minimum or a maximum, so a run only has to bring what
-- arrived since the last one together with the rows that are there.
{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='device_id'
    )
}}

with observations as (
    select
        device_id,
        cast(null as timestamptz) as report_at,
        cast(null as timestamptz) as online_at,
        event_at,
        ingested_at
    from {{ ref('stg_access_events') }}
    {% if is_incremental() %} where ingested_at > {{ newest_known() }}{{ or_in_backfill('event_at') }} {% endif %}
    union all
    select
        device_id,
        reported_at as report_at,
        case when is_online then reported_at end as online_at,
        null as event_at,
        ingested_at
    from {{ ref('stg_device_health') }}
    {% if is_incremental() %} where ingested_at > {{ newest_known() }}{{ or_in_backfill('reported_at') }} {% endif %}
),

arrived as (
    select
        device_id,
        min(report_at) as first_report_at,
        max(report_at) as last_report_at,
        max(online_at) as last_online_at,
        max(event_at) as last_event_at,
        max(ingested_at) as source_ingested_at
    from observations
    group by device_id
),

together as (
    select * from arrived
    {% if is_incremental() %}
    union all
    select *
    from {{ this }}
    where device_id in (select arrived.device_id from arrived)
    {% else %}
    {{ take_over(['rows.device_id in (select device_id from ' ~ ref('stg_device_horizons') ~ ')']) }}
    {% endif %}
)

select
    device_id,
    min(first_report_at) as first_report_at,
    max(last_report_at) as last_report_at,
    max(last_online_at) as last_online_at,
    max(last_event_at) as last_event_at,
    max(source_ingested_at) as source_ingested_at
from together
group by device_id
