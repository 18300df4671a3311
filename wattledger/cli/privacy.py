"""`wattledger privacy`: how people's names are kept, what is known of one, and forgetting one. Figures stay as they are."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, transaction
from wattledger.cli.listing import Listing

if TYPE_CHECKING:
    from ingest.store.privacy import Privacy


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger privacy show
  wattledger privacy set --pseudonyms --keep-names 90
  wattledger privacy export ada > ada.json
  wattledger privacy erase ada
""",
)
def privacy() -> None:
    """How people's names are kept; what is known of one; forgetting one."""


@privacy.command(epilog="\b\nExample:\n  wattledger privacy show")
@click.pass_context
def show(ctx: click.Context) -> None:
    """Say whether names are replaced, and how long they are kept."""
    from ingest.store import privacy as store

    with transaction(ctx, "owner") as connection:
        _say(store.read(connection))


@privacy.command(
    "set",
    epilog="""\b
Examples:
  wattledger privacy set --pseudonyms            names of jobs that come in from now on
  wattledger privacy set --keep-names 90         and of jobs that ended 90 days ago
  wattledger privacy set --no-pseudonyms --keep-names 0

\b
Rules in bindings and budgets that name a user must name the pseudonym; `privacy pseudonym` tells it.
A job whose owner is a pseudonym is never stopped: its owner cannot be read again at the scheduler.
""",
)
@click.option("--pseudonyms/--no-pseudonyms", default=None, help="Replace names before they are stored.")
@click.option("--keep-names", type=click.IntRange(0, 36_500), help="Days after a job's end; 0 keeps them for ever.")
@click.pass_context
def set_(ctx: click.Context, pseudonyms: bool | None, keep_names: int | None) -> None:
    """Choose how names are kept; what is not given stays."""
    from ingest.store import privacy as store

    with transaction(ctx, "owner") as connection:
        now = store.read(connection)
        days = now.names_kept_days if keep_names is None else (keep_names or None)
        wanted = store.Privacy(now.pseudonyms if pseudonyms is None else pseudonyms, days)
        store.change(connection, wanted, actor=actor())
    _say(wanted)


@privacy.command(epilog="\b\nExample:\n  wattledger privacy pseudonym ada")
@click.argument("user")
@click.pass_context
def pseudonym(ctx: click.Context, user: str) -> None:
    """Print what a user is called where names are replaced. Exit code 1 while there is no key for it."""
    from ingest.store import privacy as store

    with transaction(ctx, "owner") as connection:
        made = store.pseudonym(connection, user)
    if made == user:
        click.echo("there is no key yet; `wattledger privacy set --pseudonyms` makes one", err=True)
        ctx.exit(EXIT_NO)
    click.echo(made)


@privacy.command(epilog="\b\nExample:\n  wattledger privacy export ada > ada.json")
@click.argument("user")
@click.pass_context
def export(ctx: click.Context, user: str) -> None:
    """Print as JSON every row that names a user or the user's pseudonym. Exit code 1 when there is none."""
    from ingest.store import audit
    from ingest.store import privacy as store

    with transaction(ctx, "owner") as connection:
        found = store.export(connection, user)
        audit.note(
            connection, actor(), "privacy.export", "person", rows={name: len(rows) for name, rows in found.items()}
        )
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")
    if not found:
        ctx.exit(EXIT_NO)


@privacy.command(
    epilog="""\b
Examples:
  wattledger privacy erase ada
  wattledger privacy erase ada --yes

\b
What stays: backups made before, labels of jobs in segments sealed by earlier versions until these expire, the audit.
"""
)
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def erase(ctx: click.Context, user: str, yes: bool) -> None:
    """Forget a user in every table: rows stay, under a name that nobody can compute, and so do figures. Cannot be undone."""
    from ingest.store import privacy as store

    if not yes:
        click.confirm(f"Replace {user!r} everywhere, for good?", abort=True)
    with transaction(ctx, "owner") as connection:
        erased, counts = store.erase(connection, user, actor=actor())
    if not counts:
        click.echo("nothing names this user", err=True)
        ctx.exit(EXIT_NO)
    click.echo(f"now {erased}: " + ", ".join(f"{count} rows of {table}" for table, count in counts.items()))


def _say(settings: Privacy) -> None:
    click.echo(f"names at the door  {'replaced by pseudonyms' if settings.pseudonyms else 'kept as they come'}")
    kept = settings.names_kept_days
    click.echo(f"names of old jobs  {'kept for ever' if kept is None else f'replaced {kept} days after the end'}")
