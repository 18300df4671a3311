"""Who carries idle accelerators is a dated policy of the site: its lines show on bills, and no budget's own spend counts them."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from analytics.closing import hours
from analytics.io.spend import load_spend
from analytics.io.statements import bill
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.budget import Budget, Measure
from analytics.model.period import Period
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
NINE = HOUR_AT + HOUR
LATER = HOUR_AT + 6 * HOUR
NLP = "acme/research/nlp"
SPREAD = (
    "SELECT hour_at, path, billed_cost FROM current_ledger_lines LEFT JOIN tenants ON tenants.id = tenant_id "
    "WHERE charge_category = 'idle_spread' AND hour_at < '2026-11-01 10:00Z' ORDER BY hour_at, path"
)
COSTS = "SELECT sum(billed_cost) FROM current_ledger_lines GROUP BY hour_at ORDER BY hour_at"


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """One board at 2 USD an hour and 100 W at 0.20 USD: held for half of an hour, idle for the rest of two. Closed."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=30))
    closer(fleet).run(LATER)
    return fleet


def closer(fleet: SmallFleet) -> HourCloser:
    return HourCloser(fleet.database, WorkerSettings(code_version="test"))


def test_spread_idle_is_on_the_bill_and_in_no_budgets_own_spend(
    fleet: SmallFleet, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fleet.rows(COSTS)
    monkeypatch.setattr(hours, "load_batch", _no_readings)
    told = terminal.run("sites", "idle", "s1", "proportional", "--from", HOUR_AT.isoformat())
    assert (told.exit_code, told.out) == (0, f"s1: proportional from {HOUR_AT.isoformat()}\n")
    assert terminal.run("sites", "idle", "s1", "proportional", "--from", HOUR_AT.isoformat()).out.endswith("already\n")

    assert closer(fleet).run(LATER).rated == 1

    # Half an hour is 1 USD and 0.01 USD of electricity; at nine nobody used anything.
    assert fleet.rows(SPREAD) == [(HOUR_AT, NLP, Decimal("1.01")), (HOUR_AT, None, Decimal("-1.01"))]
    assert fleet.rows(COSTS) == before
    engine = fleet.database.create_engine("admin")
    with engine.connect() as conn:
        rows = {row.key: row.figures for row in bill(conn, HOUR_AT, NINE).rows}
        assert rows[NLP].cost_by_category == {
            "electricity": Decimal("0.01"),
            "gpu_owned": Decimal(1),
            "idle_spread": Decimal("1.01"),
        }
        assert rows["(platform)/idle"].cost == 0
        for measure, own, other in (
            (Measure.COST, "1.01", "1.01"),
            (Measure.ACCELERATOR_HOURS, "0.5", "0"),
            (Measure.ENERGY_KWH, "0.05", "0"),
        ):
            currency = "USD" if measure is Measure.COST else None
            budget = Budget(1, 1, NLP, "nlp", Period.MONTH, "UTC", measure, Decimal(100), currency, ())
            spend = load_spend(conn, budget, LATER)
            assert (spend.own, spend.other) == (Decimal(own), Decimal(other))
    engine.dispose()


def test_a_policy_is_ended_by_the_next_one_and_corrected_by_one_of_its_instant(
    fleet: SmallFleet, terminal: Terminal
) -> None:
    start = HOUR_AT.isoformat()
    terminal.run("sites", "idle", "s1", "fixed", "--part", f"{NLP}=25%", "--from", start)
    closer(fleet).run(LATER)
    # 25 % of 1.01, and of 2.02 where nobody used anything: a fixed part is carried all the same.
    assert [row[2] for row in fleet.rows(SPREAD)] == [
        Decimal("0.2525"),
        Decimal("-0.2525"),
        Decimal("0.505"),
        Decimal("-0.505"),
    ]
    terminal.run("sites", "idle", "s1", "keep", "--from", NINE.isoformat())
    closer(fleet).run(LATER)
    assert [row[0] for row in fleet.rows(SPREAD)] == [HOUR_AT, HOUR_AT]
    terminal.run("sites", "idle", "s1", "keep", "--from", start)
    closer(fleet).run(LATER)
    assert fleet.rows(SPREAD) == []


def test_what_cannot_be_is_refused(fleet: SmallFleet, terminal: Terminal) -> None:
    at = ("--from", HOUR_AT.isoformat())
    for words, why in (
        (("nowhere", "keep", *at), "there is no site 'nowhere'"),
        (("s1", "fixed", *at), "names the part of each tenant"),
        (("s1", "fixed", "--part", "nobody=5%", *at), "there is no tenant nobody"),
        (("s1", "fixed", "--part", f"{NLP}=5", *at), "is no part"),
        (("s1", "fixed", "--part", f"{NLP}=60%", "--part", "acme=50%", *at), "cannot pass the whole"),
    ):
        refused = terminal.run("sites", "idle", *words)
        assert (refused.exit_code, why in refused.err) == (2, True)
    assert fleet.rows("SELECT count(*) FROM idle_policies") == [(0,)]


def _no_readings(*_: object, **__: object) -> None:
    raise AssertionError("a rating reads no sample")
