"""Closed days and hours are summed by tenant for bills: a month's bill reads some thousand rows instead of millions."""

import sqlalchemy as sa
from alembic import op

revision = "0049_bill_spans"
down_revision = "0048_tenant_moves"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
SOURCES = "bits: 1 measured, 2 estimated, 4 forecast, 8 assumed"
ORIGINS = "bits: 1 << collector.wire.Origin"


def upgrade() -> None:
    op.create_table(
        "bill_spans",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("from_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("to_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "revisions",
            sa.Text(),
            nullable=False,
            comment="hour of the day and revision of each of its hours: what the sums are of",
        ),
        sa.Column(
            "built_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("from_at < to_at", name=op.f("bill_spans_span_ck")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("bill_spans_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("bill_spans_pk")),
        sa.UniqueConstraint("site_id", "from_at", "to_at", name=op.f("bill_spans_site_id_from_at_to_at_uq")),
        comment="A day, or an hour, of closed books that is summed for bills.",
    )
    op.execute(f"ALTER TABLE bill_spans OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT, INSERT, DELETE ON bill_spans TO {WORKER}")
    op.execute(f"GRANT SELECT ON bill_spans TO {API}")
    _sums(
        "bill_lines",
        "Ledger lines of a span by tenant, pool, charge category and currency.",
        sa.Column("pool", sa.Text(), nullable=False, comment="as of ledger_lines"),
        sa.Column("charge_category", sa.Text(), nullable=False, comment="as of ledger_lines"),
        sa.Column("currency", sa.String(3), nullable=False, comment="text"),
        _count("lines", "count of lines that have something to price"),
        _count("unpriced_lines", "count of those without a price"),
        _count("usage_unknown_calls", "count of API calls whose sender told no token counts"),
        sa.Column("billed_cost", sa.Numeric(38, 9), nullable=True, comment="in currency; null = no line has a price"),
        sa.Column(
            "effective_cost", sa.Numeric(38, 9), nullable=True, comment="in currency; null = no line has a price"
        ),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("facility_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("carbon_gco2e", sa.Numeric(38, 9), nullable=True, comment="grams of CO2 equivalent"),
        sa.Column("tokens", sa.BigInteger(), nullable=True, comment="count of tokens"),
        sa.Column("sources", sa.SmallInteger(), nullable=False, comment=SOURCES),
        sa.Column("origins", sa.SmallInteger(), nullable=False, comment=ORIGINS),
    )
    _sums(
        "bill_times",
        "Time of usage hours of a span by tenant and pool.",
        sa.Column(
            "pool",
            sa.Text(),
            nullable=False,
            comment="job, or what holds it in place of one: the holder up to its colon",
        ),
        _count("held_us", "accelerator-microseconds"),
        _count("covered_us", "accelerator-microseconds with measured energy"),
        _count("active_us", "accelerator-microseconds with work, of jobs", nullable=True),
        _count("idle_us", "accelerator-microseconds without work, of jobs", nullable=True),
        _count("throttled_us", "accelerator-microseconds slowed by power or heat", nullable=True),
    )
    _sums(
        "bill_waste",
        "Avoidable cash of the findings of a span by tenant and kind.",
        sa.Column("kind", sa.Text(), nullable=False, comment="idle_waste or throttling"),
        sa.Column("currency", sa.String(3), nullable=False, comment="text"),
        sa.Column("avoidable_cash", sa.Numeric(38, 9), nullable=False, comment="in currency"),
    )


def downgrade() -> None:
    for table in ("bill_waste", "bill_times", "bill_lines", "bill_spans"):
        op.drop_table(table)


def _sums(table: str, comment: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        table,
        sa.Column("span_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        *columns,
        sa.ForeignKeyConstraint(["span_id"], ["bill_spans.id"], name=op.f(f"{table}_span_id_fk"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f(f"{table}_tenant_id_fk")),
        comment=comment,
    )
    op.create_index(f"{table}_span_ix", table, ["span_id"])
    op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON {table} TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY tenant_subtree ON {table} FOR SELECT TO {API} USING ({BY_TENANT})")
    op.execute(f"GRANT SELECT, INSERT ON {table} TO {WORKER}")
    op.execute(f"GRANT SELECT ON {table} TO {API}")


def _count(name: str, comment: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable, comment=comment)
