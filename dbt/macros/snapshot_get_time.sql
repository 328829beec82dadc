{#- The time of a snapshot with its time zone, as all times here: dbt's own has none, and warns of each column that has. -#}
{% macro postgres__snapshot_get_time() -%}
    {{ current_timestamp() }}
{%- endmacro %}
