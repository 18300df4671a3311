"""Late rows join the hot rows of their hour when they are merged; segments go after a year or so, and the catalog says when.

A replica of the version before reads an hour whose segments are gone as one without samples; it closes none that old again
unless its inputs change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0030_segment_retention"
down_revision = "0029_tenant_minutes"
branch_labels = None
depends_on = None

WORKER = "wattledger_worker"
STREAMS = "device_samples, node_samples, fabric_samples, engine_samples, device_health, device_shares, agent_health"


def upgrade() -> None:
    op.execute(f"GRANT INSERT ON {STREAMS} TO {WORKER}")
    op.add_column(
        "hour_catalog",
        sa.Column(
            "expired_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: its segments were past retention and went; null = they are there",
        ),
    )


def downgrade() -> None:
    op.drop_column("hour_catalog", "expired_at")
    op.execute(f"REVOKE INSERT ON {STREAMS} FROM {WORKER}")
