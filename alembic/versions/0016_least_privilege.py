"""Take back what no code of a role uses: above all, the worker cannot change the prices, bindings and budgets it judges by.

Imports, bindings and policies are applied by the command line as the owner. An allocation is never completed in place (a
row supersedes it), and of a job ingest updates what agents say of it and nothing else.
"""

from alembic import op

revision = "0016_least_privilege"
down_revision = "0015_runs_and_rollups"
branch_labels = None
depends_on = None

WRITER, WORKER, API = "wattledger_writer", "wattledger_worker", "wattledger_api"
RATES = "prices, tariffs, intensity, facility_factors, fx_rates"
JOB_WORDS = "account, user_name, partition, qos, namespace, label, name, ended_at, state"

# (role, what it loses, on which tables)
REVOKED = (
    (WRITER, "UPDATE (end_at, end_energy_mj)", "allocations"),
    (WRITER, "UPDATE", "jobs"),
    (WRITER, "SELECT, INSERT, UPDATE (rows_read, rows_written, rows_rejected, report)", "imports"),
    (WRITER, "SELECT", f"{RATES}, bindings, tenant_details, topology"),
    (WRITER, "SELECT, INSERT", "tenants"),
    (WRITER, "INSERT", "audit, sites"),
    (WORKER, "INSERT", f"{RATES}, tenants, tenant_details, bindings, budgets, hour_catalog"),
    (WORKER, "UPDATE (valid_to, superseded_at)", f"{RATES}, tenant_details, bindings, budgets"),
    (WORKER, "UPDATE", "hour_catalog"),
    (WORKER, "UPDATE (tenant_id, binding_id)", "api_calls"),
    (WORKER, "UPDATE (tenant_id)", "spans"),
    (WORKER, "DELETE", "late_samples, outbox"),
    (API, "INSERT", "audit"),
    (API, "SELECT", "topology, meters, fx_rates, watermarks"),
    (
        API,
        "SELECT (id, site_id, hour_at, revision, code_version, as_of_at, generation, finished_at)",
        "ledger_runs",
    ),
)


def upgrade() -> None:
    for role, privileges, tables in REVOKED:
        op.execute(f"REVOKE {privileges} ON {tables} FROM {role}")
    op.execute(f"GRANT UPDATE ({JOB_WORDS}) ON jobs TO {WRITER}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE ({JOB_WORDS}) ON jobs FROM {WRITER}")
    for role, privileges, tables in REVOKED:
        op.execute(f"GRANT {privileges} ON {tables} TO {role}")
