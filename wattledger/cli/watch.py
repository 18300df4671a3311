"""The `watch` commands: what schedulers know, told to ingest by HTTP. They need no home and no database, only a token.

Exit codes: 0 told or ended in peace, 2 the scheduler or ingest could not be reached (with --once or --dry-run).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli.listing import Listing
from wattledger.cli.parameters import Duration

if TYPE_CHECKING:
    import httpx

    from ingest.pollers.deliver import Event
    from ingest.pollers.memory import Memory
    from ingest.pollers.rounds import Dry, Telling, Totals

TOKEN_VARIABLE: Final = "WATTLEDGER_TOKEN"  # noqa: S105 (a name)
SHOWN: Final = 200


@click.group(
    "watch",
    cls=Listing,
    epilog="""\b
Examples:
  wattledger watch slurm --server-url https://ledger.example.org --token-file /etc/wattledger/token
  wattledger watch slurm --dry-run                  what would be told, from this machine
  wattledger watch kubernetes --cluster prod --server-url https://ledger.example.org --token-file /run/secrets/token
\b
The token: wattledger token create slurm-poller --scope write --site SITE. docs/schedulers.md tells what is read, with
which rights, and what becomes of it.
""",
)
def watch() -> None:
    """Tell ingest what a scheduler knows: jobs, who holds what, the queue with its reasons."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options every watcher has."""

    server: str
    token_file: Path | None
    ca_file: Path | None
    state: Path | None
    interval: timedelta
    once: bool
    dry_run: bool
    format_: str
    metrics_port: int | None


