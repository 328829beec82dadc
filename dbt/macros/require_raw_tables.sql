{#- Ends a run that lacks what it starts from with the next step, where PostgreSQL would only miss a relation. -#}
{% macro require_raw_tables() %}
    {% if execute and flags.WHICH in ('run', 'test', 'build') %}
        {% set missing = [] %}
        {% for source in graph.sources.values() %}
            {% if not adapter.get_relation(source.database, source.schema, source.identifier) %}
                {% do missing.append(source.identifier) %}
            {% endif %}
        {% endfor %}
        {% if missing %}
            {% do exceptions.raise_compiler_error(
                'database ' ~ target.dbname ~ ' lacks ' ~ missing | sort | join(', ')
                ~ ': start the consumer once (python streaming/kafka_consumer.py), it creates the tables'
            ) %}
        {% endif %}
    {% endif %}
    {% if execute and flags.WHICH == 'run' and not adapter.get_relation(target.database, 'snapshots', 'devices_history') %}
        {% do exceptions.raise_compiler_error(
            '`dbt run` does not make the snapshots, and there are none yet: `dbt build --selector models` makes everything'
        ) %}
    {% endif %}
{% endmacro %}
