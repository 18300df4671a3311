"""The `demo` command: progress while the history loads, then the bill and the addresses, then live until Ctrl-C."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from wattledger.cli import chosen_home

if TYPE_CHECKING:
    from wattledger.demo import Demo
    from wattledger.home import Home
    from wattledger.installation import Installation
    from wattledger.supervise import Supervisor


@click.command(
    epilog="""\b
Examples:
  wattledger demo                       48 hours of 128 simulated GPUs, then live until Ctrl-C
  wattledger demo --once                print the bill and exit
  wattledger --home /tmp/wl demo --nodes 4
"""
)
@click.option("--once", is_flag=True, help="Print the bill and exit 0, stopping all that was started.")
@click.option("--nodes", default=16, show_default=True, help="Simulated nodes of 8 GPUs (of a new home).")
@click.option("--seed", default=7, show_default=True, help="Seed of the fleet: same seed, same fleet (of a new home).")
@click.option("--port", default=8470, show_default=True, help="TCP port of ingest and API, on loopback.")
@click.option("--dashboard-port", default=8471, show_default=True, help="TCP port of the dashboard, on loopback.")
@click.pass_context
def demo(ctx: click.Context, once: bool, nodes: int, seed: int, port: int, dashboard_port: int) -> None:
    """Fill 48 hours of a simulated fleet through the real wire, print its bill, and go on live."""
    from wattledger.demo import prepare
    from wattledger.installation import Ports, bring_up, start_worker
    from wattledger.supervise import Supervisor

    home = _demo_home(ctx)
    # History older than two days is late by the ledger's rules, and the demo's begins exactly there.
    env = {**os.environ, "WATTLEDGER_INGEST_HOT_RETENTION_H": "96"}
    with Supervisor(home, announce=click.echo, env=env) as supervisor:
        installation = bring_up(supervisor, Ports(port, dashboard_port), env, say=click.echo, with_worker=False)
        fleet = prepare(home, installation.database, nodes=nodes, seed=seed, now=datetime.now(UTC))
        _fill(installation, fleet)
        start_worker(supervisor, installation, interval_s=5.0)
        _wait_for_books(installation)
        _print_bill(installation, home)
        if once:
            return
        click.echo("live; Ctrl-C stops everything")
        _go_on(supervisor, installation, fleet)


def _demo_home(ctx: click.Context) -> Home:
    """Return the home given, or a folder `demo` in the default one: the demo never mixes with real books."""
    from wattledger.home import HOME_VARIABLE, Home

    home = chosen_home(ctx)
    named = ctx.find_root().obj["home"] is not None or os.environ.get(HOME_VARIABLE)
    return home if named else Home(home.root.parent / f"{home.root.name}-demo", home.origin)


def _fill(installation: Installation, demo: Demo) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from wattledger.simulate.cursor import Cursor
    from wattledger.simulate.feed import Feed
    from wattledger.simulate.feed import Progress as Fed

    spec = demo.fleet.spec
    cursor = Cursor(demo.cursor_path, spec.start_at_us)
    until_us = int(datetime.now(UTC).timestamp()) * 1_000_000
    start_us = cursor.done_until_us
    bar = Progress(
        TextColumn("loading simulated history"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with bar, Feed(demo.fleet, installation.service_url, demo.token.read(), cursor=cursor) as feed:
        task = bar.add_task("", total=max(1, until_us - start_us), rate="")

        def report(fed: Fed) -> None:
            rate = f"{fed.rows:,} rows  {fed.rows_per_s:,.0f} rows/s  {fed.sent_bytes / 1e6:,.1f} MB"
            bar.update(task, completed=fed.until_us - start_us, rate=rate)

        feed.catch_up(until_us, report)
        bar.update(task, completed=until_us - start_us)


def _wait_for_books(installation: Installation) -> None:
    from rich.console import Console

    from wattledger.demo import wait_for_books

    with Console().status("closing the books") as status:
        wait_for_books(
            installation.database,
            lambda left: status.update(f"closing the books: {left} hours left"),
            until=lambda: False,
        )


def _print_bill(installation: Installation, home: Home) -> None:
    from wattledger.cli.bill import full_hour, show_bill

    now = datetime.now(UTC)
    show_bill(installation.database, full_hour(now) - timedelta(hours=49), full_hour(now), "tenant", "table")
    click.echo(f"ingest and API  {installation.service_url}  (docs at /docs)")
    click.echo(f"dashboard       {installation.dashboard_url}")
    click.echo(f"state           {home.root}")


def _go_on(supervisor: Supervisor, installation: Installation, demo: Demo) -> None:
    """Send live batches from a thread while the supervisor keeps everything alive."""
    from wattledger.simulate.cursor import Cursor
    from wattledger.simulate.feed import Feed

    stop = threading.Event()
    failures: list[BaseException] = []

    def follow() -> None:
        cursor = Cursor(demo.cursor_path, demo.fleet.spec.start_at_us)
        try:
            with Feed(demo.fleet, installation.service_url, demo.token.read(), cursor=cursor, stop=stop) as feed:
                feed.live()
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which reports it
            failures.append(error)

    thread = threading.Thread(target=follow, name="live feed")
    thread.start()
    try:
        supervisor.run(until=lambda: not thread.is_alive())
    finally:
        stop.set()
        thread.join(timeout=30)
    if failures:
        raise failures[0]
