"""`wattledger tenants` and `wattledger policy` as a person runs them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet
from tests.fakes.books import FIRST_HOUR, Books, tokens
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
BINDINGS = """\
tenants:
  acme/nlp: {contact: nlp@acme.example}
bindings:
  - {tenant: acme/nlp, account: "nlp-*"}
  - {tenant: acme/vision, user: "vis_*"}
"""
POLICY = """\
version: 1
budgets:
  - name: nlp
    tenant: acme/research/nlp
    period: month
    currency: USD
    limits: {cost: 100, energy_kwh: 50}
    ladder: [{at: 80%, do: warn}]
"""


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_check_of_bindings_answers_yes_or_lists_every_fault(terminal: Terminal, tmp_path: Path) -> None:
    good = terminal.run("tenants", "check", written(tmp_path, BINDINGS))
    assert (good.exit_code, good.out) == (0, f"{tmp_path}/file.yaml: valid, 2 rules for 2 tenants\n")
    bad = terminal.run("tenants", "check", written(tmp_path, "bindings:\n  - {tenant: a//b, acount: x}\n"))
    assert bad.exit_code == 1
    assert "line 2: bindings[0].acount: unknown key" in bad.err
    assert "'a//b' is not a tenant path" in bad.err
    assert bad.err.endswith("2 faults\n")
    assert terminal.run("tenants", "check", tmp_path / "nowhere.yaml").exit_code == 2


def test_bindings_are_applied_once_and_faults_leave_them_as_they_were(terminal: Terminal, tmp_path: Path) -> None:
    first = terminal.run("tenants", "apply", written(tmp_path, BINDINGS))
    assert (first.exit_code, first.err) == (0, "")
    assert "2 rules added, 0 superseded, 2 tenants added" in first.out
    assert "nothing new" in terminal.run("tenants", "apply", written(tmp_path, BINDINGS)).out
    faulty = terminal.run("tenants", "apply", written(tmp_path, "bindings: []\n"))
    assert faulty.exit_code == 2
    assert faulty.err.startswith("error: the bindings are not valid:")
    assert "nothing new" in terminal.run("tenants", "apply", written(tmp_path, BINDINGS)).out


def test_a_job_is_explained_by_what_each_rule_said_to_it(terminal: Terminal, db: Database, tmp_path: Path) -> None:
    fleet = small_fleet(db)
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR, account="nlp-serving")
    fleet.job("8", HOUR_AT, HOUR_AT + HOUR, account="guest")
    terminal.run("tenants", "apply", written(tmp_path, BINDINGS))
    assert terminal.run("tenants", "explain", "7").out == (
        "7 (cluster c1, account nlp-serving) at 2026-11-01 08:00 UTC: acme/nlp\n  rule 1: matches\n"
    )
    assert terminal.run("tenants", "explain", "8").out.splitlines()[0].endswith("UTC: unmapped")
    assert terminal.run("tenants", "explain", "7", "--format", "json").json[0]["tenant"] == "acme/nlp"
    unknown = terminal.run("tenants", "explain", "9")
    assert unknown.exit_code == 1
    assert "no job and no API key is called '9'" in unknown.err


def test_what_nobody_pays_for_is_listed_with_its_cost(terminal: Terminal, db: Database) -> None:
    # 100 W and one GPU at 2 USD per hour, 0.20 USD per kWh: an hour costs 2.02 USD.
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    fleet.job("8", HOUR_AT, HOUR_AT + HOUR, account="guest")
    assert terminal.run("worker", "--once").exit_code == 0
    (row,) = terminal.run("tenants", "unmapped", "--format", "json").json
    assert (row["account"], row["currency"], row["accelerator_us"]) == ("guest", "USD", 3_600_000_000)
    assert row["billed_cost"] == "2.020000000"
    assert "guest" in terminal.run("tenants", "unmapped", "--top", "1").out


def test_a_policy_is_checked_applied_and_shown_with_what_is_spent(
    terminal: Terminal, db: Database, tmp_path: Path
) -> None:
    assert terminal.run("policy", "check", written(tmp_path, POLICY)).out.endswith(
        "valid, 1 budgets with 2 limits, 0 armed\n"
    )
    wrong = terminal.run("policy", "check", written(tmp_path, POLICY.replace("80%", "lots")))
    assert wrong.exit_code == 1
    assert "line 8" in wrong.err
    assert "none" not in terminal.run("policy", "show").out
    applied = terminal.run("policy", "apply", written(tmp_path, POLICY))
    assert "2 limits added, 0 changed, 0 ended, 0 as before" in applied.out
    shown = terminal.run("policy", "show", "--format", "json").json
    assert [(row["measure"], row["limit"], row["spent"], row["verdict"]) for row in shown] == [
        ("cost", "100.000000000", "0.000000000", "allow"),
        ("energy_kwh", "50.000000000", "0.000000000", "allow"),
    ]
    assert terminal.run("policy", "show", "--tenant", "globex").out.endswith("sets some\n")
    assert terminal.run("policy", "show", "--tenant", "acme").exit_code == 0
    assert terminal.run("policy", "apply", written(tmp_path, "version: 2\n")).exit_code == 2


def test_a_budget_that_could_not_count_all_says_so_even_while_it_allows(
    terminal: Terminal, db: Database, tmp_path: Path
) -> None:
    terminal.run("policy", "apply", written(tmp_path, POLICY))
    (tenant,) = {row["tenant"] for row in terminal.run("policy", "show", "--format", "json").json}
    admin = db.create_engine("admin")
    with admin.begin() as conn:
        books = Books.open(conn)
        this_hour = (datetime.now(UTC) - FIRST_HOUR) // timedelta(hours=1)
        books.close(this_hour, [tokens(tenant_id=books.tenant(tenant), count=70, cost=None, unit="request")])
    admin.dispose()
    shown = terminal.run("policy", "show", "--format", "json").json
    assert [(row["verdict"], row["unpriced_lines"], row["usage_unknown_calls"]) for row in shown] == [
        ("allow", 0, 70),
        ("allow", 0, 0),
    ]
    said = terminal.run("policy", "show").out
    assert said.count("not counted: 70 API calls that told no usage") == 1
