"""Bearer tokens: made, verified, revoked. The secret is shown once; the table keeps a SHA-256 of its random part.

A fast hash is right here: the part hashed is 256 random bits, not something a person chose. Refuses to decide what a
scope allows: that is the business of the endpoint asking.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from ingest.store.tables import control, reference
from ingest.store.tenancy import ALL_TENANTS, checked_path

_SECRET: Final = re.compile(r"wl_(?P<id>[1-9]\d{0,9})_(?P<random>[A-Za-z0-9_-]{43})")
_RANDOM_BYTES: Final = 32


class Scope(StrEnum):
    """What a token may be used for; none includes another."""

    AGENT = "agent"  # send samples of one node (or, without a node, of a simulated or imported site)
    WRITE = "write"  # send traces, metrics, outcomes
    READ = "read"  # bills, usage, findings of a tenant subtree
    GATE = "gate"  # ask for budget verdicts of a tenant subtree
    ADMIN = "admin"  # policies, actions, tokens
    JOIN = "join"  # enrol nodes of a site: each gets an agent token of its own


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token, without its secret."""

    id: int
    name: str
    scopes: frozenset[Scope]
    site_id: int | None
    node_id: int | None
    tenant_path: str | None
    expires_at: datetime | None
    revoked_at: datetime | None

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token just made; the only time its secret exists outside its holder."""

    token: Token
    secret: str = field(repr=False)


class NodeTakenError(Exception):
    """The node that wants to join has a valid token already."""


class TokenRefusedError(Exception):
    """The bearer is not let in. The reason is for logs and counters, not for the bearer."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"token refused: {reason}")
        self.reason = reason


def create(
    conn: sa.Connection,
    name: str,
    scopes: Collection[Scope],
    *,
    actor: str,
    site_id: int | None = None,
    node_id: int | None = None,
    tenant_path: str | None = None,
    expires_at: datetime | None = None,
) -> IssuedToken:
    """Insert a token and its audit row; return it with its secret, which cannot be had again.

    Raises ValueError where the scopes ask for a binding that is missing: agents need a site, readers a subtree.
    """
    granted = frozenset(scopes)
    _check_bindings(name, granted, site_id, tenant_path, expires_at)
    random = secrets.token_urlsafe(_RANDOM_BYTES)
    values = {
        "name": name,
        "site_id": site_id,
        "node_id": node_id,
        "tenant_path": tenant_path,
        "expires_at": expires_at,
    }
    row = conn.execute(
        sa.insert(control.tokens)
        .values(**values, sha256=_digest(random), scopes=sorted(granted))
        .returning(control.tokens)
    ).one()
    _audit(conn, actor, "token.create", row.id, {"name": name, "scopes": sorted(granted), "tenant_path": tenant_path})
    return IssuedToken(_token(row), f"wl_{row.id}_{random}")


def verify(conn: sa.Connection, secret: str, now: datetime) -> Token:
    """Return the token of a secret, or raise TokenRefusedError: malformed, unknown, revoked or expired."""
    match = _SECRET.fullmatch(secret)
    if match is None:
        raise TokenRefusedError("malformed")
    digest = _digest(match["random"])
    columns = control.tokens.c
    found = sa.func.token_by_digest(digest).table_valued(*(sa.column(c.name, c.type) for c in columns))
    return _verified(conn.execute(sa.select(found)).one_or_none(), digest, int(match["id"]), now)


_MANY: Final = sa.text(
    "SELECT token.* FROM unnest(CAST(:digests AS bytea[])) AS digest, LATERAL token_by_digest(digest) AS token"
)


def verify_many(conn: sa.Connection, secrets: Collection[str], now: datetime) -> dict[str, Token]:
    """Return the tokens of those secrets that are good now, in one question for all of them."""
    matches = {secret: match for secret in secrets if (match := _SECRET.fullmatch(secret)) is not None}
    digests = {secret: _digest(match["random"]) for secret, match in matches.items()}
    rows = {bytes(row.sha256): row for row in conn.execute(_MANY, {"digests": list(digests.values())})}
    good: dict[str, Token] = {}
    for secret, digest in digests.items():
        try:
            good[secret] = _verified(rows.get(digest), digest, int(matches[secret]["id"]), now)
        except TokenRefusedError:
            continue
    return good


