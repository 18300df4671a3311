"""How far after an hour what is written may move it, and which silences over its beginning were told of; ADR "How far a change reaches".

Of hours that stand already none of it is known: a change within an hour of them makes them due, as before.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0058_reach_of_hours"
down_revision = "0057_job_ends"
branch_labels = None
depends_on = None

COLUMNS: dict[str, tuple[Any, str]] = {
    "heard_until": (
        sa.DateTime(timezone=True),
        "instant, UTC: what is written of boards and holdings from here on moved nothing of it; null = an hour after its end",
    ),
    "meters_until": (
        sa.DateTime(timezone=True),
        "instant, UTC: the same of meters of nodes; null = an hour after its end",
    ),
    "crossed_sha256": (
        sa.LargeBinary(),
        "of the silences over its beginning that ended beyond the margin, as the hour before was told of them; null = none",
    ),
}


def upgrade() -> None:
    for name, (kind, comment) in COLUMNS.items():
        op.add_column("ledger_hours", sa.Column(name, kind, nullable=True, comment=comment))


def downgrade() -> None:
    for name in reversed(COLUMNS):
        op.drop_column("ledger_hours", name)
