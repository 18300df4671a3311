"""By URL each kind of process has a login of its own (deploy/compose/roles.sh): what it needs, and never the owner's rights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from analytics.io.health import server_facts
from analytics.io.lease import Lease
from ingest.store.engine import ROLE_NAMES, Database
from ingest.store.role_rights import owning_login
from wattledger import diagnosis, logins
from wattledger.readiness import worker_watch

pytestmark = pytest.mark.db
ROLES = Path(__file__).resolve().parents[2] / "deploy/compose/roles.sh"
NAMES = ("wattledger", "wattledger_serve_login", "wattledger_worker_login")


@pytest.fixture
def made(db: Database) -> Iterator[dict[str, Database]]:
    """The logins as roles.sh makes them, without passwords, by name."""
    said = re.findall(
        r"^(?:CREATE ROLE (?:wattledger|\w+_login) LOGIN|GRANT wattledger_\w+.* TO).*;", ROLES.read_text(), re.MULTILINE
    )
    assert len(said) == 6
    with db.connect("admin", autocommit=True) as admin:
        old = admin.info.server_version < 160_000
        for statement in said:
            plain = re.sub(r"PASSWORD :'\w+' ", "", statement)
            admin.execute((plain.replace(" WITH INHERIT TRUE, SET TRUE", "") if old else plain).encode())
        try:
            yield {name: Database.at_url(db.as_login(name)) for name in NAMES}
        finally:
            for name in NAMES:
                admin.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize(
    ("login", "own", "others"),
    [
        ("wattledger_serve_login", ("writer", "api"), ("owner", "worker")),
        ("wattledger_worker_login", ("worker",), ("owner", "writer", "api")),
    ],
)
def test_no_service_s_login_becomes_the_owner_reads_tokens_or_changes_the_audit(
    made: dict[str, Database], login: str, own: tuple[str, ...], others: tuple[str, ...]
) -> None:
    for role in own:
        with made[login].connect(role, autocommit=True) as connection:  # type: ignore[arg-type]
            for back in (f"SET ROLE {ROLE_NAMES[role]}", "SET ROLE NONE"):
                connection.execute(back.encode())
                for forbidden in (
                    *(f"SET ROLE {ROLE_NAMES[other]}" for other in others),
                    "SELECT count(*) FROM tokens",
                    "ALTER TABLE audit DISABLE TRIGGER ALL",
                    "DELETE FROM audit",
                    "UPDATE audit SET actor = 'nobody'",
                    "TRUNCATE audit",
                    "DROP TABLE audit",
                    "CREATE TABLE mine ()",
                    "ALTER TABLE jobs DISABLE ROW LEVEL SECURITY",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(forbidden.encode())


def test_a_service_that_logs_in_as_the_owner_says_so_and_doctor_too(
    made: dict[str, Database], db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert logins.warn_of_an_owner("serve", made["wattledger_serve_login"]) is None
    assert logins.warn_of_an_owner("worker", made["wattledger_worker_login"]) is None
    assert logins.warn_of_an_owner("serve", db) is None  # the embedded server's roles log in by themselves
    assert not caplog.records
    assert logins.warn_of_an_owner("serve", made["wattledger"]) == "wattledger"
    assert "serve logs in as wattledger, which may become wattledger_owner" in caplog.text

    def doctor(database: Database) -> diagnosis.Check:
        with database.connect("admin", autocommit=True) as connection:
            facts = server_facts(connection, list(ROLE_NAMES.values()), datetime.now(UTC))
        return diagnosis.check_roles(facts, ROLE_NAMES.values(), ())

    with made["wattledger_serve_login"].connect("api", application="wattledger-api"):
        assert doctor(db).verdict == diagnosis.Verdict.FINE
    with made["wattledger"].connect("api", application="wattledger-api"):
        for login in (db, made["wattledger"]):
            told = doctor(login)
            assert told.verdict == diagnosis.Verdict.WARNING
            assert "services log in as wattledger, which may become wattledger_owner" in told.found


@pytest.mark.parametrize("login", ["wattledger_worker_login", "wattledger"])
def test_who_takes_over_from_a_silent_worker_ends_its_sessions_also_by_url(
    made: dict[str, Database], login: str
) -> None:
    database = made[login]
    silent, next_one = Lease("silent", timedelta(seconds=0)), Lease("next", timedelta(seconds=0))
    with (
        database.connect("worker", autocommit=True) as connection,
        database.connect("worker", application=silent.session) as stuck,
    ):
        assert silent.take(connection)
        stuck.execute("SELECT 1")
        assert next_one.take(connection)
        assert connection.execute("SELECT current_user").fetchone() == ("wattledger_worker",)
        with pytest.raises(psycopg.OperationalError):
            stuck.execute("SELECT 1")


def test_serve_s_login_is_enough_to_see_whether_a_worker_works(made: dict[str, Database]) -> None:
    watch = worker_watch(made["wattledger_serve_login"])
    assert watch() == {"worker": "no worker has ever worked on this database; no hour is closed"}
    with made["wattledger_worker_login"].connect("worker", autocommit=True) as connection:
        Lease("one").take(connection)
    assert watch() == {}
    with made["wattledger_serve_login"].connect("writer") as connection:
        assert owning_login(connection) is None
