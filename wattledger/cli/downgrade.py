"""The command `downgrade`: says what an older schema would lose, looks for a backup of it, and goes back only then."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wattledger.cli import EXIT_NO, chosen_home

if TYPE_CHECKING:
    from ingest.store.retreat import Way


@click.command(
    epilog="""\b
Examples:
  wattledger downgrade 0031 --check                      what would be undone, and what would be lost by it
  wattledger downgrade 0031
  wattledger downgrade 0031 --drop-data --backup /mnt/backup/ledger

\b
Run the newer version's, with ingest, API and worker stopped, and start the older version afterwards. REVISION
is what `wattledger doctor` of the older version calls its schema; the beginning of the name is enough.
All of it is one transaction: what fails leaves the database as it was.
Exit code: 0 done (or nothing would be lost), 1 data would be lost and nothing was changed, 2 it cannot be done.
"""
)
@click.argument("revision")
@click.option("--check", "only_check", is_flag=True, help="Only say what would be undone and lost; change nothing.")
@click.option("--drop-data", is_flag=True, help="Go back although that loses what is listed. Needs --backup.")
@click.option(
    "--backup",
    "target",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the backup lies that has what is lost: whole, of this schema, not older than a day.",
)
@click.pass_context
def downgrade(ctx: click.Context, revision: str, only_check: bool, drop_data: bool, target: Path | None) -> None:
    """Take the database schema back to an older version's; refuses to lose data unless told to."""
    from ingest.store.engine import Database
    from ingest.store.migrate import current
    from ingest.store.retreat import retreat
    from wattledger.restore import backed_up
    from wattledger.supervise import Supervisor

    if drop_data and target is None:
        raise click.UsageError("--drop-data needs --backup: the folder `wattledger backup` was given just before")
    home = chosen_home(ctx)
    with ExitStack() as stack:
        database = Database.from_env(os.environ)
        if database is None:  # its server may be stopped, and nobody else may start it meanwhile
            database = stack.enter_context(Supervisor(home, announce=click.echo)).start_postgres()
        if target is not None:
            click.echo(backed_up(target, current(database.url), datetime.now(UTC), click.echo))
        way = retreat(database.url, revision, lambda way: not only_check and (drop_data or not way.losses))
    _tell(way)
    if way.losses and not way.is_done:
        if not only_check:
            click.echo("nothing was changed; go back all the same with --drop-data --backup TARGET", err=True)
        ctx.exit(EXIT_NO)


def _tell(way: Way) -> None:
    click.echo(f"{'undone' if way.is_done else 'would be undone'}: {', '.join(way.undone)}")
    for loss in way.losses:
        click.echo(f"  {'lost' if way.is_done else 'would be lost'}: {loss}")
    if not way.losses:
        click.echo(f"  {'nothing was' if way.is_done else 'nothing would be'} lost")
    if way.is_done:
        click.echo(f"the schema is {way.end}; start the version that calls it its own")
