{#- Whether a version of dim_devices was in force at a moment; the first one also stands for the time before it. -#}
{% macro in_force(versions, at) -%}
    ({{ versions }}.version = 1 or {{ versions }}.valid_from <= {{ at }})
    and ({{ versions }}.valid_to is null or {{ at }} < {{ versions }}.valid_to)
{%- endmacro %}

{#- The start of the local hour that a moment lies in: the moment less what has passed of the hour on the local clock. -#}
{% macro hour_starts_at(at, time_zone) -%}
    {{ at }} - (({{ at }} at time zone {{ time_zone }}) - date_trunc('hour', {{ at }} at time zone {{ time_zone }}))
{%- endmacro %}

{% macro local_hour(at, time_zone) -%}
    cast(extract(hour from {{ at }} at time zone {{ time_zone }}) as integer)
{%- endmacro %}

{% macro local_date(at, time_zone) -%}
    cast({{ at }} at time zone {{ time_zone }} as date)
{%- endmacro %}
