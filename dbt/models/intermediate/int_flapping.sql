-- Recomputed are, of each device with a new report, the spells after its last calm report before it: one that ends 20
-- reports without a change, so that no spell reaches over it.
{{
    config(
        materialized='incremental',
        incremental_strategy='replace_touched',
        unique_key=['device_id', 'started_at'],
        indexes=[{'columns': ['ended_at']}],
        pre_hook='{{ begin_run() }}',
        post_hook='{{ remember_run() }}'
    )
}}

-- depends_on: {{ ref('int_data_clock') }}
-- depends_on: {{ ref('int_device_changes') }}

with
{% if is_incremental() %}
earliest as (
    select
        device_id,
        min(reported_at) as reported_at
    from {{ ref('stg_device_health') }}
    where {{ is_new('ingested_at', 'reported_at') }}
    group by device_id
),

-- looked for among the last 200 reports before; if there is none, the device's whole history is read
starts as (
    select
        earliest.device_id,
        coalesce(calm.reported_at, '-infinity') as starts_at
    from earliest
    left join lateral ( -- noqa: ST05
        select max(judged.reported_at) as reported_at
        from (
            select
                recent.reported_at,
                count(*) over latest_21 as reports,
                bool_and(recent.is_online) over latest_21 = bool_or(recent.is_online) over latest_21 as is_same
            from (
                select
                    health.reported_at,
                    health.is_online
                from {{ ref('stg_device_health') }} as health
                where health.device_id = earliest.device_id and health.reported_at < earliest.reported_at
                order by health.reported_at desc
                limit 200
            ) as recent
            window latest_21 as (order by recent.reported_at rows between 20 preceding and current row)
        ) as judged
        where judged.reports = 21 and judged.is_same
    ) as calm on true
),

existing as (
    select spells.*
    from {{ this }} as spells
    inner join starts on spells.device_id = starts.device_id and spells.started_at >= starts.starts_at
),
{% endif %}

reports as (
    {% if is_incremental() %}
    select
        health.*,
        {{ sweeps_before('health.reported_at') }} as sweeps_before
    from starts
    cross join {% call look_up(ref('stg_device_health')) %}
        candidates.device_id = starts.device_id
        and candidates.reported_at >= starts.starts_at
    {% endcall %} as health
    {{ left_join_horizons('health', 'health') }}
    {% else %}
    select
        health.*,
        {{ sweeps_before('health.reported_at') }} as sweeps_before
    from {{ ref('stg_device_health') }} as health
    {{ left_join_horizons('health', 'health') }}
    {% endif %}
),

numbered as (
    select
        device_id,
        reported_at,
        ingested_at,
        -- no spell reaches over a sweep
        row_number() over (partition by device_id order by reported_at) + 21 * sweeps_before as position,
        is_online <> lag(is_online) over (partition by device_id, sweeps_before order by reported_at) as is_change
    from reports
),

changes as (
    select
        device_id,
        reported_at,
        position,
        coalesce(position - lag(position) over each_device > 20, true) as begins_spell,
        lead(position, 3) over each_device - position <= 19 as begins_four
    from numbered
    where is_change
    window each_device as (partition by device_id order by position)
),

spells as (
    select
        *,
        count(*) filter (where begins_spell) over (partition by device_id order by position) as spell
    from changes
),

bounds as (
    select
        device_id,
        spell,
        min(position) filter (where begins_four) as first_position,
        max(position) as last_position
    from spells
    group by device_id, spell
    having bool_or(begins_four)
),

counted as (
    select
        bounds.device_id,
        bounds.first_position,
        bounds.last_position,
        count(*) as changes,
        min(spells.reported_at) as started_at
    from bounds
    inner join spells
        on
            bounds.device_id = spells.device_id
            and bounds.spell = spells.spell
            and bounds.first_position <= spells.position
    group by bounds.device_id, bounds.first_position, bounds.last_position
),

computed as (
    select
        counted.device_id,
        counted.changes,
        counted.last_position - counted.first_position + 1 as reports,
        counted.started_at,
        max(numbered.reported_at) filter (where numbered.position = counted.last_position + 20) as ended_at,
        max(numbered.ingested_at) as source_ingested_at
    from counted
    inner join numbered
        on
            counted.device_id = numbered.device_id
            and counted.first_position <= numbered.position
            and counted.last_position + 20 >= numbered.position
    group by counted.device_id, counted.first_position, counted.last_position, counted.changes, counted.started_at
)

{% set frozen = [is_swept('health', 'rows.started_at', "rows.ended_at + interval '1 microsecond'")] %}
{{ with_vanished('computed', 'existing', ['device_id', 'started_at'], frozen, is_sequence=true) }}
