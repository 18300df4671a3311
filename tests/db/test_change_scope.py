"""A price has the hours rated again that hang on it, and no other: lines and calls of its provider and model, or without a price."""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from analytics.io.hours import due_hours, forget_changes
from analytics.jobs import HourCloser, WorkerSettings
from ingest.importers.columns import Source
from ingest.importers.prices import PriceOptions, import_prices
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
LATER: Final = HOUR_AT + 24 * HOUR
OWN_AT, CALLS_AT, OTHERS_AT = HOUR_AT, HOUR_AT + HOUR, HOUR_AT + 2 * HOUR
SETTINGS: Final = WorkerSettings(code_version="test")


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Three closed hours: of the own board alone; of calls of gpt-5, priced; of calls of claude, for which there is no price."""
    fleet = small_fleet(db)
    fleet.samples(OWN_AT, OWN_AT + HOUR - timedelta(seconds=10))
    fleet.job("7", OWN_AT, OWN_AT + HOUR)
    priced(fleet, "openai", "gpt-5", "0.000002")
    for at, provider, model in ((CALLS_AT, "openai", "gpt-5"), (OTHERS_AT, "anthropic", "claude")):
        called(fleet, at, provider, model)
    closed(fleet)
    assert due(fleet) == []
    return fleet


def called(fleet: SmallFleet, at: datetime, provider: str, model: str) -> None:
    with fleet.admin() as admin:
        admin.execute("SELECT ensure_partitions(%s, %s, NULL)", (at.date(), at.date() + timedelta(days=1)))
        admin.execute(
            "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, input_uncached_tokens, usage_known, source, origin) "
            "VALUES (%s, %s, %s, %s, %s, 1000, true, 'span', 1)",
            (at, f"{at}{model}", fleet.site_id, provider, model),
        )
        fleet.changed("api_calls", at, at + timedelta(seconds=1), admin)


def priced(fleet: SmallFleet, provider: str, model: str, amount: str, meter: str = "input_tokens") -> None:
    """Import a price of ever, as `wattledger import prices` does."""
    unit = "hour" if meter == "accelerator_hour" else "token"
    engine = fleet.database.create_engine("admin")
    with TemporaryDirectory() as folder, engine.connect() as conn:
        book = Path(folder) / "book.csv"
        said = f"{provider},{model},{meter},{amount},{unit},USD,2026-10-01T00:00Z"
        book.write_text(f"provider,model,meter,amount,unit,currency,valid_from\n{said}\n")
        assert import_prices(conn, Source(book), PriceOptions("s1")).written == {"prices": 1}
    engine.dispose()


def closed(fleet: SmallFleet) -> None:
    HourCloser(fleet.database, SETTINGS).run(LATER)


def due(fleet: SmallFleet) -> list[datetime]:
    with fleet.database.connect("worker", autocommit=True) as worker:
        return [each.hour_at for each in due_hours(worker, LATER)]


def worked_off(fleet: SmallFleet) -> None:
    """Rate what is due: nothing stays due, and what is left of changes can be forgotten."""
    closed(fleet)
    assert due(fleet) == []
    with fleet.database.connect("worker", autocommit=True) as worker:
        ((horizon,),) = worker.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchall()
        forget_changes(worker, str(horizon), LATER)
    assert fleet.rows("SELECT kind FROM changes WHERE kind = 'prices'") == []


def test_a_run_says_what_its_lines_hang_on(fleet: SmallFleet) -> None:
    said = dict(fleet.rows("SELECT hour_at, uses FROM ledger_runs ORDER BY id"))
    assert said[OWN_AT] == ["owned/", "owned/h100"]
    assert said[CALLS_AT] == ["openai/", "openai/gpt-5", "owned/", "owned/h100"]
    assert said[OTHERS_AT] == ["anthropic/", "anthropic/*", "anthropic/claude", "owned/", "owned/h100"]


def test_runs_of_before_are_given_the_same_words_by_the_migration(fleet: SmallFleet) -> None:
    said = "SELECT id, uses FROM ledger_runs ORDER BY id"
    before = fleet.rows(said)
    fleet.rows("UPDATE ledger_runs SET uses = NULL RETURNING 1")
    path = Path(__file__).resolve().parents[2] / "alembic/versions/0062_run_uses.py"
    spec = spec_from_file_location("run_uses", path)
    assert spec is not None
    assert spec.loader is not None
    migration = module_from_spec(spec)
    spec.loader.exec_module(migration)
    with fleet.admin() as admin:
        admin.execute(migration.SAID)
    assert fleet.rows(said) == before


@pytest.mark.parametrize(
    ("book", "concerned"),
    [
        (("openai", "gpt-5", "0.000003"), [CALLS_AT]),
        (("OpenAI", "GPT-5", "0.000003"), [CALLS_AT]),
        (("openai", "gpt-6", "0.000003"), []),
        (("openai", "gpt-5", "0.00001", "output_tokens"), [CALLS_AT]),
        # Another model's, but of a provider of which something has no price: whatever it is called, this may be it.
        (("anthropic", "claude-2", "0.000003"), [OTHERS_AT]),
        (("owned", "H100", "2.5", "accelerator_hour"), [OWN_AT, CALLS_AT, OTHERS_AT]),
        (("owned", "A100", "2.5", "accelerator_hour"), []),
    ],
)
def test_a_price_concerns_the_hours_that_hang_on_it(
    fleet: SmallFleet, book: tuple[str, ...], concerned: list[datetime]
) -> None:
    priced(fleet, *book)
    assert due(fleet) == concerned
    worked_off(fleet)


def test_a_change_that_says_no_scope_concerns_every_hour(fleet: SmallFleet) -> None:
    with fleet.admin() as admin:
        fleet.changed("prices", OWN_AT, OWN_AT + 3 * HOUR, admin)
    assert due(fleet) == [OWN_AT, CALLS_AT, OTHERS_AT]
    worked_off(fleet)


def test_a_run_of_before_that_says_nothing_is_concerned_by_any_price(fleet: SmallFleet) -> None:
    fleet.rows("UPDATE ledger_runs SET uses = NULL RETURNING 1")
    priced(fleet, "openai", "gpt-6", "0.000003")
    assert due(fleet) == [OWN_AT, CALLS_AT, OTHERS_AT]
    worked_off(fleet)


def test_an_hour_that_was_not_concerned_has_the_price_when_it_is_looked_at_again(fleet: SmallFleet) -> None:
    priced(fleet, "openai", "gpt-6", "0.000003")
    assert due(fleet) == []
    called(fleet, OWN_AT + timedelta(minutes=1), "openai", "gpt-6")
    assert due(fleet) == [OWN_AT]
    worked_off(fleet)
    # 1,000 tokens at 0.000003.
    assert fleet.rows(
        "SELECT billed_cost::text FROM current_ledger_lines WHERE split_part(holder_key, '/', 2) = 'gpt-6'"
    ) == [("0.003000000",)]
    # It did not hang on that price when it was closed: what it is rated again for is the call.
    assert fleet.rows("SELECT reason FROM ledger_runs ORDER BY id DESC LIMIT 1") == [("changed rates: api_calls",)]


def test_the_rows_of_one_book_are_a_change_a_provider(fleet: SmallFleet) -> None:
    priced(fleet, "openai", "gpt-5", "0.000003")
    assert fleet.rows("SELECT site_id, kind, scope FROM changes WHERE kind = 'prices' ORDER BY id DESC LIMIT 1") == [
        (None, "prices", {"provider": "openai", "models": ["openai/gpt-5", "openai/*"]})
    ]
