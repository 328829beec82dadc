with source as (
    select * from {{ source('raw', 'raw_devices') }}
),

renamed as (
    select
        device_id,
        household_id,
        device_type,
        model,
        firmware_version,
        extra,
        deleted_at is not null as is_deleted,
        installed_at,
        updated_at,
        deleted_at,
        ingested_at
    from source
)

select * from renamed
