"""The lines of a job are found: what work that failed cost in a month is the sum of a few jobs' lines."""

import sqlalchemy as sa
from alembic import op

revision = "0051_lines_by_job"
down_revision = "0050_change_notes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ledger_lines_job_ix", "ledger_lines", ["job_id"], postgresql_where=sa.text("job_id IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("ledger_lines_job_ix", "ledger_lines")
