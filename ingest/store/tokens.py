"""Bearer tokens: made, verified, rotated, revoked. The secret is shown once; the table keeps a SHA-256 of its random part.

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
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from ingest.store import audit
from ingest.store.scopes import OF_A_SITE, OF_A_SUBTREE, OF_EVERYBODY, Scope, known
from ingest.store.tables import control, reference
from ingest.store.tenancy import ALL_TENANTS, checked_path

__all__ = ["IssuedToken", "NodeTakenError", "Scope", "Token", "TokenRefusedError"]

_SECRET: Final = re.compile(r"wl_(?P<id>[1-9]\d{0,9})_(?P<random>[A-Za-z0-9_-]{43})")
_RANDOM_BYTES: Final = 32


LIFETIME: Final = timedelta(days=365)
"""Of a token made without a word about it."""
WARNING: Final = timedelta(days=14)
"""So long before its end a token is listed as expiring."""
MOST_GRACE: Final = timedelta(days=30)
USE_NOTED_EVERY: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Token:
    """A verified token, without its secret. ``expires_at`` is of the secret shown, a rotated one's within its grace."""

    id: int
    name: str
    scopes: frozenset[Scope]
    site_id: int | None
    node_id: int | None
    tenant_path: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    is_former: bool = False
    """Whether the secret shown is the one before the last rotation."""
    last_used_at: datetime | None = field(default=None, compare=False)
    """To a quarter of an hour; None: never."""

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
    rights = frozenset(scopes)
    _check_bindings(name, rights, site_id, tenant_path, expires_at)
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
        .values(**values, sha256=_digest(random), scopes=sorted(rights))
        .returning(control.tokens)
    ).one()
    audit.note(conn, actor, "token.create", f"token/{row.id}", after=values | {"scopes": sorted(rights)})
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
    "SELECT digest AS asked, token.* FROM unnest(CAST(:digests AS bytea[])) AS digest, "
    "LATERAL token_by_digest(digest) AS token"
)
_USED: Final = sa.text("SELECT set_config('synchronous_commit', 'off', true), tokens_used(CAST(:ids AS integer[]))")
"""Not worth a wait for the disk: what a crash forgets, the next use says again."""


def verify_many(conn: sa.Connection, secrets: Collection[str], now: datetime) -> dict[str, Token]:
    """Return the tokens of those secrets that are good now, in one question for all of them."""
    matches = {secret: match for secret in secrets if (match := _SECRET.fullmatch(secret)) is not None}
    digests = {secret: _digest(match["random"]) for secret, match in matches.items()}
    rows = {bytes(row.asked): row for row in conn.execute(_MANY, {"digests": list(digests.values())})}
    good: dict[str, Token] = {}
    for secret, digest in digests.items():
        try:
            good[secret] = _verified(rows.get(digest), digest, int(matches[secret]["id"]), now)
        except TokenRefusedError:
            continue
    return good


def note_use(conn: sa.Connection, used: Collection[Token], now: datetime) -> None:
    """Note that tokens were used, unless that was noted a short while ago; a server that cannot write notes nothing."""
    due = [each.id for each in used if each.last_used_at is None or each.last_used_at < now - USE_NOTED_EVERY]
    if due:
        conn.execute(_USED, {"ids": due})


