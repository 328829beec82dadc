with source as (
    select * from {{ source('raw', 'raw_access_events') }}
),

renamed as (
    select
        event_id,
        device_id,
        event_type,
        trigger_source,
        extra,
        kafka_partition,
        kafka_offset,
        event_ts as event_at,
        ingested_at
    from source
)

select * from renamed
