"""`wattledger close` and `audit verify` as they are typed: what they print, write and exit with."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analytics.io import period_document, period_ready, periods
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store import tokens
from ingest.store.engine import URL_VARIABLE, Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.cli import cli
from wattledger.cli import close as command
from wattledger.cli.failure import explanation

pytestmark = pytest.mark.db
DECEMBER = datetime(2026, 12, 2, tzinfo=UTC)
WHO = ["--by", "Grace Hopper", "--reason", "wrong tariff"]


@pytest.fixture
def fleet(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallFleet:
    """A job that holds a board for an hour of November, seen from December, in a folder of its own."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR - timedelta(seconds=10))
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    HourCloser(db, WorkerSettings(code_version="test")).run(DECEMBER)
    monkeypatch.setenv(URL_VARIABLE, db.url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("WATTLEDGER_TOKEN", raising=False)
    monkeypatch.setattr(command, "_now", lambda: DECEMBER)
    monkeypatch.chdir(tmp_path)
    return fleet


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def refused(*words: str) -> str:
    """Run what the command line ends with 2, and return the one line it says."""
    answer = run(*words)
    assert isinstance(answer.exception, Exception), answer.output
    said = explanation(answer.exception)
    assert said is not None
    return said


def test_a_month_is_looked_at_closed_signed_verified_and_opened_again(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("close", "keygen", "close.key").exit_code == 0
    assert Path("close.key").stat().st_mode & 0o777 == 0o600
    looked = run("close", "2026-11", "--dry-run", "--format", "json")
    assert looked.exit_code == 0
    items = {item["item"]: item for item in json.loads(looked.stdout)}
    assert items["hours"]["figures"] == {"closed": 1, "open": 0, "due": 0, "without_books": 711}
    assert run("close", "list").output == "none\n"

    done = run("close", "2026-11", "--key", "close.key")

    assert done.exit_code == 0, done.output
    document = json.loads(Path("close-2026-11.json").read_text())
    assert f"root  {document['root_sha256']}" in done.output
    assert document["key_id"] in done.output
    verify = [
        "audit",
        "verify",
        "--period",
        "2026-11",
        "--export",
        "close-2026-11.json",
        "--public-key",
        "close.key.pub",
    ]
    verified = run(*verify)
    assert (verified.exit_code, document["root_sha256"] in verified.output, "signature good" in verified.output) == (
        0,
        True,
        True,
    )
    assert run("close", "export", "2026-11", "again.json").exit_code == 0
    assert json.loads(Path("again.json").read_text()) == document  # and its public key

    fleet.rows(
        "UPDATE ledger_lines SET billed_cost = billed_cost + 0.000000001 WHERE charge_category = 'electricity' RETURNING 1"
    )
    altered = run(*verify, "--format", "json")
    assert altered.exit_code == 1
    assert [row["kind"] for row in json.loads(altered.stdout)] == ["altered", "sums"]
    fleet.rows(
        "UPDATE ledger_lines SET billed_cost = billed_cost - 0.000000001 WHERE charge_category = 'electricity' RETURNING 1"
    )
    assert run("audit", "verify", "--period", "2026-01").exit_code == 2

    assert "closed already, as number 1" in refused("close", "2026-11", "--export", "other.json")
    assert "set WATTLEDGER_TOKEN" in refused("close", "reopen", "2026-11", *WHO)
    for scope, says in ((tokens.Scope.AUDIT, "lacks the scope close"), (tokens.Scope.CLOSE, None)):
        engine = fleet.database.create_engine("owner")
        with engine.begin() as connection:
            secret = tokens.create(
                connection, scope.value, [scope], actor="test", expires_at=datetime.now(UTC) + HOUR
            ).secret
        engine.dispose()
        monkeypatch.setenv("WATTLEDGER_TOKEN", secret)
        if says is not None:
            assert says in refused("close", "reopen", "2026-11", *WHO)
    reopened = run("close", "reopen", "2026-11", *WHO)
    assert reopened.exit_code == 0, reopened.output
    assert "is open again, by Grace Hopper (token close): wrong tariff" in reopened.output
    assert run("close", "2026-11").exit_code == 0
    assert json.loads(Path("close-2026-11-2.json").read_text())["period"]["number"] == 2
    with fleet.admin() as connection:
        acts = connection.execute("SELECT action FROM audit WHERE action LIKE 'close.%%' ORDER BY id").fetchall()
    assert [action for (action,) in acts] == ["close.month", "close.reopen", "close.month"]


def test_a_disputed_line_stops_the_close_until_it_is_answered(fleet: SmallFleet) -> None:
    hour = f"{HOUR_AT:%Y-%m-%dT%H:00Z}"
    listed = json.loads(run("disputes", "lines", "--hour", hour, "--format", "json").stdout)
    line = next(row["name"] for row in listed if row["category"] == "gpu_owned")
    assert run("disputes", "open", line, "--reason", "cancelled").exit_code == 0
    stopped = run("close", "2026-11")
    assert stopped.exit_code == 1
    assert "2026-11 is not closed: disputes; settle them" in stopped.output
    assert not Path("close-2026-11.json").exists()
    assert run("disputes", "resolve", "1", "--resolution", "it ran on").exit_code == 0
    assert run("close", "2026-11").exit_code == 0


@pytest.mark.parametrize(("zone", "says"), [("Asia/Kolkata", "inside an hour"), ("Mars/Olympus", "no such time zone")])
def test_a_billing_zone_that_cuts_hours_or_is_none_is_refused(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch, zone: str, says: str
) -> None:
    monkeypatch.setenv("WATTLEDGER_BILLING_ZONE", zone)
    assert says in refused("close", "2026-11", "--dry-run")


def test_a_month_of_a_zone_begins_at_its_midnight(fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTLEDGER_BILLING_ZONE", "Europe/Berlin")
    assert run("close", "2026-11").exit_code == 0
    spans = fleet.rows("SELECT from_at, to_at FROM ledger_periods")
    assert spans == [(datetime(2026, 10, 31, 23, tzinfo=UTC), datetime(2026, 11, 30, 23, tzinfo=UTC))]


def test_the_close_waits_for_whoever_saves_an_hour(fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics.io.periods._PATIENCE", "SET LOCAL lock_timeout = '200ms'")
    with fleet.admin() as saving, saving.transaction():
        saving.execute("LOCK TABLE ledger_hours IN ROW EXCLUSIVE MODE")
        assert "lock timeout" in refused("close", "2026-11")
    assert run("close", "2026-11").exit_code == 0


def test_nothing_is_closed_where_its_document_cannot_be_written(fleet: SmallFleet) -> None:
    answer = run("close", "2026-11", "--export", "nowhere/close.json")
    assert (answer.exit_code, "nowhere/close.json.part cannot be written: No such file" in answer.output) == (2, True)
    assert fleet.rows("SELECT count(*) FROM ledger_periods") == [(0,)]
    verified = run("audit", "verify", "--period", "2026-11")
    assert (verified.exit_code, "2026-11 was never closed: there is no root to look at" in verified.output) == (0, True)
    assert run("close", "2026-11").exit_code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["close-2026-11.json"]


def test_a_full_hour_elsewhere_that_is_none_in_utc_is_refused(fleet: SmallFleet) -> None:
    span = ["--from", "2026-11-01T00:00+05:30", "--to", "2026-11-02T00:00+05:30"]
    assert "are no full hours; give full UTC hours" in str(
        run("recompute", "--restate", *span, "--reason", "x").exception
    )
    moved = run("tenants", "move", "acme/research/nlp", "globex", "--from", "2026-11-01T14:00+05:30")
    assert (moved.exit_code, "2026-11-01T08:30:00+00:00 cuts an hour of the books" in moved.output) == (2, True)
    assert fleet.rows("SELECT count(*) FROM tenant_moves") == [(0,)]


def test_lines_that_a_document_does_not_tell_stand_in_a_file_beside_it_and_under_its_root(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("close", "2026-11").exit_code == 0
    with fleet.database.connect("owner", autocommit=True) as owner:
        periods.reopen(owner, "2026-11", None, by="ada", reason="wrong tariff", now=DECEMBER)
    fleet.rows("UPDATE tariffs SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
        "VALUES (%s, 'it', 0.3, 'USD', 'test', '2026-10-01Z') RETURNING 1",
        fleet.site_id,
    )
    with fleet.admin() as connection:
        fleet.changed("tariffs", HOUR_AT, HOUR_AT + HOUR, connection)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(DECEMBER)
    for module in (period_ready, period_document):
        monkeypatch.setattr(module, "MOVED_TOLD", 0)

    done = run("close", "2026-11")

    assert "1 lines differ from number 1; close-2026-11-2.moved.jsonl says which, by how much and why" in done.output
    (moved,) = [json.loads(line) for line in Path("close-2026-11-2.moved.jsonl").read_text().splitlines()]
    # 3,590 s of 100 W, 0.09972... kWh: 0.029916667 USD at 0.30, 0.019944444 at 0.20.
    assert (moved["category"], moved["billed_cost"]) == ("electricity", "0.009972223")
    assert json.loads(Path("close-2026-11-2.json").read_text())["moved"]["told"] == []
    verified = run("audit", "verify", "--export", "close-2026-11-2.json")
    assert verified.exit_code == 0, verified.output
