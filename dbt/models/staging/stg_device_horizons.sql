-- No WITH here: PostgreSQL looks through a plain view, order and limit included, but not through one with a WITH.
select
    stream,
    device_id,
    swept_from,
    horizon as horizon_at
from {{ source('raw', 'device_horizons') }}
