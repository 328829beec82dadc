{% snapshot households_history %}

{{
    config(
        schema='snapshots',
        unique_key='household_id',
        strategy='check',
        check_cols=['region', 'time_zone', 'is_deleted'],
        updated_at='ingested_at',
        pre_hook='{{ take_lock() }}'
    )
}}

select
    household_id,
    region,
    time_zone,
    is_deleted,
    updated_at,
    ingested_at,
    now() as noticed_at
from {{ ref('stg_households') }}

{% endsnapshot %}
