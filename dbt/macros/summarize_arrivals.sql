{#-
  The raw tables' index on the arrival time is a BRIN: a range of pages that has not been summarized yet is read by every
  model that asks what has arrived. PostgreSQL summarizes by itself (autosummarize), but has room for 256 such requests a
  minute, and what a faster stream leaves out waits for the table's next vacuum, up to a fifth of the table. So each run
  makes up for it first: once for all models, at the cost of the new pages. The function (streaming/sql/roles.sql) does
  it as the tables' owner.
-#}
{% macro summarize_arrivals() %}
    {% if execute and flags.WHICH in ('run', 'build') %}
        select public.summarize_arrivals()
    {% endif %}
{% endmacro %}
