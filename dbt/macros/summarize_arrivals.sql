{#-
  The raw tables' index on the arrival time is a BRIN: a range of pages that has not been summarized yet is read by every
  model that asks what has arrived. PostgreSQL summarizes by itself (autosummarize), but has room for 256 such requests a
  minute, and what a faster stream leaves out waits for the table's next vacuum, up to a fifth of the table. So each run
  makes up for it first: once for all models, at the cost of the new pages. Not while a vacuum does the same, which this
  would have to wait for; nor as a user who does not own the tables, who may not.
-#}
{% macro summarize_arrivals() %}
    {% if execute and flags.WHICH in ('run', 'build') %}
        select brin_summarize_new_values(indexes.indexrelid)
        from pg_index as indexes
        inner join pg_class as relations on indexes.indexrelid = relations.oid
        inner join pg_am as methods on relations.relam = methods.oid and methods.amname = 'brin'
        where
            indexes.indrelid in (
                {% for source in graph.sources.values() %}
                    to_regclass('{{ source.schema }}.{{ source.identifier }}'){{ ', ' if not loop.last }}
                {% endfor %}
            )
            and pg_has_role(relations.relowner, 'USAGE')
            and not exists (
                select 1
                from pg_locks
                where pg_locks.relation = indexes.indrelid and pg_locks.mode = 'ShareUpdateExclusiveLock'
            )
    {% endif %}
{% endmacro %}
