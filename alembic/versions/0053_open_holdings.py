"""Holdings whose end nobody told are found at once, and what followed them on their device, however long ago."""

import sqlalchemy as sa
from alembic import op

revision = "0053_open_holdings"
down_revision = "0052_books_by_statement"
branch_labels = None
depends_on = None

INDEXES = {
    "allocations_device_ix": (["device_id", "start_at"], "device_id IS NOT NULL"),
    "allocations_open_ix": (["site_id", "start_at"], "end_at IS NULL AND superseded_at IS NULL"),
    "allocations_superseded_open_ix": (["superseded_at"], "end_at IS NULL AND superseded_at IS NOT NULL"),
}


def upgrade() -> None:
    for name, (columns, condition) in INDEXES.items():
        op.create_index(name, "allocations", columns, postgresql_where=sa.text(condition))


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "allocations")
