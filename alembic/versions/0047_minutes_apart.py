"""Minutes by device and by tenant are made after the books they belong to: an hour says of which run its minutes are."""

import sqlalchemy as sa
from alembic import op

revision = "0047_minutes_apart"
down_revision = "0046_periods"
branch_labels = None
depends_on = None

COMMENT = (
    "the run whose minutes by device and by tenant are written; another than run_id, or null = they are to be made"
)
# Closes wrote them until now; hours of no energy had none to write.
WRITTEN = """
UPDATE ledger_hours AS hours SET minutes_run_id = run_id
WHERE EXISTS (SELECT FROM tenant_minutes AS minutes WHERE minutes.site_id = hours.site_id
              AND minutes.minute_at >= hours.hour_at AND minutes.minute_at < hours.hour_at + interval '1 hour')
OR NOT EXISTS (SELECT FROM current_usage_hours AS used WHERE used.site_id = hours.site_id AND used.hour_at = hours.hour_at AND used.energy_mj > 0)
"""


def upgrade() -> None:
    op.add_column("ledger_hours", sa.Column("minutes_run_id", sa.BigInteger(), nullable=True, comment=COMMENT))
    op.execute(WRITTEN)
    op.create_index(
        "ledger_hours_minutes_ix",
        "ledger_hours",
        ["hour_at"],
        postgresql_where=sa.text("minutes_run_id IS DISTINCT FROM run_id"),
    )


def downgrade() -> None:
    op.drop_index("ledger_hours_minutes_ix", table_name="ledger_hours")
    op.drop_column("ledger_hours", "minutes_run_id")
