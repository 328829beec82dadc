with readings as (
    select
        devices.device_id,
        days.local_date,
        days.battery_last_pct,
        max(days.local_date) over (partition by devices.device_id) as last_read_on,
        days.battery_last_pct
        - lag(days.battery_last_pct) over (partition by devices.device_id order by days.local_date) as rise
    from {{ ref('int_device_activity') }} as devices
    cross join lateral (
        select
            summaries.local_date,
            summaries.battery_last_pct
        from {{ ref('fct_device_daily_summary') }} as summaries
        where summaries.device_id = devices.device_id and summaries.battery_last_pct is not null
        order by summaries.local_date desc
        limit 15
    ) as days
),

recent as (
    select
        *,
        max(local_date) filter (where rise >= 20) over (partition by device_id) as replaced_on
    from readings
    where local_date > last_read_on - 14
),

since_replacement as (
    select *
    from recent
    where replaced_on is null or local_date >= replaced_on
),

slopes as (
    select
        later.device_id,
        percentile_cont(0.5) within group (
            order by (earlier.battery_last_pct - later.battery_last_pct) / (later.local_date - earlier.local_date)
        ) as drain_pct_per_day
    from since_replacement as later
    inner join since_replacement as earlier
        on later.device_id = earlier.device_id and later.local_date > earlier.local_date
    group by later.device_id
),

newest as (
    select
        device_id,
        max(battery_last_pct) filter (where local_date = last_read_on) as battery_pct,
        count(*) as readings,
        max(replaced_on) as replaced_on,
        max(last_read_on) as last_read_on
    from since_replacement
    group by device_id
),

forecast as (
    select
        newest.*,
        slopes.drain_pct_per_day,
        case
            when newest.battery_pct <= 20 then 0
            when slopes.drain_pct_per_day >= 0.02 then (newest.battery_pct - 20) / slopes.drain_pct_per_day
        end as days_to_low,
        case
            when newest.battery_pct <= 5 then 0
            when slopes.drain_pct_per_day >= 0.02 then (newest.battery_pct - 5) / slopes.drain_pct_per_day
        end as days_to_empty
    from newest
    left join slopes on newest.device_id = slopes.device_id
)

select
    device_id,
    case
        when battery_pct <= 5 then 'empty'
        when battery_pct <= 20 then 'low'
        when days_to_low <= 7 then 'within_7_days'
        when days_to_low <= 14 then 'within_14_days'
        when days_to_low <= 30 then 'within_30_days'
        when days_to_low is not null then 'later'
        else 'unknown'
    end as band,
    battery_pct,
    readings,
    drain_pct_per_day,
    days_to_low,
    days_to_empty,
    replaced_on,
    last_read_on
from forecast
