{% snapshot devices_history %}

{#- The order of versions is that of arrival: updated_at may be the same in two entries. -#}
{{
    config(
        schema='snapshots',
        unique_key='device_id',
        strategy='check',
        check_cols=['household_id', 'device_type', 'model', 'firmware_version', 'installed_at', 'is_deleted'],
        updated_at='ingested_at',
        pre_hook='{{ take_lock() }}'
    )
}}

select
    device_id,
    household_id,
    device_type,
    model,
    firmware_version,
    is_deleted,
    installed_at,
    updated_at,
    ingested_at,
    now() as noticed_at
from {{ ref('stg_devices') }}

{% endsnapshot %}
