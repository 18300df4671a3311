"""The `close` command: a month looked at, frozen, chained into one root and signed; opened again by whoever may."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from wattledger.cli import EXIT_NO, chosen_home
from wattledger.cli.access import actor
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows

if TYPE_CHECKING:
    import psycopg

    from analytics.io.checklist import Item
    from analytics.io.periods import Period
    from ingest.store.engine import Role

_MONTH: Final = re.compile(r"\d{4}-\d{2}")
_TOKEN: Final = "WATTLEDGER_TOKEN"  # noqa: S105 (a name)
_COLOUR: Final = {"ok": "green", "warn": "yellow", "stop": "red", "accepted": "yellow"}


class _OfMonths(Listing):
    """A group whose commands may be left out before a month: `close 2026-10` is `close month 2026-10`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = next((place for place, arg in enumerate(args) if _MONTH.fullmatch(arg)), None)
        if first is not None and not any(arg in self.commands for arg in args[:first]):
            args = ["month", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "month" if _MONTH.fullmatch(cmd_name) else cmd_name)


@click.group(
    cls=_OfMonths,
    epilog="""\b
Examples:
  wattledger close keygen close.key
  wattledger close 2026-10 --dry-run
  wattledger close 2026-10 --accept feeds --key close.key
  wattledger close list

\b
Exit code: 0 closed (or nothing stops it, with --dry-run), 1 something stops it, 2 could not be answered.
""",
)
def close() -> None:
    """Close a month: its checklist, its hours frozen and chained, one root to sign and keep elsewhere."""


@close.command(
    epilog="""\b
Examples:
  wattledger close 2026-10 --dry-run
  wattledger close month 2026-10 --dry-run          the same
  wattledger close 2026-10 --accept attested --accept feeds --key close.key
  wattledger close 2026-10 --site fra1 --key close.key --export fra1-2026-10.json
"""
)
@click.argument("name", metavar="MONTH")
@click.option("--site", help="Close this site alone. Default: all that have not been closed alone.")
@click.option("--dry-run", is_flag=True, help="Show the checklist and change nothing.")
@click.option(
    "--accept",
    "accepted",
    multiple=True,
    metavar="ITEM",
    help="A stop of the checklist that is no reason to wait; on record with you.",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Sign the root with this key; see `close keygen`.",
)
@click.option(
    "--export",
    "export_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the document. Default: ./close-MONTH.json.",
)
@format_option
@click.pass_context
def month(
    ctx: click.Context,
    name: str,
    site: str | None,
    dry_run: bool,
    accepted: tuple[str, ...],
    key_file: Path | None,
    export_file: Path | None,
    format_: Format,
) -> None:
    """Close a month, or show what stops it."""
    from analytics.io.checklist import Verdict
    from analytics.io.periods import NotReadyError, close_month, find, look
    from analytics.io.signing import read_key
    from analytics.model.month import month as month_of
    from wattledger.runtime import billing_zone

    of = month_of(name, billing_zone())
    key = None if key_file is None else read_key(key_file)
    now, lateness = _now(), _lateness()
    with _connection(ctx, "owner") as connection:
        if dry_run:
            items = look(connection, of, site, now=now, lateness=lateness)
            _print_items(items, accepted, format_, f"checklist of {_called(name, site)}, which is not closed")
            stops = [item for item in items if item.verdict is Verdict.STOP and item.name not in accepted]
            ctx.exit(EXIT_NO if stops else 0)
        before = find(connection, name, site)
        target = export_file or Path(_file_name(name, site, 1 if before is None else before.number + 1))
        with _reserved(
            target
        ) as draft:  # before anything is closed: the file is the half of it that nobody can write again from elsewhere
            try:
                done = close_month(
                    connection, of, site, now=now, lateness=lateness, by=actor(), accepted=accepted, key=key
                )
            except NotReadyError as error:
                _print_items(error.items, accepted, format_, f"checklist of {_called(name, site)}, which is not closed")
                click.echo(f"error: {error}", err=True)
                ctx.exit(EXIT_NO)
            files = _write(connection, done.period, done.document, draft, target)
    _print_items(done.items, accepted, format_, f"checklist of {_called(name, site)}, which is closed")
    if format_ == "table":
        click.echo("")
        for line in _summary(done.period, files):
            click.echo(line)


