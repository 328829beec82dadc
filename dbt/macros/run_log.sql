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

{#-
  The role of the dashboard (streaming/sql/live_views.sql) may read every mart, also those that this run makes anew: a
  right that is given after the fact would leave a moment without it. Given once, as a grant rewrites the catalogue.
-#}
{% macro open_marts_to_dashboard() %}
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
        );
        create schema if not exists {{ target.schema }};
        {% set query %}
            select has_schema_privilege(oid, to_regnamespace('{{ target.schema }}'), 'usage') as may_read
            from pg_roles
            where rolname = 'dashboard_read'
        {% endset %}
        {% set role = run_query(query).rows %}
        {% if role and not role[0]['may_read'] %}
            grant usage on schema {{ target.schema }}, intermediate to dashboard_read;
            grant select on all tables in schema {{ target.schema }} to dashboard_read;
            grant select on intermediate.dbt_runs to dashboard_read;
            alter default privileges in schema {{ target.schema }} grant select on tables to dashboard_read;
        {% endif %}
    {% endif %}
{% endmacro %}
