"""The commands that read and write the store: tokens, dead letters, findings, and the doctor on a real server."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from analytics.io.lease import Lease
from ingest.store import identities, tokens
from ingest.store.engine import Database
from ingest.store.tables import books
from wattledger.cli import cli
from wattledger.cli.processes import _about_sites
from wattledger.examination import examine
from wattledger.home import Home, resolve_home

pytestmark = pytest.mark.db

Run = Callable[..., Result]
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return resolve_home({}, tmp_path / "home").create()


@pytest.fixture
def run(db: Database, home: Home) -> Run:
    """Runs `wattledger …` on this test's database."""

    def invoke(*words: str) -> Result:
        environment = {"WATTLEDGER_DATABASE_URL": db.url}
        return CliRunner().invoke(cli, ["--home", str(home.root), *words], env=environment)

    return invoke


@pytest.fixture
def owner(db: Database) -> Iterator[sa.Engine]:
    engine = db.create_engine("owner")
    yield engine
    engine.dispose()


def test_a_token_is_shown_once_works_and_ends_when_revoked(run: Run, owner: sa.Engine) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    made = run("token", "create", "node-1", "--scope", "agent", "--site", "lab", "--node", "n1", "--expires", "30d")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert re.fullmatch(r"wl_1_[A-Za-z0-9_-]{43}", secret)
    with owner.connect() as connection:
        verified = tokens.verify(connection, secret, NOW)
    assert verified.scopes == {tokens.Scope.AGENT}
    assert verified.expires_at is not None
    assert before <= verified.expires_at - timedelta(days=30) <= datetime.now(UTC)
    listed = json.loads(run("token", "list", "--format", "json").stdout)
    assert [(row["name"], row["site"], row["node"], row["state"]) for row in listed] == [
        ("node-1", "lab", "n1", "valid")
    ]
    assert secret not in run("token", "list").output
    assert run("token", "revoke", "1").exit_code == 0
    assert run("token", "revoke", "1").exit_code == 1
    assert json.loads(run("token", "list", "--format", "json").stdout) == []
    assert json.loads(run("token", "list", "--all", "--format", "json").stdout)[0]["state"] == "revoked"


def test_a_token_ends_after_a_year_unless_told_otherwise_and_is_named_before_it_does(run: Run) -> None:
    reader = ("--scope", "read:tenant", "--tenant", "acme")
    assert run("token", "create", "year", *reader).exit_code == 0
    assert run("token", "create", "month", *reader, "--expires", "10d").exit_code == 0
    assert run("token", "create", "ever", *reader, "--expires", "never").exit_code == 0
    year, month, ever = json.loads(run("token", "list", "--format", "json").stdout)
    left = datetime.fromisoformat(year["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=364) < left <= timedelta(days=365)
    assert [row["state"] for row in (year, month, ever)] == ["valid", "expiring", "valid"]
    assert ever["expires_at"] is None
    assert year["scopes"] == "read"
    assert "1 end within 14 days; `wattledger token rotate" in run("token", "list").output
    refused = run("token", "create", "roll-out", "--scope", "join", "--site", "lab")
    assert (refused.exit_code, "must expire" in refused.output) == (2, True)


def test_rotating_shows_the_new_secret_once_and_keeps_the_old_one_for_the_grace(run: Run, owner: sa.Engine) -> None:
    old = run("token", "create", "ci", "--scope", "gate", "--tenant", "acme", "--expires", "2d").stdout.strip()
    rotated = run("token", "rotate", "1", "--expires", "90d", "--format", "json")
    assert rotated.exit_code == 0, rotated.output
    new = json.loads(rotated.stdout)["secret"]
    with owner.connect() as connection:
        assert tokens.verify(connection, old, datetime.now(UTC)).is_former
        assert not tokens.verify(connection, new, datetime.now(UTC)).is_former
    (listed,) = json.loads(run("token", "list", "--format", "json").stdout)
    assert listed["state"] == "valid"  # it would have been expiring
    assert run("token", "rotate", "1", "--grace", "0").exit_code == 0
    with owner.connect() as connection, pytest.raises(tokens.TokenRefusedError):
        tokens.verify(connection, new, datetime.now(UTC))
    assert run("token", "rotate", "7").exit_code == 1
    assert new not in run("token", "list", "--all", "--format", "json").output
    assert {row["scope"] for row in json.loads(run("token", "scopes", "--format", "json").stdout)} == set(tokens.Scope)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--scope", "read"), "give a subtree, or * for all tenants"),
        (("--scope", "agent"), "has no site"),
        (("--scope", "write", "--node", "n1"), "--node needs --site"),
        (("--scope", "read", "--tenant", "/acme"), "not a tenant path"),
        ((), "Missing option '--scope'"),
    ],
)
def test_a_token_without_its_binding_is_a_usage_error_and_leaves_nothing(
    run: Run, options: tuple[str, ...], said: str
) -> None:
    answer = run("token", "create", "x", *options)
    assert answer.exit_code == 2
    assert said in answer.output
    assert json.loads(run("token", "list", "--all", "--format", "json").stdout) == []


