{#-
  Lower bound of the 95 % Wilson score interval of successes / trials (E. B. Wilson, 1927, JASA 22, 209-212; z = 1.96).
  NULL without trials.
-#}
{% macro wilson_lower_bound(successes, trials) -%}
    case
        when {{ trials }} > 0
            then greatest(
                0,
                (
                    {{ successes }} + 1.96 * 1.96 / 2
                    - 1.96 * sqrt(
                        cast({{ successes }} as double precision) * ({{ trials }} - {{ successes }}) / {{ trials }}
                        + 1.96 * 1.96 / 4
                    )
                ) / ({{ trials }} + 1.96 * 1.96)
            )
    end
{%- endmacro %}
