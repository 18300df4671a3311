"""Charges of providers as their exports list them, and what each file says an invoice adds up to."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024_charges"
down_revision = "0023_store_layout"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"


def upgrade() -> None:
    op.create_table(
        "imported_charges",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("import_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "line",
            sa.BigInteger(),
            nullable=False,
            comment="line of the file, from 1 with the header; in Parquet the row's number",
        ),
        sa.Column(
            "identity_sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="of what says which charge it is",
        ),
        sa.Column("content_sha256", sa.LargeBinary(), nullable=False, comment="of all that is kept of the row"),
        sa.Column(
            "provider", sa.Text(), nullable=False, comment="who makes the service available, as the file names it"
        ),
        sa.Column("publisher", sa.Text(), nullable=True, comment="text"),
        sa.Column("invoice_issuer", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "invoice_id", sa.Text(), nullable=True, comment="id on the invoice; null = not yet invoiced or not stated"
        ),
        sa.Column(
            "billing_account_id",
            sa.Text(),
            nullable=False,
            comment="id of the account that is billed, as the provider gives it",
        ),
        sa.Column(
            "sub_account_id", sa.Text(), nullable=True, comment="id of the account below, as the provider gives it"
        ),
        sa.Column("sub_account_name", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "period_start_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="instant, UTC: start of the billing period",
        ),
        sa.Column(
            "period_end_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: its end, not included"
        ),
        sa.Column(
            "charge_start_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="instant, UTC: start of what is charged",
        ),
        sa.Column(
            "charge_end_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: its end, not included"
        ),
        sa.Column("category", sa.Text(), nullable=False, comment="usage, purchase, tax, credit, adjustment"),
        sa.Column(
            "is_correction",
            sa.Boolean(),
            nullable=False,
            comment="true: it corrects charges of a period that was invoiced before",
        ),
        sa.Column("service_category", sa.Text(), nullable=True, comment="text"),
        sa.Column("service_name", sa.Text(), nullable=True, comment="text"),
        sa.Column("description", sa.Text(), nullable=True, comment="text"),
        sa.Column("frequency", sa.Text(), nullable=True, comment="text"),
        sa.Column("pricing_category", sa.Text(), nullable=True, comment="text"),
        sa.Column("sku_id", sa.Text(), nullable=True, comment="id of the SKU, as the provider gives it"),
        sa.Column("sku_price_id", sa.Text(), nullable=True, comment="id of its price, as the provider gives it"),
        sa.Column("sku_meter", sa.Text(), nullable=True, comment="text"),
        sa.Column("resource_id", sa.Text(), nullable=True, comment="id of the resource, as the provider gives it"),
        sa.Column("resource_name", sa.Text(), nullable=True, comment="text"),
        sa.Column("region_id", sa.Text(), nullable=True, comment="id of the region, as the provider gives it"),
        sa.Column(
            "commitment_id", sa.Text(), nullable=True, comment="id of the commitment discount, as the provider gives it"
        ),
        sa.Column("billed_cost", sa.Numeric(), nullable=False, comment="in currency, every digit of the file"),
        sa.Column("effective_cost", sa.Numeric(), nullable=False, comment="in currency, every digit of the file"),
        sa.Column("list_cost", sa.Numeric(), nullable=True, comment="in currency, every digit of the file"),
        sa.Column("contracted_cost", sa.Numeric(), nullable=True, comment="in currency, every digit of the file"),
        sa.Column("currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("pricing_quantity", sa.Numeric(), nullable=True, comment="a measure, in pricing_unit"),
        sa.Column("pricing_unit", sa.Text(), nullable=True, comment="text"),
        sa.Column("consumed_quantity", sa.Numeric(), nullable=True, comment="a measure, in consumed_unit"),
        sa.Column("consumed_unit", sa.Text(), nullable=True, comment="text"),
        sa.Column("tags", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="JSON"),
        sa.Column(
            "covers",
            sa.Text(),
            nullable=True,
            comment="call: line items of one LLM call; calls: of a model's calls in a period",
        ),
        sa.Column("call_id", sa.Text(), nullable=True, comment="id of the request or response it is a line item of"),
        sa.Column("call_provider", sa.Text(), nullable=True, comment="provider as calls name it"),
        sa.Column("call_model", sa.Text(), nullable=True, comment="text"),
        sa.Column("call_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
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
            comment="instant, UTC: a later file restated it; null = it counts",
        ),
        sa.CheckConstraint(
            "category IN ('usage', 'purchase', 'tax', 'credit', 'adjustment')",
            name=op.f("imported_charges_category_ck"),
        ),
        sa.CheckConstraint("covers IN ('call', 'calls')", name=op.f("imported_charges_covers_ck")),
        sa.CheckConstraint(
            "charge_end_at > charge_start_at AND period_end_at > period_start_at",
            name=op.f("imported_charges_order_ck"),
        ),
        sa.ForeignKeyConstraint(["import_id"], ["imports.id"], name=op.f("imported_charges_import_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("imported_charges_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("imported_charges_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("imported_charges_pk")),
        sa.UniqueConstraint("import_id", "line", name=op.f("imported_charges_import_id_line_uq")),
        comment="One row of a provider's cost and usage export (FOCUS), credits negative, corrections beside what they correct.",
    )
    op.create_index(
        "imported_charges_identity_ix",
        "imported_charges",
        ["site_id", "identity_sha256"],
        unique=False,
        postgresql_where=sa.text("superseded_at IS NULL"),
    )
    op.create_index(op.f("imported_charges_import_id_ix"), "imported_charges", ["import_id"], unique=False)
    op.create_index("imported_charges_period_ix", "imported_charges", ["period_start_at", "provider"], unique=False)
    op.create_table(
        "invoice_totals",
        sa.Column("import_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("provider", sa.Text(), nullable=False, comment="text"),
        sa.Column("invoice_issuer", sa.Text(), server_default="", nullable=False, comment="text"),
        sa.Column(
            "invoice_id",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="id on the invoice; empty = the file states none",
        ),
        sa.Column(
            "billing_account_id",
            sa.Text(),
            nullable=False,
            comment="id of the account that is billed, as the provider gives it",
        ),
        sa.Column(
            "period_start_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="instant, UTC: start of the billing period",
        ),
        sa.Column("currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="count or ordinal"),
        sa.Column("billed_cost", sa.Numeric(), nullable=False, comment="in currency, every digit of the file"),
        sa.Column("effective_cost", sa.Numeric(), nullable=False, comment="in currency, every digit of the file"),
        sa.Column(
            "stated_total",
            sa.Numeric(),
            nullable=True,
            comment="in currency: what the invoice itself says, where somebody told",
        ),
        sa.ForeignKeyConstraint(["import_id"], ["imports.id"], name=op.f("invoice_totals_import_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("invoice_totals_site_id_fk")),
        sa.UniqueConstraint(
            "import_id",
            "provider",
            "invoice_issuer",
            "invoice_id",
            "billing_account_id",
            "period_start_at",
            "currency",
            name=op.f(
                "invoice_totals_import_id_provider_invoice_issuer_invoice_id_billing_account_id_period_start_at_currency_uq"
            ),
        ),
        comment="What the rows of one file add up to, by invoice, provider and month, with the total the invoice states.",
    )
    for table in ("imported_charges", "invoice_totals"):
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT ON {table} TO {WORKER}")
    op.execute(f"GRANT SELECT ON imported_charges TO {API}")
    op.execute("ALTER TABLE imported_charges ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE imported_charges FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY service ON imported_charges TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)"
    )
    op.execute(f"CREATE POLICY tenant_subtree ON imported_charges FOR SELECT TO {API} USING ({BY_TENANT})")


def downgrade() -> None:
    op.drop_table("invoice_totals")
    op.drop_table("imported_charges")
