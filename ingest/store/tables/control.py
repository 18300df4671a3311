"""What steers: tokens, budgets, decisions, actions, audit, outbox."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ingest.store.tables.columns import column, dated_twice, instant, reference, surrogate_id
from ingest.store.tables.metadata import metadata

tokens = Table(
    "tokens",
    metadata,
    surrogate_id(),
    column("name", Text),
    column(
        "sha256",
        LargeBinary,
        unique=True,
        comment="of the secret's random part; the secret itself is shown once and never kept",
    ),
    column("scopes", ARRAY(Text)),
    reference("site_id", "sites", nullable=True),
    reference("node_id", "nodes", nullable=True),
    column("tenant_path", Text, nullable=True, comment="subtree this token may read; null = none, * = all"),
    instant("created_at", server_default=func.now()),
    instant("expires_at", nullable=True),
    instant("revoked_at", nullable=True),
    column(
        "previous_sha256", LargeBinary, nullable=True, unique=True, comment="of the secret before the last rotation"
    ),
    instant("previous_until_at", nullable=True, comment="instant, UTC: the former secret is taken until then"),
    instant("last_used_at", nullable=True, comment="instant, UTC: to a quarter of an hour; null = never"),
    comment="Bearer tokens, hashed.",
)

agent_commands = Table(
    "agent_commands",
    metadata,
    surrogate_id(wide=True),
    reference("node_id", "nodes"),
    column("verb", Text, comment="e.g. power_limit"),
    column("args", JSONB, comment="JSON, units in the names"),
    column("nonce", Text),
    instant("issued_at"),
    instant("expires_at"),
    column("signature", Text, comment="HMAC-SHA256 in hex under a key this database never sees"),
    instant("fetched_at", nullable=True, comment="instant, UTC: first handed out"),
    UniqueConstraint("node_id", "nonce"),
    comment="Orders to agents, signed by an operator and carried to the node that asks for them.",
)

budgets = Table(
    "budgets",
    metadata,
    surrogate_id(),
    reference("tenant_id", "tenants"),
    column("name", Text),
    column("period", Text, comment="day, week, month, quarter or year, in the time zone"),
    column("time_zone", Text, comment="IANA zone in which periods begin and end"),
    column("measure", Text, comment="cost, energy_kwh, carbon_kgco2e, accelerator_hours or tokens"),
    column("limit_value", Numeric(38, 9), comment="in the measure's unit; cost in currency"),
    column("currency", String(3), nullable=True),
    column("ladder", JSONB, comment="rungs: threshold, action, grace, approval, webhook by reference"),
    column("protect", JSONB, comment="jobs no rung may touch: lists of globs by attribute"),
    column("armed", Boolean, server_default="false"),
    column("policy_sha256", LargeBinary),
    column("policy_line", Integer, comment="line of the YAML the budget stands on"),
    *dated_twice(),
    CheckConstraint("limit_value >= 0", name="limit"),
    comment="A limit for a tenant subtree and period.",
)

decisions = Table(
    "decisions",
    metadata,
    surrogate_id(wide=True),
    reference("budget_id", "budgets", index=True),
    reference("tenant_id", "tenants"),
    instant("decided_at"),
    column("period_start_at", instant("period_start_at").type),
    column("rung", Text, comment="none, warn, hold, suspend, cancel, ..."),
    column("spent", Numeric(38, 9), comment="in the budget's measure"),
    column("limit_value", Numeric(38, 9), comment="in the budget's measure"),
    column("forecast", Numeric(38, 9), nullable=True, comment="in the budget's measure, at the end of the period"),
    column("reason", Text),
    column("evidence", JSONB),
    column("origin", SmallInteger, comment="worst origin among the figures: simulated never arms a switch"),
    comment="What a policy concluded, whether or not anything was done.",
)

actions = Table(
    "actions",
    metadata,
    surrogate_id(wide=True),
    reference("decision_id", "decisions", wide=True, nullable=True),
    reference("tenant_id", "tenants"),
    column("idempotency_key", Text, unique=True),
    column("kind", Text, comment="webhook, hold, suspend, cancel, canary, undo"),
    column("plane", Text, comment="slurm, kubernetes, webhook"),
    column("target", JSONB, comment="cluster, native id, start, owner, state as read when decided"),
    column("status", Text, comment="planned, dry_run, executing, done, failed, contested, skipped, undone"),
    column("dry_run", Boolean),
    column("evidence", JSONB),
    column("result", JSONB, nullable=True),
    column("undo", JSONB, nullable=True),
    column("lease_epoch", BigInteger, server_default="0"),
    instant("planned_at", server_default=func.now()),
    instant("executed_at", nullable=True),
    instant("reconciled_at", nullable=True),
    Index("actions_planned_ix", "planned_at"),
    comment="The action log: decided, recorded, executed, reconciled, undone.",
)

audit = Table(
    "audit",
    metadata,
    surrogate_id(wide=True),
    instant("at", server_default=func.now()),
    column("actor", Text),
    column("action", Text),
    column("subject", Text),
    column("detail", JSONB),
    comment="Who changed what; append-only.",
)

outbox = Table(
    "outbox",
    metadata,
    surrogate_id(wide=True),
    column("idempotency_key", Text, unique=True),
    column("kind", Text),
    column("url_ref", Text, comment="name of the receiver in the policy; the URL may hold a secret and stays there"),
    column("payload", JSONB),
    column("attempts", Integer, server_default="0"),
    instant("next_attempt_at", server_default=func.now()),
    instant("delivered_at", nullable=True),
    column("last_error", Text, nullable=True),
    instant("created_at", server_default=func.now()),
    comment="Messages to be delivered at least once, each with an idempotency key.",
)

privacy_settings = Table(
    "privacy_settings",
    metadata,
    column("id", SmallInteger, primary_key=True, autoincrement=False, comment="surrogate id: always 1"),
    column("pseudonyms", Boolean, server_default="false", comment="whether names are replaced at the door"),
    column(
        "names_kept_days",
        Integer,
        nullable=True,
        comment="days after a job's end its owner's name is kept; null = for ever",
    ),
    column("inner_pad", LargeBinary, comment="the key as HMAC pads it inside, 64 bytes"),
    column("outer_pad", LargeBinary, comment="the key as HMAC pads it outside, 64 bytes"),
    CheckConstraint("id = 1", name="one"),
    CheckConstraint("names_kept_days > 0", name="kept"),
    comment="How people's names are kept. No service's role may read it.",
)
