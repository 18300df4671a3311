"""Checks closed months: that what was frozen still is what counts, that its chain leads to its root, and that the root is the one kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from analytics.errors import CloseError
from analytics.io.period_document import (
    ALL_SITES,
    Entry,
    checked,
    entries_of,
    faults,
    links_of,
    moved_link,
    moved_start,
    moved_text,
)
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
# What a closed month holds beside its chain: hours that were put into it or are not frozen there, and corrections posted in it. An hour that
# had no books at the close is frozen at revision 0, which has no line.
_BESIDE: Final = """
SELECT sites.name, hours.hour_at, hours.revision, hours.frozen_period_id IS NOT DISTINCT FROM %(period)s
FROM ledger_hours AS hours JOIN sites ON sites.id = hours.site_id
WHERE (hours.frozen_period_id = %(period)s OR (hours.hour_at >= %(from_at)s AND hours.hour_at < %(to_at)s))
AND NOT (hours.revision = 0 AND hours.status = 'closed' AND hours.frozen_period_id IS NOT DISTINCT FROM %(period)s) AND NOT EXISTS (
    SELECT FROM period_hours AS entry WHERE entry.period_id = %(period)s AND entry.run_id IS NULL AND entry.site_id = hours.site_id
    AND entry.hour_at = hours.hour_at) ORDER BY 1, 2
"""
_POSTED_BESIDE: Final = """
SELECT DISTINCT sites.name, posted.hour_at, posted.run_id FROM ledger_corrections AS posted JOIN sites ON sites.id = posted.site_id
WHERE posted.posted_hour_at >= %(from_at)s AND posted.posted_hour_at < %(to_at)s AND NOT EXISTS (
    SELECT FROM period_hours AS entry WHERE entry.period_id = %(period)s AND entry.run_id = posted.run_id
    AND entry.revision = posted.revision AND entry.site_id = posted.site_id AND entry.hour_at = posted.hour_at) ORDER BY 1, 2, 3
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
    """Check all closed hours of a span and the months that reach into it, or the month ``name`` alone; ``connection``: a worker's, in no transaction.

    ``name``: what is on record says when that month was; the span is of one that was never closed. ``document``: of a month, as it was
    exported; ``key``: whose signature it must bear. All of it is seen in one snapshot. Raises CloseError where the document has not the form
    of one, or is of another site than ``site``.
    """
    if document is not None and checked(document, "the document")["period"]["site"] not in {
        ALL_SITES,
        site or document["period"]["site"],
    }:
        raise CloseError(f"the document is of the site {document['period']['site']}, and --site says {site}")
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        periods = [period for period in listed(connection, name) if site is None or period.site in {None, site}]
        if name is None:
            periods = [period for period in periods if period.from_at < to_at and period.to_at > from_at]
        elif periods:
            from_at, to_at = min(period.from_at for period in periods), max(period.to_at for period in periods)
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
        for period in reversed(periods):
            problems += _of_period(connection, period, looked)
        if document is not None:
            problems += _against(connection, document, key, periods, looked, site)
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
    entries = entries_on_record(connection, period.period_id)
    links = links_of(period.head(), entries)
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
    return [*found, *_beside(connection, period, called), *_moved(connection, period, called)]


def _beside(connection: psycopg.Connection[Any], period: Period, called: str) -> Iterator[Problem]:
    """What was put into a month after its close, while it is closed."""
    if period.status != "closed":
        return
    given = {"period": period.period_id, "from_at": period.from_at, "to_at": period.to_at}
    for site, hour_at, revision, is_frozen in connection.execute(_BESIDE, given):
        if period.covers(site):
            held = "is frozen in" if is_frozen else f"counts revision {revision} in"
            yield Problem(site, hour_at.astimezone(UTC), "period", f"{held} {called} and is not under its root")
    for site, hour_at, run_id in connection.execute(_POSTED_BESIDE, given):
        if period.covers(site):
            said = f"corrections by run {run_id} are posted in {called} and not under its root"
            yield Problem(site, hour_at.astimezone(UTC), "period", said)


def _moved(connection: psycopg.Connection[Any], period: Period, called: str) -> Iterator[Problem]:
    """What is said to have moved since the close before is what did."""
    start = moved_start(period.name, period.site, period.number)
    link, count = moved_link(start, moved_since(connection, period.period_id))
    told = (period.moved_lines, period.moved_sha256)
    if told != (count, link if period.number > 1 else None):
        said = f"{called}: the {count} lines that moved since it was closed before are not those under its root"
        yield Problem(period.site or "*", None, "period", said)


def _against(
    connection: psycopg.Connection[Any],
    document: Mapping[str, Any],
    key: Ed25519PublicKey | None,
    periods: list[Period],
    looked: Mapping[tuple[str, datetime], tuple[Hour, Looked]],
    site: str | None,
) -> list[Problem]:
    """Compare a document kept elsewhere: with itself, its signature, the period on record, and the chain of every hour it names.

    It holds as long as its month is closed under its number; after that its hours only have to be on record as they were.
    """
    told = document["period"]
    called = f"the document of {told['name']} number {told['number']}"
    found = [Problem(told["site"], None, "document", f"{called}: {fault}") for fault in faults(document, key)]
    closings = [each for each in periods if (each.name, each.site or ALL_SITES) == (told["name"], told["site"])]
    period = next((each for each in closings if each.number == told["number"]), None)
    if period is None:
        return [*found, Problem(told["site"], None, "period", f"there is no such period on record as in {called}")]
    if period.root_sha256.hex() != document["root_sha256"]:
        said = f"the root on record is {period.root_sha256.hex()}, in {called} it is {document['root_sha256']}"
        found.append(Problem(told["site"], None, "period", said))
    if period.reopened_at is not None:
        newest = max(closings, key=lambda each: each.number)
        later = f"; number {newest.number} took its place" if newest.number > period.number else ""
        said = f"{called} is out of date: reopened {instant_text(period.reopened_at)} by {period.reopened_by}: {period.reopen_reason}{later}"
        found.append(Problem(told["site"], None, "period", said))
    excerpt = [moved_text(row) for row in document["moved"]["told"]]
    if excerpt != list(islice(moved_since(connection, period.period_id), len(excerpt))):
        found.append(
            Problem(told["site"], None, "document", f"the lines that {called} says moved are not those that did")
        )
    for entry in entries_of(document):
        if entry.reason is None and site in {None, entry.site} and not _leads_to(entry, looked, period):
            said = f"its stored lines do not lead to the head that {called} gives it"
            found.append(Problem(entry.site, entry.hour_at, "period", said))
    return found


def _leads_to(entry: Entry, looked: Mapping[tuple[str, datetime], tuple[Hour, Looked]], period: Period) -> bool:
    found = looked.get((entry.site, entry.hour_at.astimezone(UTC)))
    if found is None:
        return False
    hour, stored = found
    return entry.head in ([stored.heads.get(hour.revision)] if period.reopened_at is None else stored.heads.values())


def words(problem: Problem) -> str:
    """Return a problem in one line."""
    at = "" if problem.hour_at is None else f" {instant_text(problem.hour_at)}"
    return f"{problem.site}{at}: {problem.kind}: {problem.what}"
