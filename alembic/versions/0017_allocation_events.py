"""Keep allocation events, so that what they mean does not depend on the order in which batches arrive.

Allocations of before stay as they are: an event that comes later meets their starts and ends as if those had been kept.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017_allocation_events"
down_revision = "0016_least_privilege"
branch_labels = None
depends_on = None

OWNER, WRITER = "wattledger_owner", "wattledger_writer"


def upgrade() -> None:
    op.create_table(
        "allocation_events",
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("action", sa.SmallInteger(), nullable=False, comment="1 = start, 2 = end"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules: counter reading then"),
        sa.Column(
            "share_ratio",
            sa.Numeric(precision=9, scale=6),
            nullable=True,
            comment="share of the device, 0 to 1; null = the whole device",
        ),
        sa.Column("accelerators", sa.Integer(), nullable=False, comment="accelerators held"),
        sa.Column("evidence", sa.Text(), nullable=False, comment="cgroup, slurmctld, pod-resources, hook, ..."),
        sa.CheckConstraint("action IN (1, 2)", name=op.f("allocation_events_action_ck")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("allocation_events_device_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("allocation_events_job_id_fk")),
        comment="What agents told of who holds what, each event once; allocations are made from these, "
        "whatever the order they came in.",
    )
    op.create_index(
        "allocation_events_uq",
        "allocation_events",
        ["job_id", "device_id", "at", "action", "energy_mj", "share_ratio", "accelerators", "evidence"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.execute(f"ALTER TABLE allocation_events OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT ON allocation_events TO {WRITER}")


def downgrade() -> None:
    op.drop_table("allocation_events")
