"""How long names of calls are kept: what has been let go is known to whoever writes calls. Evaluations also come from logs."""

import sqlalchemy as sa
from alembic import op

revision = "0036_call_name_window"
down_revision = "0035_series_memory"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER = "wattledger_owner", "wattledger_writer", "wattledger_worker"
SOURCE = "COMMENT ON COLUMN outcomes.source IS '{}'"


def _instant(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, comment=comment)


def upgrade() -> None:
    op.create_table(
        "call_name_window",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False, comment="surrogate id: always 1"),
        _instant("pruned_before", "instant, UTC: names of calls before this may be gone"),
        _instant("deleted_before", "instant, UTC: and of calls before this they are"),
        sa.CheckConstraint("id = 1", name=op.f("call_name_window_one_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("call_name_window_pk")),
        comment="Which names of calls have been let go. No row: none.",
    )
    op.execute(f"ALTER TABLE call_name_window OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT ON call_name_window TO {WRITER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON call_name_window TO {WORKER}")
    op.execute(f"GRANT SELECT, DELETE ON call_keys TO {WORKER}")
    op.execute(SOURCE.format("api, span or log"))


def downgrade() -> None:
    op.execute(SOURCE.format("api or span"))
    op.execute(f"REVOKE SELECT, DELETE ON call_keys FROM {WORKER}")
    op.drop_table("call_name_window")
