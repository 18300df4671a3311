"""Sums of the books by day and hour that bills are read from, so that a month's bill adds up some thousand rows instead of millions.

A span says of which revisions its sums are; one whose hours have others by now counts for nothing, and the lines themselves are
read. Nothing here is a source: dropped, it is made again (``analytics/io/bill_spans.py``).
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
)

from ingest.store.tables.columns import MONEY, column, instant, reference, surrogate_id
from ingest.store.tables.lines_wide import later_amounts
from ingest.store.tables.metadata import metadata

_SOURCES = "bits: 1 measured, 2 estimated, 4 forecast, 8 assumed"
_ORIGINS = "bits: 1 << collector.wire.Origin"

bill_spans = Table(
    "bill_spans",
    metadata,
    surrogate_id(wide=True),
    column("site_id", Integer, ForeignKey("sites.id")),
    instant("from_at"),
    instant("to_at"),
    column(
        "revisions",
        Text,
        comment="hour of the day and revision of each of its hours: what the sums are of",
    ),
    instant("built_at", server_default=func.now()),
    UniqueConstraint("site_id", "from_at", "to_at"),
    CheckConstraint("from_at < to_at", name="span"),
    comment="A day, or an hour, of closed books that is summed for bills.",
)

bill_lines = Table(
    "bill_lines",
    metadata,
    column("span_id", BigInteger, ForeignKey("bill_spans.id", ondelete="CASCADE")),
    reference("tenant_id", "tenants", nullable=True),
    column("pool", Text, comment="as of ledger_lines"),
    column("charge_category", Text, comment="as of ledger_lines"),
    column("currency", String(3)),
    column("lines", BigInteger, comment="count of lines that have something to price"),
    column("unpriced_lines", BigInteger, comment="count of those without a price"),
    column("usage_unknown_calls", BigInteger, comment="count of API calls whose sender told no token counts"),
    column("billed_cost", MONEY, nullable=True, comment="in currency; null = no line has a price"),
    column("effective_cost", MONEY, nullable=True, comment="in currency; null = no line has a price"),
    column("energy_mj", BigInteger, nullable=True),
    column("facility_mj", BigInteger, nullable=True),
    column("carbon_gco2e", MONEY, nullable=True),
    column("tokens", BigInteger, nullable=True, comment="count of tokens"),
    column("sources", SmallInteger, comment=_SOURCES),
    column("origins", SmallInteger, comment=_ORIGINS),
    *later_amounts(),
    Index("bill_lines_span_ix", "span_id"),
    comment="Ledger lines of a span by tenant, pool, charge category and currency.",
)

bill_times = Table(
    "bill_times",
    metadata,
    column("span_id", BigInteger, ForeignKey("bill_spans.id", ondelete="CASCADE")),
    reference("tenant_id", "tenants", nullable=True),
    column("pool", Text, comment="job, or what holds it in place of one: the holder up to its colon"),
    column("held_us", BigInteger, comment="accelerator-microseconds"),
    column("covered_us", BigInteger, comment="accelerator-microseconds with measured energy"),
    column("active_us", BigInteger, nullable=True, comment="accelerator-microseconds with work, of jobs"),
    column("idle_us", BigInteger, nullable=True, comment="accelerator-microseconds without work, of jobs"),
    column("throttled_us", BigInteger, nullable=True, comment="accelerator-microseconds slowed by power or heat"),
    Index("bill_times_span_ix", "span_id"),
    comment="Time of usage hours of a span by tenant and pool.",
)

bill_waste = Table(
    "bill_waste",
    metadata,
    column("span_id", BigInteger, ForeignKey("bill_spans.id", ondelete="CASCADE")),
    reference("tenant_id", "tenants", nullable=True),
    column("kind", Text, comment="idle_waste or throttling"),
    column("currency", String(3)),
    column("avoidable_cash", MONEY, comment="in currency"),
    Index("bill_waste_span_ix", "span_id"),
    comment="Avoidable cash of the findings of a span by tenant and kind.",
)
