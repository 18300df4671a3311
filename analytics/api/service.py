"""What every endpoint shares: the caller's token, a transaction that sees the caller's tenants, what is kept between pages.

Isolation is the database's: each request runs as the api role, in one read-only transaction with the token's subtree set.
``unscoped`` is the one way past it, for figures that show nobody's rows (a ratio, a verdict).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Final

import sqlalchemy as sa
from fastapi import Depends, Request
from pydantic import AfterValidator, Field

from analytics.api.problems import ApiError
from analytics.api.snapshots import Snapshots
from ingest.auth import Authenticator, Principal
from ingest.errors import ForbiddenError
from ingest.store.engine import Database
from ingest.store.tenancy import ALL_TENANTS, TenantPathError, checked_path, covers, tenant_scope
from ingest.store.tokens import Scope

MAX_PERIOD_DAYS: Final = 400


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must hold printable characters only")
    return text


Label = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_printable)]
"""A name as somebody gives it: what is refused here (NUL above all) the database would refuse with a crash."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """``token_cache_s``: a revoked token may be used for that much longer."""

    token_cache_s: float = 5.0
    statement_timeout_s: float = 20.0
    connections: int = 8


@dataclass(frozen=True, slots=True)
class Service:
    """The API's hold on the database; made once, closed by who made it."""

    engine: sa.Engine
    authenticator: Authenticator
    settings: ApiSettings
    clock: Callable[[], datetime] = _now
    snapshots: Snapshots = field(default_factory=Snapshots)

    @classmethod
    def open(cls, database: Database, settings: ApiSettings | None = None) -> Service:
        settings = settings or ApiSettings()
        engine = database.create_engine("api", pool_size=settings.connections, application="wattledger-api")
        return cls(engine, Authenticator(engine, settings.token_cache_s), settings)

    def close(self) -> None:
        self.engine.dispose()

    def principal(self, request: Request, scope: Scope) -> Principal:
        """Return who asks, or raise: no or bad token 401, missing scope 403."""
        header = request.headers.get("authorization")
        raw = None if header is None else header.encode("latin-1")
        principal = self.authenticator.recall(raw) or self.authenticator.verify(raw)
        principal.require(scope)
        return principal

    @contextmanager
    def scoped(self, principal: Principal) -> Iterator[sa.Connection]:
        """Yield a connection that sees the rows of the token's subtree."""
        with self._transaction(principal.token.tenant_path) as conn:
            yield conn

    @contextmanager
    def unscoped(self) -> Iterator[sa.Connection]:
        """Yield a connection that sees every tenant's rows. Nothing read here may leave but ratios and verdicts."""
        with self._transaction(ALL_TENANTS) as conn:
            yield conn

    @contextmanager
    def writing(self, principal: Principal | None) -> Iterator[sa.Connection]:
        """Yield a connection that may add rows of the token's subtree, or of all (None), where the role may at all."""
        with self._transaction(ALL_TENANTS if principal is None else principal.token.tenant_path, writes=True) as conn:
            yield conn

    @contextmanager
    def _transaction(self, path: str | None, *, writes: bool = False) -> Iterator[sa.Connection]:
        with self.engine.begin() as conn:
            timeout_ms = round(self.settings.statement_timeout_s * 1000)
            if not writes:
                conn.execute(sa.text("SET TRANSACTION READ ONLY"))
            conn.execute(sa.text(f"SET LOCAL statement_timeout = {timeout_ms}"))
            with tenant_scope(conn, path):
                yield conn


def _service(request: Request) -> Service:
    service: Service = request.app.state.api
    return service


Api = Annotated[Service, Depends(_service)]


def reader(request: Request, api: Api) -> Principal:
    return api.principal(request, Scope.READ)


def gatekeeper(request: Request, api: Api) -> Principal:
    return api.principal(request, Scope.GATE)


def auditor(request: Request, api: Api) -> Principal:
    return api.principal(request, Scope.AUDIT)


def approver(request: Request, api: Api) -> Principal:
    return api.principal(request, Scope.APPROVE)


def closer(request: Request, api: Api) -> Principal:
    return api.principal(request, Scope.CLOSE)


Approver = Annotated[Principal, Depends(approver)]
Closer = Annotated[Principal, Depends(closer)]
Reader = Annotated[Principal, Depends(reader)]
Gatekeeper = Annotated[Principal, Depends(gatekeeper)]
Auditor = Annotated[Principal, Depends(auditor)]


def covered(principal: Principal, path: str) -> str:
    """Return a tenant path the token covers; raises 400 for no path and 403 for somebody else's."""
    try:
        checked_path(path)
    except TenantPathError as error:
        raise ApiError(400, "invalid_tenant", str(error)) from None
    if not covers(principal.token.tenant_path, path):
        raise ForbiddenError("tenant_not_covered", f"this token does not cover the tenant {path!r}")
    return path


def aware(name: str, at: datetime) -> datetime:
    """Return an instant of the query in UTC; one without a zone is refused, never guessed."""
    if at.tzinfo is None:
        raise ApiError(400, "naive_instant", f"{name} has no time zone; write it like 2026-11-01T00:00:00Z")
    return at.astimezone(UTC)
