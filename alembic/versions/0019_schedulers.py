"""Keep what schedulers tell: reports on jobs, holdings without a known device, and the queue with its reasons."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019_schedulers"
down_revision = "0018_device_descriptions"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER = "wattledger_owner", "wattledger_writer", "wattledger_worker"
NEW = ("job_reports", "hold_events", "queue_entries", "queue_reasons")
JOB_WORDS = (
    "submitted_at, eligible_at, reason, workload_kind, workload_kind_source, accelerators, workload, suspended_us, source, "
    "started_at"
)
TEXT_COMMENT = "text"


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "workload",
            sa.Text(),
            nullable=True,
            comment="what a pod belongs to: Job/train, JobSet/..., Deployment/...",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column("suspended_us", sa.BigInteger(), nullable=True, comment="microseconds: stopped, its devices kept"),
    )
    _reports()
    _queue()
    for table in NEW:
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT ON {table} TO {WORKER}")
    op.execute(f"GRANT SELECT, INSERT ON hold_events TO {WRITER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON job_reports, queue_entries, queue_reasons TO {WRITER}")
    op.execute(f"GRANT UPDATE ({JOB_WORDS}) ON jobs TO {WRITER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE (superseded_at) ON topology TO {WRITER}")


def downgrade() -> None:
    op.execute(f"REVOKE SELECT, INSERT, UPDATE (superseded_at) ON topology FROM {WRITER}")
    op.execute(f"REVOKE UPDATE ({JOB_WORDS}) ON jobs FROM {WRITER}")
    for table in ("queue_reasons", "queue_entries", "hold_events", "job_reports"):
        op.drop_table(table)
    op.drop_column("jobs", "suspended_us")
    op.drop_column("jobs", "workload")


def _text(name: str, comment: str = TEXT_COMMENT, *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable, comment=comment)


def _instant(name: str, comment: str = "instant, UTC", *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, comment=comment)


def _recorded_at() -> sa.Column[object]:
    return sa.Column(
        "recorded_at",
        sa.DateTime(timezone=True),
        server_default=sa.text("now()"),
        nullable=False,
        comment="instant, UTC: when we came to know this",
    )


def _reports() -> None:
    op.create_table(
        "job_reports",
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        _text("source", "who tells: slurm, kubernetes, ...", nullable=False),
        sa.Column(
            "facts",
            postgresql.JSONB(),
            nullable=False,
            comment="field -> [told at, microseconds since 1970, value]; of each field the latest word",
        ),
        _recorded_at(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("job_reports_job_id_fk")),
        sa.PrimaryKeyConstraint("job_id", "source", name=op.f("job_reports_pk")),
        comment="What each scheduler said of a job, the latest word of each field: jobs and allocations are made from "
        "these, whatever the order they came in.",
    )
    op.create_table(
        "hold_events",
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=True, comment="surrogate id"),
        _text("pool", "pool or partition, where no node is known"),
        _text("model", "device model in the pool"),
        _instant("at"),
        sa.Column("action", sa.SmallInteger(), nullable=False, comment="1 = start, 2 = end"),
        sa.Column("accelerators", sa.Integer(), nullable=False, comment="accelerators held"),
        _text("evidence", "hook, slurmctld, kubernetes, api", nullable=False),
        sa.CheckConstraint("action IN (1, 2)", name=op.f("hold_events_action_ck")),
        sa.CheckConstraint("num_nonnulls(node_id, pool) = 1", name=op.f("hold_events_target_ck")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("hold_events_job_id_fk")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("hold_events_node_id_fk")),
        comment="Begins and ends of holdings of which no device is known, each once.",
    )
    op.create_index(
        "hold_events_uq",
        "hold_events",
        ["job_id", "node_id", "pool", "model", "at", "action", "accelerators", "evidence"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )


def _queue() -> None:
    op.create_table(
        "queue_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        _text("cluster", nullable=False),
        _text("native_id", "the scheduler's own id; of an array still waiting the array's", nullable=False),
        _instant("submitted_at", "instant, UTC: with cluster and native id the identity of a wait"),
        _text("source", "slurm, kubernetes, ...", nullable=False),
        _instant("eligible_at", "instant, UTC: nothing but resources was missing from here", nullable=True),
        _instant("left_at", "instant, UTC: it started or was withdrawn; null = still waiting", nullable=True),
        _text("outcome", "started, cancelled, or gone: no longer listed, nobody says why"),
        _text("account"),
        _text("user_name"),
        _text("partition", "partition, or the Kueue queue"),
        _text("qos"),
        _text("namespace"),
        _text("label", "key=value, joined by commas"),
        _text("name"),
        _text("workload", "what a pod belongs to: Job/train, JobSet/..., Deployment/..."),
        sa.Column("accelerators", sa.Integer(), nullable=True, comment="accelerators asked for, by each task"),
        sa.Column("tasks", sa.Integer(), nullable=True, comment="tasks of an array, or pods, that wait"),
        sa.Column(
            "facts",
            postgresql.JSONB(),
            nullable=False,
            comment="field -> [told at, microseconds since 1970, value]; what the columns are made from",
        ),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        _recorded_at(),
        sa.CheckConstraint("outcome IN ('started', 'cancelled', 'gone')", name=op.f("queue_entries_outcome_ck")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("queue_entries_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("queue_entries_pk")),
        comment="A job that waits or waited; why, queue_reasons says.",
    )
    op.create_index(
        "queue_entries_uq", "queue_entries", ["site_id", "cluster", "native_id", "submitted_at"], unique=True
    )
    op.create_index("queue_entries_waiting_ix", "queue_entries", ["site_id", "left_at"])
    op.create_table(
        "queue_reasons",
        sa.Column("entry_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        _instant(
            "since_at", "instant, UTC: from here on this was the reason, until the next one or the end of the wait"
        ),
        _text("reason", "as the scheduler words it: Priority, Resources, Unschedulable, ...", nullable=False),
        sa.ForeignKeyConstraint(["entry_id"], ["queue_entries.id"], name=op.f("queue_reasons_entry_id_fk")),
        sa.PrimaryKeyConstraint("entry_id", "since_at", name=op.f("queue_reasons_pk")),
        comment="Why a job waits, from when on.",
    )
