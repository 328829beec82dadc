-- The schema registry's own user and database, if they are not there: for psql. Again, it sets the password anew.
\getenv password REGISTRY_PASSWORD
SELECT 'CREATE ROLE schema_registry LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'schema_registry') \gexec
ALTER ROLE schema_registry PASSWORD :'password';
SELECT 'CREATE DATABASE schema_registry OWNER schema_registry'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'schema_registry') \gexec
