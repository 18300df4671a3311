"""Starts and stops the processes of an installation: all under one supervisor, or one at a time for systemd and Kubernetes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import chosen_home

if TYPE_CHECKING:
    from ingest.store.engine import Database


_FILE: Final = click.Path(dir_okay=False, path_type=Path)


def _tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says who ends TLS to a command that listens."""
    for option in (
        click.option(
            "--behind-proxy", is_flag=True, envvar="WATTLEDGER_BEHIND_PROXY", help="A proxy in front ends TLS."
        ),
        click.option(
            "--client-ca",
            type=_FILE,
            envvar="WATTLEDGER_CLIENT_CA",
            help="Ask clients for a certificate of these authorities.",
        ),
        click.option("--tls-key", "key", type=_FILE, envvar="WATTLEDGER_TLS_KEY", help="Its key, not encrypted."),
        click.option(
            "--tls-cert",
            "cert",
            type=_FILE,
            envvar="WATTLEDGER_TLS_CERT",
            help="Certificate, with its chain, to serve TLS with.",
        ),
    ):
        command = option(command)
    return command


@click.command(
    epilog="""\b
Examples:
  wattledger up                         run until Ctrl-C, state in the default home
  wattledger --home /srv/wl up --port 8080
  wattledger up --host 0.0.0.0 --tls-cert wl.crt --tls-key wl.key     GPU nodes on the network send here
  wattledger up --host 10.0.0.5 --behind-proxy                        a proxy in front ends TLS
  wattledger up --metrics-port 9470     the worker's metrics where a scraper looks for them
  wattledger up --once                  start everything, see that it answers, stop it again
  WATTLEDGER_DATABASE_URL=postgresql://ledger@db/ledger wattledger up
"""
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address ingest and API listen on.")
@click.option("--port", default=8470, show_default=True, help="TCP port of ingest and API.")
@_tls_options
@click.option("--dashboard-port", default=8471, show_default=True, help="TCP port of the dashboard, on loopback.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="TCP port of the worker's metrics, on loopback. Default: any that is free; it is told.",
)
@click.option("--enforced", is_flag=True, envvar="WATTLEDGER_ENFORCED", help="Let armed budgets act; else a dry run.")
@click.option("--once", is_flag=True, help="Start, check that all answers, stop, exit 0.")
@click.pass_context
def up(
    ctx: click.Context,
    /,
    host: str,
    port: int,
    dashboard_port: int,
    metrics_port: int,
    enforced: bool,
    once: bool,
    **tls: Any,
) -> None:
    """Start PostgreSQL, ingest + API, worker and dashboard, and keep them running."""
    from wattledger.installation import Ports, bring_up
    from wattledger.listening import Listening
    from wattledger.supervise import Supervisor

    home = chosen_home(ctx)
    with Supervisor(home, announce=click.echo) as supervisor:
        ports = Ports(port, dashboard_port, metrics_port)
        asked = Listening(host, **tls)
        installation = bring_up(supervisor, ports, os.environ, say=click.echo, listening=asked, enforced=enforced)
        click.echo(f"ingest and API  {installation.public_url}  (docs at /docs)")
        click.echo(f"dashboard       {installation.dashboard_url}")
        click.echo(f"metrics         {installation.public_url}/metrics and, of the worker, {installation.metrics_url}")
        click.echo(f"budgets         {'enforced: those armed act' if enforced else 'dry run: nothing is acted on'}")
        click.echo(f"state           {home.root}")
        for line in _about_sites(installation.database):
            click.echo(f"sites           {line}")
        if once:
            return
        click.echo("running; Ctrl-C stops everything")
        supervisor.run()


def _about_sites(database: Database) -> Iterator[str]:
    """Say what no agent can tell of the sites, and the command that does: without a grid zone there is no carbon."""
    from ingest.store.sites import listed

    engine = database.create_engine("worker", pool_size=1, application="wattledger-up")
    with engine.connect() as connection:
        sites = listed(connection)
    engine.dispose()
    if not sites:
        yield "none yet; `wattledger sites set NAME --time-zone ZONE --grid-zone ZONE` makes one"
    for site in sites:
        if site.grid_zone is None:
            yield (
                f"{site.name}: time zone {site.time_zone}, no grid zone, so no carbon; "
                f"`wattledger sites set {site.name} --time-zone ZONE --grid-zone ZONE`"
            )


@click.command(epilog="\b\nExample:\n  wattledger --home /srv/wl down")
@click.pass_context
def down(ctx: click.Context) -> None:
    """Stop everything that `up` started in this home, also what a killed `up` left behind."""
    from wattledger.supervise import down as stop_all

    home = chosen_home(ctx)
    stopped = stop_all(home)
    if not stopped.is_anything:
        click.echo(f"nothing was running in {home.root}")
        return
    ended = {
        f"supervisor (pid {stopped.supervisor_pid})": stopped.supervisor_pid is not None,
        f"{len(stopped.leftover_pids)} orphaned processes": bool(stopped.leftover_pids),
        f"PostgreSQL (pid {stopped.postgres_pid})": stopped.postgres_pid is not None,
    }
    click.echo(f"stopped in {home.root}: {', '.join(what for what, was_running in ended.items() if was_running)}")


@click.command(
    epilog="""\b
Examples:
  wattledger serve --host 0.0.0.0 --tls-cert wl.crt --tls-key wl.key
  wattledger serve --host 0.0.0.0 --tls-cert wl.crt --tls-key wl.key --client-ca agents.crt
  wattledger serve --host 0.0.0.0 --behind-proxy
  wattledger serve --host 0.0.0.0 --behind-proxy --allow-no-tokens-yet     a first start; tokens are made afterwards

\b
It serves the database of WATTLEDGER_DATABASE_URL, brought up to date by `migrate`, else the one that `wattledger up` has made
in this home and runs there.

\b
Renewed certificate files are taken up within half a minute, without a restart.
"""
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8470, show_default=True, help="TCP port of ingest and API.")
@_tls_options
@click.option("--internal-port", default=0, help="Also listen on this loopback port without TLS. Default: do not.")
@click.option(
    "--allow-no-tokens-yet",
    is_flag=True,
    envvar="WATTLEDGER_ALLOW_NO_TOKENS_YET",
    help="Let other machines reach it before anybody has a token: all they get is 401.",
)
@click.pass_context
def serve(
    ctx: click.Context, /, host: str, port: int, internal_port: int, allow_no_tokens_yet: bool, **tls: Any
) -> None:
    """Run ingest and the API alone, in the foreground."""
    from wattledger.listening import Listening
    from wattledger.service import run_service

    _log_to_stderr()
    run_service(
        chosen_home(ctx),
        Listening(host, port, internal_port=internal_port, **tls),
        allow_no_tokens_yet=allow_no_tokens_yet,
    )


@click.command(
    epilog="""\b
Examples:
  wattledger worker                     run until SIGTERM
  wattledger worker --once              one round: close what is due, decide, deliver
  wattledger worker --metrics-port 9470   its metrics on http://127.0.0.1:9470/metrics
"""
)
@click.option("--interval", "interval_s", default=10.0, show_default=True, help="Seconds between rounds.")
@click.option("--once", is_flag=True, help="Do one round and exit.")
@click.option("--enforced", is_flag=True, envvar="WATTLEDGER_ENFORCED", help="Let armed budgets act; else a dry run.")
@click.option("--metrics-port", type=click.IntRange(1, 65_535), help="Serve its metrics on this port, /metrics.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of that port.")
@click.pass_context
def worker(
    ctx: click.Context, interval_s: float, once: bool, enforced: bool, metrics_port: int | None, metrics_host: str
) -> None:
    """Run the worker alone: closes hours, evaluates budgets, delivers messages."""
    from wattledger.work import run_worker

    _log_to_stderr()
    metrics_at = None if metrics_port is None else (metrics_host, metrics_port)
    run_worker(chosen_home(ctx), interval_s=interval_s, once=once, enforced=enforced, metrics_at=metrics_at)


@click.command(epilog="\b\nExample:\n  WATTLEDGER_API_URL=http://127.0.0.1:8470 wattledger dashboard --port 8471")
@click.option("--port", default=8471, show_default=True, help="TCP port of the page.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; the page asks nobody who they are."
)
def dashboard(port: int, host: str) -> None:
    """Run the Streamlit dashboard alone; it talks to the API only."""
    from importlib.resources import files

    page = str(files("dashboard") / "app.py")
    options = {
        "server.port": str(port),
        "server.address": host,
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
        "server.fileWatcherType": "none",
        "client.toolbarMode": "minimal",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", page, *flags])  # noqa: S606 (our own page)


@click.command(
    epilog="\b\nExamples:\n  WATTLEDGER_DATABASE_URL=postgresql://owner@db/ledger wattledger migrate\n"
    "  WATTLEDGER_DATABASE_URL=postgresql://owner@db/ledger wattledger migrate --layout hypertables\n\n"
    "\b\nWithout WATTLEDGER_DATABASE_URL it is the database that `wattledger up` has made in this home; `up` migrates it itself."
)
@click.option(
    "--layout",
    type=click.Choice(["native", "hypertables"]),
    help="How an empty database keeps its days; by default hypertables where TimescaleDB is installed in it. It stays so.",
)
@click.pass_context
def migrate(ctx: click.Context, layout: str | None) -> None:
    """Bring the database schema up to date; does nothing when it is."""
    from ingest.store.layout import Layout
    from ingest.store.migrate import layout_of, pending, upgrade
    from wattledger.runtime import database_of

    database = database_of(chosen_home(ctx))
    behind = pending(database.url)
    upgrade(database.url, layout=Layout(layout) if layout else None)
    click.echo(f"{database.display_url}: {len(behind)} migrations applied" if behind else "the schema is up to date")
    kept = layout_of(database.url)
    click.echo(f"layout: {kept.layout} ({kept.reason})")


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=os.environ.get("WATTLEDGER_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
