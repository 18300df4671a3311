"""Closes months and opens them again: hours are frozen, chained into one root, and what they came to is made a document.

Each is one transaction under a lock that no save of an hour can pass; what takes long, following every line, is done before it, and holds where
nothing changed since. A stop of the checklist stops it unless it was accepted by name. What is frozen is never written again; what changes
later is ``corrections``' business.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg.types.json import Jsonb

from analytics.errors import AnalyticsError, CloseError
from analytics.io.checklist import Item, Scope, Verdict, checklist
from analytics.io.corrections import post
from analytics.io.period_document import (
    ALL_SITES,
    MOVED_TOLD,
    document,
    links_of,
    message_of,
)
from analytics.io.period_hours import (
    are_unchained,
    chain_old_hours,
    entries_on_record,
    entries_within,
    moved_since,
)
from analytics.io.period_ready import Ready, make_ready, seen_of
from analytics.io.signing import Signed, sign
from analytics.model.chain import instant_text
from analytics.model.month import Month
from ingest.store.audit import note_on

__all__ = ["Closed", "NotReadyError", "Period", "close_month", "find", "listed", "look", "reopen"]
_LOCK: Final = "LOCK TABLE ledger_hours IN SHARE ROW EXCLUSIVE MODE"
_LOOKS: Final = 2
"""At a month before it is closed under the lock. Where its books change meanwhile each time, the last look is under the lock."""
_PATIENCE: Final = "SET LOCAL lock_timeout = '60s'"
_COLUMNS: Final = """
SELECT period.id, period.name, sites.name, period.site_id, period.number, period.from_at, period.to_at, period.hours, period.lines,
       period.corrections, period.checklist, period.totals, period.closed_by, period.closed_at,
       ARRAY(SELECT apart.name FROM sites AS apart WHERE apart.id = ANY (period.apart_site_ids) ORDER BY apart.name), period.moved_lines,
       period.moved_sha256, period.root_sha256, period.signature, period.key_id, period.public_key, period.reopened_at, period.reopened_by,
       period.reopen_reason, period.moved_told
FROM ledger_periods AS period LEFT JOIN sites ON sites.id = period.site_id
"""
_SITES: Final = """
SELECT id, name FROM sites WHERE (%(site)s::text IS NULL OR name = %(site)s) AND NOT EXISTS (
    SELECT FROM ledger_periods AS own WHERE own.reopened_at IS NULL AND own.from_at < %(to_at)s AND own.to_at > %(from_at)s
    AND (own.site_id = sites.id OR (own.site_id IS NULL AND %(site)s::text IS NOT NULL AND sites.id <> ALL (own.apart_site_ids)))) ORDER BY name
"""
_INSERT: Final = """
INSERT INTO ledger_periods (name, site_id, number, from_at, to_at, hours, lines, corrections, checklist, totals, root_sha256, signature, key_id,
                            closed_by, closed_at, apart_site_ids, moved_lines, moved_sha256, public_key, moved_told)
VALUES (%(name)s, %(site_id)s, %(number)s, %(from_at)s, %(to_at)s, %(hours)s, %(lines)s, %(corrections)s, %(checklist)s, %(totals)s, %(root)s,
        %(signature)s, %(key_id)s, %(closed_by)s, %(closed_at)s, %(apart)s, %(moved_lines)s, %(moved_sha256)s, %(public_key)s,
        %(moved_told)s) RETURNING id
"""
_APART_AT: Final = 14
_APART: Final = "SELECT id, name FROM sites WHERE %s AND id <> ALL (%s) ORDER BY name"
_UNFREEZE: Final = """
UPDATE ledger_hours AS hours SET frozen_period_id = NULL, shadow_revision = NULL, shadow_run_id = NULL,
       revision = coalesce(hours.shadow_revision, hours.revision), run_id = coalesce(hours.shadow_run_id, hours.run_id),
       content_sha256 = coalesce(runs.content_sha256, hours.content_sha256)
