"""`wattledger deadletter`: the bodies that could not be taken as they are: why, what is in them, and what to do with them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wattledger.cli import EXIT_NO, chosen_home
from wattledger.cli.access import actor, transaction
from wattledger.cli.failure import fail
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, plain, print_rows

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ingest.replay import Contents
    from ingest.store.dead_letter_list import Letter, LetterHead


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger deadletter list
  wattledger deadletter show 17
  wattledger deadletter replay 17 --clock corrected
  wattledger deadletter drop 17
""",
)
def deadletter() -> None:
    """List, show, replay and drop bodies that could not be taken as they are. Nothing is dropped unless you say so."""


@deadletter.command(
    "list",
    epilog="""\b
Examples:
  wattledger deadletter list
  wattledger deadletter list --reason clock_skew --format csv
  wattledger deadletter list --all
""",
)
@click.option("--reason", help="Only those of this reason, e.g. clock_skew.")
@click.option("--all", "with_replayed", is_flag=True, help="Those replayed as well.")
@click.option("--top", "most", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@format_option
@click.pass_context
def list_(ctx: click.Context, reason: str | None, with_replayed: bool, most: int, format_: Format) -> None:
    """List the bodies that wait, newest first."""
    from ingest.store.dead_letter_list import heads, waiting

    now = datetime.now(UTC)
    with transaction(ctx, "worker") as connection:
        found = heads(connection, most=most, reason=reason, with_replayed=with_replayed)
        rows = [_row(connection, head, now) for head in found]
        left = waiting(connection)
    shown = [
        Shown("letter_id", "id", numeric=True),
        Shown("received_at", "received (UTC)", _instant, leaves=1),
        Shown("age_s", "age", _age, numeric=True),
        Shown("site", "site", leaves=2),
        Shown("node", "node"),
        Shown("reason", "reason"),
        Shown("skew_us", "clock off (s)", lambda skew_us: f"{skew_us / 1e6:+.1f}", numeric=True),
        Shown("body_bytes", "bytes", lambda size: f"{size:,}", numeric=True),
    ]
    if with_replayed:
        shown.append(Shown("replayed_at", "replayed (UTC)", _instant))
    print_rows(rows, shown, format_, notes=[f"{left} waiting in all"])


@deadletter.command(
    epilog="""\b
Examples:
  wattledger deadletter show 17
  wattledger deadletter show 17 --raw batch.arrow.zst     its bytes, for a program to look at
  wattledger deadletter show 17 --format json
"""
)
@click.argument("letter_id", type=int)
@click.option(
    "--raw", type=click.Path(dir_okay=False, path_type=Path), help="Write the body to this file, byte for byte."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How to print: for people, or whole as JSON.",
)
@click.pass_context
def show(ctx: click.Context, letter_id: int, raw: Path | None, format_: str) -> None:
    """Show one body: reason, sender, headers, and what can be read of it. Exit code 1 when there is none of this id."""
    from ingest.store.dead_letter_list import letter

    with transaction(ctx, "worker") as connection:
        found = letter(connection, letter_id)
    if found is None:
        _no_such(letter_id)
    if raw is not None:
        try:
            raw.write_bytes(found.body)
        except OSError as error:
            raise click.BadParameter(f"{raw} cannot be written: {error.strerror}", param_hint="--raw") from error
    facts = _facts(found)
    if format_ == "json":
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = "; ".join(f"{key}: {text}" for key, text in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:<{width}}  {'-' if shown is None else _printable(str(shown))}")
    if raw is not None:
        click.echo(f"body written to {raw}")


@deadletter.command(
    epilog="""\b
Examples:
  wattledger deadletter replay 17 --clock corrected       move its times by the skew that was measured
  wattledger deadletter replay 17 --clock as-sent         the clock was right and the door was not
  wattledger deadletter replay --all --reason clock_skew --clock corrected
\b
A body is taken once however often it is replayed. A body from a sender whose clock was off needs --clock:
`show` tells the times in it. Exit codes: 0 all are in, 1 some are not, with the reason, 2 could not be tried.
"""
)
@click.argument("letter_ids", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that wait, instead of naming them.")
@click.option("--reason", help="With --all: only those of this reason.")
@click.option(
    "--clock",
    type=click.Choice(["as-sent", "corrected"]),
    help="Times of bodies whose sender's clock was off: as they are, or less the skew measured.",
)
@click.pass_context
def replay(
    ctx: click.Context, letter_ids: tuple[int, ...], everything: bool, reason: str | None, clock: str | None
) -> None:
    """Send bodies through ingest again. What still cannot be taken stays, with the new reason."""
    from ingest.replay import Clock, Replayer, replayer
    from ingest.settings import Settings
    from ingest.store import dead_letter_list as letters
    from ingest.store.dead_letters import CONTESTED
    from wattledger.runtime import ready_database

    if bool(letter_ids) == everything or (reason is not None and not everything):
        raise click.UsageError("name the letters to replay, or say --all (and --reason with it)")
    database = ready_database(chosen_home(ctx))
    settings = Settings.from_env(os.environ, database)

    def one(sender: Replayer, letter_id: int) -> bool:
        with transaction(ctx, "worker") as connection:
            found = letters.letter(connection, letter_id)
        said, taken = "there is no such letter", False
        if found is not None and found.head.replayed_at is not None:
            said, taken = f"replayed already, at {_instant(found.head.replayed_at)} UTC", True
        elif found is not None and found.head.skew_us is not None and clock is None:
            said = (
                f"the sender's clock was {found.head.skew_us / 1e6:+.1f} s off; say --clock corrected or --clock as-sent, "
                f"`wattledger deadletter show {letter_id}` tells its times"
            )
        elif found is not None and found.head.reason == CONTESTED and everything and reason is None:
            said = (
                f"two nodes named its devices; name the letter, or --reason {CONTESTED}, if its rows are the true ones"
            )
        elif found is not None:
            said, taken = _sent(ctx, sender, found, Clock(clock or "as-sent"))
        click.echo(f"{letter_id}: {said}")
        return taken

    if everything:
        with transaction(ctx, "worker") as connection:
            letter_ids = letters.ids(connection, reason=reason)
        if not letter_ids:
            click.echo("none waits")
    with replayer(database, settings.hot_retention) as sender:
        taken = [one(sender, letter_id) for letter_id in letter_ids]
    if not all(taken):
        ctx.exit(EXIT_NO)


@deadletter.command(
    epilog="""\b
Examples:
  wattledger deadletter drop 17
  wattledger deadletter drop 17 18 --yes
  wattledger deadletter drop --replayed --yes             those that are in the tables anyway
\b
What was dropped is in the audit: when it came, from where, why it waited, and the hash of its bytes.
"""
)
@click.argument("letter_ids", type=int, nargs=-1)
@click.option("--replayed", is_flag=True, help="All that were replayed, instead of naming them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(ctx: click.Context, letter_ids: tuple[int, ...], replayed: bool, yes: bool) -> None:
    """Delete bodies for good. Exit code 1 when one of them is not there."""
    from ingest.store import dead_letter_list as letters

    if bool(letter_ids) == replayed:
        raise click.UsageError("name the letters to drop, or say --replayed")
    if replayed:
        with transaction(ctx, "worker") as connection:
            letter_ids = letters.ids(connection, replayed=True)
    if not yes and letter_ids:
        what = "all replayed" if replayed else "what was not replayed is in no book"
        bodies = f"{len(letter_ids)} {'body' if len(letter_ids) == 1 else 'bodies'}"
        click.confirm(f"Delete {bodies} for good ({what})?", abort=True)
    gone = 0
    for letter_id in letter_ids:
        with transaction(ctx, "owner") as connection:
            head = letters.drop(connection, letter_id, actor=actor())
        gone += head is not None
        click.echo(f"{letter_id}: there is no such letter" if head is None else f"{letter_id}: dropped")
    if replayed:
        click.echo(f"{gone} dropped")
    if gone < len(letter_ids):
        ctx.exit(EXIT_NO)


def _sent(ctx: click.Context, sender: Any, found: Letter, clock: Any) -> tuple[str, bool]:
    """Replay one letter and note the result; return what to say, and whether it is in."""
    from ingest.errors import IngestError, UnavailableError
    from ingest.store import audit
    from ingest.store import dead_letter_list as letters

    try:
        outcome = sender.replay(found, clock)
    except UnavailableError as error:
        fail(f"letter {found.head.letter_id} stays as it is: {error.detail}")
    except IngestError as error:
        with transaction(ctx, "owner") as connection:
            letters.update_reason(connection, found.head.letter_id, error.reason, error.detail)
        return f"still refused, {error.reason}: {error.detail}", False
    with transaction(ctx, "owner") as connection:
        letters.mark_replayed(connection, found.head.letter_id)
        audit.note(
            connection, actor(), "deadletter.replay", f"deadletter/{found.head.letter_id}", rows=outcome.accepted_rows
        )
    if outcome.duplicate:
        return "was in already, nothing written", True
    refused = "".join(f", {refusal.rows:,} refused or repaired: {refusal.reason}" for refusal in outcome.refusals)
    return f"{outcome.accepted_rows:,} rows taken{refused}", True


def _row(connection: sa.Connection, head: LetterHead, now: datetime) -> dict[str, Any]:
    row = asdict(head)
    if head.node is None:  # a token for the whole site names no node; the body does
        from ingest.store.dead_letter_list import letter

        found = letter(connection, head.letter_id)
        read = None if found is None else _contents(found.body)[0]
        row["node"] = None if read is None else read.meta.node
    row["age_s"] = round((now - head.received_at).total_seconds())
    return row


def _facts(found: Letter) -> dict[str, Any]:
    read, fault = _contents(found.body)
    facts: dict[str, Any] = {
        **{name: plain(value) for name, value in asdict(found.head).items()},
        "body_sha256": hashlib.sha256(found.body).hexdigest(),
        "headers": dict(found.headers),
    }
    if read is None:
        return facts | {"contents": f"cannot be read: {fault}"}
    meta = read.meta
    facts["node"] = facts["node"] or meta.node
    facts |= {
        "batch": f"{meta.spool} {meta.sequence}",
        "boot_id": meta.boot_id,
        "feed": meta.feed.name.lower(),
        "origin": meta.origin.name.lower(),
        "agent_version": meta.agent_version,
        "devices": ", ".join(device.uuid for device in meta.devices) or None,
        "rows": {stream.value: rows for stream, rows in read.rows.items()},
        "first_at": None if read.first_at is None else plain(read.first_at),
        "last_at": None if read.last_at is None else plain(read.last_at),
    }
    if found.head.skew_us is not None and read.first_at is not None and read.last_at is not None:
        skew = timedelta(microseconds=found.head.skew_us)
        facts |= {
            "first_at_corrected": plain(read.first_at - skew),
            "last_at_corrected": plain(read.last_at - skew),
        }
    return facts


def _contents(body: bytes) -> tuple[Contents | None, str]:
    from ingest.errors import BadBodyError
    from ingest.replay import contents

    try:
        return contents(body), ""
    except BadBodyError as error:
        return None, f"{error.reason}, {error.detail}"


def _no_such(letter_id: int) -> NoReturn:
    click.echo(f"there is no dead letter {letter_id}; see `wattledger deadletter list --all`", err=True)
    sys.exit(EXIT_NO)


def _printable(text: str) -> str:
    """Return a text that does nothing to a terminal: a sender chose parts of it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _age(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
