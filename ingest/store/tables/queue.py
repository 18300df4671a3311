"""What schedulers tell of jobs: their reports, their word on who holds what, and the queue of what has not started."""

from sqlalchemy import CheckConstraint, Index, Integer, PrimaryKeyConstraint, SmallInteger, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from ingest.store.tables.columns import column, instant, recorded_at, reference, surrogate_id
from ingest.store.tables.metadata import metadata

job_reports = Table(
    "job_reports",
    metadata,
    reference("job_id", "jobs", wide=True),
    column("source", Text, comment="who tells: slurm, kubernetes, ..."),
    column("facts", JSONB, comment="field -> [told at, microseconds since 1970, value]; of each field the latest word"),
    recorded_at(),
    PrimaryKeyConstraint("job_id", "source"),
    comment="What each scheduler said of a job, the latest word of each field: jobs and allocations are made from these, "
    "whatever the order they came in.",
)

hold_events = Table(
    "hold_events",
    metadata,
    reference("job_id", "jobs", wide=True),
    reference("node_id", "nodes", nullable=True),
    column("pool", Text, nullable=True, comment="pool or partition, where no node is known"),
    column("model", Text, nullable=True, comment="device model in the pool"),
    instant("at"),
    column("action", SmallInteger, comment="1 = start, 2 = end"),
    column("accelerators", Integer, comment="accelerators held"),
    column("evidence", Text, comment="hook, slurmctld, kubernetes, api"),
    Index(
        "hold_events_uq",
        "job_id",
        "node_id",
        "pool",
        "model",
        "at",
        "action",
        "accelerators",
        "evidence",
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint("action IN (1, 2)", name="action"),
    CheckConstraint("num_nonnulls(node_id, pool) = 1", name="target"),
    comment="Begins and ends of holdings of which no device is known, each once.",
)

queue_entries = Table(
    "queue_entries",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites"),
    column("cluster", Text),
    column("native_id", Text, comment="the scheduler's own id; of an array still waiting the array's"),
    instant("submitted_at", comment="instant, UTC: with cluster and native id the identity of a wait"),
    column("source", Text, comment="slurm, kubernetes, ..."),
    instant("eligible_at", nullable=True, comment="instant, UTC: nothing but resources was missing from here"),
    instant("left_at", nullable=True, comment="instant, UTC: it started or was withdrawn; null = still waiting"),
    column("outcome", Text, nullable=True, comment="started, cancelled, or gone: no longer listed, nobody says why"),
    column("account", Text, nullable=True),
    column("user_name", Text, nullable=True),
    column("partition", Text, nullable=True, comment="partition, or the Kueue queue"),
    column("qos", Text, nullable=True),
    column("namespace", Text, nullable=True),
    column("label", Text, nullable=True, comment="key=value, joined by commas"),
    column("name", Text, nullable=True),
    column("workload", Text, nullable=True, comment="what a pod belongs to: Job/train, JobSet/..., Deployment/..."),
    column("accelerators", Integer, nullable=True, comment="accelerators asked for, by each task"),
    column("tasks", Integer, nullable=True, comment="tasks of an array, or pods, that wait"),
    column(
        "facts", JSONB, comment="field -> [told at, microseconds since 1970, value]; what the columns are made from"
    ),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    recorded_at(),
    Index("queue_entries_uq", "site_id", "cluster", "native_id", "submitted_at", unique=True),
    Index("queue_entries_waiting_ix", "site_id", "left_at"),
    CheckConstraint("outcome IN ('started', 'cancelled', 'gone')", name="outcome"),
    comment="A job that waits or waited; why, queue_reasons says.",
)

queue_reasons = Table(
    "queue_reasons",
    metadata,
    reference("entry_id", "queue_entries", wide=True),
    instant(
        "since_at", comment="instant, UTC: from here on this was the reason, until the next one or the end of the wait"
    ),
    column("reason", Text, comment="as the scheduler words it: Priority, Resources, Unschedulable, ..."),
    PrimaryKeyConstraint("entry_id", "since_at"),
    comment="Why a job waits, from when on.",
)
