"""Keep when agents began without knowing what was told before, and let ingest ask when a device was read last."""

import sqlalchemy as sa
from alembic import op

revision = "0025_begun_anew"
down_revision = "0024_charges"
branch_labels = None
depends_on = None

OWNER, WRITER = "wattledger_owner", "wattledger_writer"
READ = "SELECT (device_id, at) ON device_samples"


def upgrade() -> None:
    op.create_table(
        "begun_anew",
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("begun_anew_node_id_fk")),
        sa.PrimaryKeyConstraint("node_id", "at", name=op.f("begun_anew_pk")),
        comment="When agents began without knowing what was told before: what they did not find held was over by then.",
    )
    op.execute(f"ALTER TABLE begun_anew OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT ON begun_anew TO {WRITER}")
    op.execute(f"GRANT {READ} TO {WRITER}")


def downgrade() -> None:
    op.execute(f"REVOKE {READ} FROM {WRITER}")
    op.drop_table("begun_anew")
