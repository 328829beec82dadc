{#- Ends a run on a database without the raw tables with the next step, where PostgreSQL would only miss a relation. -#}
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
{% endmacro %}
