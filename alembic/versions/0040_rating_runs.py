"""A corrected price or binding rates an hour again on the usage it has: a run names the revision of its usage hours.

Usage hours are written by a close and stay as they are; where a rating gives their jobs to other tenants, ``hour_jobs`` says so, and the view of
what counts as well. A replica of the version before closes such an hour as a whole: its runs name no usage revision, which means their own.
"""

import sqlalchemy as sa
from alembic import op

revision = "0040_rating_runs"
down_revision = "0039_series_xids"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
# Uncorrelated, so it is asked once a query; the policy of hour_jobs applies inside.
RATED = " OR (site_id, hour_at, job_id) IN (SELECT site_id, hour_at, job_id FROM hour_jobs)"
KINDS = "close: it wrote a revision; attest: it found what its revision says, from other inputs"
RATES = "close: it wrote a revision; rate: it priced the usage of one anew; attest: it found what its revision says, from other inputs"
COLUMNS = (
    "site_id",
    "hour_at",
    "revision",
    "device_id",
    "holder",
    "job_id",
    "tenant_id",
    "state",
    "energy_mj",
    "estimated_mj",
    "held_us",
    "covered_us",
    "active_us",
    "idle_us",
    "throttled_us",
    "accelerators",
    "carbon_gco2e",
    "intensity_id",
    "source",
    "coverage",
    "feed",
    "origin",
)
# In two halves: nearly all hours are as they were closed, and asking of each of their rows whether it was rated made the fleet's sums six
# times as slow. A job that a rating gave to a tenant one may not see has no row in hour_jobs here, and so none in the view.
OWN = ", ".join(f"used.{name}" for name in COLUMNS)
RATED_ROWS = ", ".join("rated.tenant_id" if name == "tenant_id" else f"used.{name}" for name in COLUMNS)
CURRENT = f"""
CREATE OR REPLACE VIEW current_usage_hours WITH (security_invoker = true) AS
SELECT {OWN} FROM usage_hours AS used JOIN ledger_hours USING (site_id, hour_at, revision)
UNION ALL
SELECT {RATED_ROWS}
FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = hours.run_id AND runs.usage_revision IS NOT NULL
JOIN usage_hours AS used ON used.site_id = hours.site_id AND used.hour_at = hours.hour_at AND used.revision = runs.usage_revision
LEFT JOIN hour_jobs AS rated ON rated.site_id = hours.site_id AND rated.hour_at = hours.hour_at AND rated.revision = hours.revision
    AND rated.job_id = used.job_id
WHERE used.job_id IS NULL OR rated.job_id IS NOT NULL
"""  # noqa: S608 (constants)
BEFORE = f"""
CREATE OR REPLACE VIEW current_usage_hours WITH (security_invoker = true) AS
SELECT {", ".join(f"rows.{name}" for name in COLUMNS)} FROM usage_hours AS rows JOIN ledger_hours USING (site_id, hour_at, revision)
"""  # noqa: S608 (constants)
# What only the newer schema can tell is told in the older one's words: the usage of a rated revision becomes its own.
AS_BEFORE = f"""
INSERT INTO usage_hours ({", ".join(COLUMNS)})
SELECT {", ".join("hours.revision" if name == "revision" else f"shown.{name}" for name in COLUMNS)}
FROM current_usage_hours AS shown JOIN ledger_hours AS hours USING (site_id, hour_at) WHERE shown.revision <> hours.revision
"""  # noqa: S608 (constants)


def upgrade() -> None:
    op.add_column(
        "ledger_runs",
        sa.Column(
            "usage_revision",
            sa.Integer(),
            nullable=True,
            comment="revision of the usage hours that its lines are made of; null = its own",
        ),
    )
    op.create_index(
        "ledger_runs_rated_ix", "ledger_runs", ["id"], postgresql_where=sa.text("usage_revision IS NOT NULL")
    )
    _kinds("'close', 'rate', 'attest'", RATES)
    op.create_table(
        "hour_jobs",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "revision",
            sa.Integer(),
            nullable=False,
            comment="of the lines, by a run that rated usage of an earlier one",
        ),
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("binding_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("hour_jobs_site_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("hour_jobs_job_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("hour_jobs_tenant_id_fk")),
        sa.ForeignKeyConstraint(["binding_id"], ["bindings.id"], name=op.f("hour_jobs_binding_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "hour_at", "revision", "job_id", name=op.f("hour_jobs_pk")),
        comment="Who pays for a job in an hour whose usage was rated again; without a row here, its usage hours say.",
    )
    op.execute(f"ALTER TABLE hour_jobs OWNER TO {OWNER}")
    op.execute("ALTER TABLE hour_jobs ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE hour_jobs FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON hour_jobs TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY tenant_subtree ON hour_jobs FOR SELECT TO {API} USING ({BY_TENANT})")
    op.execute(f"GRANT SELECT, INSERT ON hour_jobs TO {WORKER}")
    op.execute(f"GRANT SELECT ON hour_jobs TO {API}")
    op.execute(f"GRANT SELECT (id, usage_revision) ON ledger_runs TO {API}")
    op.execute(f"ALTER POLICY tenant_subtree ON usage_hours USING ({BY_TENANT}{RATED})")
    op.execute(CURRENT)


def downgrade() -> None:
    op.execute(AS_BEFORE)
    op.execute(BEFORE)
    op.execute(f"ALTER POLICY tenant_subtree ON usage_hours USING ({BY_TENANT})")
    op.execute(f"REVOKE SELECT (id, usage_revision) ON ledger_runs FROM {API}")  # noqa: S608 (constants)
    op.drop_table("hour_jobs")
    op.execute("UPDATE ledger_runs SET kind = 'close' WHERE kind = 'rate'")
    _kinds("'close', 'attest'", KINDS)
    op.drop_index("ledger_runs_rated_ix", "ledger_runs")
    op.drop_column("ledger_runs", "usage_revision")


def _kinds(kinds: str, comment: str) -> None:
    op.drop_constraint(op.f("ledger_runs_kind_ck"), "ledger_runs", type_="check")
    op.create_check_constraint(op.f("ledger_runs_kind_ck"), "ledger_runs", f"kind IN ({kinds})")
    op.execute(f"COMMENT ON COLUMN ledger_runs.kind IS '{comment}'")
