"""Tokens: shown once, kept hashed, refused for a reason, and found by services that cannot list them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa

from ingest.store import identities, tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope

pytestmark = pytest.mark.db

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def admin(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def issue(admin: sa.Connection, **options: object) -> tokens.IssuedToken:
    given = {"scopes": {Scope.READ}, "tenant_path": "acme"} | options
    issued = tokens.create(admin, "t", actor="test", **given)  # type: ignore[arg-type]
    admin.commit()
    return issued


def refusal(conn: sa.Connection, secret: str, now: datetime = NOW) -> str:
    with pytest.raises(tokens.TokenRefusedError) as caught:
        tokens.verify(conn, secret, now)
    return caught.value.reason


@pytest.mark.parametrize("role", ["writer", "api"])
def test_a_service_verifies_a_token_but_cannot_list_them(db: Database, admin: sa.Connection, role: str) -> None:
    issued = issue(admin)
    engine = db.create_engine(role)  # type: ignore[arg-type]
    with engine.connect() as service:
        assert tokens.verify(service, issued.secret, NOW) == issued.token
        assert issued.token.tenant_path == "acme"
        assert issued.token.allows(Scope.READ)
        assert not issued.token.allows(Scope.ADMIN)
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            tokens.listed(service)
    engine.dispose()


def test_the_worker_has_no_business_with_tokens(db: Database) -> None:
    with db.connect("worker") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT token_by_digest('')")


def test_the_secret_is_kept_nowhere(db: Database, admin: sa.Connection) -> None:
    issued = issue(admin)
    random = issued.secret.split("_", 2)[2]
    assert issued.secret.startswith(f"wl_{issued.token.id}_")
    assert random not in repr(issued)
    with db.connect("admin") as connection:
        stored = connection.execute("SELECT t::text FROM tokens t UNION ALL SELECT a::text FROM audit a").fetchall()
    assert len(stored) == 2
    assert not any(random in str(text) for (text,) in stored)


def test_each_refusal_has_its_reason(admin: sa.Connection) -> None:
    issued = issue(admin, expires_at=NOW + timedelta(hours=1))
    number, random = issued.token.id, issued.secret.split("_", 2)[2]
    assert refusal(admin, "") == "malformed"
    assert refusal(admin, "Bearer " + issued.secret) == "malformed"
    assert refusal(admin, issued.secret + "\n") == "malformed"
    assert refusal(admin, f"wl_{number}_{'A' * 43}") == "unknown"
    assert refusal(admin, f"wl_{number + 1}_{random}") == "unknown"
    assert tokens.verify(admin, issued.secret, NOW + timedelta(minutes=59)).id == number
    assert refusal(admin, issued.secret, NOW + timedelta(hours=1)) == "expired"
    assert tokens.revoke(admin, number, NOW, actor="test")
    assert refusal(admin, issued.secret) == "revoked"


def test_revoking_twice_is_no_second_revocation(admin: sa.Connection) -> None:
    issued = issue(admin)
    assert tokens.revoke(admin, issued.token.id, NOW, actor="test")
    assert not tokens.revoke(admin, issued.token.id, NOW + timedelta(days=1), actor="test")
    assert not tokens.revoke(admin, 999, NOW, actor="test")
    assert [token.revoked_at for token in tokens.listed(admin)] == [NOW]
    actions = admin.execute(sa.text("SELECT action FROM audit ORDER BY id")).scalars().all()
    assert actions == ["token.create", "token.revoke"]


def test_an_agent_token_is_bound_to_its_node(admin: sa.Connection) -> None:
    site_id = identities.site_ids(admin, ["lab"])["lab"]
    key = identities.NodeKey(site_id, "n1")
    node_id = identities.node_ids(admin, [key])[key]
    issued = issue(admin, scopes={Scope.AGENT}, tenant_path=None, site_id=site_id, node_id=node_id)
    verified = tokens.verify(admin, issued.secret, NOW)
    assert (verified.site_id, verified.node_id, verified.tenant_path) == (site_id, node_id, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scopes": set()}, "no scope"),
        ({"scopes": {Scope.AGENT}}, "no site"),
        ({"scopes": {Scope.READ}, "tenant_path": None}, "no tenant path"),
        ({"scopes": {Scope.GATE}, "tenant_path": "/acme"}, "not a tenant path"),
        ({"expires_at": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001 - the point of the test
    ],
)
def test_a_token_without_the_binding_its_scope_needs_is_not_made(
    admin: sa.Connection, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        issue(admin, **options)
