-- A table, so that it stays the same for all models of a run; made after dim_devices, so that who sees a change here
-- sees it there as well.
-- depends_on: {{ ref('dim_devices') }}
{{ config(materialized='table') }}

with versions as (
    select
        device_id,
        household_id,
        noticed_at
    from {{ ref('devices_history') }}
),

households as (
    select
        household_id,
        noticed_at
    from {{ ref('households_history') }}
    where dbt_valid_to is null
)

select
    versions.device_id,
    max(greatest(versions.noticed_at, households.noticed_at)) as changed_at
from versions
left join households on versions.household_id = households.household_id
group by versions.device_id
