"""What providers bill us: charges as their exports list them, and what each file says an invoice adds up to.

Amounts keep every digit a file has: the books round once, later, and never here. A charge that lists LLM calls is kept to be
compared with the calls and is never added to them (``covers``).
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from ingest.store.tables.columns import column, instant, recorded_at, reference, surrogate_id
from ingest.store.tables.metadata import metadata

_AMOUNT = "in currency, every digit of the file"

imported_charges = Table(
    "imported_charges",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites"),
    reference("tenant_id", "tenants", nullable=True),
    column("import_id", Integer, ForeignKey("imports.id"), index=True),
    column("line", BigInteger, comment="line of the file, from 1 with the header; in Parquet the row's number"),
    column("identity_sha256", LargeBinary, comment="of what says which charge it is"),
    column("content_sha256", LargeBinary, comment="of all that is kept of the row"),
    column("provider", Text, comment="who makes the service available, as the file names it"),
    column("publisher", Text, nullable=True),
    column("invoice_issuer", Text, nullable=True),
    column("invoice_id", Text, nullable=True, comment="id on the invoice; null = not yet invoiced or not stated"),
    column("billing_account_id", Text, comment="id of the account that is billed, as the provider gives it"),
    column("sub_account_id", Text, nullable=True, comment="id of the account below, as the provider gives it"),
    column("sub_account_name", Text, nullable=True),
    instant("period_start_at", comment="instant, UTC: start of the billing period"),
    instant("period_end_at", comment="instant, UTC: its end, not included"),
    instant("charge_start_at", comment="instant, UTC: start of what is charged"),
    instant("charge_end_at", comment="instant, UTC: its end, not included"),
    column("category", Text, comment="usage, purchase, tax, credit, adjustment"),
    column("is_correction", Boolean, comment="true: it corrects charges of a period that was invoiced before"),
    column("service_category", Text, nullable=True),
    column("service_name", Text, nullable=True),
    column("description", Text, nullable=True),
    column("frequency", Text, nullable=True),
    column("pricing_category", Text, nullable=True),
    column("sku_id", Text, nullable=True, comment="id of the SKU, as the provider gives it"),
    column("sku_price_id", Text, nullable=True, comment="id of its price, as the provider gives it"),
    column("sku_meter", Text, nullable=True),
    column("resource_id", Text, nullable=True, comment="id of the resource, as the provider gives it"),
    column("resource_name", Text, nullable=True),
    column("region_id", Text, nullable=True, comment="id of the region, as the provider gives it"),
    column("commitment_id", Text, nullable=True, comment="id of the commitment discount, as the provider gives it"),
    column("billed_cost", Numeric, comment=_AMOUNT),
    column("effective_cost", Numeric, comment=_AMOUNT),
    column("list_cost", Numeric, nullable=True, comment=_AMOUNT),
    column("contracted_cost", Numeric, nullable=True, comment=_AMOUNT),
    column("currency", String(3)),
    column("pricing_quantity", Numeric, nullable=True, comment="a measure, in pricing_unit"),
    column("pricing_unit", Text, nullable=True),
    column("consumed_quantity", Numeric, nullable=True, comment="a measure, in consumed_unit"),
    column("consumed_unit", Text, nullable=True),
    column("tags", JSONB, nullable=True),
    column(
        "covers", Text, nullable=True, comment="call: line items of one LLM call; calls: of a model's calls in a period"
    ),
    column("call_id", Text, nullable=True, comment="id of the request or response it is a line item of"),
    column("call_provider", Text, nullable=True, comment="provider as calls name it"),
    column("call_model", Text, nullable=True),
    column("call_tokens", BigInteger, nullable=True),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    recorded_at(),
    instant("superseded_at", nullable=True, comment="instant, UTC: a later file restated it; null = it counts"),
    UniqueConstraint("import_id", "line"),
    Index("imported_charges_identity_ix", "site_id", "identity_sha256", postgresql_where=text("superseded_at IS NULL")),
    Index("imported_charges_period_ix", "period_start_at", "provider"),
    CheckConstraint("category IN ('usage', 'purchase', 'tax', 'credit', 'adjustment')", name="category"),
    CheckConstraint("covers IN ('call', 'calls')", name="covers"),
    CheckConstraint("charge_end_at >= charge_start_at AND period_end_at > period_start_at", name="order"),
    comment="One row of a provider's cost and usage export (FOCUS), credits negative, corrections beside what they correct.",
)

invoice_totals = Table(
    "invoice_totals",
    metadata,
    column("import_id", Integer, ForeignKey("imports.id")),
    reference("site_id", "sites"),
    column("provider", Text),
    column("invoice_issuer", Text, server_default=""),
    column("invoice_id", Text, server_default="", comment="id on the invoice; empty = the file states none"),
    column("billing_account_id", Text, comment="id of the account that is billed, as the provider gives it"),
    instant("period_start_at", comment="instant, UTC: start of the billing period"),
    column("currency", String(3)),
    column("rows", BigInteger),
    column("billed_cost", Numeric, comment=_AMOUNT),
    column("effective_cost", Numeric, comment=_AMOUNT),
    column(
        "stated_total", Numeric, nullable=True, comment="in currency: what the invoice itself says, where somebody told"
    ),
    UniqueConstraint(
        "import_id", "provider", "invoice_issuer", "invoice_id", "billing_account_id", "period_start_at", "currency"
    ),
    comment="What the rows of one file add up to, by invoice, provider and month, with the total the invoice states.",
)
