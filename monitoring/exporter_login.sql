-- The exporters' login: it reads PostgreSQL's statistics and what the dashboard reads, and writes nothing. For psql,
-- with its password in MONITORING_PASSWORD; again, it sets the password anew.
\getenv password MONITORING_PASSWORD
SELECT 'CREATE ROLE monitoring LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'monitoring') \gexec
ALTER ROLE monitoring PASSWORD :'password';
ALTER ROLE monitoring SET default_transaction_read_only = on;
ALTER ROLE monitoring SET statement_timeout = '5s';
GRANT pg_monitor, dashboard_read TO monitoring;
