{#- Every call of dbt that touched the warehouse, for whoever must tell whether the marts are kept up to date. -#}
{% macro record_run(results) %}
    {% if execute and flags.WHICH in ('run', 'build', 'test') %}
        {% set failed = results | selectattr('status', 'in', ['error', 'fail', 'runtime error']) | list %}
        {% set error = failed[0].node.name ~ ': ' ~ failed[0].message if failed else none %}
        insert into intermediate.dbt_runs (run_id, command, succeeded, failed, skipped, first_error, started_at, ended_at)
        values (
            '{{ invocation_id }}',
            '{{ flags.WHICH }}',
            {{ results | selectattr('status', 'in', ['success', 'pass', 'warn']) | list | length }},
            {{ failed | length }},
            {{ results | selectattr('status', 'equalto', 'skipped') | list | length }},
            {{ dbt.string_literal(error.replace("'", "''").replace('%', '%%')) if error else 'null' }},
            timestamptz '{{ run_started_at.isoformat() }}',
            clock_timestamp()
        );
        delete from intermediate.dbt_runs where started_at < now() - interval '90 days'
    {% endif %}
{% endmacro %}

{#- The table of record_run. -#}
{% macro create_dbt_runs() %}
    {% if execute and flags.WHICH in ('run', 'build') %}
        create table if not exists intermediate.dbt_runs (
            run_id text primary key,
            command text not null,
            succeeded integer not null,
            failed integer not null,
            skipped integer not null,
            first_error text,
            started_at timestamptz not null,
            ended_at timestamptz not null
        )
    {% endif %}
{% endmacro %}
