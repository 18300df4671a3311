"""Writes the books of one hour in one transaction, or nothing.

Exclusion is a row: the transaction swaps ``ledger_hours`` from the run it was computed against to its own; whoever comes
second finds another run there and writes nothing. A closed hour gets revisions 1, 2, ...; its rows are append-only. The
open window is revision 0, replaced in place. An hour whose content did not change gets no new revision: what it was computed of
this time is on record as a run that attests the revision. Findings are no content: they come and go without a revision.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg

from analytics.inputs import Window
from analytics.io.book_rows import bind_jobs, content_with, difference, insert_rows
from analytics.io.counted import count_lines, frozen_in
from analytics.io.crossings import Crossing
from analytics.io.due_minutes import keep_minutes
from analytics.io.findings import replace_findings
from analytics.io.reach import note_reach
from analytics.io.readings import Gap, Silences
from analytics.io.runs import Current, HourState, Kind, LostRaceError, Made, Run, Saved, insert_run, locked, pin, swap
from analytics.model.uses import uses_of
from analytics.pipeline import content_hash
from analytics.units import from_us, to_us

PROVISIONAL: Final = 0
"""Revision of the open window."""


@dataclass(frozen=True, slots=True)
class SilencesTold:
    """What an hour's readings tell of silences that reach beyond it."""

    ended: tuple[Gap, ...] = ()
    """Those that end in the hour."""
    around: tuple[tuple[datetime, datetime], ...] = ()
    """Where devices were silent before and after what was read together: late readings of the hour may have split that."""
    crossed: tuple[Crossing, ...] = ()
    """Those over the hour's beginning that ended beyond the margin after it: the hour before hangs on where they end."""
    heard_at: datetime | None = None
    """The last reading after the hour that it hangs on: where such a silence over its end is over; null = there is none."""
    is_first: bool = True
    """Whether the hour before was not read together with this one."""

    @classmethod
    def of(cls, silences: Silences, window: Window, hour_at: datetime) -> SilencesTold:
        """Return the part of one of the hours that were read together."""
        to_at = hour_at + timedelta(hours=1)
        begins_us, ends_us = to_us(hour_at), to_us(to_at)
        is_first, is_last = hour_at <= window.from_at, to_at >= window.to_at
        ended = tuple(
            gap for gap in silences.ended if (is_first or gap.to_at >= hour_at) and (is_last or gap.to_at < to_at)
        )
        around = ((silences.before_at, window.from_at), (window.to_at, silences.after_at))
        return cls(
            ended,
            tuple((a, b) for a, b in around if a is not None and b is not None and a < b),
            tuple(each for each in silences.crossed if each.is_over(begins_us)),
            max((from_us(each.to_us) for each in silences.crossed if each.is_over(ends_us)), default=None),
            is_first,
        )


@dataclass(frozen=True, slots=True)
class HourBooks:
    """The rows of one hour, of the frames of the same names."""

    usage: pl.DataFrame
    lines: pl.DataFrame
    findings: pl.DataFrame
    quality: pl.DataFrame
    job_tenants: pl.DataFrame
    silences: SilencesTold = field(default_factory=SilencesTold)


def save_hour(
    connection: psycopg.Connection[Any], state: HourState, books: HourBooks, run: Run, *, closed: bool
) -> Saved:
    """Write one hour's books in one transaction; nothing is written if another run got there first or is at it."""
    try:
        return _save_in_transaction(connection, state, books, run, closed=closed)
    except (LostRaceError, psycopg.errors.LockNotAvailable):
        return Saved.LOST_RACE


def _save_in_transaction(
    connection: psycopg.Connection[Any], state: HourState, books: HourBooks, run: Run, *, closed: bool
) -> Saved:
    of_usage = content_hash(books.usage)
    content = content_with(of_usage, books.lines, closed=closed)
    with connection.transaction():
        current = locked(connection, state)
        if current is not None and current.content == content:
            replace_findings(connection, state.site_id, state.hour_at, books.findings)
            _attest(connection, state, books, run, current, of_usage, closed=closed)
            _remember(connection, state, books.silences, written=False)
            note_reach(connection, state, books.silences, run.policy)
            return Saved.UNCHANGED
        if not closed and current is None and frozen_in(connection, state, None) is not None:
            raise LostRaceError  # no figures for now in a closed month: what it owes is posted once the hour is closed
        revision = _next_revision(state, closed=closed)
        diff = difference(connection, state, books.lines) if state.status == "closed" else None
        made = Made(Kind.CLOSE, revision, revision, content, of_usage, diff, _quality(books.quality))
        if closed:
            count_lines(connection, state, run, current, made, books.lines)
        else:
            run_id = insert_run(connection, state, run, replace(made, uses=uses_of(books.lines)))
            if not swap(connection, state, run, revision=revision, run_id=run_id, content=content, closed=False):
                raise LostRaceError
        if state.revision == PROVISIONAL:
            connection.execute("SELECT clear_provisional(%s, %s)", (state.site_id, state.hour_at))
        insert_rows(connection, "usage_hours", state, revision, books.usage)
        if not closed:
            insert_rows(connection, "ledger_lines", state, revision, books.lines)
        replace_findings(connection, state.site_id, state.hour_at, books.findings)
        bind_jobs(connection, state, books.job_tenants)
        if closed:
            pin(connection, state, run)
        _remember(connection, state, books.silences, written=closed)
        note_reach(connection, state, books.silences, run.policy)
        return Saved.WRITTEN