def _verified(row: Any, digest: bytes, token_id: int, now: datetime) -> Token:
    # The index was searched by digest, so its timing tells about the digest at most, never about the secret.
    if row is None or not hmac.compare_digest(row.sha256, digest) or row.id != token_id:
        raise TokenRefusedError("unknown")
    if row.revoked_at is not None and row.revoked_at <= now:
        raise TokenRefusedError("revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise TokenRefusedError("expired")
    return _token(row)


def enrol(conn: sa.Connection, join: str, node: str) -> str:
    """Make the agent token of a node that joins, and return its secret, which cannot be had again.

    The function in the store that makes it checks ``join`` itself: of all tokens, the intake can make only these.
    Raises TokenRefusedError, and NodeTakenError while the node has a valid token: revoke that one first.
    """
    match = _SECRET.fullmatch(join)
    if match is None:
        raise TokenRefusedError("malformed")
    random = secrets.token_urlsafe(_RANDOM_BYTES)
    made = sa.func.enrol_node(_digest(match["random"]), node, _digest(random))
    outcome, token_id = conn.execute(
        sa.select(made.table_valued(sa.column("outcome", sa.Text), sa.column("token_id", sa.Integer)))
    ).one()
    if outcome == "taken":
        raise NodeTakenError(node)
    if outcome != "enrolled":
        raise TokenRefusedError("no_join_token")
    return f"wl_{token_id}_{random}"


def revoke(conn: sa.Connection, token_id: int, now: datetime, *, actor: str) -> bool:
    """Revoke a token from ``now`` on; return False if there is none or it was revoked before."""
    tokens = control.tokens
    changed = conn.execute(
        sa.update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
    ).rowcount
    if changed:
        _audit(conn, actor, "token.revoke", token_id, {})
    return bool(changed)


def listed(conn: sa.Connection) -> tuple[Token, ...]:
    """Return all tokens by id, revoked and expired ones too. The services' roles may not do this."""
    return tuple(_token(row) for row in conn.execute(sa.select(control.tokens).order_by(control.tokens.c.id)))


def bound_names(conn: sa.Connection) -> dict[int, tuple[str | None, str | None]]:
    """Return the site and node names each token is bound to, by token id, for those who list them."""
    tokens, sites, nodes = control.tokens, reference.sites, reference.nodes
    query = (
        sa.select(tokens.c.id, sites.c.name, nodes.c.name)
        .outerjoin(sites, sites.c.id == tokens.c.site_id)
        .outerjoin(nodes, nodes.c.id == tokens.c.node_id)
    )
    return {identity: (site, node) for identity, site, node in conn.execute(query)}


def _check_bindings(
    name: str,
    scopes: frozenset[Scope],
    site_id: int | None,
    tenant_path: str | None,
    expires_at: datetime | None,
) -> None:
    if not scopes:
        raise ValueError(f"token {name!r} has no scope; give at least one of {', '.join(Scope)}")
    if scopes & {Scope.AGENT, Scope.JOIN} and site_id is None:
        raise ValueError(f"token {name!r} has no site; a token of an agent, or to join by, is bound to one")
    if Scope.JOIN in scopes and scopes != {Scope.JOIN}:
        raise ValueError(f"token {name!r}: a token to join by lies on many machines; it has no other scope")
    if Scope.JOIN in scopes and expires_at is None:
        raise ValueError(f"token {name!r}: a token to join by must expire; give it as long as the roll-out takes")
    if scopes & {Scope.READ, Scope.GATE} and tenant_path is None:
        raise ValueError(f"token {name!r} may read but has no tenant path; give a subtree, or * for all tenants")
    if tenant_path is not None and tenant_path != ALL_TENANTS:
        checked_path(tenant_path)
    if expires_at is not None and expires_at.tzinfo is None:
        raise ValueError(f"token {name!r} expires at {expires_at.isoformat()}, which has no time zone")


def _digest(random: str) -> bytes:
    return hashlib.sha256(random.encode("ascii")).digest()


def _token(row: Any) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        site_id=row.site_id,
        node_id=row.node_id,
        tenant_path=row.tenant_path,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _audit(conn: sa.Connection, actor: str, action: str, token_id: int, detail: dict[str, Any]) -> None:
    conn.execute(
        sa.insert(control.audit).values(actor=actor, action=action, subject=f"token/{token_id}", detail=detail)
    )
