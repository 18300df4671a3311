"""Who sends: from an Authorization header to the token's rights, remembered for a few seconds.

Asking the database for every body would cost more than the body. Expiry is checked on every use, revocation after
``cache_s`` at the latest. It decides nothing about content; secrets and their hashes are never logged.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from ingest.errors import ForbiddenError, UnauthorizedError, UnavailableError
from ingest.store import identities, tokens
from ingest.store.tokens import Scope, Token, TokenRefusedError

_ENTRIES: Final = 262_144
_FORGOTTEN_AFTER_S: Final = 600.0
"""How long a header whose time is up is remembered, though not believed: asking for many at once is what makes it cheap."""
_REFUSED: Final = "the token is not valid; make a new one with `wattledger token create`"


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified sender. ``node`` is None for a token that may speak for every node of its site."""

    token: Token
    node: str | None
    expires_at_s: float | None

    def require(self, scope: Scope) -> None:
        if not self.token.allows(scope):
            raise ForbiddenError("scope_missing", f"this token lacks the scope {scope}")

    def require_any(self, *scopes: Scope) -> None:
        if not any(self.token.allows(scope) for scope in scopes):
            raise ForbiddenError("scope_missing", f"this token lacks the scope {' or '.join(scopes)}")

    @property
    def site_id(self) -> int:
        """The site the token is bound to; raises ForbiddenError for a token of no site."""
        if self.token.site_id is None:
            raise ForbiddenError("no_site", "this token is bound to no site; data needs one")
        return self.token.site_id

    def require_node(self, node: str) -> None:
        if self.node is not None and self.node != node:
            raise ForbiddenError("wrong_node", f"this token is bound to node {self.node!r}; the batch is of {node!r}")


@dataclass(slots=True)
class _Known:
    principal: Principal
    believed_until_s: float
    used: bool = False


class Authenticator:
    """Verifies bearers.

    :meth:`recall` never blocks; :meth:`verify` and :meth:`refresh` ask the database and belong in a thread.
    """

    def __init__(self, engine: sa.Engine, cache_s: float) -> None:
        self._engine = engine
        self._cache_s = cache_s
        self._lock = threading.Lock()
        self._known: dict[bytes, _Known] = {}

    def recall(self, header: bytes | None) -> Principal | None:
        """Return the principal of a header seen lately, None if the database has to be asked."""
        known = self._known.get(header or b"")
        if known is None:
            return None
        if known.believed_until_s < time.monotonic():
            known.used = True
            return None
        principal = known.principal
        if principal.expires_at_s is not None and principal.expires_at_s <= time.time():
            raise UnauthorizedError("token_expired", _REFUSED)
        known.used = True
        return principal

    def may_be_renewed(self, header: bytes | None) -> bool:
        """Whether :meth:`refresh` can make a header believed that :meth:`recall` does not know any more."""
        return self._cache_s > 0 and (header or b"") in self._known

    def verify(self, header: bytes | None) -> Principal:
        """Return the principal of a header; raises UnauthorizedError or UnavailableError."""
        secret = _secret(header)
        try:
            with self._engine.begin() as conn:
                now = datetime.now(UTC)
                token = tokens.verify(conn, secret, now)
                tokens.note_use(conn, [token], now)
                node = None
                if token.node_id is not None:
                    node = identities.node_name(conn, token.node_id)
        except TokenRefusedError as error:
            raise UnauthorizedError(f"token_{error.reason}", _REFUSED) from None
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            raise UnavailableError("database_unavailable", "tokens cannot be verified now; send it again", 2) from error
        principal = Principal(token, node, None if token.expires_at is None else token.expires_at.timestamp())
        with self._lock:
            if len(self._known) >= _ENTRIES:
                self._known.clear()
            self._known[header or b""] = _Known(principal, time.monotonic() + self._cache_s)
        return principal

    def refresh(self) -> None:
        """Verify again, in one question, the tokens used since they were verified last; forget the rest.

        A thousand agents that each cost a question every few seconds cost more than their data. Raises what the database
        raises; tokens it could not ask about are believed until their time is up.
        """
        with self._lock:
            entries = dict(self._known)
        used = {header: known for header, known in entries.items() if known.used}
        with self._engine.begin() as conn:
            now = datetime.now(UTC)
            good = tokens.verify_many(conn, [_secret(header) for header in used], now)
            tokens.note_use(conn, good.values(), now)
        until_s = time.monotonic() + self._cache_s
        for header, known in entries.items():
            if header not in used and known.believed_until_s < time.monotonic() - _FORGOTTEN_AFTER_S:
                self._known.pop(header, None)
            elif header in used and good.get(_secret(header)) == known.principal.token:
                known.used, known.believed_until_s = False, until_s
            elif header in used:
                self._known.pop(header, None)


def check_bearer(header: bytes | None) -> None:
    """Raise UnauthorizedError for a header that names no token at all."""
    _secret(header)


def _secret(header: bytes | None) -> str:
    scheme, _, secret = (header or b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise UnauthorizedError("token_missing", "send a token: Authorization: Bearer …")
    return secret.strip()
