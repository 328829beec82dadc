-- No WITH here: PostgreSQL looks through a plain view, order and limit included, but not through one with a WITH.
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
from {{ source('raw', 'raw_device_health') }}
