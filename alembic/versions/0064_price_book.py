"""Prices under conditions (tier, long prompts, cache duration, region, hours), the books they are of, names of models, unknown prices.

Prices there are hold under any condition, as they did. Going back, prices under conditions are superseded: without the columns
that say so they would be prices of every call.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0064_price_book"
down_revision = "0063_calls_parts"
branch_labels = None
depends_on = None

CONDITIONS = "text of the conditions below: with provider, model and meter it says which price it is"
OWNER, WORKER, API = "wattledger_owner", "wattledger_worker", "wattledger_api"
STAMP = "transaction, of any server these rows have been in, that recorded it; 1 = before this was kept"
GONE = "transaction that replaced it; null = current, or replaced before this was kept"
PRICES: dict[str, tuple[Any, str]] = {
    "site_id": (sa.Integer(), "surrogate id"),
    "region": (sa.Text(), "of the provider"),
    "purchase": (sa.Text(), "on_demand, reserved, savings or spot"),
    "service_tier": (sa.Text(), "standard, batch, flex or priority"),
    "above_tokens": (sa.BigInteger(), "tokens of the prompt above which the whole call is at this price"),
    "cache_ttl_s": (sa.Integer(), "seconds what is written to a cache is kept"),
    "time_zone": (sa.Text(), "IANA zone of the hours of the day"),
    "from_local": (sa.Time(), "wall clock from which it holds, in its zone"),
    "to_local": (sa.Time(), "wall clock until which it holds; not later = of the next day"),
    "weekdays": (sa.SmallInteger(), "bits of days its hours begin on: 1 = Monday, 64 = Sunday"),
    "per": (sa.Numeric(), "units per amount as its source quotes it; amount is of one unit whatever this says"),
    "source_url": (sa.Text(), "text"),
    "published_on": (sa.Date(), "day its source is of"),
    "book_id": (sa.Integer(), "surrogate id"),
}
CHECKS = {
    "purchase": "purchase IN ('on_demand', 'reserved', 'savings', 'spot')",
    "terms": "above_tokens > 0 AND cache_ttl_s > 0 AND weekdays BETWEEN 1 AND 127 AND per > 0",
    "hours": "num_nonnulls(time_zone, from_local, to_local) IN (0, 3)",
}
TABLES = ("price_books", "model_aliases", "price_policies")


def upgrade() -> None:
    op.create_table(
        "price_books",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        _text("name", "as the book calls itself"),
        sa.Column("number", sa.Integer(), nullable=False, comment="ordinal: the how manieth of this name"),
        sa.Column("sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 digest, 32 bytes"),
        _text("applied_by", "who applied it"),
        _instant("applied_at", "instant, UTC", default="now()"),
        sa.Column("rows", sa.Integer(), nullable=False, comment="rows it says, prices, names and policies together"),
        _text("note", "text", nullable=True),
        sa.CheckConstraint("number > 0", name=op.f("price_books_number_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("price_books_pk")),
        sa.UniqueConstraint("name", "number", name=op.f("price_books_name_number_uq")),
        comment="Price books as they were applied, each once; rows of prices say of which they are.",
    )
    op.create_table(
        "model_aliases",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        _text("provider", "text"),
        _text("kind", "exact, prefix or regex: how the pattern is one of names"),
        _text("pattern", "text"),
        _text("model", "model of the price book"),
        sa.Column("position", sa.Integer(), nullable=False, comment="ordinal: the first that matches counts"),
        sa.Column("book_id", sa.Integer(), nullable=True, comment="surrogate id"),
        *_dated(),
        sa.CheckConstraint("kind IN ('exact', 'prefix', 'regex')", name=op.f("model_aliases_kind_ck")),
        sa.CheckConstraint("length(pattern) BETWEEN 1 AND 255", name=op.f("model_aliases_pattern_ck")),
        sa.ForeignKeyConstraint(["book_id"], ["price_books.id"], name=op.f("model_aliases_book_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("model_aliases_pk")),
        comment="Names that providers answer with, and which model's prices they have; a name with prices of its own needs none.",
    )
    op.create_index("model_aliases_lookup_ix", "model_aliases", ["provider"])
    op.create_table(
        "price_policies",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        _text("provider", "glob"),
        _text("model", "glob"),
        _text("unknown", "deny, estimate_high or allow: what is done of calls whose price is not known"),
        sa.Column("book_id", sa.Integer(), nullable=True, comment="surrogate id"),
        *_dated(),
        sa.CheckConstraint("unknown IN ('deny', 'estimate_high', 'allow')", name=op.f("price_policies_unknown_ck")),
        sa.ForeignKeyConstraint(["book_id"], ["price_books.id"], name=op.f("price_policies_book_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("price_policies_pk")),
        comment="What is done of an unknown price; the policy that names most of provider and model counts. Never is it 0.",
    )
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT ON {table} TO {WORKER}, {API}")
    for table in TABLES[1:]:
        op.execute(
            f"CREATE TRIGGER stamp_dated BEFORE INSERT OR UPDATE OF superseded_at ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION stamp_dated()"
        )
    op.add_column("prices", _text("conditions", CONDITIONS, default=""))
    for name, (kind, comment) in PRICES.items():
        op.add_column("prices", sa.Column(name, kind, nullable=True, comment=comment))
    for name, target in (("site_id", "sites"), ("book_id", "price_books")):
        op.create_foreign_key(op.f(f"prices_{name}_fk"), "prices", target, [name], ["id"])
    for name, check in CHECKS.items():
        op.create_check_constraint(op.f(f"prices_{name}_ck"), "prices", check)


def downgrade() -> None:
    op.execute("UPDATE prices SET superseded_at = now() WHERE conditions <> '' AND superseded_at IS NULL")
    for name in reversed(PRICES):
        op.drop_column("prices", name)
    op.drop_column("prices", "conditions")
    for table in reversed(TABLES):
        op.drop_table(table)


def _text(name: str, comment: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable, comment=comment, server_default=default)


def _instant(name: str, comment: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=nullable,
        comment=comment,
        server_default=None if default is None else sa.text(default),
    )


def _dated() -> tuple[sa.Column[Any], ...]:
    return (
        _instant("valid_from", "instant, UTC: the fact holds from here"),
        _instant("valid_to", "instant, UTC: the fact holds until here; null = open", nullable=True),
        _instant("recorded_at", "instant, UTC: when we came to know this", default="now()"),
        _instant("superseded_at", "instant, UTC: no longer our knowledge from here; null = current", nullable=True),
        sa.Column("recorded_xid", _Xid8(), nullable=False, comment=STAMP),
        sa.Column("superseded_xid", _Xid8(), nullable=True, comment=GONE),
    )


class _Xid8(sa.types.UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "XID8"
