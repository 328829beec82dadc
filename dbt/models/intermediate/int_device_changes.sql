-- A table, so that it stays the same for all models of a run; made after dim_devices, so that who sees a change here
-- sees it there as well.
-- depends_on: {{ ref('dim_devices') }}
{{ config(materialized='table') }}

with versions as (
    select
        device_id,
        household_id,
        noticed_at,
        coalesce(household_id, '') as household,
        coalesce(lag(household_id) over by_device, '') as household_before,
        coalesce(lead(household_id, 1, household_id) over by_device, '') as household_after
    from {{ ref('devices_history') }}
    window by_device as (partition by device_id order by dbt_valid_from, noticed_at)
),

moves as (
    select
        device_id,
        household_id,
        noticed_at,
        case when household <> household_before or household <> household_after then noticed_at end as moved_at
    from versions
),

households as (
    select
        household_id,
        noticed_at
    from {{ ref('households_history') }}
    where dbt_valid_to is null
)

select
    moves.device_id,
    max(greatest(moves.noticed_at, households.noticed_at)) as changed_at,
    max(greatest(moves.moved_at, households.noticed_at)) as moved_at
from moves
left join households on moves.household_id = households.household_id
group by moves.device_id
