-- No WITH here: PostgreSQL looks through a plain view, order and limit included, but not through one with a WITH.
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
from {{ source('raw', 'raw_access_events') }}
