"""Rows by tenant: a policy on every tenant-bearing table, and the views of what counts."""

from alembic import op

revision = "0008_row_level_security"
down_revision = "0007_roles"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"

# Unset and '' show nothing, '*' shows all, a path shows itself and what is below it.
# starts_with, not LIKE: a path may contain % and _.
IN_SUBTREE = """
    path = current_setting('wattledger.tenant', true)
    OR (current_setting('wattledger.tenant', true) <> ''
        AND starts_with(path, current_setting('wattledger.tenant', true) || '/'))
"""
SEES_ALL = """
CREATE FUNCTION sees_all_tenants() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$ SELECT coalesce(current_setting('wattledger.tenant', true), '') = '*' $$
"""
VISIBLE = f"""
CREATE FUNCTION visible_tenant_ids() RETURNS integer[] LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog
    AS $$ SELECT coalesce(array_agg(id), '{{}}') FROM public.tenants WHERE {IN_SUBTREE} $$
"""  # noqa: S608 (constants of this file)
# The sub-selects are what makes it fast: each is computed once per query, not once per row.
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
POLICIES = {
    "tenants": f"(SELECT sees_all_tenants()) OR {IN_SUBTREE}",
    "tenant_details": BY_TENANT,
    "bindings": BY_TENANT,
    "jobs": BY_TENANT,
    # Whose an allocation is, its job says; the job's own policy applies inside.
    "allocations": "EXISTS (SELECT FROM jobs WHERE jobs.id = allocations.job_id)",
    "api_calls": BY_TENANT,
    "spans": BY_TENANT,
    "usage_hours": BY_TENANT,
    "ledger_lines": BY_TENANT,
    "findings": BY_TENANT,
    "budgets": BY_TENANT,
    "decisions": BY_TENANT,
    "actions": BY_TENANT,
}
VIEWS = {"current_usage_hours": "usage_hours", "current_ledger_lines": "ledger_lines"}


def upgrade() -> None:
    op.execute(SEES_ALL)
    op.execute(VISIBLE)
    for function in ("sees_all_tenants()", "visible_tenant_ids()"):
        op.execute(f"ALTER FUNCTION {function} OWNER TO {OWNER}")
    for table, seen in POLICIES.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        # FORCE: the owner is no exception, so what a policy does not say nobody but a superuser can do.
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY service ON {table} TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY tenant_subtree ON {table} FOR SELECT TO {API} USING ({seen})")
    for view, table in VIEWS.items():
        # security_invoker: the policies of whoever asks apply, not the view owner's.
        op.execute(
            f"CREATE VIEW {view} WITH (security_invoker = true) AS SELECT rows.* FROM {table} AS rows "  # noqa: S608 (constants)
            "JOIN ledger_hours USING (site_id, hour_at, revision)"
        )
        op.execute(f"COMMENT ON VIEW {view} IS 'Rows of {table} of the revision that counts.'")
        op.execute(f"ALTER VIEW {view} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT ON {view} TO {WORKER}, {API}")


def downgrade() -> None:
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    for table in POLICIES:
        op.execute(f"DROP POLICY tenant_subtree ON {table}")
        op.execute(f"DROP POLICY service ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("DROP FUNCTION visible_tenant_ids()")
    op.execute("DROP FUNCTION sees_all_tenants()")
