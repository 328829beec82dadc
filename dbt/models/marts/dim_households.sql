with registry as (
    select
        history.household_id,
        history.region,
        history.time_zone,
        history.is_deleted,
        -- an entry that only repeats the last one makes no version, but is the registry's newest
        entries.updated_at
    from {{ ref('households_history') }} as history
    inner join {{ ref('stg_households') }} as entries on history.household_id = entries.household_id
    where history.dbt_valid_to is null
),

named as (
    select
        household_id,
        count(*) filter (where is_current and not is_deleted) as devices
    from {{ ref('dim_devices') }}
    where household_id is not null
    group by household_id
)

select
    coalesce(registry.household_id, named.household_id) as household_id,
    registry.region,
    coalesce(registry.time_zone, 'UTC') as time_zone,
    coalesce(named.devices, 0) as devices,
    coalesce(registry.is_deleted, false) as is_deleted,
    registry.updated_at
from registry
full outer join named on registry.household_id = named.household_id
