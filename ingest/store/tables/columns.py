"""Column vocabulary of the schema: types, units in comments, and the two date pairs of reference data.

Every column's comment states its unit. Where the name ends in a known unit the comment is derived from it, so a name and
its comment cannot disagree.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL
from sqlalchemy.types import TypeEngine, UserDefinedType, to_instance

UNIT_OF_SUFFIX: Final = {
    "_mj": "millijoules",
    "_mw": "milliwatts",
    "_us": "microseconds",
    "_ns": "nanoseconds",
    "_at": "instant, UTC",
    "_percent": "percent, 0 to 100",
    "_ratio": "ratio, 0 to 1",
    "_bytes": "bytes",
    "_kib": "KiB",
    "_c": "degrees Celsius",
    "_mhz": "MHz",
    "_mbps": "Mbit/s",
    "_tokens": "tokens",
    "_gco2e": "grams of CO2 equivalent",
    "_per_kwh": "per kWh",
    "_id": "surrogate id",
    "_ticks": "device-specific ticks",
}

NAMED: Final = "named"
"""In the ``info`` of a column: the table its ids are of, where no foreign key says so."""
MONEY: Final = Numeric(38, 9)
"""Ledger lines only; everything before them is :data:`RATE`."""
RATE: Final = Numeric(38, 18)


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id, which orders changes by commit visibility."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "XID8"


def column(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]], *args: Any, **options: Any) -> Column[Any]:
    """Return a NOT NULL column (``nullable=True`` to allow null) whose comment states the unit."""
    options.setdefault("nullable", False)
    if "comment" not in options:
        options["comment"] = unit_comment(name, kind)
    return Column(name, kind, *args, **options)


def unit_comment(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]]) -> str:
    """Return the unit a column name states, or what stands in a column without one."""
    matches = [suffix for suffix in UNIT_OF_SUFFIX if f"_{name}".endswith(suffix)]
    if matches:
        return UNIT_OF_SUFFIX[max(matches, key=len)]
    shape = to_instance(kind)
    if isinstance(shape, Boolean):
        return "true or false"
    if isinstance(shape, Integer):
        return "count or ordinal"
    if isinstance(shape, Text | String | ARRAY):
        return "text"
    if isinstance(shape, JSONB):
        return "JSON"
    if isinstance(shape, LargeBinary):
        return "SHA-256 digest, 32 bytes" if name.endswith("sha256") else "bytes"
    raise ValueError(
        f"column {name!r}: no unit follows from its name or type {shape!r}; give it a comment that states one"
    )


def surrogate_id(*, wide: bool = False) -> Column[Any]:
    return Column(
        "id", BigInteger if wide else Integer, Identity(always=True), primary_key=True, comment="surrogate id"
    )


def reference(
    name: str, target: str, *, nullable: bool = False, index: bool = False, wide: bool = False
) -> Column[Any]:
    kind = BigInteger if wide else Integer
    return column(name, kind, ForeignKey(f"{target}.id"), nullable=nullable, index=index)


def named(
    name: str,
    target: str,
    *,
    nullable: bool = False,
    index: bool = False,
    wide: bool = False,
    primary_key: bool = False,
    comment: str = "surrogate id",
) -> Column[Any]:
    """Return a column of ids of another table that a trigger looks up once a statement; a foreign key does it for every row.

    The triggers are those of migrations 0052 and 0061.
    """
    kind = BigInteger if wide else Integer
    return column(
        name, kind, nullable=nullable, index=index, primary_key=primary_key, info={NAMED: target}, comment=comment
    )


def order_by_names(metadata: MetaData) -> None:
    """Have whoever goes through the tables in their order come to those that are named before those that name them."""
    for table in metadata.tables.values():
        for each in table.columns:
            if NAMED in each.info:
                table.add_is_dependent_on(metadata.tables[each.info[NAMED]])


def instant(name: str, **options: Any) -> Column[Any]:
    return column(name, DateTime(timezone=True), **options)


def recorded_at() -> Column[Any]:
    return instant("recorded_at", server_default=func.now(), comment="instant, UTC: when we came to know this")


def dated_twice() -> tuple[Column[Any], ...]:
    """Return the two date pairs: when a fact holds in the world, and when it was our knowledge.

    A correction never updates the fact: it closes ``superseded_at`` and inserts a new row, so any past bill can be
    computed again as it was then known.
    """
    return (
        instant("valid_from", comment="instant, UTC: the fact holds from here"),
        instant("valid_to", nullable=True, comment="instant, UTC: the fact holds until here; null = open"),
        recorded_at(),
        instant(
            "superseded_at", nullable=True, comment="instant, UTC: no longer our knowledge from here; null = current"
        ),
        *stamps(),
    )


def stamps() -> tuple[Column[Any], ...]:
    """Return the transactions that recorded and superseded a row, which a trigger fills in.

    ``recorded_at`` is when a transaction began: only its id tells whether a reader of that moment saw the row.
    """
    return (
        column(
            "recorded_xid",
            Xid8,
            comment="transaction, of any server these rows have been in, that recorded it; 1 = before this was kept",
        ),
        column(
            "superseded_xid",
            Xid8,
            nullable=True,
            comment="transaction that replaced it; null = current, or replaced before this was kept",
        ),
    )


WIRE_TYPES: Final[dict[str, Any]] = {
    "i16": SmallInteger,
    "i32": Integer,
    "i64": BigInteger,
    "f32": REAL,
    "utf8": Text,
}
