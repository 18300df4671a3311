"""Bill figures from the books that count: exact sums by tenant, job or device, with how much of them is known and how.

Every amount is summed by PostgreSQL in NUMERIC and stays a Decimal. It computes no price and closes nothing. What a
connection may see decides what a bill holds: as the api role inside ``tenant_scope``, a subtree; as the worker, all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from analytics.frames import COSTLESS
from analytics.io import bill_sql, statement_sql
from analytics.io.bill_reads import currencies, priced_in, share_mapped, tenant_lines
from analytics.io.statement_notes import Correction, Disputed, corrections, disputed
from analytics.units import MJ_PER_KWH, US_PER_HOUR
from collector.wire import Origin

NINE_PLACES: Final = Decimal("1E-9")
SIX_PLACES: Final = Decimal("1E-6")
OUTCOMES: Final = ("failed", "preempted", "cancelled")
PLATFORM: Final = "(platform)"
G_PER_KG: Final = 1000
DEVICE_WORK_MEM: Final = "64MB"
"""A day of 1,000 devices sorts in about 15 MB; with the default 4 MB a month took 71 s instead of 18."""


class GroupBy(StrEnum):
    TENANT = "tenant"
    JOB = "job"
    RUN = "run"
    """A training run: a training or fine-tuning job with all its starts."""
    DEVICE = "device"


class StatementError(ValueError):
    """A bill cannot be made of what was asked; the message says what to ask instead."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums of some part of the books. Costs are in the bill's currency; a null energy or carbon is unknown, not zero."""

    cost_by_category: Mapping[str, Decimal] = field(default_factory=dict)
    unpriced_lines: int = 0
    """Lines whose price in the bill's currency nobody told us: the cost is at least what is given."""
    usage_unknown_calls: int = 0
    """API calls whose sender told no token counts: whatever the price, their cost is unknown and not in the sum."""
    energy_mj: int | None = None
    carbon_gco2e: Decimal | None = None
    tokens: int = 0
    held_us: int = 0
    """Accelerator-microseconds, like the five below."""
    covered_us: int = 0
    allocated_us: int = 0
    """Of it, held by jobs."""
    active_us: int = 0
    idle_us: int = 0
    throttled_us: int = 0
    idle_waste: Decimal = Decimal(0)
    """Avoidable cash of the findings in the period; a part of the cost, not on top of it."""
    throttle_waste: Decimal = Decimal(0)
    cost_of: Mapping[str, Decimal] | None = None
    """Of the cost, that of jobs which ended ``failed`` (or at their time limit), ``preempted`` or ``cancelled``, as far as is known now;
    None = not asked."""
    sources: frozenset[str] = frozenset()
    origins: frozenset[Origin] = frozenset()

    @property
    def cost(self) -> Decimal:
        return sum(self.cost_by_category.values(), Decimal(0))

    @property
    def energy_kwh(self) -> Decimal | None:
        return None if self.energy_mj is None else _divided(self.energy_mj, MJ_PER_KWH)

    @property
    def carbon_kgco2e(self) -> Decimal | None:
        return None if self.carbon_gco2e is None else self.carbon_gco2e / G_PER_KG

    @property
    def coverage(self) -> Decimal | None:
        """Measured share of the held time; None where nothing was held."""
        return None if not self.held_us else _divided(self.covered_us, self.held_us, SIX_PLACES)

    def accelerator_hours(self, time_us: int) -> Decimal:
        return _divided(time_us, US_PER_HOUR)

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            cost_by_category=_added(self.cost_by_category, other.cost_by_category),
            unpriced_lines=self.unpriced_lines + other.unpriced_lines,
            usage_unknown_calls=self.usage_unknown_calls + other.usage_unknown_calls,
            energy_mj=_known_sum(self.energy_mj, other.energy_mj),
            carbon_gco2e=_known_sum(self.carbon_gco2e, other.carbon_gco2e),
            tokens=self.tokens + other.tokens,
            held_us=self.held_us + other.held_us,
            covered_us=self.covered_us + other.covered_us,
            allocated_us=self.allocated_us + other.allocated_us,
            active_us=self.active_us + other.active_us,
            idle_us=self.idle_us + other.idle_us,
            throttled_us=self.throttled_us + other.throttled_us,
            idle_waste=self.idle_waste + other.idle_waste,
            throttle_waste=self.throttle_waste + other.throttle_waste,
            cost_of=None if self.cost_of is other.cost_of is None else _added(self.cost_of or {}, other.cost_of or {}),
            sources=self.sources | other.sources,
            origins=self.origins | other.origins,
        )