def watches(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options every watcher has; the command gets them as one `Asked`, before its own."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        common = {field.name: given.pop(field.name) for field in fields(Asked)}
        function(Asked(**common), **given)

    for add in reversed(
        [
            click.option(
                "--server-url",
                "server",
                envvar="WATTLEDGER_SERVER_URL",
                default="http://127.0.0.1:8470",
                show_default=True,
                help="Ingest.",
            ),
            click.option(
                "--token-file",
                type=click.Path(path_type=Path, dir_okay=False),
                help=f"File with the token; else ${TOKEN_VARIABLE}. Read again when it is refused.",
            ),
            click.option(
                "--ca-file", type=click.Path(path_type=Path, exists=True), help="Who signed ingest's certificate."
            ),
            click.option(
                "--state",
                type=click.Path(path_type=Path, file_okay=False),
                help="Folder for what was told. Default: $XDG_STATE_HOME/wattledger or /var/lib/wattledger-watch as root.",
            ),
            click.option("--interval", type=Duration(), default="30s", show_default=True, help="From round to round."),
            click.option("--once", is_flag=True, help="One round, then out."),
            click.option("--dry-run", is_flag=True, help="Print the events of one round, tell nobody, note nothing."),
            click.option(
                "--format",
                "format_",
                type=click.Choice(["table", "json"]),
                default="table",
                show_default=True,
                help="How to print: for people, or whole as JSON.",
            ),
            click.option(
                "--metrics-port", type=click.IntRange(1, 65_535), help="Counts on http://127.0.0.1:PORT/metrics."
            ),
        ]
    ):
        command = add(command)
    return command


@watch.command(
    epilog="""\b
Examples:
  wattledger watch slurm --server-url https://ledger.example.org --token-file /etc/wattledger/token
  wattledger watch slurm --cluster alpha --since 7d --once
  wattledger watch slurm --dry-run --format json
  wattledger watch slurm --rest-url http://slurm.example.org:6820 --rest-user operator --rest-token-file /run/slurm.jwt
\b
Runs where sacct, squeue and scontrol reach the cluster, as a user who may see all jobs (an operator, or PrivateData
without jobs). One process a cluster.
"""
)
@watches
@click.option("--cluster", help="Another cluster of the same slurmdbd. Default: the one the commands talk to.")
@click.option("--since", type=Duration(), default="1d", show_default=True, help="How far the first round looks back.")
@click.option(
    "--overlap", type=Duration(), default="1h", show_default=True, help="How late slurmdbd may be told of an end."
)
@click.option("--slurm-bin", type=click.Path(path_type=Path, exists=True), help="Folder of Slurm's commands.")
@click.option("--rest-url", metavar="URL", help="Ask slurmrestd instead of the commands.")
@click.option("--rest-user", default="root", show_default=True, help="Whose token that is.")
@click.option("--rest-token-file", type=click.Path(path_type=Path, dir_okay=False), help="Output of `scontrol token`.")
def slurm(
    asked: Asked,
    cluster: str | None,
    since: timedelta,
    overlap: timedelta,
    slurm_bin: Path | None,
    rest_url: str | None,
    rest_user: str,
    rest_token_file: Path | None,
) -> None:
    """Ask sacct and squeue, or slurmrestd, tell ingest: jobs that ran, run and wait, with what they hold."""
    from ingest.pollers.slurm import SOURCE, SlurmSettings, SlurmWatch
    from ingest.pollers.slurm_commands import SlurmCommands
    from ingest.pollers.slurm_rest import SlurmRest, token_of

    if (rest_url is None) != (rest_token_file is None):
        raise click.UsageError("--rest-url and --rest-token-file go together")
    source: SlurmCommands | SlurmRest = SlurmCommands(cluster, slurm_bin)
    if rest_url is not None and rest_token_file is not None:
        source = SlurmRest(_client(asked), rest_url, rest_user, token_of(rest_token_file), cluster)

    def made(teller: Telling | Dry, memory: Memory) -> Callable[[], Counter[str]]:
        settings = SlurmSettings(source.cluster, overlap=overlap, first_since=since)
        return SlurmWatch(source, teller, memory, settings, lambda: datetime.now(UTC)).round

    carry_out(asked, SOURCE, f"slurm-{cluster or 'default'}", made)


@watch.command(
    epilog="""\b
Examples:
  wattledger watch kubernetes --cluster prod --server-url https://ledger.example.org --token-file /run/secrets/wattledger/token
  kubectl proxy & wattledger watch kubernetes --cluster prod --api-server http://127.0.0.1:8001 --dry-run
\b
Runs inside the cluster with the service account of deploy/kubernetes/watcher.yaml (get, list, watch; nothing else), and only
calls out: to the API server it runs under, and to ingest.
"""
)
@watches
@click.option("--cluster", required=True, help="The name agents on its nodes give the cluster (their setting cluster).")
@click.option("--namespace", help="Only this namespace; then no nodes. Default: all.")
@click.option("--api-server", metavar="URL", help="Default: the one this pod runs under.")
@click.option(
    "--api-token-file", type=click.Path(path_type=Path, dir_okay=False), help="Default: the service account's."
)
@click.option("--api-ca-file", type=click.Path(path_type=Path, dir_okay=False), help="Default: the service account's.")
def kubernetes(
    asked: Asked,
    cluster: str,
    namespace: str | None,
    api_server: str | None,
    api_token_file: Path | None,
    api_ca_file: Path | None,
) -> None:
    """Follow pods, Jobs, Kueue's Workloads and nodes, tell ingest."""
    from ingest.pollers.kube_api import connected
    from ingest.pollers.kubernetes import SOURCE, KubernetesWatch

    client, api = connected(api_server, api_token_file, api_ca_file)

    def made(teller: Telling | Dry, memory: Memory) -> Callable[[], Counter[str]]:
        watch = KubernetesWatch(api, teller, memory, cluster, lambda: datetime.now(UTC), namespace=namespace)
        if not (asked.once or asked.dry_run):
            watch.start(threading.Event())  # its threads end with the process
            return watch.round

        def once() -> Counter[str]:
            watch.look()
            return watch.round()

        return once

    with client:
        carry_out(asked, SOURCE, f"kubernetes-{cluster}-{namespace or 'all'}", made)


def carry_out(
    asked: Asked, source: str, name: str, made: Callable[[Telling | Dry, Memory], Callable[[], Counter[str]]]
) -> None:
    """Run a watcher: one dry round, one round, or rounds until told to stop."""
    from ingest.pollers.memory import Memory
    from ingest.pollers.rounds import Dry, Telling, Totals, run, said

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request would be all there is to see
    if asked.dry_run:
        dry = Dry()
        counts = made(dry, Memory(None))()
        print_events(dry.events, asked.format_)
        click.echo(f"dry run: {said(counts.items())}; nothing was told", err=True)
        return
    memory = Memory(_state(asked.state) / f"{name}.sqlite")
    with _client(asked) as client:
        teller = Telling(_delivery(asked, client, source), memory)
        totals = Totals(source)
        if asked.once:
            click.echo(said(made(teller, memory)().items()))
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        if asked.metrics_port is not None:
            _serve(totals, asked.metrics_port)
        run(_lazily(made, teller, memory), totals, stop, interval_s=asked.interval.total_seconds())
    memory.close()


def print_events(events: Sequence[Event], format_: str) -> None:
    """Print events: as one JSON array, or as a table of what matters."""
    if format_ == "json":
        click.echo(json.dumps(events, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("kind", "job", "start", "end", "state", "who", "holds"):
        table.add_column(column, overflow="fold", no_wrap=column in {"start", "end"})
    for event in events[:SHOWN]:
        table.add_row(*_cells(event))
    Console().print(table, markup=False)
    if len(events) > SHOWN:
        click.echo(f"and {len(events) - SHOWN} more: --format json prints all")


def _cells(event: Event) -> tuple[str, ...]:
    job = event.get("job", {})
    start = _short(job.get("start") or job.get("submitted_at") or event["at"])
    end = _short(event.get("ended_at") or event.get("left_at") or "")
    state = str(event.get("state") or event.get("outcome") or event.get("reason") or "")
    who = "/".join(str(event[name]) for name in ("namespace", "account", "user") if name in event)
    place = [str(event[name]) for name in ("rack", "switch", "nvlink_domain") if name in event]
    holds = [f"{hold['accelerators']} of {hold.get('node') or hold.get('pool')}" for hold in event.get("holds", ())]
    asked = [f"asks for {event['accelerators']}"] if event["kind"] == "queue" and "accelerators" in event else []
    name = str(job.get("id") or event.get("node", ""))
    return str(event["kind"]), name, start, end, state, who, ", ".join(holds or asked or place)


def _short(instant: str) -> str:
    return instant.replace("T", " ").replace("+00:00", "Z")


def _lazily(
    made: Callable[[Telling | Dry, Memory], Callable[[], Counter[str]]], teller: Telling, memory: Memory
) -> Callable[[], Counter[str]]:
    """Put the watcher together in its first round that can: a scheduler that is down at the start is no reason to give up."""
    found: list[Callable[[], Counter[str]]] = []

    def once() -> Counter[str]:
        if not found:
            found.append(made(teller, memory))
        return found[0]()

    return once


def _delivery(asked: Asked, client: httpx.Client, source: str) -> Any:
    from ingest.pollers.deliver import Delivery
    from ingest.pollers.errors import DeliveryError

    def secret() -> str:
        if asked.token_file is None:
            found = os.environ.get(TOKEN_VARIABLE, "").strip()
        else:
            found = asked.token_file.read_text().strip()
        if not found:
            raise DeliveryError(f"no token: name its file with --token-file, or set {TOKEN_VARIABLE}")
        return found

    secret()  # said at once rather than after the first round
    return Delivery(client, asked.server, source, secret)


def _client(asked: Asked) -> httpx.Client:
    import ssl

    import httpx

    context = ssl.create_default_context(cafile=asked.ca_file) if asked.ca_file else True
    return httpx.Client(timeout=httpx.Timeout(30.0, connect=10.0), verify=context)


def _state(named: Path | None) -> Path:
    if named is not None:
        return named
    if os.geteuid() == 0:
        return Path("/var/lib/wattledger-watch")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "wattledger"


def _serve(totals: Totals, port: int) -> None:
    from ingest.pollers.scrape import serve

    serve(totals.exposition, port)
