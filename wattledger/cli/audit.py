"""`wattledger audit`: who did what to this installation, and whether the books are as they were written. It only reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import EXIT_NO, EXIT_UNANSWERED, chosen_home
from wattledger.cli.access import transaction
from wattledger.cli.bill import Instant
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows
from wattledger.cli.parameters import Duration, Text, TextFile

if TYPE_CHECKING:
    from analytics.io.verify_period import Verified
    from ingest.store.audit import Act

_LOOK_BACK: Final = timedelta(days=31)


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger audit log
  wattledger audit log --action token --since 30d --format csv
  wattledger audit verify --period 2026-10 --export close-2026-10.json --public-key close.key.pub
""",
)
def audit() -> None:
    """Who did what to this installation, and whether the books are as they were written."""


@audit.command(
    epilog="""\b
Examples:
  wattledger audit log
  wattledger audit log --action token --since 30d
  wattledger audit log --top 1000 --format json > acts.json
"""
)
@click.option("--action", help="A kind of act, e.g. token.create, or what it begins with: token, policy, deadletter.")
@click.option("--actor", help="Who did it, as the audit names them.")
@click.option("--since", type=Duration(), help="Only of the last so long, e.g. 24h or 30d.")
@click.option("--top", type=click.IntRange(1, 100_000), default=100, show_default=True, help="The newest so many.")
@format_option
@click.pass_context
def log(
    ctx: click.Context, action: str | None, actor: str | None, since: timedelta | None, top: int, format_: Format
) -> None:
    """List administrative acts, newest first, with what they changed."""
    from ingest.store import audit as store

    from_at = None if since is None else datetime.now(UTC) - since
    with transaction(ctx, "worker") as connection:
        found = store.acts(connection, from_at=from_at, actor=actor, action=action, limit=top)
    shown = (
        Shown("at", "when (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M:%S}"),
        Shown("actor", "who"),
        Shown("action", "did"),
        Shown("subject", "to"),
        Shown("detail", "what", _line, leaves=1),
    )
    rows = [_row(act) for act in found]
    if format_ == "csv":  # a cell that programs can read again
        rows = [row | {"detail": json.dumps(row["detail"])} for row in rows]
    print_rows(rows, shown, format_)


@audit.command(
    epilog="""\b
Examples:
  wattledger audit verify
  wattledger audit verify --period 2026-10
  wattledger audit verify --period 2026-10 --export close-2026-10.json --public-key close.key.pub
  wattledger audit verify --from 2026-01-01 --to 2026-11-01 --site fra1 --format json

\b
Exit code: 0 all is as it was written, 1 something is not, 2 there was nothing to verify.
"""
)
@click.option("--period", metavar="MONTH", help="A month, e.g. 2026-10: its hours, its chain and its root.")
@click.option("--from", "from_at", type=Instant(), help="Start. Default: 31 days before the end.")
@click.option("--to", "to_at", type=Instant(), help="End, exclusive. Default: now.")
@click.option("--site", help="Only this site.")
@click.option(
    "--export",
    "export_file",
    type=TextFile(),
    help="The month's document, as `close` wrote it: is it what is on record?",
)
@click.option(
    "--public-key",
    "key_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Whose signature the document must bear: KEY.pub.",
)
@format_option
@click.pass_context
def verify(
    ctx: click.Context,
    period: str | None,
    from_at: datetime | None,
    to_at: datetime | None,
    site: str | None,
    export_file: Text | None,
    key_file: Path | None,
    format_: Format,
) -> None:
    """Compute every chain again from the stored lines, add them up, and name what was altered, dropped, moved or invented."""
    from analytics.io.period_document import parsed
    from analytics.io.signing import read_public_key
    from analytics.io.verify_period import verify as verified
    from analytics.model.month import month
    from wattledger.runtime import billing_zone, ready_database

    if key_file is not None and export_file is None:
        raise click.UsageError("--public-key needs --export: the signature is of that document")
    if period is not None and (from_at is not None or to_at is not None):
        raise click.UsageError("--period names the span; leave --from and --to away")
    document = None if export_file is None else parsed(export_file.content, export_file.name)
    if document is not None and period is None and from_at is None and to_at is None:
        period = str(document["period"]["name"])
    key = None if key_file is None else read_public_key(key_file)
    if period is not None:
        of = month(period, billing_zone())
        first, last = of.from_at, of.to_at
    else:
        last = to_at or datetime.now(UTC)
        first = from_at or last - _LOOK_BACK
    database = ready_database(chosen_home(ctx))
    with database.connect("worker", autocommit=True, application="wattledger-cli") as connection:
        found = verified(connection, from_at=first, to_at=last, site=site, name=period, document=document, key=key)
    rows = [
        {"site": each.site, "hour_at": each.hour_at, "kind": each.kind, "what": each.what} for each in found.problems
    ]
    notes = list(_told(found, signed=key is not None))
    if period is not None and not found.periods:
        notes.append(f"{period} was never closed{f' for {site}' if site else ''}: there is no root to look at")
    shown = (
        Shown("site", "site"),
        Shown("hour_at", "hour (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}"),
        Shown("kind", "what happened"),
        Shown("what", "where"),
    )
    print_rows(rows, shown, format_, notes=notes)
    if rows:
        ctx.exit(EXIT_NO)
    if not found.hours and not found.periods:
        ctx.exit(EXIT_UNANSWERED)


def _told(found: Verified, *, signed: bool) -> Iterator[str]:
    verdict = "all as they were written" if not found.problems else f"{len(found.problems)} faults"
    yield f"{found.hours} hours, {found.lines} lines: {verdict}"
    for name, number, root in found.periods:
        yield f"{name} number {number}: root {root}" + (", signature good" if signed and not found.problems else "")
    if found.unchained:
        yield f"{found.unchained} lines are of before chains were kept: nothing can be said of them"
    if found.forgotten:
        yield f"{found.forgotten} lines had a person's name replaced; the chain holds its hash, which nobody can open any more"


def _row(act: Act) -> dict[str, Any]:
    return {
        "id": act.id,
        "at": act.at,
        "actor": act.actor,
        "action": act.action,
        "subject": act.subject,
        "detail": dict(act.detail),
    }


def _line(detail: dict[str, Any]) -> str:
    """Return a detail in one line: what changed as `name: before > after`, the rest as `name: value`."""
    before, after = (detail.get(side) or {} for side in ("before", "after"))
    parts = [
        f"{name}: {_word(before.get(name))} > {_word(after.get(name))}" if name in before else f"{name}: {_word(value)}"
        for name, value in (before | after).items()
    ]
    parts += [f"{name}: {_word(value)}" for name, value in detail.items() if name not in {"before", "after"}]
    return ", ".join(parts)


def _word(value: Any) -> str:
    text = "-" if value is None else str(value)
    return "".join(mark if mark.isprintable() else "?" for mark in text)[:80]
