"""Says line by line what moved between two revisions of an hour, and by which runs. Differences are exact; it writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import polars as pl
import psycopg

from analytics.frames import LedgerLines
from analytics.io.rows import fetch_frame
from analytics.model.corrections import AMOUNTS, WHO, differences

_LINES: Final = (
    "SELECT * FROM ledger_lines WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s"
)
_RUNS: Final = """
SELECT revision, kind, reason, code_version, method_version, finished_at FROM ledger_runs
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision > %(before)s AND revision <= %(after)s AND kind <> 'attest' ORDER BY id
"""
_HOUR: Final = """
SELECT sites.id, coalesce(hours.shadow_revision, hours.revision) FROM ledger_hours AS hours JOIN sites ON sites.id = hours.site_id
WHERE sites.name = %s AND hours.hour_at = %s AND hours.status = 'closed'
"""


class NoSuchHourError(ValueError):
    """The hour, or a revision of it, is not in the closed books; the message says which."""


@dataclass(frozen=True, slots=True)
class Because:
    """A run that made one of the revisions between."""

    revision: int
    kind: str
    reason: str
    code_version: str
    method_version: int | None
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class LineMove:
    """One line of which some amount differs: what it is, and after minus before. An amount that neither side knows is null."""

    tenant: str | None
    holder: str
    pool: str
    device_model: str | None
    charge_category: str
    what: str
    """new, gone, or which amounts are others: quantity, energy, facility energy, carbon, cost."""
    quantity: int | None
    energy_mj: int | None
    carbon_gco2e: Decimal | None
    billed_cost: Decimal | None
    currency: str


@dataclass(frozen=True, slots=True)
class Between:
    """What moved from one revision of an hour to a later one, and why."""

    before: int
    after: int
    runs: tuple[Because, ...]
    lines: tuple[LineMove, ...]


_WORDS: Final = {
    "quantity": "quantity",
    "energy_mj": "energy",
    "facility_mj": "facility energy",
    "carbon_gco2e": "carbon",
    "billed_cost": "cost",
}


def lines_between(
    connection: psycopg.Connection[Any],
    site: str,
    hour_at: datetime,
    before: int | None = None,
    after: int | None = None,
) -> Between:
    """Return what moved in a closed hour: by default with its newest revision, of a frozen hour what it would be by now.

    Lines by tenant, holder, model and category. Raises NoSuchHourError.
    """
    row = connection.execute(_HOUR, [site, hour_at]).fetchone()
    if row is None:
        raise NoSuchHourError(
            f"no closed hour {hour_at.isoformat()} of {site!r}; `wattledger sites list` names the sites"
        )
    newest = int(row[1])
    last = newest if after is None else after
    first = max(1, last - 1) if before is None else before
    if not 1 <= first <= last <= newest:
        raise NoSuchHourError(f"{hour_at.isoformat()} has revisions 1 to {newest}; {first} to {last} are none of them")
    at = {"site_id": row[0], "hour_at": hour_at}
    old, new = (fetch_frame(connection, _LINES, at | {"revision": each}, LedgerLines) for each in (first, last))
    runs = connection.execute(_RUNS, at | {"before": first, "after": last}).fetchall()
    paths: dict[int, str] = dict(connection.execute("SELECT id, path FROM tenants").fetchall())
    moved = differences(old, new)
    keyed = {name: _keys(lines) for name, lines in (("old", old), ("new", new))}
    lines = tuple(
        LineMove(
            tenant=paths.get(each["tenant_id"]),
            holder=each["holder_key"] if each["api_key"] is None else f"{each['holder_key']} by {each['api_key']}",
            pool=each["pool"],
            device_model=each["device_model"],
            charge_category=each["charge_category"],
            what=_what(each, tuple(each[name] for name in WHO), keyed["old"], keyed["new"]),
            quantity=each["quantity"],
            energy_mj=each["energy_mj"],
            carbon_gco2e=each["carbon_gco2e"],
            billed_cost=each["billed_cost"],
            currency=each["currency"],
        )
        for each in moved.sort(
            pl.col("billed_cost").abs(), descending=True, nulls_last=True, maintain_order=True
        ).to_dicts()
    )
    return Between(first, last, tuple(Because(*each) for each in runs), lines)


def _keys(lines: pl.DataFrame) -> frozenset[tuple[Any, ...]]:
    return frozenset(lines.select(WHO).iter_rows())


def _what(
    row: dict[str, Any], key: tuple[Any, ...], old: frozenset[tuple[Any, ...]], new: frozenset[tuple[Any, ...]]
) -> str:
    if key not in old:
        return "new"
    if key not in new:
        return "gone"
    return ", ".join(word for name, word in _WORDS.items() if name in AMOUNTS and row[name])
