"""Makes a closed revision of an hour count, in the transaction that writes it: its lines chained, its run on record, and what swapped in.

In a month that is closed nothing moves: the revision is kept as what the hour would be by now, and its difference to what was posted before
goes to the open month (``corrections``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import polars as pl
import psycopg

from analytics.io.book_rows import insert_rows
from analytics.io.corrections import post
from analytics.io.hours import OUTSIDE_THE_BOOKS, RESTATE, TOUCHES
from analytics.io.line_names import chain_lines
from analytics.io.runs import Current, HourState, LostRaceError, Made, Run, insert_run, shade, swap
from analytics.model.uses import uses_of

_KINDS: Final = f"""
SELECT DISTINCT kind FROM changes JOIN ledger_hours AS hours ON {TOUCHES.strip()}
WHERE hours.site_id = %(site_id)s AND hours.hour_at = %(hour_at)s
AND written_xid >= %(seen_xid)s::xid8 AND kind <> ALL (%(outside)s)
AND (scope IS NULL OR coalesce((SELECT uses IS NULL OR scope -> 'models' ?| uses FROM ledger_runs WHERE id = %(run_id)s), true)) ORDER BY kind
"""  # noqa: S608 (constants of this package)
_CLOSED_OVER: Final = """
SELECT id FROM ledger_periods AS period WHERE reopened_at IS NULL AND from_at <= %(hour_at)s AND to_at > %(hour_at)s
AND (site_id = %(site_id)s OR (site_id IS NULL AND %(site_id)s <> ALL (apart_site_ids))) ORDER BY site_id LIMIT 1
"""


def count_lines(
    connection: psycopg.Connection[Any],
    state: HourState,
    run: Run,
    current: Current | None,
    made: Made,
    lines: pl.DataFrame,
) -> int:
    """Insert the run and the lines of a closed revision and make it count; return the run's id.

    ``current``: what the hour rested on, its row locked. Raises LostRaceError where another run took the hour.
    """
    if state.status == "closed" and current is not None:
        run = replace(run, reason=_with_kinds(connection, state, run, current))
    period_id = frozen_in(connection, state, current)
    chained = chain_lines(connection, state, lines)
    made = replace(
        made,
        line_count=lines.height,
        head_sha256=chained.head,
        after_period_id=period_id,
        chain_version=chained.version,
        uses=uses_of(lines),
    )
    run_id = insert_run(connection, state, run, made)
    if period_id is None:
        is_ours = swap(connection, state, run, revision=made.revision, run_id=run_id, content=made.content, closed=True)
    else:
        is_ours = shade(
            connection, state, run, revision=made.revision, run_id=run_id, content=made.content, period_id=period_id
        )
    if not is_ours:
        raise LostRaceError
    insert_rows(connection, "ledger_lines", state, made.revision, chained.lines)
    if period_id is not None:
        post(
            connection,
            state.site_id,
            state.hour_at,
            current.revision if current else 0,
            made.revision,
            run_id,
            run.reason,
        )
    return run_id


def _with_kinds(connection: psycopg.Connection[Any], state: HourState, run: Run, current: Current) -> str:
    """Return why an hour is computed again, with the kinds of what it had not seen."""
    given = {
        "site_id": state.site_id,
        "hour_at": state.hour_at,
        "seen_xid": current.seen_xid,
        "run_id": current.run_id,
        "outside": [*OUTSIDE_THE_BOOKS, RESTATE],  # whose reason the run has already
    }
    kinds = [kind for (kind,) in connection.execute(_KINDS, given)]
    return f"{run.reason}: {', '.join(kinds)}" if kinds else run.reason


def frozen_in(connection: psycopg.Connection[Any], state: HourState, current: Current | None) -> int | None:
    """Return the closed month an hour is frozen in; one that had no books when its month was closed is, too."""
    if current is not None:
        return current.frozen_period_id
    row = connection.execute(_CLOSED_OVER, {"site_id": state.site_id, "hour_at": state.hour_at}).fetchone()
    return None if row is None else int(row[0])
