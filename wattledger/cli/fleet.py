"""`wattledger fleet`: which agents report, and orders to them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, driver_transaction, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, print_rows

if TYPE_CHECKING:
    from analytics.io.fleet import NodeStatus

_STATES: Final = ("reporting", "late", "silent", "no_agent", "gone")
_BYTES_PER_MIB: Final = 1_048_576
_US_PER_S: Final = 1_000_000
_KEY_BYTES: Final = 32


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger fleet status
  wattledger fleet status --nodes --state late --state silent
  wattledger fleet key gpu-017 --site fra1 --master-key-file master.key > gpu-017.key
  wattledger fleet order gpu-017 --site fra1 --power-limit-w 500 --master-key-file master.key
""",
)
def fleet() -> None:
    """See which agents report, and send them signed orders."""


@fleet.command(
    epilog="""\b
Examples:
  wattledger fleet status
  wattledger fleet status --site fra1 --nodes
  wattledger fleet status --state silent --format json
  wattledger fleet status --check        exit code 1 when an agent is silent or missing, for monitoring

\b
States: reporting (heard within a minute), late, silent (over 5 minutes: an alert, never "idle"),
no_agent (the scheduler uses the node, no agent ever reported), gone (silent for over 7 days).
"""
)
@click.option("--site", help="Only this site.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only this state. May be repeated.")
@click.option("--nodes", "by_node", is_flag=True, help="One line a node, with what its agent says about itself.")
@click.option("--check", "checked", is_flag=True, help="Exit with 1 when a node is silent or has no agent.")
@format_option
@click.pass_context
def status(
    ctx: click.Context, site: str | None, states: tuple[str, ...], by_node: bool, checked: bool, format_: Format
) -> None:
    """Show the agents that report, are late, are silent, or are missing, with their versions."""
    from analytics.io import fleet as reader

    now = datetime.now(UTC)
    with driver_transaction(ctx, "worker") as connection:
        found = [node for node in reader.fleet(connection, now) if site in (None, node.site)]
    chosen = [node for node in found if not states or node.state in states]
    counts = Counter(node.state for node in found)
    notes = [", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]) or "no node is known yet"]
    if any(node.origin == "simulated" for node in chosen):
        notes.append("simulated: not a real node")
    if by_node or format_ != "table":
        print_rows([asdict(node) for node in chosen], _node_columns(now), format_, notes=notes)
    else:
        print_rows(_folded(chosen), _GROUP_COLUMNS, format_, notes=notes)
    if checked and (counts["silent"] or counts["no_agent"]):
        ctx.exit(EXIT_NO)


@fleet.command(
    epilog="""\b
Examples:
  head -c 32 /dev/urandom | base64 > master.key && chmod 600 master.key
  wattledger fleet key gpu-017 --site fra1 --master-key-file master.key > gpu-017.key

\b
The node's agent takes orders only with commands = true and this key in its command_key_file.
"""
)
@click.argument("node")
@click.option("--site", required=True, help="Site of the node.")
@click.option(
    "--master-key-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of the key from which each node's is derived.",
)
def key(node: str, site: str, master_key_file: Path) -> None:
    """Derive the key by which one node's agent knows your orders. The database never sees it."""
    click.echo(_node_key(master_key_file, site, node).hex())


@fleet.command(
    epilog="""\b
Examples:
  wattledger fleet order gpu-017 --site fra1 --power-limit-w 500 --master-key-file master.key
  wattledger fleet order gpu-017 --site fra1 --power-limit-w 500 --device GPU-5a… --minutes 30 --master-key-file master.key

\b
The agent checks signature, expiry, nonce and its own minimum and maximum, notes the value it found,
and puts it back when the order expires or the agent stops.
"""
)
@click.argument("node")
@click.option("--site", required=True, help="Site of the node.")
@click.option("--power-limit-w", required=True, type=click.IntRange(1, 100_000), help="Power limit in watts.")
@click.option("--device", default="*", show_default=True, help="UUID of one device, or * for all of the node.")
@click.option(
    "--minutes", type=click.IntRange(1, 7 * 24 * 60), default=60, show_default=True, help="How long it holds."
)
@click.option(
    "--master-key-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of the key from which each node's is derived.",
)
@click.pass_context
def order(
    ctx: click.Context,
    node: str,
    site: str,
    power_limit_w: int,
    device: str,
    minutes: int,
    master_key_file: Path,
) -> None:
    """Order a power limit, for a time. Nothing happens on nodes whose agent does not take orders."""
    from collector.wire import Command
    from ingest.store import commands, identities

    now = datetime.now(UTC)
    issued_at_us = int(now.timestamp()) * _US_PER_S
    command = Command(
        id=0,
        node=node,
        verb="power_limit",
        args={"device": device, "watts": power_limit_w},
        nonce=secrets.token_hex(16),
        issued_at_us=issued_at_us,
        expires_at_us=issued_at_us + minutes * 60 * _US_PER_S,
    )
    signed = _signed(command, _node_key(master_key_file, site, node))
    with transaction(ctx, "worker") as connection:
        node_id = identities.known_node(connection, site, node)
        if node_id is None:
            raise click.UsageError(f"site {site!r} has no node {node!r}; see `wattledger fleet status --nodes`")
        number = commands.order(connection, node_id, signed)
        commands.note(connection, actor(), number, signed)
    until = now + timedelta(minutes=minutes)
    click.echo(f"order {number}: {power_limit_w} W on {node} ({device}) until {until:%Y-%m-%d %H:%M} UTC")


def _signed(command: Any, key: bytes) -> Any:
    from dataclasses import replace

    return replace(command, signature=command.sign(key))


def _node_key(master_key_file: Path, site: str, node: str) -> bytes:
    master = master_key_file.read_bytes().strip()
    if len(master) < _KEY_BYTES:
        raise click.UsageError(f"{master_key_file} holds {len(master)} bytes; a master key has {_KEY_BYTES} or more")
    return hmac.new(master, f"{site}/{node}".encode(), hashlib.sha256).digest()


def _folded(nodes: list[NodeStatus]) -> list[dict[str, Any]]:
    """Group nodes that are alike; their names as schedulers write them."""
    from analytics.model.hostlist import fold

    groups: dict[tuple[str, str, str | None, str | None], list[str]] = {}
    for node in nodes:
        groups.setdefault((node.site, node.state, node.agent_version, node.origin), []).append(node.node)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], _STATES.index(item[0][1]), item[0][2] or ""))
    return [
        {
            "site": site,
            "state": state,
            "agent_version": version,
            "origin": origin,
            "count": len(names),
            "nodes": fold(names),
        }
        for (site, state, version, origin), names in ordered
    ]


