"""Closed hours are computed again on request: those and no neighbour, with the reason on their runs, and only what differs is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
NINE = HOUR_AT + HOUR
LATER = HOUR_AT + 6 * HOUR
RUNS = "SELECT hour_at, revision, method_version, reason FROM ledger_runs WHERE hour_at < %s ORDER BY id"
LINES = "SELECT line_key, billed_cost, energy_mj FROM current_ledger_lines WHERE hour_at = %s ORDER BY 1"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + 2 * HOUR)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    return fleet


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


def test_hours_of_older_formulas_are_restated_where_asked_and_nowhere_else(
    fleet: SmallFleet, terminal: Terminal
) -> None:
    # As formulas 1 left them: another content, for both hours.
    fleet.rows("UPDATE ledger_runs SET method_version = 1 RETURNING 1")
    fleet.rows("UPDATE ledger_hours SET content_sha256 = '' RETURNING 1")
    closer = HourCloser(fleet.database, WorkerSettings(code_version="test"))
    before = fleet.rows(LINES, HOUR_AT)
    asked = terminal.run(
        "recompute", "--restate", "--from", HOUR_AT.isoformat(), "--to", NINE.isoformat(), "--reason", "formulas 2"
    )
    assert asked.exit_code == 0
    assert "computes 1 hours again" in asked.out
    done = closer.run(LATER)
    assert (done.restated, done.failed) == (1, 0)
    assert fleet.rows(RUNS, HOUR_AT + 2 * HOUR)[2:] == [(HOUR_AT, 2, 2, "restated: formulas 2")]
    assert fleet.rows(LINES, HOUR_AT) == before
    assert closer.run(LATER).restated == 0
    assert fleet.rows("SELECT count(*) FROM changes WHERE kind = 'restate'") == [(0,)]
    assert fleet.rows("SELECT action, detail ->> 'reason' FROM audit") == [("books.restate", "formulas 2")]


def test_an_hour_that_comes_out_the_same_keeps_its_revision(fleet: SmallFleet, terminal: Terminal) -> None:
    terminal.run(
        "recompute", "--restate", "--from", HOUR_AT.isoformat(), "--to", NINE.isoformat(), "--reason", "to see"
    )
    done = HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    assert (done.restated, done.unchanged) == (0, 1)
    assert {row[1] for row in fleet.rows(RUNS, HOUR_AT + 2 * HOUR)} == {1}


def test_what_cannot_be_restated_is_refused(fleet: SmallFleet, terminal: Terminal) -> None:
    start, end = HOUR_AT.isoformat(), NINE.isoformat()
    for words, why in (
        (("--from", start, "--to", end, "--reason", " "), "say why"),
        (("--from", start, "--to", start, "--reason", "x"), "no full hours"),
        (("--from", "2020-01-01", "--to", "2020-01-02", "--reason", "x"), "is closed"),
        (("--from", start, "--reason", "x"), "wants --from, --to and --reason"),
    ):
        refused = terminal.run("recompute", "--restate", *words)
        assert (refused.exit_code, why in refused.err) == (2, True)
    assert fleet.rows("SELECT count(*) FROM changes WHERE kind = 'restate'") == [(0,)]


def test_what_a_restatement_moved_is_told_line_by_line_with_its_reason(fleet: SmallFleet, terminal: Terminal) -> None:
    # 2 USD an hour become 2.50 from nine on: of two lines of each hour one moves, in one hour.
    fleet.rows("UPDATE prices SET superseded_at = now() RETURNING 1")
    for amount, start, end in (("2", "2026-10-01Z", NINE.isoformat()), ("2.5", NINE.isoformat(), None)):
        fleet.rows(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from, valid_to) "
            "VALUES ('owned', 'H100', 'accelerator_hour', %s, 'hour', 'USD', 'test', %s, %s) RETURNING 1",
            amount,
            start,
            end,
        )
    with fleet.admin() as connection:
        fleet.changed("prices", HOUR_AT, LATER, connection)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    (line,) = terminal.run("diff", "s1", NINE.isoformat(), "--format", "json").json
    assert (line["tenant"], line["holder"].partition("|")[0], line["charge_category"], line["what"]) == (
        "acme/research/nlp",
        "job:c1",
        "gpu_owned",
        "cost",
    )
    assert (line["billed_cost"], line["energy_mj"]) == ("0.500000000", 0)
    shown = terminal.run("diff", "s1", NINE.isoformat()).out
    assert "revision 1 to 2: 1 lines moved" in shown
    assert "revision 2 by rate of test: changed rates" in shown
    assert (
        "revisions 1 to 2; 1 to 3" in terminal.run("diff", "s1", NINE.isoformat(), "--after", "3", "--before", "1").err
    )
    assert "no closed hour" in terminal.run("diff", "nowhere", NINE.isoformat()).err
