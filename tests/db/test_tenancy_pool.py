"""What one request set does not leak into the next on the same connection of the pool, however the first one ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy as sa

from analytics.api.service import ApiSettings, Service
from ingest.auth import Principal
from ingest.store import tokens
from ingest.store.engine import Database, Role
from ingest.store.tokens import Scope

pytestmark = pytest.mark.db

PATHS = sa.text("SELECT array_agg(path ORDER BY path) FROM tenants")
WHO = sa.text("SELECT pg_backend_pid()")


@pytest.fixture
def service(db: Database) -> Iterator[Service]:
    """The API's hold on a database with two tenants, over a pool of one connection."""
    with db.connect("owner") as owner:
        owner.execute("INSERT INTO tenants (path) VALUES ('acme'), ('globex')")
    opened = Service.open(db, ApiSettings(connections=1))
    yield opened
    opened.close()


def principal(database: Database, path: str) -> Principal:
    engine = database.create_engine("owner")
    with engine.begin() as conn:
        made = tokens.create(conn, "t", [Scope.READ], actor="test", tenant_path=path).token
    engine.dispose()
    return Principal(made, None, None)


def cancelled(service: Service, database: Database, who: Principal) -> None:
    """A request of a tenant whose statement somebody ends from outside, as a client that hung up would."""
    with database.connect("admin", autocommit=True) as admin, service.scoped(who) as conn:
        pid = conn.execute(WHO).scalar_one()
        timer = threading.Timer(0.1, admin.execute, ["SELECT pg_cancel_backend(%s)", [pid]])
        timer.start()
        try:
            conn.execute(sa.text("SELECT pg_sleep(30)"))
        finally:
            timer.join()


def failed(service: Service, _: Database, who: Principal) -> None:
    with service.scoped(who) as conn:
        conn.execute(sa.text("SELECT 1 / 0"))


def raised(service: Service, _: Database, who: Principal) -> None:
    with service.scoped(who) as conn:
        conn.execute(PATHS)
        raise KeyError("in the middle of a request")


def rolled_back(service: Service, _: Database, who: Principal) -> None:
    with service.scoped(who) as conn:
        conn.execute(PATHS)
        conn.rollback()


def set_for_the_session(service: Service, _: Database, who: Principal) -> None:
    """What no code does: a setting that outlives its transaction."""
    with service.scoped(who) as conn:
        conn.execute(sa.text("SELECT set_config('wattledger.tenant', '*', false)"))
        raise KeyError


ENDINGS: list[Callable[[Service, Database, Principal], None]] = [
    cancelled,
    failed,
    raised,
    rolled_back,
    set_for_the_session,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("path", ["*", "globex"])
def test_a_reused_connection_shows_only_what_its_own_request_may_see(
    service: Service, db: Database, ending: Callable[[Service, Database, Principal], None], path: str
) -> None:
    acme = principal(db, "acme")
    with service.scoped(acme) as conn:
        first = conn.execute(WHO).scalar_one()
    with suppress(sa.exc.SQLAlchemyError, KeyError):
        ending(service, db, principal(db, path))
    with service.engine.begin() as conn:  # one that sets nothing at all
        assert conn.execute(PATHS).scalar_one() is None
        assert conn.execute(WHO).scalar_one() == first, "the pool gave another connection: nothing was tested"
    with service.scoped(acme) as conn:
        assert conn.execute(PATHS).scalar_one() == ["acme"]
    with service.engine.connect() as conn:
        assert conn.execute(PATHS).scalar_one() is None


def test_a_token_of_no_subtree_sees_nothing(service: Service, db: Database) -> None:
    engine = db.create_engine("owner")
    with engine.begin() as conn:
        admin = tokens.create(conn, "t", [Scope.ADMIN], actor="test").token
    engine.dispose()
    with service.scoped(Principal(admin, None, None)) as conn:
        assert conn.execute(PATHS).scalar_one() is None


def test_the_audit_is_seen_by_the_api_for_everybody_alone_and_changed_by_nobody(service: Service, db: Database) -> None:
    acme = principal(db, "acme")
    count = sa.text("SELECT count(*) FROM audit")
    with service.scoped(acme) as conn:
        assert conn.execute(count).scalar_one() == 0
    with service.unscoped() as conn:
        assert conn.execute(count).scalar_one() == 1
    roles: tuple[Role, ...] = ("writer", "worker", "api", "owner", "admin")
    for role in roles:
        for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "TRUNCATE audit"):
            with db.connect(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    with service.unscoped() as conn:
        assert conn.execute(sa.text("SELECT actor, at <= :now FROM audit"), {"now": datetime.now(UTC)}).all() == [
            ("test", True)
        ]
