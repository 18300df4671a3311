"""Looks at everything a month's close stands on, line by line, and says of which books that is so.

It takes no lock and writes nothing: whoever closes the month does so under the lock, and only if :func:`seen_of` says the same there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from analytics.io.checklist import Item, Verdict
from analytics.io.period_document import MOVED_TOLD, moved_link, moved_start
from analytics.io.period_hours import moved_lines, totals
from analytics.io.verify import Problem, hours_between, hours_posting, look_at, look_at_posted
from analytics.model.month import Month

# What counts in a month, and what is posted in it. Lines of a revision that was closed are only ever added, and a correction is never taken back.
_SEEN: Final = """
SELECT (SELECT md5(string_agg((site_id, hour_at, revision, status, run_id, shadow_revision, shadow_run_id, frozen_period_id)::text, ''
                              ORDER BY site_id, hour_at)) FROM ledger_hours
        WHERE site_id = ANY (%(sites)s) AND hour_at >= %(from_at)s AND hour_at < %(to_at)s),
       count(*), max(id) FROM ledger_corrections
WHERE site_id = ANY (%(sites)s) AND posted_hour_at >= %(from_at)s AND posted_hour_at < %(to_at)s
"""
Sites = Sequence[tuple[int, str]]
Seen = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """What was found. ``before_id``: of the close before, which the month differs from in ``moved_lines`` lines (None: the first close)."""

    sites: Sites
    before_id: int | None
    seen: Seen
    chains: Item
    totals: dict[str, Any]
    moved_lines: int
    moved_sha256: bytes | None
    moved_told: tuple[str, ...]
    """The first of them, as many as a document tells."""


def make_ready(
    connection: psycopg.Connection[Any], month: Month, site: str | None, sites: Sites, before: tuple[int, int] | None
) -> Ready:
    """Look at a month of these sites (ids and names); in a transaction that sees one state of the books. ``before``: id and number of the last close.

    However many lines moved, those of one hour are in memory, and the first that a document tells.
    """
    site_ids = [number for number, _ in sites]
    link, count, told = None, 0, _Told()
    if before is not None:
        texts = told.of(moved_lines(connection, before[0], site_ids, month))
        link, count = moved_link(moved_start(month.name, site, before[1] + 1), texts)
    return Ready(
        tuple(sites),
        None if before is None else before[0],
        seen_of(connection, month, site_ids),
        _chains(connection, month, [name for _, name in sites]),
        totals(connection, month, site_ids),
        count,
        link,
        tuple(told.first),
    )


def seen_of(connection: psycopg.Connection[Any], month: Month, site_ids: Sequence[int]) -> Seen:
    """Return what differs as soon as another revision of an hour counts, or another correction is posted in the month."""
    given = {"sites": list(site_ids), "from_at": month.from_at, "to_at": month.to_at}
    row = connection.execute(_SEEN, given).fetchone()
    if row is None:
        raise AssertionError("an aggregate without GROUP BY has one row")
    return tuple(row)


@dataclass(slots=True)
class _Told:
    """Keeps the first of what it lets pass."""

    first: list[str] = field(default_factory=list)

    def of(self, texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            if len(self.first) < MOVED_TOLD:
                self.first.append(text)
            yield text


def _chains(connection: psycopg.Connection[Any], month: Month, sites: Sequence[str]) -> Item:
    problems: list[Problem] = []
    lines = 0
    for hour in hours_between(connection, month.from_at, month.to_at):
        if hour.site in sites:
            looked = look_at(connection, hour)
            lines += looked.lines
            problems += looked.problems
    posting, without_books = hours_posting(connection, month.from_at, month.to_at)
    for hour in posting:
        if hour.site in sites and not month.from_at <= hour.hour_at < month.to_at:
            problems += look_at_posted(connection, hour)
    problems += [problem for problem in without_books if problem.site in sites]
    figures = {"lines": lines, "problems": len(problems)}
    if problems:
        first = problems[0]
        said = f"{len(problems)} faults; the first: {first.site} {first.hour_at:%Y-%m-%d %H:%M}: {first.kind}, {first.what}"
        return Item("chains", Verdict.STOP, f"{said}; see `wattledger audit verify`", figures, is_final=True)
    return Item("chains", Verdict.OK, f"{lines} lines are as they were written and add up", figures)
