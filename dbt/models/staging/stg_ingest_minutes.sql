with source as (
    select * from {{ source('raw', 'ingest_minutes') }}
),

renamed as (
    select
        cluster_id,
        consumer_group,
        topic,
        partition,
        stored,
        duplicates,
        dead,
        minute_starts_at
    from source
)

select * from renamed