_GROUP_COLUMNS: Final = (
    Shown("site", "site"),
    Shown("state", "state"),
    Shown("count", "nodes", numeric=True),
    Shown("agent_version", "agent"),
    Shown("origin", "origin"),
    Shown("nodes", "names"),
)


def _node_columns(now: datetime) -> tuple[Shown, ...]:
    return (
        Shown("site", "site"),
        Shown("node", "node"),
        Shown("state", "state"),
        Shown("last_seen_at", "heard", lambda at: f"{_age(now - at)} ago", numeric=True),
        Shown("agent_version", "agent"),
        Shown("origin", "origin"),
        Shown("sample_us", "every s", lambda us: f"{us / _US_PER_S:g}", numeric=True, leaves=3),
        Shown("samples_missed", "missed", numeric=True, leaves=4),
        Shown("probe_errors", "errors", numeric=True, leaves=5),
        Shown("oldest_unsent_us", "unsent", lambda us: _age(timedelta(microseconds=us)), numeric=True),
        Shown("cpu_ratio", "CPU % of a core", lambda ratio: f"{ratio * 100:.2f}", numeric=True, leaves=2),
        Shown("rss_bytes", "RSS MiB", lambda size: f"{size / _BYTES_PER_MIB:.0f}", numeric=True, leaves=1),
    )


def _age(age: timedelta) -> str:
    seconds = max(0, int(age.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
