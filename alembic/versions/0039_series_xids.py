"""Remember which error of a device a scraped gauge showed last: of all servers one makes a change of it an event, once."""

import sqlalchemy as sa
from alembic import op

revision = "0039_series_xids"
down_revision = "0038_segment_place"
branch_labels = None
depends_on = None

OWNER, WRITER = "wattledger_owner", "wattledger_writer"


def upgrade() -> None:
    op.create_table(
        "series_xids",
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id", autoincrement=False),
        sa.Column("code", sa.Integer(), nullable=False, comment="XID; 0 = none"),
        sa.Column(
            "from_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="instant, UTC: of the sample that told of it first",
        ),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("series_xids_device_id_fk")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("series_xids_pk")),
        comment="The error of a device that a scraped gauge showed last: a change of it is an event.",
    )
    op.execute(f"ALTER TABLE series_xids OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON series_xids TO {WRITER}")


def downgrade() -> None:
    op.drop_table("series_xids")
