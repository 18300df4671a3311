"""Books say more of each figure: bounds, method and reason, facility energy, who by name; and lines have room for their chain.

All of it is null in rows that were written before, and by replicas of the version before: their copies of these tables take no defaults.
"""

import sqlalchemy as sa
from alembic import op

revision = "0044_line_evidence"
down_revision = "0043_empty_days"
branch_labels = None
depends_on = None

OWNER, WORKER, API = "wattledger_owner", "wattledger_worker", "wattledger_api"
BOUND = "millijoules, {side} end of the 90 % interval of energy_mj; null = nothing in it is estimated, or not said"
USAGE = (
    ("energy_low_mj", sa.BigInteger(), BOUND.format(side="lower")),
    ("energy_high_mj", sa.BigInteger(), BOUND.format(side="upper")),
    ("reserved_us", sa.BigInteger(), "microseconds of held_us that were reserved and not used; null = 0"),
    ("down_us", sa.BigInteger(), "microseconds of held_us out of service; null = 0"),
    (
        "method",
        sa.Text(),
        "how the energy came to this holder: whole, share, slice, count, overhead, ...; null = not said",
    ),
    ("reason", sa.Text(), "why the time is nobody's, or the state what it is; null = plain"),
)
LINES = (
    ("holder_key", sa.Text(), "who or what by names instead of ids; null = not said"),
    ("energy_low_mj", sa.BigInteger(), BOUND.format(side="lower")),
    ("energy_high_mj", sa.BigInteger(), BOUND.format(side="upper")),
    (
        "facility_mj",
        sa.BigInteger(),
        "energy_mj with cooling and losses, millijoules; null = no facility factor is known",
    ),
    ("facility_category", sa.SmallInteger(), "PUE measurement category 0 to 3 of that factor (ISO/IEC 30134-2)"),
    ("method", sa.Text(), "as of the usage hours: the least exact of theirs; null = of calls, or not said"),
    ("ordinal", sa.Integer(), "place of the line in the chain of its hour, from 1; null = not chained"),
    ("chain_sha256", sa.LargeBinary(), "SHA-256 over the line and the one before it; null = not chained"),
)
USAGE_BEFORE = (
    "site_id", "hour_at", "revision", "device_id", "holder", "job_id", "tenant_id", "state", "energy_mj", "estimated_mj", "held_us",
    "covered_us", "active_us", "idle_us", "throttled_us", "accelerators", "carbon_gco2e", "intensity_id", "source", "coverage", "feed", "origin",
)  # fmt: skip


def _usage_view(columns: tuple[str, ...]) -> str:
    own = ", ".join(f"used.{name}" for name in columns)
    rated = ", ".join("rated.tenant_id" if name == "tenant_id" else f"used.{name}" for name in columns)
    return f"""
CREATE OR REPLACE VIEW current_usage_hours WITH (security_invoker = true) AS
SELECT {own} FROM usage_hours AS used JOIN ledger_hours USING (site_id, hour_at, revision)
UNION ALL
SELECT {rated}
FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = hours.run_id AND runs.usage_revision IS NOT NULL
JOIN usage_hours AS used ON used.site_id = hours.site_id AND used.hour_at = hours.hour_at AND used.revision = runs.usage_revision
LEFT JOIN hour_jobs AS rated ON rated.site_id = hours.site_id AND rated.hour_at = hours.hour_at AND rated.revision = hours.revision
    AND rated.job_id = used.job_id
WHERE used.job_id IS NULL OR rated.job_id IS NOT NULL
"""  # noqa: S608 (constants)


LINES_VIEW = """
CREATE OR REPLACE VIEW current_ledger_lines WITH (security_invoker = true) AS
SELECT rows.* FROM ledger_lines AS rows JOIN ledger_hours USING (site_id, hour_at, revision)
"""


def upgrade() -> None:
    for table, columns in (("usage_hours", USAGE), ("ledger_lines", LINES)):
        for name, kind, comment in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True, comment=comment))
    op.execute(_usage_view((*USAGE_BEFORE, *(name for name, _, _ in USAGE))))
    op.execute(LINES_VIEW)


def downgrade() -> None:
    # A view takes more columns where it stands, but gives none back.
    for view in ("current_usage_hours", "current_ledger_lines"):
        op.execute(f"DROP VIEW {view}")
    for table, columns in (("usage_hours", USAGE), ("ledger_lines", LINES)):
        for name, _, _ in columns:
            op.drop_column(table, name)
    op.execute(_usage_view(USAGE_BEFORE))
    op.execute(LINES_VIEW)
    for view, table in (("current_usage_hours", "usage_hours"), ("current_ledger_lines", "ledger_lines")):
        op.execute(f"COMMENT ON VIEW {view} IS 'Rows of {table} of the revision that counts.'")
        op.execute(f"ALTER VIEW {view} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT ON {view} TO {WORKER}, {API}")
