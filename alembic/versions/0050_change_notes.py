"""A change may say why somebody asked for it: hours that are restated on request keep the reason with their run."""

import sqlalchemy as sa
from alembic import op

revision = "0050_change_notes"
down_revision = "0049_bill_spans"
branch_labels = None
depends_on = None


def upgrade() -> None:
    note = sa.Column("note", sa.Text(), nullable=True, comment="why, where somebody asked for it; null = it happened")
    op.add_column("changes", note)


def downgrade() -> None:
    op.drop_column("changes", "note")
