select max(source_ingested_at) as data_clock_at from {{ ref('int_device_activity') }}
