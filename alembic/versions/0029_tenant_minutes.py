"""Energy by tenant and minute, written with the books of its hour; minutes of hours closed before are not made up.

A replica of the version before writes none for the hours it closes. Whoever needs those has the hours closed again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0029_tenant_minutes"
down_revision = "0028_token_rotation"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"


def upgrade() -> None:
    op.create_table(
        "tenant_minutes",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("minute_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=False, comment="millijoules"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("tenant_minutes_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("tenant_minutes_tenant_id_fk")),
        comment="Energy of one tenant, site and minute, for dashboards; null tenant = nobody's. Never the source of a bill.",
    )
    op.create_index("tenant_minutes_minute_at_ix", "tenant_minutes", ["minute_at", "site_id"])
    op.execute(f"ALTER TABLE tenant_minutes OWNER TO {OWNER}")
    op.execute("ALTER TABLE tenant_minutes ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE tenant_minutes FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON tenant_minutes TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY tenant_subtree ON tenant_minutes FOR SELECT TO {API} USING ({BY_TENANT})")
    op.execute(f"GRANT SELECT, INSERT, DELETE ON tenant_minutes TO {WORKER}")
    op.execute(f"GRANT SELECT ON tenant_minutes TO {API}")


def downgrade() -> None:
    op.drop_table("tenant_minutes")
