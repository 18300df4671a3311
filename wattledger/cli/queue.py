"""`wattledger queue`: what waits for accelerators, since when and why, as the watchers told it."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from wattledger.cli import chosen_home
from wattledger.cli.output import Format, Shown, format_option, print_rows


@click.command(
    epilog="""\b
Examples:
  wattledger queue
  wattledger queue --cluster alpha --format csv > queue.csv
\b
`wattledger watch` fills it; docs/schedulers.md tells from what.
"""
)
@click.option("--site", help="Only this site.")
@click.option("--cluster", help="Only this cluster.")
@format_option
@click.pass_context
def queue(ctx: click.Context, site: str | None, cluster: str | None, format_: Format) -> None:
    """Show jobs that wait, longest first, with the scheduler's reason."""
    from analytics.io.queue_reads import waiting
    from collector.wire import Origin
    from wattledger.runtime import ready_database

    database = ready_database(chosen_home(ctx))
    with database.connect("worker", application="wattledger-queue") as connection:
        rows = waiting(connection, datetime.now(UTC), site=site, cluster=cluster)
    for row in rows:
        row["origin"] = Origin(row["origin"]).name.lower()
        row["owner"] = "/".join(filter(None, (row["namespace"], row["account"], row["user_name"])))
        row["asks_for"] = None if row["accelerators"] is None else row["accelerators"] * (row["tasks"] or 1)
    shown = (
        Shown("cluster", "cluster", leaves=3),
        Shown("native_id", "job"),
        Shown("name", "name", leaves=4),
        Shown("owner", "owner"),
        Shown("partition", "queue", leaves=2),
        Shown("asks_for", "accelerators", numeric=True),
        Shown("waiting_s", "waits (h)", lambda waiting_s: f"{waiting_s / 3600:,.1f}", numeric=True),
        Shown("reason", "reason"),
        Shown("reason_since_at", "since (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}", leaves=5),
        Shown("origin", "origin", leaves=1),
    )
    accelerators = sum(row["asks_for"] or 0 for row in rows)
    print_rows(rows, shown, format_, notes=[f"waiting: {len(rows):,}, for {accelerators:,} accelerators"])
