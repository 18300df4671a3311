"""`wattledger token`: creates, lists, rotates and revokes access tokens. A secret is printed once, when made, and kept nowhere."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from ingest.store.scopes import ALLOWS, Scope
from wattledger.cli import EXIT_NO
from wattledger.cli.access import actor, transaction
from wattledger.cli.listing import Listing
from wattledger.cli.output import Format, Shown, format_option, plain, print_rows
from wattledger.cli.parameters import Duration

if TYPE_CHECKING:
    import sqlalchemy as sa

    from ingest.store.tokens import IssuedToken, Token

SCOPES: Final = (*(scope.value for scope in Scope), "read:tenant")
NEVER: Final = timedelta.max
_ZERO: Final = re.compile("0[smhd]?")


class Lifetime(Duration):
    """A duration, or `never`."""

    name = "duration|never"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        return NEVER if value == "never" else super().convert(value, param, ctx)


class Grace(Duration):
    """A duration, or 0."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        return timedelta() if _ZERO.fullmatch(str(value)) else super().convert(value, param, ctx)


@click.group(
    cls=Listing,
    epilog="""\b
Examples:
  wattledger token create node-17 --scope agent --site fra1 --node gpu-017 > agent.token
  wattledger token create nlp-leads --scope read --scope gate --tenant acme/research/nlp --expires 90d
  wattledger token list
  wattledger token rotate 4 --grace 24h > agent.token
  wattledger token revoke 4

\b
`wattledger token scopes` says what each scope allows. None includes another.
""",
)
def token() -> None:
    """Create, list, rotate and revoke access tokens."""


@token.command(
    epilog="""\b
Examples:
  wattledger token create node-17 --scope agent --site fra1 --node gpu-017 > agent.token
  wattledger token create finance --scope read --tenant '*' --expires 180d
  wattledger token create ci --scope gate --tenant acme/research --format json
  wattledger token create roll-out --scope join --site fra1 --expires 2d > join.token
"""
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    metavar="SCOPE",
    multiple=True,
    required=True,
    help="May be repeated; `wattledger token scopes` lists them.",
)
@click.option("--site", help="Site an agent sends for; made when new. Needed for agent and join.")
@click.option("--node", help="Node of that site; without one the token may send for every node of it.")
@click.option(
    "--tenant", help="Tenant subtree it may read, e.g. acme/research, or '*' for all. Needed by scopes of a subtree."
)
@click.option(
    "--expires",
    type=Lifetime(),
    help="Refuse it after so long, e.g. 12h or 90d; `never`: only revoking ends it. Default: 365d; none for scope join.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print: for people, or as JSON.",
)
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    scopes: tuple[str, ...],
    site: str | None,
    node: str | None,
    tenant: str | None,
    expires: timedelta | None,
    format_: str,
) -> None:
    """Create a token; its secret is printed on standard output, once, and cannot be had again."""
    from ingest.store import tokens

    if node is not None and site is None:
        raise click.UsageError("--node needs --site: nodes are named within a site")
    if expires is None and Scope.JOIN not in scopes:  # a roll-out ends when nobody can guess
        expires = tokens.LIFETIME
    expires_at = None if expires in {None, NEVER} else datetime.now(UTC) + (expires or timedelta())
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
    _show_once(issued, (site, node), "created", format_)


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
    rows = [row for row in rows if with_ended or row["state"] in {"valid", "expiring"}]
    ending = [row["name"] for row in rows if row["state"] == "expiring"]
    notes = (
        [f"{len(ending)} end within {tokens.WARNING.days} days; `wattledger token rotate ID --expires 365d` renews one"]
        if ending
        else []
    )
    shown = (
        Shown("id", "id", numeric=True),
        Shown("name", "name"),
        Shown("scopes", "scopes", plain),
        Shown("site", "site"),
        Shown("node", "node"),
        Shown("tenant_path", "tenant subtree"),
        Shown("state", "state"),
        Shown("expires_at", "expires (UTC)", _minute, leaves=2),
        Shown("last_used_at", "last used (UTC)", _minute, leaves=1),
    )
    print_rows(rows, shown, format_, notes=notes)


@token.command(
    epilog="""\b
Examples:
  wattledger token rotate 4 > agent.token
  wattledger token rotate 4 --grace 0            the old secret may be known to others: end it now
  wattledger token rotate 4 --expires 365d --format json
"""
)
@click.argument("token_id", type=int)
@click.option(
    "--grace", type=Grace(), default="24h", show_default=True, help="How long the old secret goes on working."
)
@click.option("--expires", type=Duration(), help="New end of the token, from now. Default: its end stays.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print: for people, or as JSON.",
)
@click.pass_context
def rotate(ctx: click.Context, token_id: int, grace: timedelta, expires: timedelta | None, format_: str) -> None:
    """Give a token a new secret, printed once. Exit code 1 when there is no valid token of this id."""
    from ingest.store import tokens

    now = datetime.now(UTC)
    with transaction(ctx, "owner") as connection:
        try:
            issued = tokens.rotate(
                connection,
                token_id,
                now,
                grace=grace,
                actor=actor(),
                expires_at=None if expires is None else now + expires,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        bound = (None, None) if issued is None else tokens.bound_names(connection)[token_id]
    if issued is None:
        click.echo(f"there is no valid token {token_id}; see `wattledger token list --all`", err=True)
        ctx.exit(EXIT_NO)
    _show_once(issued, bound, f"rotated, the old secret works until {now + grace:%Y-%m-%d %H:%M} UTC", format_)


@token.command(epilog="\b\nExample:\n  wattledger token scopes --format json")
@format_option
def scopes(format_: Format) -> None:
    """Say what each scope allows; none includes another."""
    rows = [{"scope": scope.value, "allows": allowed} for scope, allowed in ALLOWS.items()]
    print_rows(rows, (Shown("scope", "scope"), Shown("allows", "a token may")), format_)


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


def _show_once(issued: IssuedToken, bound: tuple[str | None, str | None], done: str, format_: str) -> None:
    made = issued.token
    if format_ == "json":
        facts = _facts(made, {made.id: bound}, datetime.now(UTC))
        click.echo(
            json.dumps({**{key: plain(value) for key, value in facts.items()}, "secret": issued.secret}, indent=2)
        )
        return
    end = "it never expires" if made.expires_at is None else f"it expires {made.expires_at:%Y-%m-%d %H:%M} UTC"
    click.echo(f"token {made.id} ({made.name}) {done}; {end}; its secret, shown only now:", err=True)
    click.echo(issued.secret)


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


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
        "last_used_at": token.last_used_at,
    }


def _state(token: Token, now: datetime) -> str:
    from ingest.store import tokens

    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is None or token.expires_at > now + tokens.WARNING:
        return "valid"
    return "expired" if token.expires_at <= now else "expiring"
