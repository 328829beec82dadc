with source as (
    select * from {{ source('raw', 'raw_device_health') }}
),

renamed as (
    select
        device_id,
        extra,
        battery_pct,
        signal_strength_dbm,
        kafka_partition,
        kafka_offset,
        is_online,
        reported_at,
        ingested_at
    from source
)

select * from renamed