FROM ledger_hours AS own LEFT JOIN ledger_runs AS runs ON runs.id = own.shadow_run_id
WHERE own.site_id = hours.site_id AND own.hour_at = hours.hour_at AND hours.frozen_period_id = %s
"""


class NotReadyError(AnalyticsError):
    """A month is not closed as it stands; ``items`` say what stops it."""

    def __init__(self, name: str, items: Sequence[Item], accepted: Collection[str]) -> None:
        stops = [item.name for item in items if item.verdict is Verdict.STOP and item.name not in accepted]
        super().__init__(f"{name} is not closed: {', '.join(stops)}; settle them, or accept each with --accept")
        self.items = tuple(items)


@dataclass(frozen=True, slots=True)
class Period:
    """A month that was closed, as it is on record. ``site`` None: all sites without a period of their own."""

    period_id: int
    name: str
    site: str | None
    site_id: int | None
    number: int
    from_at: datetime
    to_at: datetime
    hours: int
    lines: int
    corrections: int
    checklist: list[dict[str, Any]]
    totals: dict[str, Any]
    closed_by: str
    closed_at: datetime
    apart: tuple[str, ...]
    """Sites that had a period of their own, and are not in this one of all the others."""
    moved_lines: int
    moved_sha256: bytes | None
    """Of the chain of the lines that moved since the month was closed before; None: it never was."""
    root_sha256: bytes = b""
    """Empty until it is on record."""
    signature: bytes | None = None
    key_id: str | None = None
    public_key: str | None = None
    reopened_at: datetime | None = None
    reopened_by: str | None = None
    reopen_reason: str | None = None
    moved_told: list[dict[str, Any]] | None = None
    """The first of the lines that moved; None: closed before they were kept."""

    @property
    def status(self) -> str:
        return "closed" if self.reopened_at is None else "reopened"

    def head(self, moved: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return what the document says before its hours; ``moved``: the first of the lines that did, which it tells."""
        return {
            "period": {
                "name": self.name,
                "site": self.site or ALL_SITES,
                "number": self.number,
                "from": instant_text(self.from_at),
                "to": instant_text(self.to_at),
            },
            "closed_by": self.closed_by,
            "closed_at": instant_text(self.closed_at),
            "apart": list(self.apart),
            "totals": self.totals,
            "checklist": self.checklist,
            "moved": {
                "lines": self.moved_lines,
                "sha256": None if self.moved_sha256 is None else self.moved_sha256.hex(),
                "told": list(moved),
            },
        }

    def covers(self, site: str) -> bool:
        """Say whether hours of a site are this period's: its own, or of all that had none; also of a site that came later."""
        return self.site == site if self.site is not None else site not in self.apart


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing made. ``document``: to be kept outside the database."""

    period: Period
    document: dict[str, Any]
    items: tuple[Item, ...]


def listed(connection: psycopg.Connection[Any], name: str | None = None) -> list[Period]:
    """Return periods, the newest first."""
    query = f"{_COLUMNS} WHERE %(name)s::text IS NULL OR period.name = %(name)s ORDER BY period.from_at DESC, period.id DESC"
    return [_period(row) for row in connection.execute(query.encode(), {"name": name})]


def find(connection: psycopg.Connection[Any], name: str, site: str | None) -> Period | None:
    """Return the newest period of a month; None where it was never closed."""
    query = f"{_COLUMNS} WHERE period.name = %(name)s AND sites.name IS NOT DISTINCT FROM %(site)s ORDER BY period.number DESC LIMIT 1"
    row = connection.execute(query.encode(), {"name": name, "site": site}).fetchone()
    return None if row is None else _period(row)


def look(
    connection: psycopg.Connection[Any], month: Month, site: str | None, *, now: datetime, lateness: timedelta
) -> list[Item]:
    """Return the checklist of a month, changing nothing; raises CloseError where there is nothing to close."""
    sites = _sites(connection, month, site)
    return checklist(connection, Scope(month, [number for number, _ in sites], now, lateness))


def close_month(
    connection: psycopg.Connection[Any],
    month: Month,
    site: str | None,
    *,
    now: datetime,
    lateness: timedelta,
    by: str,
    accepted: Collection[str] = (),
    key: Ed25519PrivateKey | None = None,
) -> Closed:
    """Freeze a month; ``connection``: the owner's, in no transaction. ``accepted``: stops of the checklist that are no reason to wait.

    Raises NotReadyError where another stop is left, CloseError where the month is closed already or a name is none of the checklist's.
    """
    _chain_old(connection, month, site)
    asked = _Asked(month, site, now, lateness, by, accepted, key)
    for _ in range(_LOOKS):
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            ready = _made_ready(connection, month, site)
        done = _close(connection, asked, ready)
        if done is not None:
            return done
    done = _close(connection, asked, None)
    if done is None:
        raise AssertionError("what is looked at under the lock has not changed there")
    return done


@dataclass(frozen=True, slots=True)
class _Asked:
    """What :func:`close_month` was asked for."""

    month: Month
    site: str | None
    now: datetime
    lateness: timedelta
    by: str
    accepted: Collection[str]
    key: Ed25519PrivateKey | None


def _chain_old(connection: psycopg.Connection[Any], month: Month, site: str | None) -> None:
    """Give hours from before chains were kept theirs; what is no more than that takes no lock."""
    site_ids = [number for number, _ in _sites(connection, month, site)]
    if not are_unchained(connection, month, site_ids):
        return
    with connection.transaction():
        connection.execute(_PATIENCE)
        connection.execute(_LOCK)
        chain_old_hours(connection, month, site_ids)


def _made_ready(connection: psycopg.Connection[Any], month: Month, site: str | None) -> Ready:
    before = find(connection, month.name, site)
    known = None if before is None else (before.period_id, before.number)
    return make_ready(connection, month, site, _sites(connection, month, site), known)


def _close(connection: psycopg.Connection[Any], asked: _Asked, ready: Ready | None) -> Closed | None:
    """Close a month that was looked at; None, nothing having changed, where its books are others by now. Not looked at: that is done here."""
    month, site, by, accepted = asked.month, asked.site, asked.by, asked.accepted
    with connection.transaction():
        connection.execute(_PATIENCE)
        connection.execute(_LOCK)
        sites = _sites(connection, month, site)
        site_ids = [number for number, _ in sites]
        before = find(connection, month.name, site)
        if ready is None:
            ready = _made_ready(connection, month, site)
        elif (ready.sites, ready.before_id, ready.seen) != (
            tuple(sites),
            None if before is None else before.period_id,
            seen_of(connection, month, site_ids),
        ):
            return None
        items = checklist(connection, Scope(month, site_ids, asked.now, asked.lateness))
        items.append(ready.chains)
        unknown = sorted(set(accepted) - {item.name for item in items})
        if unknown:
            raise CloseError(f"--accept {unknown[0]}: the checklist has {', '.join(item.name for item in items)}")
        final = [item for item in items if item.is_final and item.name in accepted]
        if final:
            raise CloseError(f"--accept {final[0].name}: that cannot be accepted: {final[0].said}")
        if any(item.verdict is Verdict.STOP and item.name not in accepted for item in items):
            raise NotReadyError(month.name, items, accepted)
        number = 1 if before is None else before.number + 1
        told = [item.as_json() | ({"accepted_by": by} if item.name in accepted else {}) for item in items]
        entries, references = entries_within(connection, month, site_ids)
        apart = connection.execute(_APART, [site is None, site_ids]).fetchall()
        period = Period(
            period_id=0,
            name=month.name,
            site=site,
            site_id=site_ids[0] if site else None,
            number=number,
            from_at=month.from_at,
            to_at=month.to_at,
            hours=sum(entry.reason is None for entry in entries),
            lines=sum(entry.lines for entry in entries if entry.reason is None),
            corrections=sum(entry.lines for entry in entries if entry.reason is not None),
            checklist=told,
            totals=ready.totals,
            closed_by=by,
            closed_at=asked.now,
            apart=tuple(name for _, name in apart),
            moved_lines=ready.moved_lines,
            moved_sha256=ready.moved_sha256,
            moved_told=[json.loads(text) for text in ready.moved_told],
        )
        head = period.head()
        links = links_of(head, entries)
        signed = None if asked.key is None else sign(asked.key, message_of(head["period"], links[-1].hex()))
        period_id = _insert(connection, period, [number for number, _ in apart], links[-1], signed)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO period_hours (period_id, ordinal, site_id, hour_at, run_id, revision, lines, head_sha256, chain_sha256) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    (period_id, place, *reference, entry.lines, entry.head, link)
                    for place, (entry, reference, link) in enumerate(
                        zip(entries, references, links[:-1], strict=True), start=1
                    )
                ],
            )
        connection.execute(
            "UPDATE ledger_hours SET frozen_period_id = %s WHERE site_id = ANY (%s) AND hour_at >= %s AND hour_at < %s "
            "AND status = 'closed'",
            [period_id, site_ids, month.from_at, month.to_at],
        )
        note_on(
            connection,
            by,
            "close.month",
            f"period/{month.name}",
            site=site,
            number=number,
            root=links[-1].hex(),
            accepted=sorted(accepted),
        )
        made = find(connection, month.name, site)
        if made is None:
            raise AssertionError("the period that was just inserted is not there")
        return Closed(made, exported(connection, made), tuple(items))


def reopen(
    connection: psycopg.Connection[Any], name: str, site: str | None, *, by: str, reason: str, now: datetime
) -> Period:
    """Unfreeze a month's hours: what they would be by now counts from then on, and what was posted for them is taken back.

    ``connection``: the owner's, in no transaction. Raises CloseError where the month is not closed.
    """
    with connection.transaction():
        connection.execute(_PATIENCE)
        connection.execute(_LOCK)
        period = find(connection, name, site)
        if period is None or period.reopened_at is not None:
            raise CloseError(f"{name} is not closed{f' for {site}' if site else ''}; see `wattledger close list`")
        shadows = connection.execute(
            "SELECT site_id, hour_at, shadow_revision, revision, shadow_run_id FROM ledger_hours "
            "WHERE frozen_period_id = %s AND shadow_run_id IS NOT NULL ORDER BY site_id, hour_at",
            [period.period_id],
        ).fetchall()
        # While the month still is closed, so that it is taken back where it was posted, or in the first month after that.
        for site_id, hour_at, shadow, revision, run_id in shadows:
            post(connection, site_id, hour_at, shadow, revision, run_id, f"{name} was reopened: {reason}")
        connection.execute(_UNFREEZE, [period.period_id])
        connection.execute(
            "UPDATE ledger_periods SET reopened_at = %s, reopened_by = %s, reopen_reason = %s WHERE id = %s",
            [now, by, reason, period.period_id],
        )
        note_on(
            connection,
            by,
            "close.reopen",
            f"period/{name}",
            site=site,
            number=period.number,
            reason=reason,
            hours_changed=len(shadows),
        )
        found = find(connection, name, site)
        if found is None:
            raise AssertionError("a period that was there is gone")
        return found


def exported(connection: psycopg.Connection[Any], period: Period) -> dict[str, Any]:
    """Return the document of a period, from what is on record; of the lines that moved it tells the first, ``moved_since`` yields all."""
    moved = period.moved_told
    if moved is None:
        moved = [json.loads(text) for text in islice(moved_since(connection, period.period_id), MOVED_TOLD)]
    signed = None
    if period.signature is not None and period.key_id is not None:
        signed = Signed(period.signature, period.key_id, period.public_key or "")
    return document(period.head(moved), entries_on_record(connection, period.period_id), period.root_sha256, signed)


def _sites(connection: psycopg.Connection[Any], month: Month, site: str | None) -> list[tuple[int, str]]:
    given = {"site": site, "from_at": month.from_at, "to_at": month.to_at}
    found = [(int(number), str(name)) for number, name in connection.execute(_SITES, given)]
    closed = find(connection, month.name, site)
    if closed is not None and closed.reopened_at is None:
        raise CloseError(
            f"{month.name} is closed already, as number {closed.number} on {closed.closed_at:%Y-%m-%d} by {closed.closed_by}; "
            "reopen it first if it has to change"
        )
    if not found:
        raise CloseError(
            f"there is no site {site} to close {month.name} for"
            if site
            else "there is no site yet whose month could be closed"
        )
    return found


def _insert(
    connection: psycopg.Connection[Any], period: Period, apart_ids: list[int], root: bytes, signed: Signed | None
) -> int:
    values = {
        "name": period.name,
        "site_id": period.site_id,
        "number": period.number,
        "from_at": period.from_at,
        "to_at": period.to_at,
        "hours": period.hours,
        "lines": period.lines,
        "corrections": period.corrections,
        "checklist": Jsonb(period.checklist),
        "totals": Jsonb(period.totals),
        "root": root,
        "signature": None if signed is None else signed.signature,
        "key_id": None if signed is None else signed.key_id,
        "public_key": None if signed is None else signed.public_pem,
        "closed_by": period.closed_by,
        "closed_at": period.closed_at,
        "apart": apart_ids,
        "moved_lines": period.moved_lines,
        "moved_sha256": period.moved_sha256,
        "moved_told": None if period.moved_told is None else Jsonb(period.moved_told),
    }
    row = connection.execute(_INSERT, values).fetchone()
    if row is None:
        raise psycopg.DataError("INSERT INTO ledger_periods returned no id")
    return int(row[0])


def _period(row: Sequence[Any]) -> Period:
    values: list[Any] = [bytes(value) if isinstance(value, memoryview) else value for value in row]
    values = [value.astimezone(UTC) if isinstance(value, datetime) else value for value in values]
    values[_APART_AT] = tuple(values[_APART_AT])
    return Period(*values)