def _verified(row: Any, digest: bytes, token_id: int, now: datetime) -> Token:
    # The index was searched by digest, so its timing tells about the digest at most, never about the secret.
    is_former = row is not None and row.previous_sha256 is not None and hmac.compare_digest(row.previous_sha256, digest)
    if row is None or not (is_former or hmac.compare_digest(row.sha256, digest)) or row.id != token_id:
        raise TokenRefusedError("unknown")
    if is_former and (row.previous_until_at is None or row.previous_until_at <= now):
        raise TokenRefusedError("rotated")
    if row.revoked_at is not None and row.revoked_at <= now:
        raise TokenRefusedError("revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise TokenRefusedError("expired")
    return _token(row, is_former=is_former)


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


def rotate(
    conn: sa.Connection,
    token_id: int,
    now: datetime,
    *,
    grace: timedelta,
    actor: str,
    expires_at: datetime | None = None,
) -> IssuedToken | None:
    """Give a token a new secret; the one before goes on working for ``grace``, and any before that ends at once.

    ``expires_at``: a new end of the token, else its end stays. Returns None where there is no valid token of this id; raises
    ValueError for a grace below zero or above :data:`MOST_GRACE`, and for an end that has passed.
    """
    if not timedelta() <= grace <= MOST_GRACE:
        raise ValueError(f"a grace of {grace} is not between 0 and {MOST_GRACE.days} days")
    if expires_at is not None and expires_at <= now:
        raise ValueError(f"token {token_id} would end at {expires_at.isoformat()}, which has passed")
    table = control.tokens
    before = conn.execute(sa.select(table).where(table.c.id == token_id).with_for_update()).one_or_none()
    if before is None or before.revoked_at is not None or (before.expires_at is not None and before.expires_at <= now):
        return None
    random = secrets.token_urlsafe(_RANDOM_BYTES)
    until_at = now + grace if grace else None
    row = conn.execute(
        sa.update(table)
        .where(table.c.id == token_id)
        .values(
            sha256=_digest(random),
            previous_sha256=before.sha256 if grace else None,
            previous_until_at=until_at,
            expires_at=expires_at or before.expires_at,
        )
        .returning(table)
    ).one()
    audit.note(
        conn,
        actor,
        "token.rotate",
        f"token/{token_id}",
        before={"expires_at": before.expires_at},
        after={"expires_at": row.expires_at, "former_taken_until_at": until_at},
    )
    return IssuedToken(_token(row), f"wl_{token_id}_{random}")


def revoke(conn: sa.Connection, token_id: int, now: datetime, *, actor: str) -> bool:
    """Revoke a token from ``now`` on; return False if there is none or it was revoked before."""
    tokens = control.tokens
    changed = conn.execute(
        sa.update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
    ).rowcount
    if changed:
        audit.note(
            conn, actor, "token.revoke", f"token/{token_id}", before={"revoked_at": None}, after={"revoked_at": now}
        )
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


def are_there_any(conn: sa.Connection, now: datetime, *, besides: str = "") -> bool:
    """Say whether anybody could be let in now, whoever goes by one name aside; the API's role may ask, and reads no token."""
    return bool(conn.execute(sa.select(sa.func.somebody_has_a_token(besides, now))).scalar_one())


def _check_bindings(
    name: str,
    granted: frozenset[Scope],
    site_id: int | None,
    tenant_path: str | None,
    expires_at: datetime | None,
) -> None:
    if not granted:
        raise ValueError(f"token {name!r} has no scope; give at least one of {', '.join(Scope)}")
    if granted & OF_A_SITE and site_id is None:
        raise ValueError(f"token {name!r} has no site; a token of an agent, or to join by, is bound to one")
    if Scope.JOIN in granted and granted != {Scope.JOIN}:
        raise ValueError(f"token {name!r}: a token to join by lies on many machines; it has no other scope")
    if Scope.JOIN in granted and expires_at is None:
        raise ValueError(f"token {name!r}: a token to join by must expire; give it as long as the roll-out takes")
    confined = ", ".join(sorted(granted & OF_A_SUBTREE))
    if confined and tenant_path is None:
        raise ValueError(f"token {name!r} ({confined}) has no tenant path; give a subtree, or * for all tenants")
    boundless = ", ".join(sorted(granted & OF_EVERYBODY))
    if boundless and tenant_path not in {None, ALL_TENANTS}:
        raise ValueError(f"token {name!r}: {boundless} cannot be confined to {tenant_path!r}; make a token of its own")
    if tenant_path is not None and tenant_path != ALL_TENANTS:
        checked_path(tenant_path)
    if expires_at is not None and expires_at.tzinfo is None:
        raise ValueError(f"token {name!r} expires at {expires_at.isoformat()}, which has no time zone")


def _digest(random: str) -> bytes:
    return hashlib.sha256(random.encode("ascii")).digest()


def _token(row: Any, *, is_former: bool = False) -> Token:
    ends = [at for at in (row.expires_at, row.previous_until_at if is_former else None) if at is not None]
    return Token(
        id=row.id,
        name=row.name,
        scopes=known(row.scopes),
        site_id=row.site_id,
        node_id=row.node_id,
        tenant_path=row.tenant_path,
        expires_at=min(ends, default=None),
        revoked_at=row.revoked_at,
        is_former=is_former,
        last_used_at=row.last_used_at,
    )
