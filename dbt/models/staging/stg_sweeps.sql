with source as (
    select * from {{ source('raw', 'sweeps') }}
),

renamed as (
    select
        sweep_id,
        cutoff as cutoff_at,
        aggregates_cutoff as aggregates_cutoff_at,
        started_at,
        ended_at
    from source
)

select * from renamed
