"""Who used the fleet: jobs, what they held, API calls, spans. Tenant-bearing tables are under row-level security."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from ingest.store.tables.call_parts import call_parts
from ingest.store.tables.columns import column, instant, recorded_at, reference, stamps, surrogate_id
from ingest.store.tables.metadata import metadata

jobs = Table(
    "jobs",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites"),
    column("cluster", Text),
    column("native_id", Text, comment="the scheduler's own id; reused after a requeue, hence the start below"),
    instant("started_at", comment="instant, UTC: with cluster and native id the identity of a run"),
    instant("submitted_at", nullable=True),
    instant("eligible_at", nullable=True),
    instant("ended_at", nullable=True, comment="instant, UTC: null = running or unknown"),
    column(
        "state",
        Text,
        server_default="unknown",
        comment="running, completed, failed, cancelled, preempted, timeout, unknown",
    ),
    column("reason", Text, nullable=True, comment="pending or failure reason as the scheduler words it"),
    column("account", Text, nullable=True),
    column("user_name", Text, nullable=True),
    column("partition", Text, nullable=True),
    column("qos", Text, nullable=True),
    column("namespace", Text, nullable=True),
    column("label", Text, nullable=True),
    column("name", Text, nullable=True),
    column("workload_kind", Text, server_default="unknown"),
    column("workload_kind_source", Text, nullable=True),
    column("accelerators", Integer, nullable=True, comment="accelerators asked for"),
    column("workload", Text, nullable=True, comment="what a pod belongs to: Job/train, JobSet/..., Deployment/..."),
    column("suspended_us", BigInteger, nullable=True, comment="microseconds: stopped, its devices kept"),
    reference("tenant_id", "tenants", nullable=True),
    reference("binding_id", "bindings", nullable=True),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    column("source", Text, comment="agent, sacct, job table, ..."),
    recorded_at(),
    UniqueConstraint("cluster", "native_id", "started_at"),
    Index("jobs_time_ix", "started_at", "ended_at"),
    CheckConstraint("ended_at IS NULL OR ended_at >= started_at", name="order"),
    comment="One scheduler job, pod workload or serving deployment.",
)

job_ends = Table(
    "job_ends",
    metadata,
    reference("job_id", "jobs", index=False, wide=True),
    instant("ended_at", comment="instant, UTC: the job's end"),
    recorded_at(),
    instant("superseded_at", nullable=True, comment="instant, UTC: another end, or none, is known from here"),
    *stamps(),
    PrimaryKeyConstraint("job_id", "recorded_xid"),
    comment="What was known when of the ends of jobs; the rows that nothing superseded are those in jobs.",
)

allocations = Table(
    "allocations",
    metadata,
    surrogate_id(wide=True),
    reference("job_id", "jobs", index=True, wide=True),
    reference("site_id", "sites"),
    reference("device_id", "devices", nullable=True),
    reference("node_id", "nodes", nullable=True),
    column("pool", Text, nullable=True, comment="pool or system name, where no node is known"),
    column("model", Text, nullable=True, comment="device model in the pool"),
    column("accelerators", Integer, server_default="1", comment="accelerators held"),
    column("share_ratio", Numeric(9, 6), nullable=True, comment="share of the device, 0 to 1; null = the whole device"),
    instant("start_at"),
    instant("end_at", nullable=True, comment="instant, UTC: null = still held"),
    column("start_energy_mj", BigInteger, nullable=True, comment="millijoules: counter reading at the start"),
    column("end_energy_mj", BigInteger, nullable=True, comment="millijoules: counter reading at the end"),
    column("evidence", Text, comment="cgroup, slurmctld, pod-resources, hook, import, ..."),
    recorded_at(),
    instant("superseded_at", nullable=True, comment="instant, UTC: later evidence replaced this row"),
    *stamps(),
    Index("allocations_time_ix", "start_at", "end_at"),
    # What followed a holding whose end nobody told.
    Index("allocations_device_ix", "device_id", "start_at", postgresql_where=text("device_id IS NOT NULL")),
    # Rows without an end that count, and those that counted lately: of all without an end, a few in a thousand.
    Index(
        "allocations_open_ix", "site_id", "start_at", postgresql_where=text("end_at IS NULL AND superseded_at IS NULL")
    ),
    Index(
        "allocations_superseded_open_ix",
        "superseded_at",
        postgresql_where=text("end_at IS NULL AND superseded_at IS NOT NULL"),
    ),
    # Jobs still in a pool send no samples: each worker round asks for them, to bring their hours into the books.
    Index(
        "allocations_open_pools_ix",
        "site_id",
        "start_at",
        postgresql_where=text("pool IS NOT NULL AND end_at IS NULL AND superseded_at IS NULL"),
    ),
    CheckConstraint("num_nonnulls(device_id, node_id, pool) = 1", name="target"),
    CheckConstraint("end_at IS NULL OR end_at >= start_at", name="order"),
    comment="A job holds a device share, or (node, count), or (pool, model, count), during [start, end).",
)

begun_anew = Table(
    "begun_anew",
    metadata,
    reference("node_id", "nodes"),
    instant("at"),
    recorded_at(),
    PrimaryKeyConstraint("node_id", "at"),
    comment="When agents began without knowing what was told before: what they did not find held was over by then.",
)

allocation_events = Table(
    "allocation_events",
    metadata,
    reference("job_id", "jobs", wide=True),
    reference("device_id", "devices"),
    instant("at"),
    column("action", SmallInteger, comment="1 = start, 2 = end"),
    column("energy_mj", BigInteger, nullable=True, comment="millijoules: counter reading then"),
    column("share_ratio", Numeric(9, 6), nullable=True, comment="share of the device, 0 to 1; null = the whole device"),
    column("accelerators", Integer, comment="accelerators held"),
    column("evidence", Text, comment="cgroup, slurmctld, pod-resources, hook, ..."),
    # Starts with what is asked for: the events of a job and device around an instant.
    Index(
        "allocation_events_uq",
        "job_id",
        "device_id",
        "at",
        "action",
        "energy_mj",
        "share_ratio",
        "accelerators",
        "evidence",
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint("action IN (1, 2)", name="action"),
    comment="What agents told of who holds what, each event once; allocations are made from these, whatever the order they came in.",
)

api_calls = Table(
    "api_calls",
    metadata,
    instant("called_at"),
    column("dedupe_key", Text, comment="response id, trace/span id, or file sha256 and line: one call is one row"),
    column("site_id", Integer, comment="surrogate id"),  # no foreign key: a look-up and a lock per row
    reference("tenant_id", "tenants", nullable=True),
    reference("binding_id", "bindings", nullable=True),
    column("api_key", Text, nullable=True, comment="the key's public name, never the secret"),
    column("provider", Text),
    column("model", Text),
    column("response_id", Text, nullable=True),
    column("trace_id", Text, nullable=True),
    column("span_id", Text, nullable=True),
    column("input_uncached_tokens", BigInteger, nullable=True),
    column("cache_read_tokens", BigInteger, nullable=True),
    column("cache_write_tokens", BigInteger, nullable=True),
    column("output_text_tokens", BigInteger, nullable=True),
    column("reasoning_tokens", BigInteger, nullable=True),
    column(
        "audio_tokens",
        BigInteger,
        nullable=True,
        comment="tokens of both sides, told before 0063; later ones are apart",
    ),
    column("image_tokens", BigInteger, nullable=True),
    column("usage_known", Boolean, comment="false: the sender did not report usage; tokens are null, never 0"),
    column("status", Text, server_default="ok", comment="ok, error, cancelled"),
    column("streamed", Boolean, nullable=True),
    column("duration_us", BigInteger, nullable=True),
    column("time_to_first_token_us", BigInteger, nullable=True),
    column("source", Text, comment="span, log, settlement, invoice"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    instant("received_at", server_default=func.now()),
    UniqueConstraint("dedupe_key", "called_at"),
    Index("api_calls_called_at_ix", "called_at"),
    column("request_id", Text, nullable=True, comment="text"),
    *call_parts(),
    postgresql_partition_by="RANGE (called_at)",
    comment="One LLM request. Token parts are disjoint; totals are derived.",
)

spans = Table(
    "spans",
    metadata,
    instant("started_at"),
    column("trace_id", Text),
    column("span_id", Text),
    column("parent_span_id", Text, nullable=True),
    column("name", Text),
    column("kind", Text, comment="gen_ai operation, tool, agent, workflow"),
    column("duration_us", BigInteger, nullable=True),
    column("site_id", Integer, comment="surrogate id"),  # no foreign key: a look-up and a lock per row
    reference("tenant_id", "tenants", nullable=True),
    column("attributes", JSONB, comment="without message content"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    UniqueConstraint("trace_id", "span_id", "started_at"),
    column("model", Text, nullable=True, comment="of the response, else of the request; null = no LLM's span"),
    column("status", Text, server_default="ok", comment="ok, error"),
    postgresql_partition_by="RANGE (started_at)",
    comment="Spans kept for tracing; content is dropped at the door.",
)
PARTITIONED = (api_calls, spans)
