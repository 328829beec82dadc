with registry as (
    select
        household_id,
        region,
        time_zone,
        is_deleted,
        updated_at
    from {{ ref('households_history') }}
    where dbt_valid_to is null
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