def _attest(
    connection: psycopg.Connection[Any],
    state: HourState,
    books: HourBooks,
    run: Run,
    current: Current,
    of_usage: bytes,
    *,
    closed: bool,
) -> None:
    """Note that later changes were seen; where they changed what was read, keep that, as the run the revision rests on now."""
    run_id = current.run_id
    if closed and (current.inputs_sha256, current.generation) != (run.read.sha256(), run.generation):
        made = Made(
            Kind.ATTEST,
            current.revision,
            current.usage_revision,
            current.content,
            of_usage,
            quality=_quality(books.quality),
            line_count=current.line_count,
            head_sha256=current.head_sha256,
            chain_version=current.chain_version,
            uses=uses_of(books.lines),
        )
        run_id = insert_run(connection, state, run, made)
        pin(connection, state, run)
    connection.execute(
        """
        UPDATE ledger_hours SET seen_xid = %(seen_xid)s::xid8, closed_at = now(),
               run_id = CASE WHEN shadow_run_id IS NULL THEN %(run_id)s ELSE run_id END,
               shadow_run_id = CASE WHEN shadow_run_id IS NOT NULL THEN %(run_id)s END
        WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s
        """,
        {"seen_xid": run.seen_xid, "run_id": run_id, "site_id": state.site_id, "hour_at": state.hour_at},
    )
    if state.is_settled:  # nothing changed but where its readings lie
        keep_minutes(connection, state.site_id, state.hour_at, current.run_id)


def _next_revision(state: HourState, *, closed: bool) -> int:
    if not closed:
        return PROVISIONAL
    return (state.revision or 0) + 1


def _quality(counted: pl.DataFrame) -> dict[str, Any]:
    """Return what the close did not use or could not know, by reason; which devices it was their usage hours tell."""
    by_reason = counted.group_by("reason").agg(pl.len().alias("devices"), pl.col("readings", "time_us").sum())
    return {row.pop("reason"): row for row in by_reason.sort("reason").to_dicts()}


_REMEMBER_GAP: Final = """
INSERT INTO changes (site_id, from_at, to_at, kind)
SELECT %(site_id)s, %(from_at)s, %(to_at)s, 'gap' WHERE %(displaced)s OR EXISTS (
    SELECT FROM generate_series(date_trunc('hour', %(from_at)s, 'UTC'), %(to_at)s - interval '1 microsecond',
                                interval '1 hour') AS silent(hour_at)
    WHERE NOT EXISTS (
        -- Of a frozen hour, what it would be by now.
        SELECT FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = coalesce(hours.shadow_run_id, hours.run_id)
        JOIN usage_hours AS known ON known.site_id = hours.site_id AND known.hour_at = hours.hour_at
            AND known.revision = coalesce(runs.usage_revision, runs.revision)
        WHERE hours.site_id = %(site_id)s AND hours.hour_at = silent.hour_at
        AND known.device_id = %(device_id)s AND known.energy_mj IS NOT NULL))
"""


def _remember(connection: psycopg.Connection[Any], state: HourState, told: SilencesTold, *, written: bool) -> None:
    """Make hours due again whose energy hangs on a silence that this hour's readings ended, or split.

    A silence that ends makes the hours it spans know their energy, once; of a feed that others stood in for, also hours that know
    it from those, where closed books were ``written``. If the hour was restated, late readings may lie inside a silence already told,
    which bends the line on both sides of them: all of it is looked at again. An hour that is closed again unchanged passes nothing on,
    so the worker comes to rest.
    """
    for gap in told.ended:
        given = {"site_id": state.site_id, "device_id": gap.device_id, "from_at": gap.from_at, "to_at": gap.to_at}
        connection.execute(_REMEMBER_GAP, given | {"displaced": written and gap.displaces})
    if written and state.status == "closed":
        for from_at, to_at in told.around:
            connection.execute(
                "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'gap')",
                (state.site_id, from_at, to_at),
            )
