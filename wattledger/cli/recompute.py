"""The `recompute` command: past bills computed again from what their runs were made of, and compared to the byte."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from wattledger.cli import EXIT_NO, EXIT_UNANSWERED, chosen_home
from wattledger.cli.access import actor, driver_transaction
from wattledger.cli.bill import Instant
from wattledger.cli.output import Format, Shown, format_option, print_rows

_LOOK_BACK: Final = timedelta(days=1)
_VERDICT: Final = {True: "same", False: "differs", None: "not computed"}


@click.command(
    epilog="""\b
Examples:
  wattledger recompute
  wattledger recompute --as-of 2026-11-05 --from 2026-10-01 --to 2026-11-01
  wattledger recompute --from 2026-11-20 --site fra1 --format json
  wattledger recompute --restate --from 2026-11-01 --to 2026-11-02 --reason "formulas 2"

\b
Exit code: 0 all hours came out the same, 1 some differ, 2 some could not be computed and none differs.
"""
)
@click.option("--as-of", type=Instant(), help="The books as they stood then. Default: now.")
@click.option("--from", "from_at", type=Instant(), help="Start. Default: a day before the end.")
@click.option("--to", "to_at", type=Instant(), help="End, exclusive. Default: --as-of.")
@click.option("--site", help="Only this site.")
@click.option(
    "--restate",
    is_flag=True,
    help="Compare nothing: have the worker close these hours again with the formulas of now. Needs --from, --to and --reason.",
)
@click.option("--reason", help="Why they are restated; it stays with their runs.")
@format_option
@click.pass_context
def recompute(
    ctx: click.Context,
    as_of: datetime | None,
    from_at: datetime | None,
    to_at: datetime | None,
    site: str | None,
    restate: bool,
    reason: str | None,
    format_: Format,
) -> None:
    """Compute closed hours again as they were known, and say whether they come out to the byte.

    From samples where what a run read is still there, else from its usage hours; nothing is written, but with --restate.
    """
    if restate:
        if from_at is None or to_at is None or reason is None or as_of is not None:
            raise click.UsageError("--restate wants --from, --to and --reason, and knows no --as-of")
        _restate(ctx, site, from_at, to_at, reason)
        return
    if reason is not None:
        raise click.UsageError("--reason is of --restate")
    from analytics.io.recompute import recompute as computed_again
    from analytics.io.recompute import runs_in_force
    from wattledger.runtime import ready_database, segments_of

    home = chosen_home(ctx)
    database = ready_database(home)
    then = as_of or datetime.now(UTC)
    end_at = to_at or then
    with database.connect("worker", autocommit=True, application="wattledger-cli") as connection:
        runs = runs_in_force(connection, then, from_at or end_at - _LOOK_BACK, end_at, site)
        found = [computed_again(database, connection, segments_of(home), name, run_id) for name, run_id in runs]
    rows: list[dict[str, Any]] = [
        {
            "site": each.site,
            "hour_at": each.hour_at,
            "revision": each.revision,
            "kind": each.kind,
            "code_version": each.code_version,
            "ground": each.ground.value,
            "verdict": _VERDICT[each.is_same],
            "why": each.why,
        }
        for each in found
    ]
    counted = {word: sum(row["verdict"] == word for row in rows) for word in _VERDICT.values()}
    note = f"{len(rows)} hours: " + ", ".join(f"{count} {word}" for word, count in counted.items())
    print_rows(rows, _COLUMNS, format_, notes=[note])
    if counted["differs"]:
        ctx.exit(EXIT_NO)
    if counted["not computed"]:
        ctx.exit(EXIT_UNANSWERED)


def _restate(ctx: click.Context, site: str | None, from_at: datetime, to_at: datetime, reason: str) -> None:
    from analytics.io.restate import ask
    from ingest.store import audit

    with driver_transaction(ctx, "worker") as connection:
        asked = ask(connection, site, from_at, to_at, reason)
        told = {"site": site, "from_at": from_at.isoformat(), "to_at": to_at.isoformat(), "reason": reason}
        audit.note_on(connection, actor(), "books.restate", f"site/{site or '*'}", hours=asked.hours, **told)
    frozen = f", {asked.frozen} of them of closed months, which get corrections" if asked.frozen else ""
    click.echo(
        f"the worker computes {asked.hours} hours again{frozen}; those that come out the same keep their revision"
    )


_COLUMNS: Final = (
    Shown("site", "site"),
    Shown("hour_at", "hour (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}"),
    Shown("revision", "rev"),
    Shown("kind", "run"),
    Shown("ground", "made of"),
    Shown("verdict", "verdict"),
    Shown("why", "why"),
)
