"""The price book beside the prices: which books were applied, which names stand for which models, what is done of an unknown price."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Time,
    UniqueConstraint,
    func,
)

from ingest.store.tables.columns import column, dated_twice, instant, surrogate_id
from ingest.store.tables.metadata import metadata

price_books = Table(
    "price_books",
    metadata,
    surrogate_id(),
    column("name", Text, comment="as the book calls itself"),
    column("number", Integer, comment="ordinal: the how manieth of this name"),
    column("sha256", LargeBinary),
    column("applied_by", Text, comment="who applied it"),
    instant("applied_at", server_default=func.now()),
    column("rows", Integer, comment="rows it says, prices, names and policies together"),
    column("note", Text, nullable=True),
    UniqueConstraint("name", "number"),
    CheckConstraint("number > 0", name="number"),
    comment="Price books as they were applied, each once; rows of prices say of which they are.",
)

model_aliases = Table(
    "model_aliases",
    metadata,
    surrogate_id(),
    column("provider", Text),
    column("kind", Text, comment="exact, prefix or regex: how the pattern is one of names"),
    column("pattern", Text),
    column("model", Text, comment="model of the price book"),
    column("position", Integer, comment="ordinal: the first that matches counts"),
    column("book_id", Integer, ForeignKey("price_books.id"), nullable=True),
    *dated_twice(),
    Index("model_aliases_lookup_ix", "provider"),
    CheckConstraint("kind IN ('exact', 'prefix', 'regex')", name="kind"),
    CheckConstraint("length(pattern) BETWEEN 1 AND 255", name="pattern"),
    comment="Names that providers answer with, and which model's prices they have; a name with prices of its own needs none.",
)

price_policies = Table(
    "price_policies",
    metadata,
    surrogate_id(),
    column("provider", Text, comment="glob"),
    column("model", Text, comment="glob"),
    column("unknown", Text, comment="deny, estimate_high or allow: what is done of calls whose price is not known"),
    column("book_id", Integer, ForeignKey("price_books.id"), nullable=True),
    *dated_twice(),
    CheckConstraint("unknown IN ('deny', 'estimate_high', 'allow')", name="unknown"),
    comment="What is done of an unknown price; the policy that names most of provider and model counts. Never is it 0.",
)


def price_terms() -> tuple[Column[Any] | CheckConstraint, ...]:
    """Return the columns of prices that say under which conditions one is; null = under any, as those of before 0064 are."""
    return (
        column(
            "conditions",
            Text,
            server_default="",
            comment="text of the conditions below: with provider, model and meter it says which price it is",
        ),
        column("site_id", Integer, ForeignKey("sites.id"), nullable=True),
        column("region", Text, nullable=True, comment="of the provider"),
        column("purchase", Text, nullable=True, comment="on_demand, reserved, savings or spot"),
        column("service_tier", Text, nullable=True, comment="standard, batch, flex or priority"),
        column(
            "above_tokens",
            BigInteger,
            nullable=True,
            comment="tokens of the prompt above which the whole call is at this price",
        ),
        column("cache_ttl_s", Integer, nullable=True, comment="seconds what is written to a cache is kept"),
        column("time_zone", Text, nullable=True, comment="IANA zone of the hours of the day"),
        column("from_local", Time, nullable=True, comment="wall clock from which it holds, in its zone"),
        column("to_local", Time, nullable=True, comment="wall clock until which it holds; not later = of the next day"),
        column(
            "weekdays", SmallInteger, nullable=True, comment="bits of days its hours begin on: 1 = Monday, 64 = Sunday"
        ),
        column(
            "per",
            Numeric,
            nullable=True,
            comment="units per amount as its source quotes it; amount is of one unit whatever this says",
        ),
        column("source_url", Text, nullable=True),
        column("published_on", Date, nullable=True, comment="day its source is of"),
        column("book_id", Integer, ForeignKey("price_books.id"), nullable=True),
        CheckConstraint("purchase IN ('on_demand', 'reserved', 'savings', 'spot')", name="purchase"),
        CheckConstraint(
            "above_tokens > 0 AND cache_ttl_s > 0 AND weekdays BETWEEN 1 AND 127 AND per > 0", name="terms"
        ),
        CheckConstraint("num_nonnulls(time_zone, from_local, to_local) IN (0, 3)", name="hours"),
    )
