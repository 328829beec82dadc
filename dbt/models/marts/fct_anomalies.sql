-- A view: each rule's detections are kept up to date where they are found.
{{ config(materialized='view') }}

with failed_bursts as (
    select
        'failed_burst' as rule,
        device_id,
        case when fails >= 10 then 'critical' else 'warning' end as severity,
        jsonb_build_object('fails', fails, 'seconds', extract(epoch from ended_at - started_at)) as evidence,
        false as is_open,
        started_at,
        ended_at,
        source_ingested_at
    from {{ ref('int_failed_bursts') }}
),

unusual_hours as (
    select
        'unusual_hour' as rule,
        device_id,
        'info' as severity,
        jsonb_build_object('opens', opens, 'opens_before', opens_before) as evidence,
        false as is_open,
        hour_starts_at as started_at,
        hour_starts_at + interval '1 hour' as ended_at,
        source_ingested_at
    from {{ ref('int_unusual_opens') }}
),

flapping as (
    select
        'flapping' as rule,
        device_id,
        'warning' as severity,
        jsonb_build_object('changes', changes, 'reports', reports) as evidence,
        ended_at is null as is_open,
        started_at,
        ended_at,
        source_ingested_at
    from {{ ref('int_flapping') }}
),

battery_cliffs as (
    select
        'battery_cliff' as rule,
        device_id,
        'warning' as severity,
        jsonb_build_object('from_pct', from_pct, 'to_pct', to_pct) as evidence,
        false as is_open,
        hour_starts_at as started_at,
        hour_starts_at + interval '1 hour' as ended_at,
        source_ingested_at
    from {{ ref('int_battery_cliffs') }}
),

silences as (
    select
        'silent' as rule,
        device_id,
        case when duration_seconds >= 3600 then 'critical' else 'warning' end as severity,
        jsonb_build_object('cause', cause, 'seconds', duration_seconds) as evidence,
        ended_at is null as is_open,
        started_at,
        ended_at,
        source_ingested_at
    from {{ ref('fct_offline_sessions') }}
    where duration_seconds >= 900
),

left_open as (
    select
        'left_open' as rule,
        device_id,
        case when duration_seconds >= 3600 then 'critical' else 'warning' end as severity,
        jsonb_build_object('seconds', duration_seconds, 'status', status) as evidence,
        closed_at is null as is_open,
        opened_at as started_at,
        closed_at as ended_at,
        source_ingested_at
    from {{ ref('fct_open_sessions') }}
    where left_open = 'alert' and status <> 'unknown_offline'
),

detections as (
    select * from failed_bursts
    union all
    select * from unusual_hours
    union all
    select * from flapping
    union all
    select * from battery_cliffs
    union all
    select * from silences
    union all
    select * from left_open
)

select
    md5(
        rule || '|' || device_id || '|' || to_char(started_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
    ) as anomaly_id,
    rule,
    device_id,
    severity,
    evidence,
    is_open,
    started_at,
    ended_at,
    source_ingested_at
from detections
