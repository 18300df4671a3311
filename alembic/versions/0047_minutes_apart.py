"""Minutes by device and by tenant are made after the books they belong to: an hour says of which run its minutes are.

The hours that stand are told of a site's day at a time, each committed by itself, so that nobody who closes hours meanwhile waits for
all of them. What was told stays, and an interrupted run finds it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0047_minutes_apart"
down_revision = "0046_periods"
branch_labels = None
depends_on = None

COMMENT = (
    "the run whose minutes by device and by tenant are written; another than run_id, or null = they are to be made"
)
DAYS = "SELECT DISTINCT site_id, date_trunc('day', hour_at, 'UTC') FROM ledger_hours WHERE minutes_run_id IS NULL ORDER BY 1, 2"
# Closes wrote them until now; hours of no energy had none to write.
WRITTEN = """
UPDATE ledger_hours AS hours SET minutes_run_id = run_id
WHERE hours.site_id = :site_id AND hours.hour_at >= :day_at AND hours.hour_at < CAST(:day_at AS timestamptz) + interval '1 day' AND minutes_run_id IS NULL
AND (EXISTS (SELECT FROM tenant_minutes AS minutes WHERE minutes.site_id = hours.site_id
             AND minutes.minute_at >= hours.hour_at AND minutes.minute_at < hours.hour_at + interval '1 hour')
     OR NOT EXISTS (SELECT FROM current_usage_hours AS used WHERE used.site_id = hours.site_id AND used.hour_at = hours.hour_at AND used.energy_mj > 0))
"""
NAME = "ledger_hours_minutes_ix"


def upgrade() -> None:
    column = sa.Column("minutes_run_id", sa.BigInteger(), nullable=True, comment=COMMENT)
    op.add_column("ledger_hours", column, if_not_exists=True)
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        for site_id, day_at in connection.execute(sa.text(DAYS)).fetchall():
            connection.execute(sa.text(WRITTEN), {"site_id": site_id, "day_at": day_at})
    # Of some hundred thousand rows, in a second.
    op.create_index(
        NAME, "ledger_hours", ["hour_at"], postgresql_where=sa.text("minutes_run_id IS DISTINCT FROM run_id")
    )


def downgrade() -> None:
    op.drop_index(NAME, table_name="ledger_hours")
    op.drop_column("ledger_hours", "minutes_run_id")
