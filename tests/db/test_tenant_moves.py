"""A reorganization is dated rows: hours from then on are rated to the other tenant, and it can be taken back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from analytics.closing import hours
from analytics.io.tenant_moves import move, take_back
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
NINE = HOUR_AT + HOUR
LATER = HOUR_AT + 6 * HOUR
OLD, NEW = "acme/research", "globex/labs"
PAID = (
    "SELECT hour_at, path FROM current_ledger_lines LEFT JOIN tenants ON tenants.id = tenant_id "
    "WHERE pool = 'job' AND charge_category = 'gpu_owned' ORDER BY hour_at"
)
RATED = "SELECT hour_at FROM ledger_runs WHERE kind = 'rate' ORDER BY id"


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """A job of acme/research/nlp over two hours, closed."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + 2 * HOUR)
    return fleet


def test_a_move_rates_the_hours_it_reaches_and_no_others_and_can_be_taken_back(
    fleet: SmallFleet, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    closer = HourCloser(fleet.database, WorkerSettings(code_version="test"))
    closer.run(LATER)
    assert fleet.rows(PAID) == [(HOUR_AT, "acme/research/nlp"), (NINE, "acme/research/nlp")]
    monkeypatch.setattr(hours, "begin_batch", _no_readings)

    done = terminal.run("tenants", "move", OLD, NEW, "--from", NINE.isoformat())
    assert (done.exit_code, done.out.splitlines()[0]) == (
        0,
        "1 tenant moved, 1 made",
    )  # there is no tenant acme/research itself
    closer.run(LATER)
    assert fleet.rows(PAID) == [(HOUR_AT, "acme/research/nlp"), (NINE, "globex/labs/nlp")]
    assert fleet.rows(RATED) == [(NINE,)]
    assert terminal.run("tenants", "move", OLD, NEW, "--from", NINE.isoformat()).out.endswith("already\n")
    assert fleet.rows("SELECT action FROM audit") == [("tenants.move",)]

    said = terminal.run("tenants", "explain", "7").out
    assert "acme/research/nlp" in said  # it began before the move
    back = terminal.run("tenants", "move", OLD, NEW, "--undo")
    assert back.out.splitlines()[0] == "1 tenant taken back"
    closer.run(LATER)
    assert fleet.rows(PAID) == [(HOUR_AT, "acme/research/nlp"), (NINE, "acme/research/nlp")]
    assert fleet.rows(RATED) == [(NINE,), (NINE,)]
    assert terminal.run("tenants", "move", OLD, NEW, "--undo").exit_code == 2


def test_a_move_told_by_a_machine_whose_clock_is_ahead_counts_at_once(fleet: SmallFleet) -> None:
    closer = HourCloser(fleet.database, WorkerSettings(code_version="test"))
    closer.run(LATER)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    with fleet.database.connect("owner", autocommit=True) as connection:
        move(connection, OLD, NEW, NINE, ahead)
    closer.run(LATER)
    assert fleet.rows(PAID) == [(HOUR_AT, "acme/research/nlp"), (NINE, "globex/labs/nlp")]
    ((recorded_at,),) = fleet.rows("SELECT recorded_at FROM tenant_moves")
    assert recorded_at < ahead - timedelta(minutes=30)
    with fleet.database.connect("owner", autocommit=True) as connection:
        take_back(connection, OLD, NEW, ahead)
    closer.run(LATER)
    assert fleet.rows(PAID) == [(HOUR_AT, "acme/research/nlp"), (NINE, "acme/research/nlp")]


def test_a_job_that_began_after_a_move_is_explained_with_it(fleet: SmallFleet, terminal: Terminal) -> None:
    terminal.run("tenants", "move", OLD, NEW, "--from", (HOUR_AT - HOUR).isoformat())
    said = terminal.run("tenants", "explain", "7", "--format", "json").json[0]
    assert (said["tenant"], said["steps"][-1]) == (
        "globex/labs/nlp",
        "acme/research/nlp has moved: globex/labs/nlp pays",
    )


def test_what_cannot_be_moved_is_refused_and_nothing_is_kept(fleet: SmallFleet, terminal: Terminal) -> None:
    at = NINE.isoformat()
    for old, new, why in (
        ("nobody", "acme", "there is no tenant nobody"),
        ("acme/research", "acme/research/nlp", "itself or below it"),
    ):
        refused = terminal.run("tenants", "move", old, new, "--from", at)
        assert (refused.exit_code, why in refused.err) == (2, True)
    assert terminal.run("tenants", "move", OLD, NEW).exit_code == 2
    cut = terminal.run("tenants", "move", OLD, NEW, "--from", (NINE + timedelta(minutes=1)).isoformat())
    assert "cuts an hour" in cut.err
    assert terminal.run("tenants", "move", OLD, NEW, "--from", at).exit_code == 0
    circle = terminal.run("tenants", "move", NEW, OLD, "--from", (NINE + HOUR).isoformat())
    assert (circle.exit_code, "in a circle" in circle.err) == (2, True)
    assert fleet.rows("SELECT count(*) FROM tenant_moves") == [(1,)]


def _no_readings(*_: object, **__: object) -> None:
    raise AssertionError("a rating reads no sample")
