"""What is looked at before a month is closed, each with its figures and a verdict: ok, warn, or stop until somebody accepts it by name.

It reads, in the caller's transaction, and changes nothing; what is accepted is on record with the close.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

import psycopg

from analytics.io.charges import compared, invoices
from analytics.io.hours import MADE_OF, due_hours
from analytics.io.meter_gaps import gaps
from analytics.model.month import Month
from collector.wire import Origin

COVERAGE_OK: Final = Decimal("0.99")
COVERAGE_STOP: Final = Decimal("0.95")
"""Of the time held that was metered. Below it, more than one hour in twenty is an estimate or a blank."""
UNMAPPED_OK: Final = Decimal("0.01")
UNMAPPED_STOP: Final = Decimal("0.05")
_NAMED: Final = 5
"""Subjects that a line of the checklist names; the rest is a count."""


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing looked at. ``figures``: exact, decimals as text; ``said``: the same in a sentence."""

    name: str
    verdict: Verdict
    said: str
    figures: dict[str, Any]
    is_final: bool = False
    """A stop that nobody can accept."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "verdict": self.verdict.value, "said": self.said, "figures": self.figures}


@dataclass(frozen=True, slots=True)
class Scope:
    """What is to be closed: these sites in this month, as of ``now``, with hours closing ``lateness`` after their end."""

    month: Month
    site_ids: Sequence[int]
    now: datetime
    lateness: timedelta

    def given(self) -> dict[str, Any]:
        return {"from_at": self.month.from_at, "to_at": self.month.to_at, "sites": list(self.site_ids)}


def checklist(connection: psycopg.Connection[Any], scope: Scope) -> list[Item]:
    """Return every item, in the order a person reads them."""
    return [look(connection, scope) for look in _ITEMS]


_IN: Final = "{a}.site_id = ANY (%(sites)s) AND {a}.hour_at >= %(from_at)s AND {a}.hour_at < %(to_at)s"
_IN_HOURS: Final = _IN.format(a="hours")
_IN_LINES: Final = _IN.format(a="lines")
_IN_USED: Final = _IN.format(a="used")


def _row(connection: psycopg.Connection[Any], scope: Scope, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode(), scope.given()).fetchone()
    if row is None:
        raise AssertionError("an aggregate without GROUP BY has one row")
    return tuple(row)


def _n(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _hours(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    closed, open_, missing = _row(
        connection,
        scope,
        f"""
        WITH since AS (
            SELECT site_id, greatest(min(hour_at), %(from_at)s) AS from_at FROM ledger_hours WHERE site_id = ANY (%(sites)s) GROUP BY site_id
        ), wanted AS (
            SELECT site_id, hour_at FROM since, LATERAL generate_series(since.from_at, %(to_at)s - interval '1 hour', interval '1 hour') AS hour_at
        )
        SELECT (SELECT count(*) FROM ledger_hours AS hours WHERE status = 'closed' AND {_IN_HOURS}),
               (SELECT count(*) FROM ledger_hours AS hours WHERE status <> 'closed' AND {_IN_HOURS}),
               (SELECT count(*) FROM wanted WHERE NOT EXISTS (
                    SELECT FROM ledger_hours AS hours WHERE hours.site_id = wanted.site_id AND hours.hour_at = wanted.hour_at))
        """,  # noqa: S608 (constants)
    )
    ends_at = scope.month.to_at + scope.lateness
    due = [
        hour
        for hour in due_hours(connection, scope.now, scope.lateness)
        if hour.site_id in scope.site_ids and scope.month.from_at <= hour.hour_at < scope.month.to_at
    ]
    figures = {"closed": closed, "open": open_, "due": len(due), "without_books": missing}
    if scope.now < ends_at:
        return Item(
            "hours",
            Verdict.STOP,
            f"the month is over, with what may come late, at {ends_at:%Y-%m-%d %H:%M} UTC",
            figures,
            is_final=True,
        )
    if open_ or due:
        said = f"not closed yet: {_n(open_, 'hour')}; waiting to be computed again: {_n(len(due), 'hour')}; the worker does both"
        return Item("hours", Verdict.STOP, said, figures, is_final=open_ > 0)  # what is provisional cannot be frozen
    if not closed:
        return Item("hours", Verdict.STOP, "no hour of it has books", figures)
    if missing:
        return Item(
            "hours",
            Verdict.WARN,
            f"{closed} closed; without any books, after a site's first: {_n(missing, 'hour')}",
            figures,
        )
    return Item("hours", Verdict.OK, f"{closed} closed, none open, none waiting", figures)


def _attested(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    hot, total = _row(
        connection,
        scope,
        f"""
        SELECT count(*) FILTER (WHERE runs.generation = 0), count(*) FROM ledger_hours AS hours CROSS JOIN LATERAL ({MADE_OF}) AS runs
        WHERE {_IN_HOURS} AND hours.revision > 0
        """,  # noqa: S608 (constants)
    )
    figures = {"hours": total, "not_attested": hot}
    if hot:
        said = f"{hot} of {total} hours were not computed again from sealed files; recompute can repeat them only as long as rows are hot"
        return Item("attested", Verdict.WARN, said, figures)
    return Item("attested", Verdict.OK, "every hour was computed again from its sealed files", figures)


def _coverage(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    covered, held = _row(
        connection,
        scope,
        f"""
        SELECT coalesce(sum(covered_us * used.accelerators), 0)::numeric, coalesce(sum(held_us * used.accelerators), 0)::numeric
        FROM current_usage_hours AS used JOIN devices ON devices.id = used.device_id
        WHERE {_IN_USED} AND devices.kind NOT IN ('pool', 'site', 'chassis')
        """,  # noqa: S608 (constants)
    )
    if not held:
        return Item("coverage", Verdict.OK, "no device was held: nothing to meter", {"coverage_ratio": None})
    ratio = (Decimal(covered) / Decimal(held)).quantize(Decimal("0.000001"))
    return _against(
        "coverage", ratio, f"{100 * ratio:.2f} % of the time of devices was metered", {"coverage_ratio": f"{ratio:f}"}
    )


def _against(name: str, ratio: Decimal, said: str, figures: dict[str, Any]) -> Item:
    verdict = Verdict.OK if ratio >= COVERAGE_OK else Verdict.WARN if ratio >= COVERAGE_STOP else Verdict.STOP
    return Item(name, verdict, said, figures)


def _feeds(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    hours, devices, nodes = _row(
        connection,
        scope,
        f"""
        WITH silent AS (
            SELECT DISTINCT used.device_id, used.hour_at FROM current_usage_hours AS used JOIN devices ON devices.id = used.device_id
            WHERE {_IN_USED} AND used.energy_mj IS NULL AND used.feed IS NULL AND devices.kind NOT IN ('pool', 'site', 'chassis')
        )
        SELECT count(*), count(DISTINCT silent.device_id), array_agg(DISTINCT nodes.name) FILTER (WHERE nodes.name IS NOT NULL)
        FROM silent LEFT JOIN placements ON placements.device_id = silent.device_id AND placements.superseded_at IS NULL
             AND placements.valid_from <= silent.hour_at AND coalesce(placements.valid_to > silent.hour_at, true)
        LEFT JOIN nodes ON nodes.id = placements.node_id
        """,  # noqa: S608 (constants)
    )
    names = sorted(nodes or ())
    figures = {"device_hours": hours, "devices": devices, "nodes": names}
    if hours:
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more nodes" if len(names) > _NAMED else "")
        return Item(
            "feeds",
            Verdict.WARN,
            f"without any meter: {_n(hours, 'device-hour')} of {_n(devices, 'device')}, on {shown or 'no node'}",
            figures,
        )
    return Item("feeds", Verdict.OK, "no device-hour without any meter", figures)


def _mapped(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    used, unmapped = _row(
        connection,
        scope,
        f"""
        SELECT coalesce(sum(billed_cost), 0), coalesce(sum(billed_cost) FILTER (WHERE tenant_id IS NULL), 0)
        FROM current_ledger_lines AS lines WHERE {_IN_LINES} AND pool IN ('job', 'api')
        """,  # noqa: S608 (constants)
    )
    ratio = (Decimal(unmapped) / Decimal(used)).quantize(Decimal("0.000001")) if used else Decimal(0)
    verdict = Verdict.OK if ratio <= UNMAPPED_OK else Verdict.WARN if ratio <= UNMAPPED_STOP else Verdict.STOP
    return Item(
        "mapped",
        verdict,
        f"{100 * ratio:.2f} % of what was used is no tenant's",
        {"unmapped_cost": f"{unmapped:f}", "unmapped_ratio": f"{ratio:f}"},
    )


def _meters(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    found = connection.execute("SELECT name FROM sites WHERE id = ANY (%s)", [list(scope.site_ids)]).fetchall()
    ours = {name for (name,) in found}
    every = [gap for gap in gaps(connection, scope.month.from_at, scope.month.to_at) if gap.site in ours and gap.hours]
    figures = {
        "gaps": [
            {
                "site": gap.site,
                "level": gap.level,
                "meter": gap.meter,
                "below": gap.below,
                "metered_mj": gap.metered_mj,
                "below_mj": gap.below_mj,
                "gap_ppm": gap.gap_ppm,
                "error_ppm": gap.error_ppm,
                "hours": gap.hours,
            }
            for gap in every
        ]
    }
    if not every:
        return Item("meters", Verdict.WARN, "no meter above the nodes to compare the books with", figures)
    shown = [f"{gap.site} {gap.level} {(gap.gap_ppm or 0) / 10_000:.2f} %" for gap in every if gap.meter is None] or [
        f"{gap.site} {gap.meter} {(gap.gap_ppm or 0) / 10_000:.2f} %" for gap in every
    ]
    unexplained = sum(gap.is_explained is False for gap in every)
    said = f"gap to the books: {', '.join(shown[:_NAMED])}"
    if unexplained:
        return Item("meters", Verdict.WARN, f"{said}; {unexplained} more than the meters may be off", figures)
    return Item("meters", Verdict.OK, f"{said}; within what the meters may be off", figures)


def _prices(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    unpriced, unknown, models, abroad, currencies = _row(
        connection,
        scope,
        f"""
        SELECT count(*) FILTER (WHERE quantity_unit <> 'request'), coalesce(sum(quantity) FILTER (WHERE quantity_unit = 'request'), 0)::bigint,
               array_agg(DISTINCT device_model) FILTER (WHERE quantity_unit <> 'request' AND device_model IS NOT NULL),
               count(*) FILTER (WHERE known.currency <> lines.currency),
               array_agg(DISTINCT known.currency ORDER BY known.currency) FILTER (WHERE known.currency <> lines.currency)
        FROM current_ledger_lines AS lines LEFT JOIN LATERAL (
            SELECT currency FROM prices WHERE id = lines.price_id UNION ALL SELECT currency FROM tariffs WHERE id = lines.tariff_id
        ) AS known ON true WHERE {_IN_LINES} AND billed_cost IS NULL
        """,  # noqa: S608 (constants)
    )
    names = sorted(models or ())
    figures = {"unpriced_lines": unpriced, "usage_unknown_calls": unknown, "models": names}
    if unpriced:
        said = f"without a price: {_n(unpriced, 'line')}: {', '.join(names[:_NAMED])}"
        if abroad:
            said += f"; of {_n(abroad, 'line')} it is in {', '.join(currencies)}, and the books are not"
            figures |= {"in_another_currency": abroad, "currencies": list(currencies)}
        return Item("prices", Verdict.STOP, said, figures)
    if unknown:
        return Item(
            "prices", Verdict.WARN, f"every line has a price; of {unknown} calls nobody told the usage", figures
        )
    return Item("prices", Verdict.OK, "every line has a price", figures)


def _invoices(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    month = scope.month
    apart = [row for row in invoices(connection, month.from_at, month.to_at) if row.difference]
    unmatched = [row for row in compared(connection, month.from_at, month.to_at) if not row.calls]
    cost = sum((row.billed_cost for row in unmatched), Decimal(0))
    figures = {
        "invoices_apart": len(apart),
        "unmatched_lines": sum(row.rows for row in unmatched),
        "unmatched_cost": f"{cost:f}",
        "models": sorted({f"{row.provider}/{row.model}" for row in unmatched}),
    }
    if apart or unmatched:
        said = f"{figures['unmatched_lines']} invoice lines ({cost:f}) charge calls that nobody reported; {len(apart)} invoices state another total than was taken in"
        return Item("invoices", Verdict.STOP, said, figures)
    return Item("invoices", Verdict.OK, "every invoice line has its calls, every stated total was taken in", figures)


def _remainders(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    negative, unbalanced = _row(
        connection,
        scope,
        """
        SELECT count(*) FILTER (WHERE kind = 'negative_remainder'), count(*) FILTER (WHERE kind = 'books_unbalanced') FROM findings
        WHERE site_id = ANY (%(sites)s) AND start_at >= %(from_at)s AND start_at < %(to_at)s AND withdrawn_at IS NULL
        """,
    )
    figures = {"negative_remainders": negative, "books_unbalanced": unbalanced}
    if negative or unbalanced:
        said = f"{negative} node-hours with boards above their node's meter, {unbalanced} hours that do not balance; see `wattledger findings`"
        return Item("remainders", Verdict.STOP, said, figures)
    return Item("remainders", Verdict.OK, "no negative remainder, every hour balances", figures)


def _failed(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    (failed,) = _row(
        connection,
        scope,
        "SELECT count(*) FROM changes WHERE kind = 'failed_close' AND site_id = ANY (%(sites)s) AND from_at < %(to_at)s AND to_at > %(from_at)s",
    )
    if failed:
        return Item(
            "failed",
            Verdict.STOP,
            f"{_n(failed, 'hour')} failed to close and will be tried again; the worker's log says why",
            {"hours": failed},
        )
    return Item("failed", Verdict.OK, "no hour's close failed and waits", {"hours": 0})


def _disputes(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    open_, cost = _row(
        connection,
        scope,
        f"SELECT count(*), coalesce(sum(billed_cost), 0) FROM line_disputes AS lines WHERE {_IN_LINES} AND resolved_at IS NULL",  # noqa: S608
    )
    figures = {"open": open_, "cost": f"{cost:f}"}
    if open_:
        return Item(
            "disputes",
            Verdict.STOP,
            f"disputed: {_n(open_, 'line')} worth {cost:f}; see `wattledger disputes list`",
            figures,
        )
    return Item("disputes", Verdict.OK, "no line is disputed", figures)


def _origins(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    found = connection.execute(
        f"SELECT origin, count(*) FROM current_ledger_lines AS lines WHERE {_IN_LINES} GROUP BY origin ORDER BY origin".encode(),  # noqa: S608
        scope.given(),
    ).fetchall()
    lines = {Origin(origin).name.lower(): count for origin, count in found}
    if "simulated" in lines:
        return Item("origins", Verdict.WARN, f"{lines['simulated']} lines are of simulated data", {"lines": lines})
    said = ", ".join(f"{count} lines {name}" for name, count in lines.items()) or "no line"
    return Item("origins", Verdict.OK, said, {"lines": lines})


def _corrections(connection: psycopg.Connection[Any], scope: Scope) -> Item:
    count, cost = _row(
        connection,
        scope,
        """
        SELECT count(*), coalesce(sum(billed_cost), 0) FROM ledger_corrections
        WHERE site_id = ANY (%(sites)s) AND posted_hour_at >= %(from_at)s AND posted_hour_at < %(to_at)s
        """,
    )
    said = (
        f"{count} corrections of closed months are in it, {cost:f} in all"
        if count
        else "no correction of a closed month"
    )
    return Item("corrections", Verdict.OK, said, {"corrections": count, "cost": f"{cost:f}"})


_ITEMS: Final[Sequence[Callable[[psycopg.Connection[Any], Scope], Item]]] = (
    _hours,
    _attested,
    _failed,
    _remainders,
    _coverage,
    _feeds,
    _meters,
    _prices,
    _mapped,
    _invoices,
    _disputes,
    _corrections,
    _origins,
)