@close.command(epilog="\b\nExample:\n  wattledger close keygen ~/wattledger-close.key")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def keygen(file: Path) -> None:
    """Make an Ed25519 key that signs closes, and its public half beside it; keep the first away from the database."""
    from analytics.io.signing import key_id, make_key, read_public_key

    public = make_key(file)
    click.echo(f"{file}: the secret key, readable by you alone; keep it and a copy away from the database")
    click.echo(f"{public}: the public key {key_id(read_public_key(public))}; give it to whoever checks a close")


@close.command("list", epilog="\b\nExample:\n  wattledger close list --format json")
@format_option
@click.pass_context
def list_(ctx: click.Context, format_: Format) -> None:
    """List the months that were closed, the newest first, with their roots."""
    from analytics.io.periods import listed

    with _connection(ctx, "worker") as connection:
        rows = [_row(period) for period in listed(connection)]
    shown = (
        Shown("period", "month"),
        Shown("site", "site"),
        Shown("number", "no.", numeric=True),
        Shown("status", "status"),
        Shown("hours", "hours", numeric=True),
        Shown("lines", "lines", numeric=True),
        Shown("corrections", "corrections in it", numeric=True, leaves=2),
        Shown("billed_cost", "cost"),
        Shown("root_sha256", "root (SHA-256)", lambda text: text[:16] + "…"),
        Shown("key_id", "signed by", leaves=1),
        Shown("closed_at", "closed (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}"),
        Shown("closed_by", "by", leaves=3),
    )
    print_rows(rows, shown, format_)


@close.command(
    epilog="""\b
Examples:
  wattledger close export 2026-10 close-2026-10.json
"""
)
@click.argument("name", metavar="MONTH")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--site", help="Of the month that was closed for this site alone.")
@click.pass_context
def export(ctx: click.Context, name: str, file: Path, site: str | None) -> None:
    """Write the document of a closed month once more, from what is on record."""
    from analytics.errors import CloseError
    from analytics.io.periods import exported, find

    with _connection(ctx, "worker") as connection, _reserved(file) as draft:
        period = find(connection, name, site)
        if period is None:
            raise CloseError(f"{_called(name, site)} was never closed; see `wattledger close list`")
        files = _write(connection, period, exported(connection, period), draft, file)
    click.echo(
        f"{' and '.join(map(str, files))}: {_called(name, site)} number {period.number}, root {period.root_sha256.hex()}"
    )


@close.command(
    epilog="""\b
Examples:
  WATTLEDGER_TOKEN=wl_... wattledger close reopen 2026-10 --by "Grace Hopper" --reason "tariff of the wrong contract"
"""
)
@click.argument("name", metavar="MONTH")
@click.option("--site", help="Of the month that was closed for this site alone.")
@click.option("--by", "person", required=True, help="Who decided it: a person's name.")
@click.option("--reason", required=True, help="Why; it stands in the audit and beside every line that moves.")
@click.pass_context
def reopen(ctx: click.Context, name: str, site: str | None, person: str, reason: str) -> None:
    """Open a closed month again; needs a token of the scope close in WATTLEDGER_TOKEN.

    What was posted for it in later months is taken back there, and its hours say what they would be by now. The next close shows each
    line that moved.
    """
    from analytics.io import periods

    if not person.strip() or not reason.strip():
        raise click.UsageError("--by and --reason must say something")
    token = _closing_token(ctx)
    with _connection(ctx, "owner") as connection:
        period = periods.reopen(
            connection, name, site, by=f"{person.strip()} (token {token})", reason=reason.strip(), now=_now()
        )
    click.echo(
        f"{_called(name, site)} number {period.number} is open again, by {period.reopened_by}: {period.reopen_reason}"
    )
    click.echo("its hours are restated like any other's; close it again when it is right")


