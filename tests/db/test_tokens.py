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
        with pytest.raises(sa.exc.OperationalError, match="permission denied"):
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
        ({"scopes": {Scope.APPROVE}, "tenant_path": None}, "no tenant path"),
        ({"scopes": {Scope.AUDIT}, "tenant_path": "acme"}, "cannot be confined"),
        ({"scopes": {Scope.READ, Scope.PRICE}, "tenant_path": "acme"}, "price cannot be confined"),
        ({"expires_at": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001 - the point of the test
    ],
)
def test_a_token_without_the_binding_its_scope_needs_is_not_made(
    admin: sa.Connection, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        issue(admin, **options)


def test_a_rotated_token_has_a_new_secret_and_the_old_one_works_until_the_grace_is_over(admin: sa.Connection) -> None:
    old = issue(admin, expires_at=NOW + timedelta(days=90))
    new = tokens.rotate(admin, old.token.id, NOW, grace=timedelta(hours=24), actor="test")
    assert new is not None
    assert new.secret != old.secret
    assert new.token == old.token  # the same rights under the same id
    assert tokens.verify(admin, new.secret, NOW + timedelta(days=89)) == old.token
    within = tokens.verify(admin, old.secret, NOW + timedelta(hours=23))
    assert (within.is_former, within.expires_at) == (True, NOW + timedelta(hours=24))
    assert refusal(admin, old.secret, NOW + timedelta(hours=24)) == "rotated"
    both = tokens.verify_many(admin, [old.secret, new.secret], NOW)
    assert [both[secret].is_former for secret in (old.secret, new.secret)] == [True, False]


def test_rotating_again_or_without_a_grace_ends_the_former_secret_at_once(admin: sa.Connection) -> None:
    first = issue(admin)
    second = tokens.rotate(admin, first.token.id, NOW, grace=timedelta(hours=1), actor="test")
    third = tokens.rotate(admin, first.token.id, NOW, grace=timedelta(hours=1), actor="test")
    assert second is not None
    assert third is not None
    assert refusal(admin, first.secret) == "unknown"
    assert tokens.verify(admin, second.secret, NOW).is_former
    fourth = tokens.rotate(admin, first.token.id, NOW, grace=timedelta(), actor="test")
    assert fourth is not None
    assert refusal(admin, third.secret) == "unknown"
    assert not tokens.verify(admin, fourth.secret, NOW).is_former
    with pytest.raises(ValueError, match="between 0 and 30 days"):
        tokens.rotate(admin, first.token.id, NOW, grace=timedelta(days=31), actor="test")


def test_revoking_ends_both_secrets_and_what_ended_is_not_rotated(admin: sa.Connection) -> None:
    old = issue(admin, expires_at=NOW + timedelta(hours=2))
    new = tokens.rotate(admin, old.token.id, NOW, grace=timedelta(hours=1), actor="test")
    assert new is not None
    assert tokens.rotate(admin, old.token.id, NOW + timedelta(hours=2), grace=timedelta(), actor="test") is None
    assert tokens.revoke(admin, old.token.id, NOW, actor="test")
    assert [refusal(admin, secret) for secret in (old.secret, new.secret)] == ["revoked", "revoked"]
    assert tokens.rotate(admin, old.token.id, NOW, grace=timedelta(), actor="test") is None
    assert tokens.rotate(admin, 999, NOW, grace=timedelta(), actor="test") is None


@pytest.mark.parametrize("role", ["writer", "api"])
def test_a_use_is_noted_once_in_a_quarter_of_an_hour(db: Database, admin: sa.Connection, role: str) -> None:
    issued = issue(admin)
    engine = db.create_engine(role)  # type: ignore[arg-type]
    with engine.begin() as service:
        tokens.note_use(service, [tokens.verify(service, issued.secret, NOW)], datetime.now(UTC))
    (listed,) = tokens.listed(admin)
    assert listed.last_used_at is not None
    assert abs(listed.last_used_at - datetime.now(UTC)) < timedelta(minutes=1)
    with engine.begin() as service:
        assert service.execute(sa.text("SELECT tokens_used(ARRAY[1, 2, 3])")).scalar_one() == 0
        service.execute(sa.text("SET TRANSACTION READ ONLY"))
        assert service.execute(sa.text("SELECT tokens_used(ARRAY[1])")).scalar_one() == 0
    engine.dispose()


def test_read_has_two_spellings_and_a_right_of_a_later_version_gives_nothing(admin: sa.Connection) -> None:
    assert Scope("read:tenant") is Scope.READ
    with pytest.raises(ValueError, match="write:tenant"):
        Scope("write:tenant")
    issued = issue(admin)
    admin.execute(sa.text("UPDATE tokens SET scopes = '{gate, fly}'"))
    assert tokens.verify(admin, issued.secret, NOW).scopes == {Scope.GATE}


def test_whether_anybody_could_be_let_in(admin: sa.Connection) -> None:
    assert not tokens.are_there_any(admin, NOW)
    issued = issue(admin, expires_at=NOW + timedelta(hours=1))
    assert tokens.are_there_any(admin, NOW)
    assert not tokens.are_there_any(admin, NOW + timedelta(hours=1))
    tokens.revoke(admin, issued.token.id, NOW, actor="test")
    assert not tokens.are_there_any(admin, NOW)
