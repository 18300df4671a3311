"""`wattledger token`: creates, lists and revokes access tokens. A secret is printed once, on creation, and kept nowhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, plain, print_rows

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ingest.store.tokens import Token

SCOPES: Final = ("agent", "write", "read", "gate", "admin", "join")


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger token create node-17 --scope agent --site fra1 --node gpu-017 > agent.token
  wattledger token create nlp-leads --scope read --scope gate --tenant acme/research/nlp --expires-days 90
  wattledger token list
  wattledger token revoke 4

\b
Scopes: agent sends samples, write sends traces and outcomes, read sees bills of a tenant subtree,
gate asks for budget verdicts, admin changes policies and actions, join lets nodes of a site enrol
themselves. None includes another.
""",
)
def token() -> None:
    """Create, list and revoke access tokens."""


@token.command(
    epilog="""\b
Examples:
  wattledger token create node-17 --scope agent --site fra1 --node gpu-017 > agent.token
  wattledger token create finance --scope read --tenant '*' --expires-days 365
  wattledger token create ci --scope gate --tenant acme/research --format json
  wattledger token create roll-out --scope join --site fra1 --expires-days 2 > join.token
"""
)
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, required=True, help="May be repeated.")
@click.option("--site", help="Site an agent sends for; made when new. Needed for scope agent.")
@click.option("--node", help="Node of that site; without one the token may send for every node of it.")
@click.option(
    "--tenant", help="Tenant subtree it may read, e.g. acme/research, or '*' for all. Needed for read and gate."
)
@click.option("--expires-days", type=click.IntRange(1, 3650), help="Refuse it after so many days. Default: never.")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    scopes: tuple[str, ...],
    site: str | None,
    node: str | None,
    tenant: str | None,
    expires_days: int | None,
    format_: str,
) -> None:
    """Create a token; its secret is printed on standard output, once, and cannot be had again."""
    from ingest.store import tokens

    if node is not None and site is None:
        raise click.UsageError("--node needs --site: nodes are named within a site")
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with transaction(ctx, "owner") as connection:
        site_id, node_id = _bindings(connection, site, node)
        try:
            issued = tokens.create(
                connection,
                name,
                {tokens.Scope(scope) for scope in scopes},
                actor=actor(),
                site_id=site_id,
                node_id=node_id,
                tenant_path=tenant,
                expires_at=expires_at,
            )
        except ValueError as error:  # a binding the scopes need is missing, or the tenant path is none
            raise click.UsageError(str(error)) from error
    if format_ == "json":
        facts = _facts(issued.token, {issued.token.id: (site, node)}, datetime.now(UTC))
        click.echo(
            json.dumps({**{key: plain(value) for key, value in facts.items()}, "secret": issued.secret}, indent=2)
        )
        return
    click.echo(f"token {issued.token.id} ({name}) created; its secret, shown only now:", err=True)
    click.echo(issued.secret)


@token.command(
    "list",
    epilog="""\b
Examples:
  wattledger token list
  wattledger token list --all --format json
""",
)
@click.option("--all", "with_ended", is_flag=True, help="Those revoked or expired as well.")
@format_option
@click.pass_context
def list_(ctx: click.Context, with_ended: bool, format_: Format) -> None:
    """List the tokens, without their secrets."""
    from ingest.store import tokens

    now = datetime.now(UTC)
    with transaction(ctx, "owner") as connection:
        names = tokens.bound_names(connection)
        rows = [_facts(each, names, now) for each in tokens.listed(connection)]
    rows = [row for row in rows if with_ended or row["state"] == "valid"]
    shown = (
        Shown("id", "id", numeric=True),
        Shown("name", "name"),
        Shown("scopes", "scopes", plain),
        Shown("site", "site"),
        Shown("node", "node"),
        Shown("tenant_path", "tenant subtree"),
        Shown("state", "state"),
        Shown("expires_at", "expires (UTC)", lambda at: f"{at:%Y-%m-%d %H:%M}", leaves=1),
    )
    print_rows(rows, shown, format_)


@token.command(epilog="\b\nExample:\n  wattledger token revoke 4")
@click.argument("token_id", type=int)
@click.pass_context
def revoke(ctx: click.Context, token_id: int) -> None:
    """Revoke a token at once. Exit code 1 when there is none of this id, or it was revoked before."""
    from ingest.store import tokens

    with transaction(ctx, "owner") as connection:
        is_revoked = tokens.revoke(connection, token_id, datetime.now(UTC), actor=actor())
    if not is_revoked:
        click.echo(f"there is no valid token {token_id}; see `wattledger token list --all`", err=True)
        ctx.exit(EXIT_NO)
    click.echo(f"token {token_id} is revoked")


def _bindings(connection: sa.Connection, site: str | None, node: str | None) -> tuple[int | None, int | None]:
    from ingest.store import identities

    if site is None:
        return None, None
    site_id = identities.site_ids(connection, [site])[site]
    if node is None:
        return site_id, None
    key = identities.NodeKey(site_id, node)
    return site_id, identities.node_ids(connection, [key])[key]


def _facts(token: Token, names: dict[int, tuple[str | None, str | None]], now: datetime) -> dict[str, Any]:
    site, node = names[token.id]
    return {
        "id": token.id,
        "name": token.name,
        "scopes": sorted(token.scopes),
        "site": site,
        "node": node,
        "tenant_path": token.tenant_path,
        "state": _state(token, now),
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }


def _state(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "valid"
