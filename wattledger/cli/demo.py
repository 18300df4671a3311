"""The `demo` command: progress while the history loads, then the bill and the addresses, then live until Ctrl-C."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import chosen_home
from wattledger.cli.output import UNITS_READ, WIDTH_OF_A_FILE, Shown, percent_cell, print_rows, screen_width

if TYPE_CHECKING:
    from analytics.model.budget import Decision
    from wattledger.demo import Demo
    from wattledger.home import Home
    from wattledger.installation import Installation
    from wattledger.supervise import Supervisor

LONGEST_BAR: Final = 100
US_PER_MIN: Final = 60_000_000
STATES: Final = {"allow": "within", "warn": "warning", "deny": "exceeded"}
"""As the dashboard says it."""


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
    # At once: the imports below take a second.
    home = _demo_home(ctx)
    click.echo(f"Wattledger demo in {home.root}; everything it shows is simulated")

    from wattledger.demo import prepare, tended
    from wattledger.installation import Ports, bring_up, start_worker
    from wattledger.supervise import Supervisor

    # History older than two days is late by the ledger's rules, and the demo's begins exactly there.
    env = {**os.environ, "WATTLEDGER_INGEST_HOT_RETENTION_H": "96"}
    with Supervisor(home, announce=click.echo, env=env) as supervisor:
        installation = bring_up(supervisor, Ports(port, dashboard_port), env, say=click.echo, with_worker=False)
        fleet = prepare(home, installation.database, nodes=nodes, seed=seed, now=datetime.now(UTC))
        tended(supervisor, lambda stop: _fill(installation, fleet, stop))
        start_worker(supervisor, installation, env, interval_s=5.0)
        tended(supervisor, lambda stop: _wait_for_books(installation, stop))
        _print_bill(installation, home)
        if not once:
            click.echo("live; Ctrl-C stops everything")
            _go_on(supervisor, installation, fleet)
    if once:
        click.echo(f"stopped; `wattledger --home {home.root} up` opens these books again, with their dashboard")


def _demo_home(ctx: click.Context) -> Home:
    """Return the home given, or a folder `demo` in the default one: the demo never mixes with real books."""
    from wattledger.home import HOME_VARIABLE, Home

    home = chosen_home(ctx)
    named = ctx.find_root().obj["home"] is not None or os.environ.get(HOME_VARIABLE)
    return home if named else Home(home.root.parent / f"{home.root.name}-demo", home.origin)


def _fill(installation: Installation, demo: Demo, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from wattledger.simulate.cursor import Cursor
    from wattledger.simulate.feed import Feed
    from wattledger.simulate.feed import Progress as Fed
    from wattledger.simulate.spec import US_PER_S

    spec = demo.fleet.spec
    cursor = Cursor(demo.cursor_path, spec.start_at_us)
    until_us = int(datetime.now(UTC).timestamp()) * US_PER_S
    start_us = cursor.done_until_us
    click.echo(f"loading {_span(until_us - start_us)} of {spec.devices} simulated GPUs")
    # 80 characters hold all of it: the bar takes what the figures leave.
    bar = Progress(
        TextColumn("{task.percentage:3.0f} %"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[rows_per_s]:,.0f} rows/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=Console(width=min(screen_width() or WIDTH_OF_A_FILE, LONGEST_BAR), highlight=False),
        expand=True,
    )
    with bar, Feed(demo.fleet, installation.service_url, demo.token.read(), cursor=cursor, stop=stop) as feed:
        task = bar.add_task("", total=max(1, until_us - start_us), rows=0, rows_per_s=0.0)

        def report(fed: Fed) -> None:
            bar.update(task, completed=fed.until_us - start_us, rows=fed.rows, rows_per_s=fed.rows_per_s)

        feed.catch_up(until_us, report)
        if not stop.is_set():
            bar.update(task, completed=until_us - start_us)


def _span(length_us: int) -> str:
    minutes = length_us / US_PER_MIN
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"


def _wait_for_books(installation: Installation, stop: threading.Event) -> None:
    from rich.console import Console

    from wattledger.demo import wait_for_books

    with Console().status("closing the books") as status:
        wait_for_books(
            installation.database,
            lambda left: status.update(f"closing the books: {left} hours left"),
            until=stop.is_set,
        )


def _print_bill(installation: Installation, home: Home) -> None:
    from wattledger.cli.bill import full_hour, show_bill
    from wattledger.demo import HISTORY_H, budgets_now

    now = datetime.now(UTC)
    end = full_hour(now)
    click.echo()
    show_bill(installation.database, end - timedelta(hours=HISTORY_H + 1), end, "tenant", "table")
    shown = (
        Shown("budget", "budget"),
        Shown("tenant", "tenant"),
        Shown("spent", "spent", numeric=True),
        Shown("limit", "of", numeric=True),
        Shown("used", "used", percent_cell, numeric=True),
        Shown("state", "state"),
    )
    print_rows(
        [_state(decision) for decision in budgets_now(installation.database, now)],
        shown,
        "table",
        notes=["simulated figures arm nothing: what a budget would do to a job is a dry run"],
    )
    click.echo()
    click.echo(f"ingest and API  {installation.service_url}  (docs at /docs)")
    click.echo(f"dashboard       {installation.dashboard_url}")
    click.echo(f"state           {home.root}")


def _state(decision: Decision) -> dict[str, Any]:
    """Return a budget's row: what was used of what, as far as the books go."""
    budget = decision.budget
    unit = UNITS_READ.get(budget.unit, budget.unit)
    return {
        "budget": budget.name,
        "tenant": budget.tenant_path,
        "spent": f"{decision.spent:,.2f}",
        "limit": f"{decision.limit:,.0f} {unit} a {budget.period.value}",
        "used": decision.spent / decision.limit if decision.limit else None,
        "state": STATES[decision.verdict.value],
    }


def _go_on(supervisor: Supervisor, installation: Installation, demo: Demo) -> None:
    """Send live batches until Ctrl-C."""
    from wattledger.demo import tended
    from wattledger.simulate.cursor import Cursor
    from wattledger.simulate.feed import Feed

    def follow(stop: threading.Event) -> None:
        cursor = Cursor(demo.cursor_path, demo.fleet.spec.start_at_us)
        with Feed(demo.fleet, installation.service_url, demo.token.read(), cursor=cursor, stop=stop) as feed:
            feed.live()

    tended(supervisor, follow)
