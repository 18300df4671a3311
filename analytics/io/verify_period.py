"""Checks closed months: that what was frozen still is what counts, that its chain leads to its root, and that the root is the one kept elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from analytics.io.period_document import Entry, entries_of, faults, links_of
from analytics.io.period_hours import entries_on_record, moved_since
from analytics.io.periods import Period, listed
from analytics.io.verify import Hour, Looked, Problem, hours_between, hours_posting, look_at, look_at_posted
from analytics.io.verify_sums import look_at_sums
from analytics.model.chain import instant_text

_FROZEN: Final = """
SELECT entry.ordinal, sites.name, entry.hour_at, entry.run_id, entry.revision, entry.lines, entry.head_sha256, entry.chain_sha256,
       hours.revision, hours.frozen_period_id
FROM period_hours AS entry JOIN sites ON sites.id = entry.site_id
LEFT JOIN ledger_hours AS hours ON hours.site_id = entry.site_id AND hours.hour_at = entry.hour_at
WHERE entry.period_id = %s ORDER BY entry.ordinal
"""
_POSTED: Final = """
SELECT (array_agg(chain_sha256 ORDER BY ordinal DESC))[1], count(*) FROM ledger_corrections
WHERE site_id = (SELECT id FROM sites WHERE name = %s) AND hour_at = %s AND run_id = %s AND revision = %s
"""
_UNDER: Final = """
SELECT sites.name, hours.hour_at FROM ledger_hours AS hours JOIN sites ON sites.id = hours.site_id
WHERE hours.frozen_period_id = %(period)s AND hours.revision > 0 AND NOT EXISTS (
    SELECT FROM period_hours AS entry WHERE entry.period_id = %(period)s AND entry.run_id IS NULL AND entry.site_id = hours.site_id
    AND entry.hour_at = hours.hour_at) ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at and what is wrong with it."""

    hours: int
    lines: int
    unchained: int
    forgotten: int
    periods: tuple[tuple[str, int, str], ...]
    """Name, number and root of each month whose root was recomputed."""
    problems: tuple[Problem, ...]


def verify(
    connection: psycopg.Connection[Any],
    *,
    from_at: datetime,
    to_at: datetime,
    site: str | None = None,
    name: str | None = None,
    document: Mapping[str, Any] | None = None,
    key: Ed25519PublicKey | None = None,
) -> Verified:
    """Check all closed hours of a span and every month closed in it, or the month ``name`` alone; ``connection``: a worker's, in no transaction.

    ``document``: of a month, as it was exported; ``key``: whose signature it must bear. All of it is seen in one snapshot.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        looked = {
            (hour.site, hour.hour_at): (hour, look_at(connection, hour))
            for hour in hours_between(connection, from_at, to_at, site)
        }
        problems = [problem for _, each in looked.values() for problem in each.problems]
        posting, without_books = hours_posting(connection, from_at, to_at, site)
        for hour in posting:
            if (hour.site, hour.hour_at) not in looked:
                problems += look_at_posted(connection, hour)
        problems += without_books
        problems += look_at_sums(connection, from_at, to_at, site)
        periods = [
            period
            for period in listed(connection, name)
            if period.from_at >= from_at and period.to_at <= to_at and (site is None or period.site in {None, site})
        ]
        for period in reversed(periods):
            problems += _of_period(connection, period, looked)
        if document is not None:
            problems += _against(document, key, periods, looked)
    return Verified(
        hours=len(looked),
        lines=sum(each.lines for _, each in looked.values()),
        unchained=sum(each.unchained for _, each in looked.values()),
        forgotten=sum(each.forgotten for _, each in looked.values()),
        periods=tuple((period.name, period.number, period.root_sha256.hex()) for period in reversed(periods)),
        problems=tuple(problems),
    )


def _of_period(
    connection: psycopg.Connection[Any], period: Period, looked: Mapping[tuple[str, datetime], tuple[Hour, Looked]]
) -> list[Problem]:
    found: list[Problem] = []
    head = period.head(moved_since(connection, period.period_id))
    entries = entries_on_record(connection, period.period_id)
    links = links_of(head, entries)
    called = f"{period.name} number {period.number}"
    rows = connection.execute(_FROZEN, [period.period_id]).fetchall()
    for place, (row, entry, link) in enumerate(zip(rows, entries, links[:-1], strict=True), start=1):
        ordinal, site, hour_at, run_id, revision, lines, entry_head, chain, counts, frozen = row
        at = hour_at.astimezone(UTC)
        if ordinal != place or bytes(chain) != link:
            found.append(Problem(site, at, "period", f"entry {ordinal} of {called} is not what was chained"))
            break
        if run_id is not None:
            posted = connection.execute(_POSTED, [site, hour_at, run_id, revision]).fetchone()
            if posted is None or posted[0] is None or (bytes(posted[0]), posted[1]) != (bytes(entry_head), lines):
                found.append(
                    Problem(
                        site, at, "period", f"the corrections by run {run_id} are not those under the root of {called}"
                    )
                )
            continue
        hour = looked.get((site, at))
        if hour is not None and hour[1].heads.get(revision) != entry.head:
            found.append(
                Problem(site, at, "period", f"revision {revision} does not lead to its head under the root of {called}")
            )
        if period.status == "closed" and (counts, frozen) != (revision, period.period_id):
            found.append(Problem(site, at, "period", f"revision {counts} counts, {called} froze revision {revision}"))
    if links[-1] != period.root_sha256:
        said = f"{called}: its hours and figures lead to the root {links[-1].hex()}, on record is {period.root_sha256.hex()}"
        found.append(Problem(period.site or "*", None, "period", said))
    for site, hour_at in connection.execute(_UNDER, {"period": period.period_id}):
        found.append(Problem(site, hour_at.astimezone(UTC), "period", f"is frozen in {called} and not under its root"))
    return found


def _against(
    document: Mapping[str, Any],
    key: Ed25519PublicKey | None,
    periods: list[Period],
    looked: Mapping[tuple[str, datetime], tuple[Hour, Looked]],
) -> list[Problem]:
    """Compare a document kept elsewhere: with itself, its signature, the period on record, and the chain of every hour it names."""
    told = document["period"]
    called = f"the document of {told['name']} number {told['number']}"
    found = [Problem(told["site"], None, "document", f"{called}: {fault}") for fault in faults(document, key)]
    period = next(
        (
            each
            for each in periods
            if (each.name, each.site or "*", each.number) == (told["name"], told["site"], told["number"])
        ),
        None,
    )
    if period is None:
        return [*found, Problem(told["site"], None, "period", f"there is no such period on record as in {called}")]
    if period.root_sha256.hex() != document["root_sha256"]:
        said = f"the root on record is {period.root_sha256.hex()}, in {called} it is {document['root_sha256']}"
        found.append(Problem(told["site"], None, "period", said))
    for entry in entries_of(document):
        if entry.reason is None and not _leads_to(entry, looked):
            said = f"its stored lines do not lead to the head that {called} gives it"
            found.append(Problem(entry.site, entry.hour_at, "period", said))
    return found


def _leads_to(entry: Entry, looked: Mapping[tuple[str, datetime], tuple[Hour, Looked]]) -> bool:
    found = looked.get((entry.site, entry.hour_at.astimezone(UTC)))
    return found is not None and entry.head in found[1].heads.values()


def words(problem: Problem) -> str:
    """Return a problem in one line."""
    at = "" if problem.hour_at is None else f" {instant_text(problem.hour_at)}"
    return f"{problem.site}{at}: {problem.kind}: {problem.what}"