@dataclass(frozen=True, slots=True)
class BillRow:
    """One line of a bill. ``key`` sorts and pages; ``tenant`` is a path, or a pool of the platform."""

    key: str
    tenant: str | None
    figures: Figures
    details: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bill:
    """A bill of [from_at, to_at). ``rollups`` (by tenant only): each path with all that is below it.

    ``mapped_share``: the part of used cost that some binding gave to a tenant; None where nothing was used. ``status``:
    closed, or provisional while some hour of the period is.
    """

    from_at: datetime
    to_at: datetime
    group_by: GroupBy
    currency: str | None
    rows: tuple[BillRow, ...]
    rollups: tuple[BillRow, ...]
    total: Figures
    mapped_share: Decimal | None
    status: str
    hours_closed: int
    as_of_at: datetime | None
    corrections: tuple[Correction, ...] = ()
    """Of closed months, posted in this period: in its sums."""
    disputed: Disputed = field(default_factory=Disputed)


def bill(
    conn: sa.Connection,
    from_at: datetime,
    to_at: datetime,
    group_by: GroupBy = GroupBy.TENANT,
    *,
    tenant: str | None = None,
    currency: str | None = None,
    outcomes: bool = False,
) -> Bill:
    """Return the bill of a period of full UTC hours, of all that is visible or of one tenant's subtree.

    ``outcomes``: by tenant too say what work that failed, was preempted or cancelled cost, which reads the lines of those jobs.

    Raises StatementError for a period that cuts an hour, or for books in several currencies when none is named.
    """
    _check_period(from_at, to_at)
    window: dict[str, Any] = {"from_at": from_at, "to_at": to_at, "path": tenant}
    lines = tenant_lines(conn, window)
    currency = currency or _only_currency(currencies(lines))
    window["currency"] = currency
    groups: dict[tuple[str, str | None], Figures] = {}
    details: dict[tuple[str, str | None], dict[str, str | None]] = {}
    answers: list[Iterable[Mapping[str, Any]]] = [priced_in(lines, currency)] if group_by is GroupBy.TENANT else []
    if outcomes and group_by is GroupBy.TENANT:
        answers.append(dict(row._mapping) for row in conn.execute(sa.text(bill_sql.OUTCOMES), window))  # noqa: SLF001 - its public name
    for query, part in _questions(conn, group_by, window):
        answers.append(dict(row._mapping) for row in conn.execute(sa.text(query), part))  # noqa: SLF001 - its public name
    for row in itertools.chain(*answers):
        key = (row["key"], row["tenant"])
        groups[key] = groups.get(key, Figures()) + _figures(row)
        details.setdefault(key, {}).update({name: row[name] for name in statement_sql.DETAILS if name in row})
    rows = tuple(BillRow(key[0], key[1], groups[key], details[key]) for key in sorted(groups, key=_order))
    total = sum((row.figures for row in rows), Figures())
    status = conn.execute(sa.text(statement_sql.STATUS), window).one()
    return Bill(
        from_at=from_at,
        to_at=to_at,
        group_by=group_by,
        currency=currency,
        rows=rows,
        rollups=_rolled_up(rows) if group_by is GroupBy.TENANT else (),
        total=total,
        mapped_share=share_mapped(lines if tenant is None else tenant_lines(conn, window | {"path": None}), currency),
        status="provisional" if status.provisional else "closed",
        hours_closed=status.closed,
        as_of_at=status.as_of_at,
        corrections=corrections(conn, window),
        disputed=disputed(conn, window),
    )


def mapped_share(conn: sa.Connection, from_at: datetime, to_at: datetime, currency: str | None) -> Decimal | None:
    """Return the share of used cost (jobs and API calls) that belongs to a tenant, to 6 places, as far as visible."""
    return share_mapped(tenant_lines(conn, {"from_at": from_at, "to_at": to_at, "path": None}), currency)


