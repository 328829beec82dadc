{% macro signal_band(dbm) -%}
    case
        when {{ dbm }} >= -50 then 'excellent'
        when {{ dbm }} >= -67 then 'good'
        when {{ dbm }} >= -75 then 'fair'
        when {{ dbm }} >= -85 then 'weak'
        when {{ dbm }} is not null then 'unusable'
    end
{%- endmacro %}
