"""Jobs, allocations, API calls and spans."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_work"
down_revision = "0003_samples"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("cluster", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "native_id",
            sa.Text(),
            nullable=False,
            comment="the scheduler's own id; reused after a requeue, hence the start below",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="instant, UTC: with cluster and native id the identity of a run",
        ),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.Column("eligible_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.Column(
            "ended_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC: null = running or unknown"
        ),
        sa.Column(
            "state",
            sa.Text(),
            server_default="unknown",
            nullable=False,
            comment="running, completed, failed, cancelled, preempted, timeout, unknown",
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="pending or failure reason as the scheduler words it"),
        sa.Column("account", sa.Text(), nullable=True, comment="text"),
        sa.Column("user_name", sa.Text(), nullable=True, comment="text"),
        sa.Column("partition", sa.Text(), nullable=True, comment="text"),
        sa.Column("qos", sa.Text(), nullable=True, comment="text"),
        sa.Column("namespace", sa.Text(), nullable=True, comment="text"),
        sa.Column("label", sa.Text(), nullable=True, comment="text"),
        sa.Column("name", sa.Text(), nullable=True, comment="text"),
        sa.Column("workload_kind", sa.Text(), server_default="unknown", nullable=False, comment="text"),
        sa.Column("workload_kind_source", sa.Text(), nullable=True, comment="text"),
        sa.Column("accelerators", sa.Integer(), nullable=True, comment="accelerators asked for"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("binding_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column("source", sa.Text(), nullable=False, comment="agent, sacct, job table, ..."),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.CheckConstraint("ended_at IS NULL OR ended_at >= started_at", name=op.f("jobs_order_ck")),
        sa.ForeignKeyConstraint(["binding_id"], ["bindings.id"], name=op.f("jobs_binding_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("jobs_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("jobs_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pk")),
        sa.UniqueConstraint("cluster", "native_id", "started_at", name=op.f("jobs_cluster_native_id_started_at_uq")),
        comment="One scheduler job, pod workload or serving deployment.",
    )
    op.create_index("jobs_time_ix", "jobs", ["started_at", "ended_at"])
    op.create_table(
        "allocations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("device_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("pool", sa.Text(), nullable=True, comment="pool or system name, where no node is known"),
        sa.Column("model", sa.Text(), nullable=True, comment="device model in the pool"),
        sa.Column("accelerators", sa.Integer(), server_default="1", nullable=False, comment="accelerators held"),
        sa.Column(
            "share_ratio",
            sa.Numeric(precision=9, scale=6),
            nullable=True,
            comment="share of the device, 0 to 1; null = the whole device",
        ),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("end_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC: null = still held"),
        sa.Column(
            "start_energy_mj", sa.BigInteger(), nullable=True, comment="millijoules: counter reading at the start"
        ),
        sa.Column("end_energy_mj", sa.BigInteger(), nullable=True, comment="millijoules: counter reading at the end"),
        sa.Column("evidence", sa.Text(), nullable=False, comment="cgroup, slurmctld, pod-resources, hook, import, ..."),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: later evidence replaced this row",
        ),
        sa.CheckConstraint("end_at IS NULL OR end_at >= start_at", name=op.f("allocations_order_ck")),
        sa.CheckConstraint("num_nonnulls(device_id, node_id, pool) = 1", name=op.f("allocations_target_ck")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("allocations_device_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("allocations_job_id_fk")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("allocations_node_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("allocations_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("allocations_pk")),
        comment="A job holds a device share, or (node, count), or (pool, model, count), during [start, end).",
    )
    op.create_index(op.f("allocations_job_id_ix"), "allocations", ["job_id"])
    op.create_index("allocations_time_ix", "allocations", ["start_at", "end_at"])
    op.create_table(
        "api_calls",
        sa.Column("called_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "dedupe_key",
            sa.Text(),
            nullable=False,
            comment="response id, trace/span id, or file sha256 and line: one call is one row",
        ),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("binding_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("api_key", sa.Text(), nullable=True, comment="the key's public name, never the secret"),
        sa.Column("provider", sa.Text(), nullable=False, comment="text"),
        sa.Column("model", sa.Text(), nullable=False, comment="text"),
        sa.Column("response_id", sa.Text(), nullable=True, comment="surrogate id"),
        sa.Column("trace_id", sa.Text(), nullable=True, comment="surrogate id"),
        sa.Column("span_id", sa.Text(), nullable=True, comment="surrogate id"),
        sa.Column("input_uncached_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("output_text_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("audio_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("image_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column(
            "usage_known",
            sa.Boolean(),
            nullable=False,
            comment="false: the sender did not report usage; tokens are null, never 0",
        ),
        sa.Column("status", sa.Text(), server_default="ok", nullable=False, comment="ok, error, cancelled"),
        sa.Column("streamed", sa.Boolean(), nullable=True, comment="true or false"),
        sa.Column("duration_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("time_to_first_token_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("source", sa.Text(), nullable=False, comment="span, log, settlement, invoice"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["binding_id"], ["bindings.id"], name=op.f("api_calls_binding_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("api_calls_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("api_calls_tenant_id_fk")),
        sa.UniqueConstraint("dedupe_key", "called_at", name=op.f("api_calls_dedupe_key_called_at_uq")),
        comment="One LLM request. Token parts are disjoint; totals are derived.",
        postgresql_partition_by="RANGE (called_at)",
    )
    op.create_index("api_calls_called_at_ix", "api_calls", ["called_at"])
    op.create_table(
        "spans",
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("trace_id", sa.Text(), nullable=False, comment="surrogate id"),
        sa.Column("span_id", sa.Text(), nullable=False, comment="surrogate id"),
        sa.Column("parent_span_id", sa.Text(), nullable=True, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.Column("kind", sa.Text(), nullable=False, comment="gen_ai operation, tool, agent, workflow"),
        sa.Column("duration_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column(
            "attributes", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="without message content"
        ),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("spans_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("spans_tenant_id_fk")),
        sa.UniqueConstraint("trace_id", "span_id", "started_at", name=op.f("spans_trace_id_span_id_started_at_uq")),
        comment="Spans kept for tracing; content is dropped at the door.",
        postgresql_partition_by="RANGE (started_at)",
    )


def downgrade() -> None:
    op.drop_table("spans")
    op.drop_table("api_calls")
    op.drop_table("allocations")
    op.drop_table("jobs")
