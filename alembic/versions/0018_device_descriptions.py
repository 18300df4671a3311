"""Let a device that was known by its UUID alone be described, once, and note when."""

import sqlalchemy as sa
from alembic import op

revision = "0018_device_descriptions"
down_revision = "0017_allocation_events"
branch_labels = None
depends_on = None

WRITER = "wattledger_writer"
DESCRIPTION = (
    "vendor, model, kind, parent_device_id, mig_profile, slice_ratio, accelerators, memory_bytes, described_at"
)


def upgrade() -> None:
    op.add_column(
        "devices",
        sa.Column(
            "described_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: until then the model was unknown, the device no part of another; null = described when made",
        ),
    )
    op.execute(f"GRANT UPDATE ({DESCRIPTION}) ON devices TO {WRITER}")


def downgrade() -> None:
    op.execute(f"REVOKE UPDATE ({DESCRIPTION}) ON devices FROM {WRITER}")
    op.drop_column("devices", "described_at")
