"""Lineage and outcomes: runs with what they read and wrote, and what became of responses; by tenant from the first row."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020_lineage"
down_revision = "0019_schedulers"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
# A run that names a scheduler job is its tenant's, as the job's own policy says inside; ids come again after a requeue, so
# the job must have been there when the run was.
POLICIES = {
    "lineage_runs": BY_TENANT + " OR EXISTS (SELECT FROM jobs WHERE jobs.cluster = lineage_runs.cluster "
    "AND jobs.native_id = lineage_runs.native_id AND jobs.started_at <= lineage_runs.first_event_at + interval '10 minutes' "
    "AND (jobs.ended_at IS NULL OR jobs.ended_at >= lineage_runs.first_event_at))",
    "lineage_events": "EXISTS (SELECT FROM lineage_runs WHERE lineage_runs.id = lineage_events.lineage_run_id)",
    "lineage_datasets": "EXISTS (SELECT FROM lineage_runs WHERE lineage_runs.id = lineage_datasets.lineage_run_id)",
    "outcomes": BY_TENANT,
}


def upgrade() -> None:
    op.create_table(
        "lineage_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("run_id", sa.Text(), nullable=False, comment="id of the run as its sender gives it, a UUID"),
        sa.Column("job_namespace", sa.Text(), nullable=False, comment="text"),
        sa.Column("job_name", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=True,
            comment="fine_tune, training, serving, data; null = the sender does not say",
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="other, start, running, complete, fail, abort"),
        sa.Column(
            "first_event_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: of its earliest event"
        ),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: of its last end; null = runs or unknown",
        ),
        sa.Column(
            "cluster", sa.Text(), nullable=True, comment="of the scheduler job the run says it is; a hint, never proof"
        ),
        sa.Column("native_id", sa.Text(), nullable=True, comment="id of that job in its cluster"),
        sa.Column("parent_run_id", sa.Text(), nullable=True, comment="id of the run this one is a part of"),
        sa.Column("model", sa.Text(), nullable=True, comment="name under which a serving run answers"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("kind IN ('fine_tune', 'training', 'serving', 'data')", name=op.f("lineage_runs_kind_ck")),
        sa.CheckConstraint(
            "state IN ('other', 'start', 'running', 'complete', 'fail', 'abort')", name=op.f("lineage_runs_state_ck")
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("lineage_runs_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("lineage_runs_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("lineage_runs_pk")),
        sa.UniqueConstraint("site_id", "run_id", name=op.f("lineage_runs_site_id_run_id_uq")),
        comment="One run as OpenLineage events tell of it, made from all of them whatever the order they came in.",
    )
    op.create_index("lineage_runs_model_ix", "lineage_runs", ["model"], unique=False)
    op.create_table(
        "lineage_events",
        sa.Column("lineage_run_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("event_type", sa.Text(), nullable=False, comment="other, start, running, complete, fail, abort"),
        sa.Column("event_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("producer", sa.Text(), nullable=True, comment="text"),
        sa.Column("spec", sa.Text(), nullable=True, comment="version of the specification, e.g. 2-0-2"),
        sa.Column(
            "facets",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="what was read of the facets we know; texts of at most 255 characters",
        ),
        sa.Column("facets_ignored", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["lineage_run_id"], ["lineage_runs.id"], name=op.f("lineage_events_lineage_run_id_fk")),
        sa.UniqueConstraint(
            "lineage_run_id",
            "event_type",
            "event_at",
            name=op.f("lineage_events_lineage_run_id_event_type_event_at_uq"),
        ),
        comment="Each event once, however often it was sent.",
    )
    op.create_table(
        "lineage_datasets",
        sa.Column("lineage_run_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("direction", sa.Text(), nullable=False, comment="input or output"),
        sa.Column("namespace", sa.Text(), nullable=False, comment="text"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.Column("version", sa.Text(), server_default="", nullable=False, comment="text; empty = not stated"),
        sa.Column("kind", sa.Text(), nullable=True, comment="model, table, view, ... in lower case; null = not stated"),
        sa.CheckConstraint("direction IN ('input', 'output')", name=op.f("lineage_datasets_direction_ck")),
        sa.ForeignKeyConstraint(
            ["lineage_run_id"], ["lineage_runs.id"], name=op.f("lineage_datasets_lineage_run_id_fk")
        ),
        sa.UniqueConstraint(
            "lineage_run_id",
            "direction",
            "namespace",
            "name",
            "version",
            name=op.f("lineage_datasets_lineage_run_id_direction_namespace_name_version_uq"),
        ),
        comment="What a run read and wrote.",
    )
    op.create_index("lineage_datasets_name_ix", "lineage_datasets", ["name", "namespace"], unique=False)
    op.create_table(
        "outcomes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column(
            "dedupe_key", sa.Text(), nullable=False, comment="the sender's own id, or a hash of all the outcome says"
        ),
        sa.Column("response_id", sa.Text(), nullable=True, comment="id of the response as its provider gave it"),
        sa.Column("trace_id", sa.Text(), nullable=True, comment="id, 32 hex digits"),
        sa.Column("span_id", sa.Text(), nullable=True, comment="id, 16 hex digits"),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="what was judged: an evaluator's name, thumbs, conversion, ..."
        ),
        sa.Column(
            "value", sa.Numeric(), nullable=True, comment="as reported, exact; in value_unit, else a bare measure"
        ),
        sa.Column("value_unit", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "score", sa.DOUBLE_PRECISION(), nullable=True, comment="as reported: a measure of the evaluator's own scale"
        ),
        sa.Column("label", sa.Text(), nullable=True, comment="text"),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("serving_id", sa.Text(), nullable=True, comment="run id, or cluster/native id of a job"),
        sa.Column("model", sa.Text(), nullable=True, comment="text"),
        sa.Column("fine_tune_id", sa.Text(), nullable=True, comment="run id, or cluster/native id of a job"),
        sa.Column("dataset_ids", sa.ARRAY(sa.Text()), nullable=True, comment="ids of datasets: namespace:name or name"),
        sa.Column("source", sa.Text(), nullable=False, comment="api or span"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("num_nonnulls(response_id, trace_id) >= 1", name=op.f("outcomes_subject_ck")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("outcomes_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("outcomes_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("outcomes_pk")),
        sa.UniqueConstraint("site_id", "dedupe_key", name=op.f("outcomes_site_id_dedupe_key_uq")),
        comment="What became of a response: evaluations, ratings, business results. No text that was said.",
    )
    op.create_index("outcomes_response_ix", "outcomes", ["response_id"], unique=False)
    op.create_index("outcomes_span_ix", "outcomes", ["trace_id", "span_id"], unique=False)
    op.execute(f"GRANT SELECT (id, path) ON tenants TO {WRITER}")
    for table, seen in POLICIES.items():
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT ON {table} TO {API}")
        op.execute(f"GRANT SELECT, INSERT ON {table} TO {WRITER}")
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY service ON {table} TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
        op.execute(f"CREATE POLICY tenant_subtree ON {table} FOR SELECT TO {API} USING ({seen})")
    op.execute(f"GRANT UPDATE ON lineage_runs, lineage_datasets TO {WRITER}")


def downgrade() -> None:
    op.execute("REVOKE SELECT (id, path) ON tenants FROM wattledger_writer")
    for table in ("outcomes", "lineage_datasets", "lineage_events", "lineage_runs"):
        op.drop_table(table)
