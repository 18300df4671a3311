"""The lines of a job are found: what work that failed cost in a month is the sum of a few jobs' lines.

Made while others read and write, of whom none waits for it. What an interrupted run left of it is made anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0051_lines_by_job"
down_revision = "0050_change_notes"
branch_labels = None
depends_on = None

NAME = "ledger_lines_job_ix"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        patience = op.get_bind().execute(sa.text("SHOW lock_timeout")).scalar_one()
        # It waits for whoever began before it, however long, and nobody waits for it.
        op.execute("SET lock_timeout = 0")
        try:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {NAME}")
            op.create_index(
                NAME,
                "ledger_lines",
                ["job_id"],
                postgresql_where=sa.text("job_id IS NOT NULL"),
                postgresql_concurrently=True,
            )
        finally:
            op.execute(f"SET lock_timeout = '{patience}'")


def downgrade() -> None:
    op.drop_index(NAME, "ledger_lines")
