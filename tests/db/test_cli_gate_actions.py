"""`wattledger gate check` against a real service, and `wattledger actions` with and without a database."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.actions.settings import ActionSettings
from analytics.io import action_log, budgets
from analytics.io.action_log import NewAction, Status
from ingest.store import tokens
from ingest.store.engine import URL_VARIABLE, Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet
from tests.fakes.serving import serving
from tests.fakes.terminal import Terminal
from wattledger.runtime import Secret
from wattledger.service import create_service

pytestmark = pytest.mark.db
JOB = "accelerators: 4\nmodel: H100\nhours: {hours}\ntenant: acme/research/nlp\n"
POLICY = """\
version: 1
budgets:
  - name: nlp
    tenant: acme/research/nlp
    period: month
    currency: USD
    limits: {cost: 100}
    ladder: [{at: 80%, do: warn}]
"""


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    home = tmp_path / "home"
    home.mkdir()
    return Terminal.on(db, home, monkeypatch, capsys)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def gate_token(db: Database, path: Path) -> Path:
    engine = db.create_engine("owner")
    with engine.begin() as conn:
        issued = tokens.create(conn, "ci", {tokens.Scope.GATE}, actor="test", tenant_path="acme")
    engine.dispose()
    Secret(path).write(issued.secret)
    return path


def test_the_gate_answers_with_figures_in_units_and_an_exit_code_for_ci(
    terminal: Terminal, db: Database, tmp_path: Path
) -> None:
    # 2 USD per H100-hour; electricity of the IT meter at 0.20 USD/kWh and 400 g/kWh; jobs drew 100 W lately.
    # 4 GPUs for 10 h: 80 USD + 4 kWh x 0.20 = 80.80 USD, 4 kWh, 1.6 kg.
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    terminal.run("worker", "--once")
    terminal.run("policy", "apply", written(tmp_path, POLICY))
    token = gate_token(db, tmp_path / "token")
    with serving(create_service(db, os.environ)) as url:
        there = ["--url", url, "--token-file", str(token)]
        fits = terminal.run("gate", "check", written(tmp_path, JOB.format(hours=5)), *there)
        warns = terminal.run("gate", "check", written(tmp_path, JOB.format(hours=10)), *there)
        denied = terminal.run("gate", "check", written(tmp_path, JOB.format(hours=100)), *there)
        as_json = terminal.run("gate", "check", written(tmp_path, JOB.format(hours=10)), *there, "--format", "json")
        unknown = terminal.run("gate", "check", written(tmp_path, JOB.format(hours=1).replace("H100", "TPU")), *there)
        misspelt = terminal.run("gate", "check", written(tmp_path, JOB.format(hours=1) + "gpus: 3\n"), *there)
    assert [ran.exit_code for ran in (fits, warns, denied, unknown, misspelt)] == [0, 0, 1, 2, 2]
    assert "verdict   allow" in fits.out
    assert "verdict   warn" in warns.out
    assert "cost      80.80 USD" in warns.out
    assert "energy    4.00 kWh" in warns.out
    assert "carbon    1.60 kgCO2e" in warns.out
    assert "verdict   deny" in denied.out
    assert as_json.json["cost"] == "80.8"
    assert as_json.json["exit_code"] == 0
    assert "no price is in force for 'TPU'" in unknown.err
    assert "gpus" in misspelt.err


def test_the_gate_tells_a_service_that_is_down_from_a_no(terminal: Terminal, tmp_path: Path) -> None:
    job = written(tmp_path, JOB.format(hours=1))
    not_up = terminal.run("gate", "check", job)
    assert not_up.exit_code == 2
    assert "no service runs in" in not_up.err
    no_token = terminal.run("gate", "check", job, "--url", "http://127.0.0.1:1")
    assert "there is no token in" in no_token.err
    Secret(tmp_path / "token").write("wl_whatever")
    dead = terminal.run("gate", "check", job, "--url", "http://127.0.0.1:1", "--token-file", tmp_path / "token")
    assert dead.exit_code == 2
    assert "could not be asked" in dead.err


@pytest.mark.parametrize("text", ["- a list\n", "accelerators: [1, 2]\n", "a: 1\na: 2\n", ""])
def test_a_specification_that_is_none_could_not_be_answered(terminal: Terminal, tmp_path: Path, text: str) -> None:
    ran = terminal.run("gate", "check", written(tmp_path, text), "--url", "http://127.0.0.1:1")
    assert ran.exit_code == 2
    assert "job.yaml" in ran.err


def planned(db: Database, *, approval: str) -> int:
    """Write down an action on a job of a tenant that has a budget."""
    now = datetime.now(UTC)
    owner, engine = db.create_engine("owner"), db.create_engine("worker")
    with owner.begin() as conn:
        budgets.apply(conn, POLICY, now, actor="test")
    owner.dispose()
    with engine.begin() as conn:
        (recorded,) = budgets.evaluate(conn, now)
        made = action_log.add(
            conn,
            NewAction(
                decision_id=recorded.decision_id,
                tenant_id=recorded.decision.budget.tenant_id,
                idempotency_key=f"test/{approval}",
                kind="cancel",
                plane="slurm",
                target={"cluster": "lab", "native_id": "42", "accelerators": 8},
                status=Status.PLANNED,
                dry_run=False,
                evidence={
                    "reason": "budget 'nlp' is over",
                    "approval": approval,
                    "approved_by": None,
                    "not_before_at": now.isoformat(),
                },
            ),
            now,
        )
    engine.dispose()
    assert made is not None
    return made


def test_a_planned_action_is_listed_and_approved_once_by_name(terminal: Terminal, db: Database) -> None:
    action_id = planned(db, approval="MANUAL")
    listed = terminal.run("actions", "list", "--format", "json").json
    assert [(row["id"], row["status"], row["job"], row["approval"]) for row in listed] == [
        (action_id, "planned", "lab/42", "waits for a yes")
    ]
    approved = terminal.run("actions", "approve", str(action_id))
    assert approved.exit_code == 0
    assert "is approved: cancel job lab/42" in approved.out
    again = terminal.run("actions", "approve", str(action_id))
    assert again.exit_code == 1
    assert "was approved before, by" in again.err
    with db.connect("admin") as connection:
        assert connection.execute("SELECT action, subject FROM audit WHERE action = 'action.approve'").fetchall() == [
            ("action.approve", f"action/{action_id}")
        ]


def test_only_what_waits_for_a_yes_can_be_approved(terminal: Terminal, db: Database) -> None:
    automatic = planned(db, approval="AUTOMATIC")
    assert "needs no approval" in terminal.run("actions", "approve", str(automatic)).err
    missing = terminal.run("actions", "approve", "999")
    assert (missing.exit_code, missing.err) == (1, "there is no action 999; see `wattledger actions list`\n")
    assert terminal.run("actions", "list", "--status", "done").exit_code == 0


def test_pausing_needs_no_database_and_holds_until_resumed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "postgresql://nobody@127.0.0.1:1/none")
    assert terminal.run("actions", "pause").exit_code == 2
    paused = terminal.run("actions", "pause", "--all", "--reason", "wrong prices")
    assert paused.exit_code == 0
    flag = terminal.home / "actions.paused"
    assert stat.S_ISREG(flag.stat().st_mode)
    assert "wrong prices" in flag.read_text(encoding="utf-8")
    assert terminal.run("actions", "resume").exit_code == 0
    assert not flag.exists()
    assert terminal.run("actions", "resume").exit_code == 1


def test_a_home_that_is_not_there_cannot_be_paused(terminal: Terminal, tmp_path: Path) -> None:
    elsewhere = Terminal(tmp_path / "typo", terminal.monkeypatch, terminal.capsys)
    ran = elsewhere.run("actions", "pause", "--all")
    assert ran.exit_code == 2
    assert "there is nothing in" in ran.err
    assert not (tmp_path / "typo").exists()


def test_the_executor_and_the_command_line_mean_the_same_flag(terminal: Terminal) -> None:
    from analytics.actions.pause import paused  # noqa: PLC0415

    terminal.run("actions", "pause", "--all", "--reason", "test")
    brake = paused(ActionSettings(terminal.home).state_dir)
    assert brake is not None
    assert brake.reason == "test"
    assert "actions are paused by" in terminal.run("actions", "list").out
