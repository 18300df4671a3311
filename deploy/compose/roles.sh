#!/bin/sh
# The image of PostgreSQL runs this once, in an empty data folder: the login of our services, its database with TimescaleDB, and the
# four roles the services switch to. The login may not create roles or databases, is no superuser, and owns one database.
# On a managed server the same statements go to its administrator (docs/deployment.md).
set -eu
export WATTLEDGER_PASSWORD_FILE="${WATTLEDGER_PASSWORD_FILE:-/run/secrets/wattledger_password}"
test -s "$WATTLEDGER_PASSWORD_FILE" || { echo "roles.sh: $WATTLEDGER_PASSWORD_FILE is empty or missing" >&2; exit 1; }

psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\set password `cat "$WATTLEDGER_PASSWORD_FILE"`
CREATE ROLE wattledger LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE wattledger_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
CREATE ROLE wattledger_writer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
CREATE ROLE wattledger_worker LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
CREATE ROLE wattledger_api LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
GRANT wattledger_owner, wattledger_writer, wattledger_worker, wattledger_api TO wattledger WITH INHERIT TRUE, SET TRUE;
CREATE DATABASE wattledger OWNER wattledger;
SQL

psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname wattledger <<'SQL'
SELECT 'CREATE EXTENSION IF NOT EXISTS timescaledb' FROM pg_available_extensions WHERE name = 'timescaledb' \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE wattledger FROM PUBLIC;
GRANT CONNECT ON DATABASE wattledger TO wattledger_owner, wattledger_writer, wattledger_worker, wattledger_api;
SQL
