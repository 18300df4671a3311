"""Tokens, budgets, decisions, actions, audit and outbox."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006_control"
down_revision = "0005_books"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="of the secret's random part; the secret itself is shown once and never kept",
        ),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False, comment="text"),
        sa.Column("site_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("tenant_path", sa.Text(), nullable=True, comment="subtree this token may read; null = none, * = all"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("tokens_node_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("tokens_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("tokens_pk")),
        sa.UniqueConstraint("sha256", name=op.f("tokens_sha256_uq")),
        comment="Bearer tokens, hashed.",
    )
    op.create_table(
        "budgets",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.Column("period", sa.Text(), nullable=False, comment="day, week, month, quarter or year, in the time zone"),
        sa.Column("time_zone", sa.Text(), nullable=False, comment="IANA zone in which periods begin and end"),
        sa.Column(
            "measure", sa.Text(), nullable=False, comment="cost, energy_kwh, carbon_kgco2e, accelerator_hours or tokens"
        ),
        sa.Column(
            "limit_value",
            sa.Numeric(precision=38, scale=9),
            nullable=False,
            comment="in the measure's unit; cost in currency",
        ),
        sa.Column("currency", sa.String(length=3), nullable=True, comment="text"),
        sa.Column(
            "ladder",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="rungs: threshold, action, grace, approval, webhook by reference",
        ),
        sa.Column(
            "protect",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="jobs no rung may touch: lists of globs by attribute",
        ),
        sa.Column("armed", sa.Boolean(), server_default="false", nullable=False, comment="true or false"),
        sa.Column("policy_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 digest, 32 bytes"),
        sa.Column("policy_line", sa.Integer(), nullable=False, comment="line of the YAML the budget stands on"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
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
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.CheckConstraint("limit_value >= 0", name=op.f("budgets_limit_ck")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("budgets_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("budgets_pk")),
        comment="A limit for a tenant subtree and period.",
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("budget_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("period_start_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("rung", sa.Text(), nullable=False, comment="none, warn, hold, suspend, cancel, ..."),
        sa.Column("spent", sa.Numeric(precision=38, scale=9), nullable=False, comment="in the budget's measure"),
        sa.Column("limit_value", sa.Numeric(precision=38, scale=9), nullable=False, comment="in the budget's measure"),
        sa.Column(
            "forecast",
            sa.Numeric(precision=38, scale=9),
            nullable=True,
            comment="in the budget's measure, at the end of the period",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="text"),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="JSON"),
        sa.Column(
            "origin",
            sa.SmallInteger(),
            nullable=False,
            comment="worst origin among the figures: simulated never arms a switch",
        ),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name=op.f("decisions_budget_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("decisions_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("decisions_pk")),
        comment="What a policy concluded, whether or not anything was done.",
    )
    op.create_index(op.f("decisions_budget_id_ix"), "decisions", ["budget_id"])
    op.create_table(
        "actions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("decision_id", sa.BigInteger(), nullable=True, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("idempotency_key", sa.Text(), nullable=False, comment="text"),
        sa.Column("kind", sa.Text(), nullable=False, comment="webhook, hold, suspend, cancel, canary, undo"),
        sa.Column("plane", sa.Text(), nullable=False, comment="slurm, kubernetes, webhook"),
        sa.Column(
            "target",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="cluster, native id, start, owner, state as read when decided",
        ),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="planned, dry_run, executing, done, failed, contested, skipped, undone",
        ),
        sa.Column("dry_run", sa.Boolean(), nullable=False, comment="true or false"),
        sa.Column("evidence", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="JSON"),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="JSON"),
        sa.Column("undo", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="JSON"),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False, comment="count or ordinal"),
        sa.Column(
            "planned_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.Column("executed_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.Column("reconciled_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], name=op.f("actions_decision_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("actions_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("actions_pk")),
        sa.UniqueConstraint("idempotency_key", name=op.f("actions_idempotency_key_uq")),
        comment="The action log: decided, recorded, executed, reconciled, undone.",
    )
    op.create_index("actions_planned_ix", "actions", ["planned_at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment="instant, UTC"
        ),
        sa.Column("actor", sa.Text(), nullable=False, comment="text"),
        sa.Column("action", sa.Text(), nullable=False, comment="text"),
        sa.Column("subject", sa.Text(), nullable=False, comment="text"),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="JSON"),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pk")),
        comment="Who changed what; append-only.",
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("idempotency_key", sa.Text(), nullable=False, comment="text"),
        sa.Column("kind", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "url_ref",
            sa.Text(),
            nullable=False,
            comment="name of the receiver in the policy; the URL may hold a secret and stays there",
        ),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="JSON"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="count or ordinal"),
        sa.Column(
            "next_attempt_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.Column("last_error", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("outbox_pk")),
        sa.UniqueConstraint("idempotency_key", name=op.f("outbox_idempotency_key_uq")),
        comment="Messages to be delivered at least once, each with an idempotency key.",
    )


def downgrade() -> None:
    op.drop_table("outbox")
    op.drop_table("audit")
    op.drop_table("actions")
    op.drop_table("decisions")
    op.drop_table("budgets")
    op.drop_table("tokens")
