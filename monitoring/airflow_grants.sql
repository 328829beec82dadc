-- In Airflow's database: the exporters' login may read what airflow_queries.yml asks, and no connection or variable.
-- For psql; a table that `airflow db migrate` has not made yet is left out.
SELECT format('GRANT SELECT ON %I TO monitoring', tablename)
FROM pg_tables
WHERE schemaname = 'public' AND tablename IN ('dag', 'dag_run', 'import_error', 'job', 'task_instance') \gexec
