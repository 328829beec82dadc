{#- Seconds between two health reports of a device: the setting that the producer has, with its default. -#}
{% macro health_interval_seconds() -%}
    {{ (env_var('HEALTH_CHECK_INTERVAL', '') or '30') | as_number }}
{%- endmacro %}
