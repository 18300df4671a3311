"""The same 1,000 calls as spans, as SpendLogs and as an invoice, in every order: the bill counts them once, exactly."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from analytics.io import charges, statements
from analytics.jobs import HourCloser, WorkerSettings
from ingest.importers.columns import Source
from ingest.importers.focus import FocusOptions, import_focus
from ingest.importers.litellm import LitellmOptions, import_litellm
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import Site, make_site, run
from tests.db.test_ingest_app_traces import export, send

pytestmark = pytest.mark.db

DAY_AT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
FIRST_AT = DAY_AT + timedelta(hours=9)
NOW = DAY_AT + timedelta(days=2)
MODELS = ("gpt-4o", "gpt-4o-mini")
PRICES = {"input_tokens": "0.0000025", "cache_read_tokens": "0.00000125", "output_tokens": "0.00001"}
"""USD per token, of both models; what tokens cost has at most 8 places, so no sum is rounded."""
WAYS = ("spans", "spend logs", "invoice by call")


@dataclass(frozen=True)
class Call:
    """Call n: 1,000 + n tokens in, of which 600 were cached, and 250 + n % 7 out; one each 10 s over 2.8 hours."""

    n: int

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.n:04}"

    @property
    def at(self) -> datetime:
        return FIRST_AT + timedelta(seconds=10 * self.n)

    @property
    def model(self) -> str:
        return MODELS[self.n % 2]

    @property
    def key(self) -> str:
        return f"team-{self.n % 3}"

    @property
    def given(self) -> int:
        return 1000 + self.n

    @property
    def produced(self) -> int:
        return 250 + self.n % 7


CALLS = [Call(n) for n in range(1000)]
TOKENS = sum(call.given + call.produced for call in CALLS)
UNCACHED = sum(call.given - 600 for call in CALLS)
COST = (
    UNCACHED * Decimal(PRICES["input_tokens"])
    + 600_000 * Decimal(PRICES["cache_read_tokens"])
    + sum(call.produced for call in CALLS) * Decimal(PRICES["output_tokens"])
)


def spans(call: Call) -> tuple[int, int, dict[str, str | int]]:
    used: dict[str, str | int] = {
        "gen_ai.response.id": call.id,
        "gen_ai.request.model": call.model,
        "gen_ai.usage.input_tokens": call.given,
        "gen_ai.usage.cache_read.input_tokens": 600,
        "gen_ai.usage.output_tokens": call.produced,
        "wattledger.api_key": call.key,
        "wattledger.origin": "live",
    }
    return call.n + 1, int(call.at.timestamp() * 1_000_000), used


def spend_log(call: Call) -> dict[str, Any]:
    # The gateway's clock is 300 ms off, and it logs when the answer was complete.
    start = call.at + timedelta(milliseconds=300)
    usage = {"prompt_tokens_details": {"cached_tokens": 600}, "completion_tokens_details": {"reasoning_tokens": None}}
    return {
        "request_id": call.id,
        "call_type": "acompletion",
        "api_key": "8" * 64,
        "spend": "0.0033",
        "total_tokens": call.given + call.produced,
        "prompt_tokens": call.given,
        "completion_tokens": call.produced,
        "startTime": start.strftime("%Y-%m-%d %H:%M:%S.%f"),
        "endTime": (start + timedelta(seconds=2)).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "model": f"openai/{call.model}",
        "custom_llm_provider": "openai",
        "user": "ada@acme.example",
        "status": "success",
        "metadata": json.dumps({"user_api_key_alias": call.key, "usage_object": usage}),
    }


def invoice_lines(what: str, model: str, tokens: int, direction: str, price: str, call: Call | None) -> dict[str, Any]:
    start = DAY_AT if call is None else call.at.replace(minute=0, second=0)
    cached = "Read" if direction == "Cached" else ""
    return {
        "BilledCost": format(tokens * Decimal(PRICES[price]), "f"),
        "EffectiveCost": format(tokens * Decimal(PRICES[price]), "f"),
        "BillingAccountId": "org-1",
        "BillingCurrency": "USD",
        "BillingPeriodStart": DAY_AT.replace(day=1).isoformat(),
        "BillingPeriodEnd": (DAY_AT.replace(day=1) + timedelta(days=31)).isoformat(),
        "ChargeCategory": "Usage",
        "ChargePeriodStart": start.isoformat(),
        "ChargePeriodEnd": (start + timedelta(hours=1 if call else 24)).isoformat(),
        "ProviderName": "OpenAI",
        "InvoiceId": what,
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "SkuMeter": f"{direction} Tokens",
        "SkuPriceDetails": json.dumps(
            {
                "ModelId": model,
                "TokenDirection": "Output" if direction == "Output" else "Input",
                "TokenCacheAction": cached,
            }
        ),
        "x_ResponseId": "" if call is None else call.id,
    }


def by_call(call: Call) -> list[dict[str, Any]]:
    parts = (
        (call.given - 600, "Input", "input_tokens"),
        (600, "Cached", "cache_read_tokens"),
        (call.produced, "Output", "output_tokens"),
    )
    return [
        invoice_lines("INV-CALLS", call.model, tokens, direction, price, call) for tokens, direction, price in parts
    ]


def by_day() -> list[dict[str, Any]]:
    """A model's day in three lines, as most providers invoice; for the first model 1,000 output tokens more than called."""
    lines = []
    for model in MODELS:
        calls = [call for call in CALLS if call.model == model]
        more = 1000 if model == MODELS[0] else 0
        parts = (
            (sum(call.given - 600 for call in calls), "Input", "input_tokens"),
            (600 * len(calls), "Cached", "cache_read_tokens"),
            (sum(call.produced for call in calls) + more, "Output", "output_tokens"),
        )
        lines += [invoice_lines("INV-DAYS", model, *part, None) for part in parts]
    return lines


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass
class World:
    db: Database
    conn: sa.Connection
    site: Site
    folder: Path

    def arrives(self, way: str) -> None:
        if way == "spans":
            body = export(*(spans(call) for call in CALLS))

            async def scenario(client: httpx.AsyncClient) -> None:
                assert (await send(client, body, self.site.site_token)).status_code == 200

            run(Settings(self.db), scenario)
        elif way == "spend logs":
            source = Source(write(self.folder / "spend.csv", [spend_log(call) for call in CALLS]))
            assert not import_litellm(self.conn, source, LitellmOptions("site-1"), now=NOW).rejections.total
        else:
            lines = by_day() if way == "invoice by day" else [line for call in CALLS for line in by_call(call)]
            source = Source(write(self.folder / f"{way}.csv", lines))
            assert not import_focus(self.conn, source, FocusOptions("site-1"), now=NOW).rejections.total

    def bill(self) -> statements.Bill:
        HourCloser(self.db, WorkerSettings(code_version="test")).run(NOW)
        engine = self.db.create_engine("worker")
        try:
            with engine.connect() as conn:
                return statements.bill(conn, DAY_AT, DAY_AT + timedelta(days=1), statements.GroupBy.TENANT)
        finally:
            engine.dispose()


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Any:
    site = make_site(db)
    engine = db.create_engine("owner")
    with engine.connect() as conn:
        with conn.begin():
            for number in range(3):
                conn.exec_driver_sql(f"INSERT INTO tenants (path) VALUES ('acme/t{number}')")
                conn.exec_driver_sql(
                    "INSERT INTO bindings (position, tenant_id, api_key, valid_from) "
                    f"SELECT {number}, id, 'team-{number}', '2020-01-01Z' FROM tenants WHERE path = 'acme/t{number}'"
                )
            for model, (meter, amount) in itertools.product(MODELS, PRICES.items()):
                conn.execute(
                    sa.text(
                        "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
                        "VALUES ('openai', :model, :meter, :amount, 'token', 'USD', 'test', '2020-01-01Z')"
                    ),
                    {"model": model, "meter": meter, "amount": amount},
                )
        yield World(db, conn, site, tmp_path)
    engine.dispose()


