{{ config(indexes=[{'columns': ['device_id']}]) }}

with history as (
    select * from {{ ref('devices_history') }}
),

households as (
    select
        household_id,
        region,
        time_zone
    from {{ ref('households_history') }}
    where dbt_valid_to is null
),

versions as (
    select
        *,
        cast(row_number() over (partition by device_id order by dbt_valid_from, noticed_at) as integer) as version,
        lead(updated_at) over (partition by device_id order by dbt_valid_from, noticed_at) as next_valid_from
    from history
)

select
    versions.device_id || '#' || versions.version as device_version_id,
    versions.device_id,
    versions.household_id,
    versions.device_type,
    versions.model,
    versions.firmware_version,
    households.region,
    coalesce(households.time_zone, 'UTC') as time_zone,
    versions.version,
    versions.is_deleted,
    versions.next_valid_from is null as is_current,
    versions.installed_at,
    versions.updated_at as valid_from,
    versions.next_valid_from as valid_to,
    versions.noticed_at
from versions
left join households on versions.household_id = households.household_id