@contextmanager
def _reserved(target: Path) -> Iterator[TextIO]:
    """Give a file beside ``target`` to write to, which nobody else has; it is gone again where it was not made the target."""
    if target.exists():
        raise click.UsageError(f"{target} is there already; name another file")
    draft = target.with_name(f"{target.name}.part")
    try:
        stream = draft.open("x", encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{draft} cannot be written: {error.strerror}; name another place") from None
    try:
        with stream:
            yield stream
    finally:
        draft.unlink(missing_ok=True)


def _write(
    connection: psycopg.Connection[Any], period: Period, document: dict[str, Any], draft: TextIO, target: Path
) -> list[Path]:
    """Write a document to its place, and all lines that moved to a file beside it where the document does not tell them all; return both."""
    from analytics.errors import CloseError
    from analytics.io.period_hours import moved_since

    try:
        files = [target]
        if period.moved_lines > len(document["moved"]["told"]):
            files.append(target.with_suffix(".moved.jsonl"))
            with files[1].open("x", encoding="utf-8") as stream:
                stream.writelines(f"{text}\n" for text in moved_since(connection, period.period_id))
        draft.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        draft.flush()
        os.fsync(draft.fileno())
        Path(draft.name).rename(target)
    except OSError as error:
        raise CloseError(
            f"{_called(period.name, period.site)} is closed as number {period.number}, and {error.filename or target} could not be written: "
            f"{error.strerror}; `wattledger close export {period.name} FILE` writes it again"
        ) from error
    return files


def _closing_token(ctx: click.Context) -> str:
    """Return the name of the token that may reopen; raises CloseError for any other."""
    from analytics.errors import CloseError
    from ingest.store import tokens
    from wattledger.cli.access import transaction

    secret = os.environ.get(_TOKEN)
    if not secret:
        raise CloseError(f"a closed month is opened with a token of the scope close alone: set {_TOKEN}")
    with transaction(ctx, "owner") as connection:
        try:
            token = tokens.verify(connection, secret, datetime.now(UTC))
        except tokens.TokenRefusedError as error:
            raise CloseError(f"the token in {_TOKEN} is refused: {error}") from None
    if not token.allows(tokens.Scope.CLOSE):
        raise CloseError(f"the token {token.name} lacks the scope close; a month is not reopened without it")
    return token.name


def _connection(ctx: click.Context, role: Role) -> psycopg.Connection[Any]:
    from wattledger.runtime import ready_database

    return ready_database(chosen_home(ctx)).connect(role, autocommit=True, application="wattledger-cli")


def _now() -> datetime:
    return datetime.now(UTC)


def _lateness() -> timedelta:
    from analytics.policy import Policy

    return timedelta(microseconds=Policy().lateness_us)


def _called(name: str, site: str | None) -> str:
    return name if site is None else f"{name} of {site}"


def _file_name(name: str, site: str | None, number: int) -> str:
    parts = ["close", name, *([site] if site else []), *([str(number)] if number > 1 else [])]
    return "-".join(re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in parts) + ".json"


def _print_items(items: Sequence[Item], accepted: Sequence[str], format_: Format, title: str) -> None:
    rows = [
        {
            "item": item.name,
            "verdict": _verdict(item, accepted),
            "said": item.said,
            **({} if format_ == "table" else {"figures": _flat(item, format_)}),
        }
        for item in items
    ]
    shown = (
        Shown("verdict", "", lambda word: click.style(f"{word:<8}", fg=_COLOUR[word])),
        Shown("item", "item"),
        Shown("said", "found"),
    )
    print_rows(rows, shown, format_, title=title)


def _flat(item: Item, format_: Format) -> Any:
    return item.figures if format_ == "json" else json.dumps(item.figures)


def _verdict(item: Item, accepted: Sequence[str]) -> str:
    return "accepted" if item.verdict.value == "stop" and item.name in accepted else item.verdict.value


def _summary(period: Period, files: Sequence[Path]) -> list[str]:
    cost = (
        ", ".join(f"{amount} {currency}" for currency, amount in period.totals["billed_cost"].items())
        or "nothing priced"
    )
    signed = (
        f"signed by {period.key_id}"
        if period.key_id
        else "not signed: --key signs it, and only a signature shows who closed it"
    )
    counted = f"{period.hours} hours, {period.lines} lines, {period.corrections} corrections of older months"
    lines = [
        f"{_called(period.name, period.site)} number {period.number}: {counted}, {cost}",
        f"root  {period.root_sha256.hex()}",
        f"      {signed}",
        f"file  {files[0]}; keep it where nobody who can write to the database can",
    ]
    if period.moved_lines:
        lines.append(
            f"{period.moved_lines} lines differ from number {period.number - 1}; {files[-1]} says which, by how much and why"
        )
    return lines


def _row(period: Period) -> dict[str, Any]:
    return {
        "period": period.name,
        "site": period.site or "*",
        "number": period.number,
        "status": period.status,
        "hours": period.hours,
        "lines": period.lines,
        "corrections": period.corrections,
        "billed_cost": ", ".join(f"{amount} {currency}" for currency, amount in period.totals["billed_cost"].items()),
        "root_sha256": period.root_sha256.hex(),
        "key_id": period.key_id,
        "closed_at": period.closed_at,
        "closed_by": period.closed_by,
        "reopened_at": period.reopened_at,
        "reopened_by": period.reopened_by,
        "reopen_reason": period.reopen_reason,
    }