@pytest.mark.parametrize("order", list(itertools.permutations(WAYS)), ids=" > ".join)
def test_a_thousand_calls_are_billed_once_whatever_source_comes_first(world: World, order: tuple[str, ...]) -> None:
    ways = list(order)
    ways.insert(WAYS.index(order[0]) + 1, "invoice by day")
    for way in ways:
        world.arrives(way)
    bill = world.bill()
    assert (bill.total.tokens, bill.total.cost) == (TOKENS, COST)
    assert (bill.total.unpriced_lines, bill.total.usage_unknown_calls) == (0, 0)
    # Call n is of team n mod 3: 334, 333 and 333 of them.
    owed = {
        f"acme/t{team}": sum(call.given + call.produced for call in CALLS if call.n % 3 == team) for team in range(3)
    }
    assert {row.key: row.figures.tokens for row in bill.rows} == owed
    with world.db.connect("worker") as worker:
        assert worker.execute("SELECT count(*), count(DISTINCT response_id) FROM api_calls").fetchall() == [
            (1000, 1000)
        ]
        sources = worker.execute("SELECT DISTINCT source FROM api_calls").fetchall()
    assert sources == [("span",)]


def test_the_invoice_is_shown_beside_the_calls_it_covers_and_added_to_nothing(world: World) -> None:
    world.arrives("spans")
    world.arrives("invoice by day")
    assert world.bill().total.cost == COST
    with world.db.connect("worker") as worker:
        rows = charges.compared(worker, DAY_AT, DAY_AT + timedelta(days=1))
        assert charges.sums(worker, DAY_AT, DAY_AT + timedelta(days=1), "provider") == []
        (invoice,) = charges.invoices(worker)
    assert [(row.model, row.calls, row.tokens - row.called_tokens) for row in rows] == [
        (MODELS[0], 500, 1000),
        (MODELS[1], 500, 0),
    ]
    # 1,000 output tokens that nobody called: 0.01 USD.
    assert [row.billed_cost - row.booked_cost for row in rows] == [Decimal("0.01"), Decimal(0)]
    assert (invoice.invoice_id, invoice.billed_cost, invoice.of_calls) == (
        "INV-DAYS",
        COST + Decimal("0.01"),
        invoice.billed_cost,
    )


@pytest.mark.parametrize("way", WAYS)
def test_each_source_alone_tells_the_whole_bill(world: World, way: str) -> None:
    world.arrives(way)
    bill = world.bill()
    assert (bill.total.tokens, bill.total.cost) == (TOKENS, COST)


def test_a_file_imported_again_after_a_better_source_adds_nothing(world: World) -> None:
    world.arrives("spend logs")
    world.arrives("spans")
    source = Source(write(world.folder / "again.csv", [spend_log(call) for call in reversed(CALLS)]))
    report = import_litellm(world.conn, source, LitellmOptions("site-1"), now=NOW)
    assert (report.written["api_calls"], report.unchanged) == (0, 1000)
    assert world.bill().total.tokens == TOKENS
