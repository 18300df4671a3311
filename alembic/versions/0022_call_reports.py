"""Calls that several sources tell of: what names a call, the reports behind what counts, and what a span of a call says.

Calls that are in already are named later (0033), since this one keeps others from api_calls until it is committed. A replica
of the version before writes calls without naming them: what else is told of one of those is not found to be of the same
call until they are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0022_call_reports"
down_revision = "0021_sealed_hours"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"

TOKENS = (
    "input_uncached_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_text_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "image_tokens",
)
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"


def _text(name: str, comment: str = "text", *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable, comment=comment)


def _instant(name: str, comment: str = "instant, UTC") -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, comment=comment)


def upgrade() -> None:
    op.add_column("api_calls", _text("request_id"))
    op.add_column("spans", _text("model", "of the response, else of the request; null = no LLM's span"))
    op.add_column("spans", sa.Column("status", sa.Text(), server_default="ok", nullable=False, comment="ok, error"))
    op.create_table(
        "call_keys",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "key", sa.Uuid(), nullable=False, comment="first 128 bits of the SHA-256 of ingest.calls.ApiCall.names"
        ),
        _instant("called_at", "instant, UTC: with dedupe_key the row of api_calls that counts"),
        _text("dedupe_key", nullable=False),
        sa.PrimaryKeyConstraint("site_id", "key", name=op.f("call_keys_pk")),
        comment="What names a call, each name once: how reports of one call find each other, however far apart.",
    )
    op.create_table(
        "call_reports",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        _text("source", "settlement, span, log, invoice", nullable=False),
        _text("dedupe_key", "the report's own name within its source", nullable=False),
        _instant("counted_at", "instant, UTC: called_at of the row of api_calls made of this report and others"),
        _text("counted_key", "dedupe_key of that row", nullable=False),
        _instant("called_at"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        _text("api_key", "the key's public name, never the secret"),
        _text("provider", nullable=False),
        _text("model", nullable=False),
        *(_text(name) for name in ("response_id", "request_id", "trace_id", "span_id")),
        *(sa.Column(name, sa.BigInteger(), nullable=True, comment="tokens") for name in TOKENS),
        sa.Column(
            "usage_known",
            sa.Boolean(),
            nullable=False,
            comment="false: the sender did not report usage; tokens are null, never 0",
        ),
        _text("status", "ok, error, cancelled", nullable=False),
        sa.Column("streamed", sa.Boolean(), nullable=True, comment="true or false"),
        sa.Column("duration_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("time_to_first_token_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("call_reports_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("call_reports_tenant_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "source", "dedupe_key", name=op.f("call_reports_pk")),
        comment="Each report of a call that several tell of, as it came; api_calls holds what counts of them.",
    )
    op.create_index("call_reports_counted_ix", "call_reports", ["site_id", "counted_key", "counted_at"])
    for table in ("call_keys", "call_reports"):
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
    op.execute("ALTER TABLE call_reports ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE call_reports FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON call_reports TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY tenant_subtree ON call_reports FOR SELECT TO {API} USING ({BY_TENANT})")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON call_keys TO {WRITER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON call_reports TO {WRITER}")
    op.execute(f"GRANT SELECT ON call_reports TO {WORKER}, {API}")
    # What counts moves when a better report comes: another instant may be another partition.
    op.execute(f"GRANT DELETE ON api_calls TO {WRITER}")


def downgrade() -> None:
    op.execute(f"REVOKE DELETE ON api_calls FROM {WRITER}")
    op.drop_table("call_reports")
    op.drop_table("call_keys")
    op.drop_column("spans", "status")
    op.drop_column("spans", "model")
    op.drop_column("api_calls", "request_id")
