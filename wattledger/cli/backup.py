"""The commands `backup` and `restore`: they read options, call the work, and print how far it is and what came of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wattledger.cli import EXIT_NO, chosen_home

if TYPE_CHECKING:
    from wattledger.diagnosis import Check

_SIGNS = {"fine": "✓", "note": "·", "warning": "!", "broken": "✗", "unanswered": "?"}


@click.command(
    epilog="""\b
Examples:
  wattledger backup /mnt/backup/ledger                  while everything runs
  wattledger backup /mnt/backup/ledger --keep 14        and delete all but the newest 14
  WATTLEDGER_DATABASE_URL=postgresql://postgres@db/ledger wattledger backup /mnt/backup/ledger

\b
The database and the sealed files it names, at one point in time. Sealed files that the target has from
an earlier backup are not copied again. Tokens are inside as hashes; the home's own secrets, keys of the
fleet and certificates are not: keep those where you keep secrets. One backup of a target at a time: a second is
refused, from other machines too.
"""
)
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), help="Delete older backups of the target beyond so many.")
@click.option(
    "--reread", is_flag=True, help="Read sealed files of earlier backups again instead of believing their size."
)
@click.pass_context
def backup(ctx: click.Context, target: Path, keep: int | None, reread: bool) -> None:
    """Back up database and sealed hours into a folder; writers go on meanwhile."""
    from wattledger.backup import back_up
    from wattledger.runtime import database_of, segments_of

    home = chosen_home(ctx)
    made = back_up(
        database_of(home),
        segments_of(home),
        home.root,
        target,
        env=os.environ,
        say=click.echo,
        reread=reread,
        keep=keep,
    )
    click.echo(f"{made.folder}: schema {made.manifest.schema}, {made.manifest.ledger.lines:,} ledger lines")


@click.command(
    epilog="""\b
Examples:
  wattledger restore /mnt/backup/ledger --check         only look whether it could be restored
  wattledger --home /srv/wl-new restore /mnt/backup/ledger
  wattledger --home /srv/wl-new restore /mnt/backup/ledger/backups/20261121T191500.000000Z

\b
The newest backup of a target, or one by its folder, into an empty home or an empty database.
Exit code: 0 restored and checked, 1 something about it is wrong, 2 nothing was restored.
"""
)
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--check", "only_check", is_flag=True, help="Compare every checksum of the backup and restore nothing.")
@click.pass_context
def restore(ctx: click.Context, source: Path, only_check: bool) -> None:
    """Restore a backup into an empty home and database, and look at the result."""
    from ingest.store.engine import Database
    from wattledger.restore import open_source, verify
    from wattledger.restore import restore as put_back
    from wattledger.runtime import segments_of
    from wattledger.supervise import Supervisor

    opened = open_source(source)
    verify(opened, click.echo)
    if only_check:
        click.echo(f"{opened.folder}: taken {opened.manifest.taken_at}, can be restored")
        return
    home = chosen_home(ctx)
    with Supervisor(home, announce=click.echo) as supervisor:  # nobody else starts this home meanwhile
        named = Database.from_env(os.environ)
        database = supervisor.start_postgres() if named is None else named
        checks = put_back(opened, database, segments_of(home), home.root, env=os.environ, say=click.echo)
    for check in checks:
        _print(check)
    if any(check.verdict == "broken" for check in checks):
        ctx.exit(EXIT_NO)
    click.echo(f"restored {opened.folder.name} into {home.root}; `wattledger up` goes on from there")


def _print(check: Check) -> None:
    click.echo(f"{_SIGNS[check.verdict]} {check.subject}: {check.found}")
    if check.remedy:
        click.echo(f"  → {check.remedy}")
