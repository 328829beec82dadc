with source as (
    select * from {{ source('raw', 'raw_households') }}
),

-- AT TIME ZONE fails on a name that this server does not have, and one such name would fail every model
known_time_zones as (
    select name from pg_timezone_names
),

renamed as (
    select
        source.household_id,
        source.region,
        coalesce(known_time_zones.name, 'UTC') as time_zone,
        source.extra,
        source.deleted_at is not null as is_deleted,
        source.updated_at,
        source.deleted_at,
        source.ingested_at
    from source
    left join known_time_zones on source.timezone = known_time_zones.name
)

select * from renamed