def _questions(
    conn: sa.Connection, group_by: GroupBy, window: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each query of a grouping with its window; the split by device day by day, so that its sorts stay in memory."""
    lines, times, waste = statement_sql.queries(group_by.value)
    if lines is not None and group_by is not GroupBy.DEVICE:
        yield lines, window
    elif lines is not None:
        conn.execute(sa.text(f"SELECT set_config('work_mem', '{DEVICE_WORK_MEM}', true)"))
        at = window["from_at"]
        while at < window["to_at"]:
            until = min(at + timedelta(days=1), window["to_at"])
            yield lines, {**window, "from_at": at, "to_at": until}
            at = until
    yield times, window
    yield waste, window


def _figures(made: Mapping[str, Any]) -> Figures:
    """Turn one row of any of the three queries into figures; what a query does not ask is absent."""
    category = made.get("charge_category")
    cost = made.get("cost")
    figures = Figures(
        cost_by_category=_cost_of(category, cost),
        unpriced_lines=int(made.get("unpriced") or 0),
        usage_unknown_calls=int(made.get("usage_unknown") or 0),
        energy_mj=_whole(made.get("energy_mj")),
        carbon_gco2e=made.get("carbon_gco2e"),
        tokens=int(made.get("tokens") or 0),
        cost_of=None if "failed_cost" not in made else {name: made[f"{name}_cost"] or Decimal(0) for name in OUTCOMES},
        sources=_sources(made),
        origins=_origins(made),
    )
    if "held_us" in made:
        figures = replace(
            figures,
            held_us=int(made["held_us"] or 0),
            covered_us=int(made["covered_us"] or 0),
            allocated_us=int(made["allocated_us"] or 0),
            active_us=int(made["active_us"] or 0),
            idle_us=int(made["idle_us"] or 0),
            throttled_us=int(made["throttled_us"] or 0),
        )
    if "kind" in made:
        waste = Decimal(made["waste"] or 0)
        figures = (
            replace(figures, idle_waste=waste)
            if made["kind"] == "idle_waste"
            else replace(figures, throttle_waste=waste)
        )
    return figures


def _cost_of(category: str | None, cost: Any) -> dict[str, Decimal]:
    """Return a cost by its category; none of what costs what its electricity does, unless somebody priced it."""
    if category is None or cost is None or (category in COSTLESS and not cost):
        return {}
    return {category: Decimal(cost)}


def _sources(made: Mapping[str, Any]) -> frozenset[str]:
    bits = int(made.get("source_bits") or 0)
    return frozenset(made.get("sources") or ()) | {
        source for place, source in enumerate(bill_sql.SOURCES) if bits >> place & 1
    }


def _origins(made: Mapping[str, Any]) -> frozenset[Origin]:
    bits = int(made.get("origin_bits") or 0)
    return frozenset(Origin(origin) for origin in made.get("origins") or ()) | {
        origin for origin in Origin if bits >> origin & 1
    }


def _rolled_up(rows: Iterable[BillRow]) -> tuple[BillRow, ...]:
    sums: dict[str, Figures] = {}
    for row in rows:
        parts = row.key.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            sums[path] = sums.get(path, Figures()) + row.figures
    return tuple(BillRow(path, path, sums[path]) for path in sorted(sums))


def _order(key: tuple[str, str | None]) -> tuple[str, str]:
    return key[0], key[1] or ""


def _check_period(from_at: datetime, to_at: datetime) -> None:
    for name, at in (("from", from_at), ("to", to_at)):
        if at.tzinfo is None:
            raise StatementError(f"{name} {at.isoformat()} has no time zone; add Z or an offset")
        utc = at.astimezone(UTC)
        if utc.minute or utc.second or utc.microsecond:
            raise StatementError(f"{name} {at.isoformat()} cuts an hour of the books; give a full UTC hour")
    if to_at <= from_at:
        raise StatementError(f"the period ends at {to_at.isoformat()}, not after it begins at {from_at.isoformat()}")


def _only_currency(found: list[str]) -> str | None:
    if len(found) > 1:
        raise StatementError(f"the books of this period are in {', '.join(found)}; name one currency")
    return found[0] if found else None


def _added(one: Mapping[str, Decimal], other: Mapping[str, Decimal]) -> dict[str, Decimal]:
    return {name: one.get(name, Decimal(0)) + other.get(name, Decimal(0)) for name in sorted({*one, *other})}


def _known_sum(one: Any, other: Any) -> Any:
    """Add what is known; unknown only where both are. How much is unknown is the coverage's to say."""
    if one is None:
        return other
    return one if other is None else one + other


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _divided(amount: int, per: int, places: Decimal = NINE_PLACES) -> Decimal:
    return (Decimal(amount) / Decimal(per)).quantize(places, ROUND_HALF_EVEN)