def test_findings_come_dearest_first_and_unknown_cash_is_not_zero(run: Run, owner: sa.Engine) -> None:
    with owner.begin() as connection:
        site_id = identities.site_ids(connection, ["lab"])["lab"]
        tenants = identities.tenant_ids(connection, ["acme", "acme/nlp"])
        for number, (path, cash) in enumerate((("acme", "1.5"), ("acme/nlp", "2.25"), (None, None))):
            connection.execute(
                sa.insert(books.findings).values(
                    dedupe_key=f"k{number}",
                    site_id=site_id,
                    kind="idle_waste",
                    tenant_id=None if path is None else tenants[path],
                    start_at=NOW - timedelta(hours=2),
                    end_at=NOW - timedelta(hours=1),
                    evidence={},
                    waste_energy_mj=1_800_000_000,
                    avoidable_cash=cash,
                    currency="EUR",
                    confidence=0.9,
                    origin=4,
                )
            )
    rows = json.loads(run("findings", "--format", "json").stdout)
    assert [(row["tenant"], row["avoidable_cash"]) for row in rows] == [
        ("acme/nlp", "2.250000000"),
        ("acme", "1.500000000"),
        ("unmapped", None),
    ]
    assert {(row["waste_energy_kwh"], row["origin"], row["duration_s"]) for row in rows} == {
        ("0.5", "simulated", 3600.0)
    }
    assert len(json.loads(run("findings", "--tenant", "acme/nlp", "--format", "json").stdout)) == 1
    assert json.loads(run("findings", "--kind", "throttling", "--format", "json").stdout) == []
    assert "simulated" in run("findings").output


def test_the_doctor_reads_a_migrated_database(db: Database, home: Home) -> None:
    env = {"WATTLEDGER_DATABASE_URL": db.url}
    verdicts = {check.subject: check for check in examine(home, env)}
    assert verdicts["schema"].verdict == "fine"
    assert verdicts["roles and row-level security"].verdict == "fine"
    assert verdicts["worker's lease"].found == "no worker has ever worked on this database"
    with db.connect("worker", autocommit=True) as connection:
        assert Lease("host/1").take(connection)
    assert {check.subject: check for check in examine(home, env)}["worker's lease"].verdict == "fine"


def test_the_doctor_finds_an_api_role_that_slipped_past_the_policies(db: Database, home: Home) -> None:
    with db.connect("admin", autocommit=True) as connection:
        connection.execute("ALTER TABLE ledger_lines NO FORCE ROW LEVEL SECURITY")
    checks = {check.subject: check for check in examine(home, {"WATTLEDGER_DATABASE_URL": db.url})}
    assert checks["roles and row-level security"].verdict == "broken"
    assert "ledger_lines" in checks["roles and row-level security"].found


def test_a_database_nobody_answers_for_is_exit_code_1_with_the_reason(home: Home) -> None:
    url = "postgresql://postgres:geheim@127.0.0.1:1/none"
    answer = CliRunner().invoke(cli, ["--home", str(home.root), "doctor"], env={"WATTLEDGER_DATABASE_URL": url})
    assert answer.exit_code == 1
    assert "does not answer" in answer.output
    assert "geheim" not in answer.output


def test_the_doctor_as_json_names_verdict_and_remedy(run: Run) -> None:
    checks = json.loads(run("doctor", "--format", "json").stdout)
    assert {check["verdict"] for check in checks} <= {"fine", "note", "warning", "broken", "unanswered"}
    assert all(check["remedy"] for check in checks if check["verdict"] in {"warning", "broken"})


def test_up_says_which_site_lacks_a_zone_and_the_command_that_gives_it(run: Run, db: Database) -> None:
    assert list(_about_sites(db)) == [
        "none yet; `wattledger sites set NAME --time-zone ZONE --grid-zone ZONE` makes one"
    ]
    run("token", "create", "n", "--scope", "agent", "--site", "attic", "--node", "n1")
    run("sites", "set", "berlin", "--time-zone", "Europe/Berlin", "--grid-zone", "DE")
    assert list(_about_sites(db)) == [
        "attic: time zone UTC, no grid zone, so no carbon; `wattledger sites set attic --time-zone ZONE --grid-zone ZONE`"
    ]
