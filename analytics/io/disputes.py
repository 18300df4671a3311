"""Lines of bills that somebody says are wrong: opened with a reason, resolved with an answer, kept for ever. No figure moves by it.

A line is named by its hour and the beginning of its link in the hour's chain, ``2026-10-03T08:00Z/3f2a91c0de11``: that is the same line wherever
it is shown, and another if a digit of it changes. What a connection may see decides which lines there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from analytics.errors import CloseError

_DIGITS: Final = 12
_NAMED: Final = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2})(?::00(?::00)?)?Z?/([0-9a-f]{8,64})")
MAX_WORDS: Final = 2_000
"""Characters of a reason or an answer."""
_LINES: Final = """
SELECT lines.site_id, sites.name AS site, lines.hour_at, lines.chain_sha256, t.path AS tenant, lines.tenant_id, lines.pool, lines.holder_key,
       lines.api_key, lines.device_model, lines.charge_category, lines.quantity, lines.quantity_unit, lines.energy_mj, lines.carbon_gco2e,
       lines.billed_cost, lines.currency, lines.status, lines.reason, lines.corrects_hour_at, EXISTS (
           SELECT FROM line_disputes AS open WHERE open.site_id = lines.site_id AND open.hour_at = lines.hour_at
           AND open.line_sha256 = lines.chain_sha256 AND open.resolved_at IS NULL) AS is_disputed
FROM current_ledger_lines AS lines JOIN sites ON sites.id = lines.site_id LEFT JOIN tenants AS t ON t.id = lines.tenant_id
WHERE lines.hour_at = :hour_at AND (CAST(:path AS text) IS NULL OR t.path = :path OR starts_with(t.path, :path || '/'))
"""
_AS_READ: Final = "ORDER BY sites.name, tenant NULLS LAST, lines.charge_category, lines.holder_key, lines.device_model, lines.chain_sha256"
# Of a line no two are the same: pages go on where the last one ended, whatever came or went meanwhile.
_PLACE: Final = """
sites.name COLLATE "C", lines.line_key COLLATE "C", coalesce(encode(lines.chain_sha256, 'hex'), '') COLLATE "C"
"""
_PAGE: Final = f"""
{_LINES.replace("SELECT ", f"SELECT ARRAY[{_PLACE}] AS place, ", 1)}
AND (CAST(:after AS text[]) IS NULL OR ARRAY[{_PLACE}] > CAST(:after AS text[])) ORDER BY place LIMIT :limit
"""
_DISPUTES: Final = """
SELECT d.id, sites.name AS site, d.hour_at, d.line_sha256, d.line, t.path AS tenant, d.billed_cost, d.currency, d.opened_by, d.opened_at,
       d.reason, d.resolved_at, d.resolved_by, d.resolution
FROM line_disputes AS d JOIN sites ON sites.id = d.site_id LEFT JOIN tenants AS t ON t.id = d.tenant_id
"""
_OF_LINE: Final = "d.site_id = :site_id AND d.hour_at = :hour_at AND d.line_sha256 = :link AND d.resolved_at IS NULL"
_OPEN: Final = """
INSERT INTO line_disputes (site_id, hour_at, line_sha256, line, tenant_id, billed_cost, currency, opened_by, reason)
VALUES (:site_id, :hour_at, :link, :line, :tenant_id, :cost, :currency, :by, :reason) RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an hour as it counts. ``name`` None: not chained yet, as in the open window. Costs null = unpriced."""

    name: str | None
    site: str
    hour_at: datetime
    tenant: str | None
    pool: str
    holder: str | None
    api_key: str | None
    model: str | None
    category: str
    quantity: int
    quantity_unit: str
    energy_mj: int | None
    carbon_gco2e: Decimal | None
    billed_cost: Decimal | None
    currency: str
    status: str
    reason: str | None
    corrects_hour_at: datetime | None
    """Of a correction: the hour it is of."""
    is_disputed: bool


@dataclass(frozen=True, slots=True)
class Dispute:
    """One dispute; ``resolved_at`` None: open."""

    id: int
    line_name: str
    site: str
    hour_at: datetime
    line: str
    tenant: str | None
    billed_cost: Decimal | None
    currency: str
    opened_by: str
    opened_at: datetime
    reason: str
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None


def lines_of_hour(conn: sa.Connection, hour_at: datetime, tenant: str | None = None) -> list[Line]:
    """Return the visible lines of an hour, of a tenant's subtree or all."""
    return [_line(row) for row in conn.execute(sa.text(_LINES + _AS_READ), {"hour_at": hour_at, "path": tenant})]


def page_of_lines(
    conn: sa.Connection, hour_at: datetime, tenant: str | None, *, after: Sequence[str] | None, limit: int
) -> tuple[list[Line], list[str] | None]:
    """Return at most so many visible lines of an hour by site and key, and where the next page begins; None: there is none.

    ``after``: what the page before returned.
    """
    given = {"hour_at": hour_at, "path": tenant, "after": None if after is None else list(after), "limit": limit + 1}
    rows = conn.execute(sa.text(_PAGE), given).fetchall()
    return [_line(row) for row in rows[:limit]], list(rows[limit - 1].place) if len(rows) > limit else None


