"""Roles owner, writer, worker and api, and what each may do to each table."""

from alembic import op

revision = "0007_roles"
down_revision = "0006_control"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"

RATES = ("prices", "tariffs", "intensity", "facility_factors", "fx_rates")
TENANCY = ("tenants", "tenant_details", "bindings")
FLEET = ("sites", "nodes", "topology", "devices", "placements", "meters")
REFERENCE = (*FLEET, *TENANCY, *RATES)
FEEDS = ("epochs", "fabric_ports", "engines")
SAMPLES = ("device_samples", "node_samples", "fabric_samples", "engine_samples", "late_samples", "device_events")
INTAKE = ("spools", "imports", "dead_letters", "rejections", "hour_catalog")
WORK = ("jobs", "allocations", "api_calls", "spans")
BOOKS = ("minute_rollups", "ledger_runs", "ledger_hours", "usage_hours", "ledger_lines", "watermarks", "findings")
CONTROL = ("budgets", "decisions", "actions", "outbox")

# (privilege, tables); what stands in brackets after UPDATE or SELECT is all that may be changed or read.
WRITER_GRANTS = (
    ("SELECT", (*REFERENCE, *FEEDS, *INTAKE, *WORK, "findings")),
    ("INSERT", ("sites", "nodes", "devices", "placements", "meters", "tenants", *FEEDS)),
    ("INSERT", (*SAMPLES, *WORK, "spools", "imports", "changes", "dead_letters", "rejections", "findings", "audit")),
    ("UPDATE (superseded_at)", ("placements",)),
    ("UPDATE (received, last_seen_at)", ("spools",)),
    ("UPDATE (rows)", ("rejections",)),
    ("UPDATE (rows_read, rows_written, rows_rejected, report)", ("imports",)),
    ("UPDATE (replayed_at)", ("dead_letters",)),
    ("UPDATE", ("jobs",)),
    ("UPDATE (end_at, end_energy_mj, superseded_at)", ("allocations",)),
)
# Usage hours, ledger lines, runs and the audit are append-only: nobody is granted UPDATE or DELETE on them.
WORKER_GRANTS = (
    ("SELECT", (*REFERENCE, *FEEDS, *SAMPLES, *INTAKE, *WORK, *BOOKS, *CONTROL, "changes", "audit")),
    ("INSERT", (*TENANCY, *RATES, *BOOKS, *CONTROL, "hour_catalog", "changes", "audit")),
    ("UPDATE (valid_to, superseded_at)", ("tenant_details", "bindings", *RATES, "budgets")),
    ("UPDATE", ("minute_rollups", "ledger_hours", "watermarks", "findings", "actions", "outbox", "hour_catalog")),
    ("UPDATE (tenant_id, binding_id)", ("jobs", "api_calls")),
    ("UPDATE (tenant_id)", ("spans",)),
    ("DELETE", ("minute_rollups", "outbox", "changes", "late_samples")),
)
# No path to samples, dead letters or tokens. A run's diff spans tenants, so it stays out of reach.
API_GRANTS = (
    ("SELECT", (*REFERENCE, *WORK, "minute_rollups", "ledger_hours", "usage_hours", "ledger_lines", "findings")),
    ("SELECT (id, site_id, hour_at, revision, code_version, as_of_at, generation, finished_at)", ("ledger_runs",)),
    ("SELECT", ("budgets", "decisions", "actions", "watermarks")),
    ("INSERT", ("audit",)),
)

# Asked first, because a login that may not create roles is refused even where there is nothing to create.
CREATE_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""
# A server by URL: its user switches to the roles, so it must be a member of them. A superuser may switch anyway.
JOIN_ROLE = """
DO $$ BEGIN
    IF NOT pg_has_role(current_user, '{role}', 'USAGE') THEN GRANT {role} TO CURRENT_USER; END IF;
END $$
"""
# Partitions among them follow: ALTER TABLE … OWNER of a partitioned table does not descend by itself.
GIVE_TABLES_TO = """
DO $$ DECLARE item regclass; BEGIN
    FOR item IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    LOOP EXECUTE format('ALTER TABLE %s OWNER TO {role}', item); END LOOP;
END $$
"""


def upgrade() -> None:
    for role in (OWNER, WRITER, WORKER, API):
        op.execute(CREATE_ROLE.format(role=role))
        op.execute(JOIN_ROLE.format(role=role))
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
    op.execute(f"GRANT CREATE ON SCHEMA public TO {OWNER}")
    op.execute(GIVE_TABLES_TO.format(role=OWNER))
    for role, grants in ((WRITER, WRITER_GRANTS), (WORKER, WORKER_GRANTS), (API, API_GRANTS)):
        for privilege, tables in (*grants, ("SELECT", ("alembic_version",))):
            op.execute(f"GRANT {privilege} ON {', '.join(tables)} TO {role}")


def downgrade() -> None:
    # The roles stay: they belong to the server, and other databases on it may use them.
    op.execute(GIVE_TABLES_TO.format(role="CURRENT_USER"))
    for role in (WRITER, WORKER, API):
        op.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
        op.execute(f"REVOKE USAGE ON SCHEMA public FROM {role}")
    op.execute(f"REVOKE CREATE, USAGE ON SCHEMA public FROM {OWNER}")
