"""Which feed placed a device, and when its node last spoke for it: what one replica or one run of ingest knew goes for all.

A replica of the version before places devices without saying by which feed; the next sighting from there says it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0032_device_sightings"
down_revision = "0031_pseudonyms"
branch_labels = None
depends_on = None

OWNER, WRITER = "wattledger_owner", "wattledger_writer"


def upgrade() -> None:
    op.add_column(
        "placements",
        sa.Column(
            "feed",
            sa.SmallInteger(),
            nullable=True,
            comment="collector.wire.Feed that says so, the most direct one; null = not known",
        ),
    )
    op.create_table(
        "device_sightings",
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("feed", sa.SmallInteger(), nullable=False, comment="collector.wire.Feed that spoke"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("device_sightings_device_id_fk")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("device_sightings_node_id_fk")),
        sa.PrimaryKeyConstraint("device_id", "feed", name=op.f("device_sightings_pk")),
        comment="When the node a device is placed on last spoke for it, by feed; a minute or two behind.",
    )
    op.execute(f"ALTER TABLE device_sightings OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE (node_id, last_at) ON device_sightings TO {WRITER}")


def downgrade() -> None:
    op.drop_table("device_sightings")
    op.drop_column("placements", "feed")
