{#-
  Retention (docs/retention.md). A sweep removes a device's old raw rows: those from swept_from up to before horizon_at
  are gone, but for pinned ones (stg_device_horizons). What the marts say of that time cannot be computed any more, so it
  does not change any more: neither a run nor a backfill touches such rows, and a full refresh takes them over from the
  old table (with_vanished, take_over).

  What is there of a device's raw rows on either side is whole. The horizon lies where nothing is cut in two, so sessions,
  bursts, silences and flapping spells end at it. One that reaches into what was swept, or begins there with a pinned
  row, is as it was then, or is not there.

  The conditions below are on `rows`, a row of the model.
-#}

{#- Whether a row reaches into what was swept of its device. ends: the first moment after it, NULL while it goes on. -#}
{% macro is_swept(stream, starts, ends) -%}
    exists (
        select 1
        from {{ ref('stg_device_horizons') }} as horizons
        where
            horizons.stream = '{{ stream }}'
            and horizons.device_id = rows.device_id
            and horizons.horizon_at > {{ starts }}
            and horizons.swept_from < coalesce({{ ends }}, 'infinity')
    )
{%- endmacro %}

{#- Whether a moment is before what the last sweep has removed of hours and days. -#}
{% macro is_beyond_aggregates(at) -%}
    exists (select 1 from {{ ref('stg_sweeps') }} where aggregates_cutoff_at is not null)
    and {{ at }} < (select coalesce(max(aggregates_cutoff_at), '-infinity') from {{ ref('stg_sweeps') }})
{%- endmacro %}

{#- Whether a row depends on hours that are gone: for what rests on the hours of some time `before` it. -#}
{% macro lacks_aggregates(stream, starts, ends, before) -%}
    {% set since = starts ~ " - interval '" ~ before ~ "'" %}
    {{ is_beyond_aggregates(since) }} and {{ is_swept(stream, since, ends) }}
{%- endmacro %}

{#- For sequences of raw rows: what was swept of each row's device, as `horizons`. -#}
{% macro left_join_horizons(relation, stream) -%}
    left join {{ ref('stg_device_horizons') }} as horizons
        on {{ relation }}.device_id = horizons.device_id and horizons.stream = '{{ stream }}'
{%- endmacro %}

{#- 1 from the horizon on, else 0. -#}
{% macro sweeps_before(at) -%}
    cast(coalesce({{ at }} >= horizons.horizon_at, false) as integer)
{%- endmacro %}

{#- In a full refresh, the table that it replaces; else none. -#}
{% macro replaced_table() %}
    {% set found = none %}
    {% if execute and not is_incremental() and model.columns %}
        {% set relation = adapter.get_relation(this.database, this.schema, this.identifier) %}
        {% if relation and relation.is_table %}{% set found = relation %}{% endif %}
    {% endif %}
    {{ return(found) }}
{% endmacro %}

{#- In a full refresh: the old table's rows that one of the conditions holds for; a column that it lacks is NULL. -#}
{% macro take_over(conditions) %}
    {% set old = replaced_table() %}
    {% if old %}
        {% set known = adapter.get_columns_in_relation(old) | map(attribute='name') | list %}
        {% for condition in conditions %}
            union all
            select
                {% for column in model.columns.values() %}
                    cast({{ 'rows.' ~ column.name if column.name in known else 'null' }} as {{ column.data_type }})
                        as {{ column.name }}{{ ',' if not loop.last }}
                {% endfor %}
            from {{ old }} as rows
            where {{ condition }}
            {% for earlier in conditions[:loop.index0] %}
                and not ({{ earlier }})
            {% endfor %}
        {% endfor %}
    {% endif %}
{% endmacro %}

{#- As a literal: asked before the statement, for what would cost something where nothing has been swept. -#}
{% macro is_anything_swept() %}
    {% if not execute %}{{ return(false) }}{% endif %}
    {{ return(run_query('select exists (select from public.device_horizons)').rows[0][0]) }}
{% endmacro %}
