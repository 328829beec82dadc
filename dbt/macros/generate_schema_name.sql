{#- Schemas as people look for them: marts.fct_…, staging.stg_…, not dbt's default of marts_staging. -#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ custom_schema_name or target.schema }}
{%- endmacro %}
