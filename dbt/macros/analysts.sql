{#-
  What analysts see of each mart: a view of the same name, with pseudonyms in place of ids (dbt/pseudonyms.py). A column
  that is in neither list is not shown; tests/dbt/test_roles_of_the_warehouse.py asks for a decision on each.

  Left out is what leads back to a device: events' ids, which the raw records and the devices have too; an md5 of a
  device's id, as everybody who knows the ids can make it; JSON, in which anything may appear tomorrow.
-#}
{% macro columns_for_analysts() %}
    {{ return({
        'dim_devices': {
            'shown': [
                'device_version_id', 'device_id', 'household_id', 'device_type', 'model', 'firmware_version', 'region',
                'time_zone', 'version', 'is_deleted', 'is_current', 'installed_at', 'valid_from', 'valid_to', 'noticed_at',
            ],
        },
        'dim_households': {
            'shown': ['household_id', 'region', 'time_zone', 'devices', 'is_deleted', 'updated_at'],
        },
        'fct_access_events': {
            'shown': [
                'device_id', 'device_version_id', 'household_id', 'event_type', 'trigger_source', 'time_zone',
                'local_hour', 'seconds_to_row', 'is_late', 'local_date', 'hour_starts_at', 'event_at', 'ingested_at',
            ],
            'left_out': ['event_id'],
        },
        'fct_access_hourly': {
            'shown': [
                'device_id', 'opens', 'closes', 'fails', 'attempts', 'late_events', 'fail_rate', 'fail_rate_lower_bound',
                'local_hour', 'local_date', 'hour_starts_at', 'source_ingested_at',
            ],
        },
        'fct_anomalies': {
            'shown': ['rule', 'device_id', 'severity', 'is_open', 'started_at', 'ended_at', 'source_ingested_at'],
            'left_out': ['anomaly_id', 'evidence'],
        },
        'fct_battery_forecast': {
            'shown': [
                'device_id', 'band', 'battery_pct', 'readings', 'drain_pct_per_day', 'days_to_low', 'days_to_empty',
                'replaced_on', 'last_read_on',
            ],
        },
        'fct_device_daily_summary': {
            'shown': [
                'device_id', 'opens', 'closes', 'fails', 'fail_rate', 'left_open_minutes', 'health_reports',
                'battery_min_pct', 'battery_last_pct', 'offline_minutes', 'observed_minutes', 'uptime', 'completeness',
                'local_date', 'source_ingested_at',
            ],
        },
        'fct_device_health_hourly': {
            'shown': [
                'device_id', 'signal_band', 'battery_min_pct', 'battery_last_pct', 'signal_median_dbm', 'signal_p10_dbm',
                'signal_sd_dbm', 'reports', 'online_reports', 'reports_expected', 'local_hour', 'local_date',
                'hour_starts_at', 'source_ingested_at',
            ],
        },
        'fct_fleet_hourly': {
            'shown': [
                'opens', 'closes', 'fails', 'attempts', 'late_events', 'reporting_devices', 'excellent_devices',
                'good_devices', 'fair_devices', 'weak_devices', 'unusable_devices', 'local_hour', 'local_date',
                'hour_starts_at', 'source_ingested_at',
            ],
        },
        'fct_offline_sessions': {
            'shown': [
                'device_id', 'cause', 'offline_reports', 'duration_seconds', 'started_at', 'ended_at',
                'source_ingested_at',
            ],
        },
        'fct_open_sessions': {
            'shown': [
                'device_id', 'household_id', 'open_source', 'close_source', 'status', 'left_open', 'reopens',
                'duration_seconds', 'local_date', 'opened_at', 'closed_at', 'source_ingested_at',
            ],
            'left_out': ['session_id', 'closed_event_id'],
        },
        'fct_triggers_daily': {
            'shown': [
                'household_id', 'trigger_source', 'event_type', 'events', 'share', 'local_date', 'source_ingested_at',
            ],
        },
        'rpt_device_current': {
            'shown': [
                'device_id', 'household_id', 'device_type', 'model', 'firmware_version', 'region', 'time_zone', 'state',
                'battery_band', 'signal_band', 'battery_pct', 'signal_dbm', 'open_anomalies', 'is_online', 'state_since',
                'last_seen_at',
            ],
            'left_out': ['swept_from', 'swept_until'],
        },
        'rpt_pipeline_health': {
            'shown': [
                'stream', 'rows_in', 'duplicates', 'late_rows', 'dead_letters', 'lag_p50_seconds', 'lag_p95_seconds',
                'lag_p99_seconds', 'minute_starts_at',
            ],
        },
    }) }}
{% endmacro %}

{% macro pseudonymous_schema() %}{{ return(target.schema ~ '_pseudonymous') }}{% endmacro %}

{#- The mart `this` as analysts see it. A row whose device or household has no pseudonym yet is not there. -#}
{% macro pseudonymised(shown) %}
    {% set pseudonyms = {
        'device_id': 'devices.pseudonym',
        'household_id': 'households.pseudonym',
        'device_version_id': 'devices.pseudonym || right(mart.device_version_id, -length(mart.device_id))',
    } %}
    select
        {% for name in shown %}
            {% if name in pseudonyms %}
                {{ pseudonyms[name] }}
            {% elif name in ('trigger_source', 'open_source', 'close_source') %}
                case
                    when mart.{{ name }} in ('{{ var("known_trigger_sources") | join("', '") }}') then mart.{{ name }}
                    when mart.{{ name }} is not null then 'other'
                end
            {% else %}
                mart.{{ name }}
            {% endif %} as {{ name }}{{ ',' if not loop.last }}
        {% endfor %}
    from {{ this }} as mart
    {% if 'device_id' in shown %}
        inner join public.pseudonyms as devices on devices.kind = 'device' and mart.device_id = devices.id
    {% endif %}
    {% if 'household_id' in shown %}
        left join public.pseudonyms as households on households.kind = 'household' and mart.household_id = households.id
        where mart.household_id is null or households.pseudonym is not null
    {% endif %}
{% endmacro %}

{#-
  As a post-hook, in the transaction that makes the mart: the view changes over from the old table to the new one before
  the old one is dropped with what rests on it, so that there is no moment without it. Of a mart that stays as it is, it
  is made anew when its text has changed. A security barrier, so that no function of an analyst's own sees what is hidden.
-#}
{% macro show_to_analysts() %}
    {% set columns = columns_for_analysts().get(this.identifier) %}
    {% if execute and columns and flags.WHICH in ('run', 'build') %}
        {% set view = pseudonymous_schema() ~ '.' ~ this.identifier %}
        {% set text = pseudonymised(columns.shown) %}
        {% set known = run_query("select obj_description(to_regclass('" ~ view ~ "'), 'pg_class')").rows[0][0] %}
        {% if not is_incremental() or known != local_md5(text) %}
            drop view if exists {{ view }} cascade;
            create view {{ view }} with (security_barrier) as {{ text }};
            comment on view {{ view }} is '{{ local_md5(text) }}';
        {% endif %}
    {% endif %}
{% endmacro %}
