#!/bin/sh
# The image of PostgreSQL runs this once, in an empty data folder: a database with TimescaleDB, the four roles our processes switch to, and
# a login for each kind of process. None may create roles or databases or is a superuser.
#   wattledger               `wattledger migrate` and commands: owns the database and may become any of the four roles
#   wattledger_serve_login   `serve`: writes what comes in, reads for the API. Can neither read tokens nor touch the audit's past
#   wattledger_worker_login  `worker`: closes, decides, seals. The same
# Another login, wattledger_backup, is for `wattledger backup` alone: it reads the rows of all tenants (which is what BYPASSRLS is for,
# and pg_dump asks for it) and begins no transaction that writes.
# On a managed server the same statements go to its administrator (docs/deployment.md).
set -eu
export WATTLEDGER_PASSWORD_FILE="${WATTLEDGER_PASSWORD_FILE:-/run/secrets/wattledger_password}"
export WATTLEDGER_SERVE_PASSWORD_FILE="${WATTLEDGER_SERVE_PASSWORD_FILE:-/run/secrets/serve_password}"
export WATTLEDGER_WORKER_PASSWORD_FILE="${WATTLEDGER_WORKER_PASSWORD_FILE:-/run/secrets/worker_password}"
export WATTLEDGER_BACKUP_PASSWORD_FILE="${WATTLEDGER_BACKUP_PASSWORD_FILE:-/run/secrets/backup_password}"
for file in "$WATTLEDGER_PASSWORD_FILE" "$WATTLEDGER_SERVE_PASSWORD_FILE" "$WATTLEDGER_WORKER_PASSWORD_FILE" "$WATTLEDGER_BACKUP_PASSWORD_FILE"; do
  test -s "$file" || { echo "roles.sh: $file is empty or missing" >&2; exit 1; }
done

psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\set password `cat "$WATTLEDGER_PASSWORD_FILE"`
CREATE ROLE wattledger LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE wattledger_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
CREATE ROLE wattledger_writer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
CREATE ROLE wattledger_worker LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
CREATE ROLE wattledger_api LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
GRANT wattledger_owner, wattledger_writer, wattledger_worker, wattledger_api TO wattledger WITH INHERIT TRUE, SET TRUE;
\set serve_password `cat "$WATTLEDGER_SERVE_PASSWORD_FILE"`
CREATE ROLE wattledger_serve_login LOGIN PASSWORD :'serve_password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
GRANT wattledger_writer, wattledger_api TO wattledger_serve_login WITH INHERIT TRUE, SET TRUE;
\set worker_password `cat "$WATTLEDGER_WORKER_PASSWORD_FILE"`
CREATE ROLE wattledger_worker_login LOGIN PASSWORD :'worker_password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
GRANT wattledger_worker TO wattledger_worker_login WITH INHERIT TRUE, SET TRUE;
\set backup_password `cat "$WATTLEDGER_BACKUP_PASSWORD_FILE"`
CREATE ROLE wattledger_backup LOGIN PASSWORD :'backup_password' NOSUPERUSER NOCREATEDB NOCREATEROLE BYPASSRLS CONNECTION LIMIT 4;
GRANT pg_read_all_data TO wattledger_backup;
ALTER ROLE wattledger_backup SET default_transaction_read_only = on;
CREATE DATABASE wattledger OWNER wattledger;
SQL

psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname wattledger <<'SQL'
SELECT 'CREATE EXTENSION IF NOT EXISTS timescaledb' FROM pg_available_extensions WHERE name = 'timescaledb' \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE wattledger FROM PUBLIC;
GRANT CONNECT ON DATABASE wattledger TO wattledger_owner, wattledger_writer, wattledger_worker, wattledger_api, wattledger_backup;
SQL
