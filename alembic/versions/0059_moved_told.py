"""Which lines moved since a month was closed before is kept with the close, as far as its document tells them: nobody who asks for it works it out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0059_moved_told"
down_revision = "0058_reach_of_hours"
branch_labels = None
depends_on = None

COMMENT = "the first of those lines, as the document tells them; null = closed before this was kept"


def upgrade() -> None:
    op.add_column("ledger_periods", sa.Column("moved_told", JSONB(), nullable=True, comment=COMMENT))


def downgrade() -> None:
    op.drop_column("ledger_periods", "moved_told")
