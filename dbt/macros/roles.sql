{#- Asked for first: `if not exists` needs the right to make schemas even where there is nothing to make. -#}
{% macro make_schema(name) %}
    {% if not adapter.check_schema_exists(target.database, name) %}
        {% do run_query('create schema if not exists ' ~ name) %}
    {% endif %}
{% endmacro %}

{#-
  The roles that read (streaming/sql/live_views.sql, roles.sql) may read every mart, or every view for analysts, also
  those that this run makes anew: a right that is given after the fact would leave a moment without it. The one that
  sweeps may delete, too, and in `intermediate`. Given once, as a grant rewrites the catalogue; once for each user who
  runs the models, as it is for what that user will make.
-#}
{% macro open_marts() %}
    {% set delete = 'select, delete, maintain' %}
    {% if execute and flags.WHICH in ('run', 'build') %}
        {% for name, schema, rights in [
            ('dashboard_read', target.schema, 'select'),
            ('analyst_read', pseudonymous_schema(), 'select'),
            ('pipeline_maintain', target.schema, delete),
            ('pipeline_maintain', 'intermediate', delete),
        ] %}
            {% do make_schema(schema) %}
            {% set query %}
                select
                    has_schema_privilege(roles.oid, to_regnamespace('{{ schema }}'), 'usage') as may_use,
                    exists (
                        select 1
                        from pg_default_acl as defaults
                        inner join pg_roles as users on defaults.defaclrole = users.oid and users.rolname = current_user
                        cross join aclexplode(defaults.defaclacl) as rights
                        where defaults.defaclnamespace = to_regnamespace('{{ schema }}') and rights.grantee = roles.oid
                    ) as may_read
                from pg_roles as roles
                where roles.rolname = '{{ name }}'
            {% endset %}
            {% set role = run_query(query).rows %}
            {% if role and not role[0]['may_use'] %}
                grant usage on schema {{ schema }}{{ ', intermediate' if name == 'dashboard_read' }} to {{ name }};
            {% endif %}
            {% if role and not role[0]['may_read'] %}
                grant {{ rights }} on all tables in schema {{ schema }} to {{ name }};
                alter default privileges in schema {{ schema }} grant {{ rights }} on tables to {{ name }};
                {% if name == 'dashboard_read' %}
                    grant select on intermediate.dbt_runs to {{ name }};
                {% endif %}
            {% endif %}
        {% endfor %}
    {% endif %}
{% endmacro %}
