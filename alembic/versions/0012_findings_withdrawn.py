"""Let a close take back findings that its hour no longer shows: they stay on record and count for nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0012_findings_withdrawn"
down_revision = "0011_pools"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "findings",
        sa.Column(
            "withdrawn_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: its hour was closed again without it; null = stands",
        ),
    )


def downgrade() -> None:
    # Nothing could tell them apart any more, and each would count again.
    op.execute("DELETE FROM findings WHERE withdrawn_at IS NOT NULL")
    op.drop_column("findings", "withdrawn_at")