def listed(
    conn: sa.Connection,
    *,
    from_at: datetime | None = None,
    to_at: datetime | None = None,
    resolved: bool = False,
    before_id: int | None = None,
    limit: int | None = None,
) -> list[Dispute]:
    """Return visible disputes, the newest first; ``resolved``: those that are, too. ``before_id``, ``limit``: a page of them."""
    query = (
        f"{_DISPUTES} WHERE (CAST(:from_at AS timestamptz) IS NULL OR d.hour_at >= :from_at) "
        "AND (CAST(:to_at AS timestamptz) IS NULL OR d.hour_at < :to_at) AND (:resolved OR d.resolved_at IS NULL) "
        "AND (CAST(:before_id AS bigint) IS NULL OR d.id < :before_id) ORDER BY d.id DESC LIMIT :limit"
    )
    given = {"from_at": from_at, "to_at": to_at, "resolved": resolved, "before_id": before_id, "limit": limit}
    return [_dispute(row) for row in conn.execute(sa.text(query), given)]


def open_dispute(conn: sa.Connection, name: str, reason: str, *, by: str, again: bool = False) -> Dispute:
    """Dispute a line; raises CloseError where no visible line, or more than one, bears the name, or it is disputed already.

    ``again``: then return the open dispute instead.
    """
    hour_at, digits = parsed(name)
    rows = [
        row
        for row in conn.execute(sa.text(_LINES), {"hour_at": hour_at, "path": None})
        if row.chain_sha256 is not None and bytes(row.chain_sha256).hex().startswith(digits)
    ]
    if len(rows) != 1:
        found = "more than one line is" if rows else "there is no line"
        raise CloseError(
            f"{found} called {name}; `wattledger disputes lines --hour {hour_at:%Y-%m-%dT%H:00Z}` lists them with their names"
        )
    (row,) = rows
    if row.is_disputed and again:
        given = {"site_id": row.site_id, "hour_at": row.hour_at, "link": bytes(row.chain_sha256)}
        return _dispute(conn.execute(sa.text(f"{_DISPUTES} WHERE {_OF_LINE}"), given).one())
    if row.is_disputed:
        raise CloseError(f"{name} is disputed already; `wattledger disputes list` says why")
    given = {
        "site_id": row.site_id,
        "hour_at": row.hour_at,
        "link": bytes(row.chain_sha256),
        "line": ", ".join(
            (row.tenant or row.pool, row.holder_key or "-", row.device_model or "-", row.charge_category)
        ),
        "tenant_id": row.tenant_id,
        "cost": row.billed_cost,
        "currency": row.currency,
        "by": by,
        "reason": _worded("reason", reason),
    }
    number = conn.execute(sa.text(_OPEN), given).scalar_one()
    return _one(conn, number)


def resolve(conn: sa.Connection, number: int, resolution: str, *, by: str, now: datetime) -> Dispute:
    """Resolve an open dispute; raises CloseError where there is none of this number that is visible and open."""
    done = conn.execute(
        sa.text(
            "UPDATE line_disputes SET resolved_at = :now, resolved_by = :by, resolution = :resolution WHERE id = :id AND resolved_at IS NULL"
        ),
        {"now": now, "by": by, "resolution": _worded("resolution", resolution), "id": number},
    )
    if done.rowcount != 1:
        raise CloseError(f"there is no open dispute {number}; see `wattledger disputes list --all`")
    return _one(conn, number)


def parsed(name: str) -> tuple[datetime, str]:
    """Return the hour and the digits of a line's name."""
    found = _NAMED.fullmatch(name)
    try:
        if found is not None:
            return datetime.strptime(found[1], "%Y-%m-%dT%H").replace(tzinfo=UTC), found[2]
    except ValueError:
        pass
    raise CloseError(f"{name!r} names no line; a line is called like 2026-10-03T08:00Z/3f2a91c0de11")


def name_of(hour_at: datetime, link: bytes | None) -> str | None:
    """Return what a line is called; None where it has no link yet."""
    return None if link is None else f"{hour_at.astimezone(UTC):%Y-%m-%dT%H:00Z}/{bytes(link).hex()[:_DIGITS]}"


def line_dict(line: Line) -> dict[str, Any]:
    """Return a line ready for JSON."""
    return {field: _plain(getattr(line, field)) for field in Line.__slots__}


def dispute_dict(dispute: Dispute) -> dict[str, Any]:
    """Return a dispute ready for JSON."""
    return {field: _plain(getattr(dispute, field)) for field in Dispute.__slots__} | {
        "status": "open" if dispute.resolved_at is None else "resolved"
    }


def _one(conn: sa.Connection, number: int) -> Dispute:
    return _dispute(conn.execute(sa.text(f"{_DISPUTES} WHERE d.id = :id"), {"id": number}).one())


def _worded(what: str, text: str) -> str:
    text = text.strip()
    if not text or len(text) > MAX_WORDS or "\0" in text:
        raise CloseError(f"the {what} must be 1 to {MAX_WORDS} characters")
    return text


def _line(row: Any) -> Line:
    values: Mapping[str, Any] = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    same: Sequence[str] = (
        *("site", "tenant", "pool", "api_key", "quantity", "quantity_unit", "energy_mj", "carbon_gco2e", "billed_cost"),
        *("currency", "status", "reason", "corrects_hour_at", "is_disputed"),
    )
    return Line(
        name=name_of(values["hour_at"], values["chain_sha256"]),
        hour_at=values["hour_at"].astimezone(UTC),
        holder=values["holder_key"],
        model=values["device_model"],
        category=values["charge_category"],
        **{field: values[field] for field in same},
    )


def _dispute(row: Any) -> Dispute:
    name = name_of(row.hour_at, row.line_sha256) or ""
    return Dispute(row.id, name, row.site, row.hour_at.astimezone(UTC), *tuple(row)[4:])


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return f"{value:f}" if isinstance(value, Decimal) else value
