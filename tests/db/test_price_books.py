"""An applied book's prices are dated rows that calls are billed by; a changed one supersedes, and nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
import sqlalchemy as sa

from analytics.io.line_names import load_names
from analytics.io.price_book import PriceBookError, check
from analytics.io.price_book_store import Applied, apply, in_force, missing
from analytics.jobs import HourCloser, WorkerSettings
from ingest.calls import ApiCall, CallSource
from ingest.store.calls import write_calls
from ingest.store.engine import Database
from ingest.store.registry import Registry
from tests.db.ledger_fixture import HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
LATER = datetime(2026, 12, 2, tzinfo=UTC)
BOOK = """\
book: list
currency: USD
prices:
  - {provider: openai, model: gpt, from: 2026-01-01, per: 1000000, source: "https://example.com", published: 2025-12-30,
     input: "2.50", cache_read: "1.25", output: "10.00", batch: {input: "1.25", output: "5.00"},
     above: {tokens: 200000, input: "5.00", cache_read: "2.50", output: "20.00"}}
aliases:
  - {provider: openai, prefix: gpt-, model: gpt}
"""


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def applied(conn: sa.Connection, text: str) -> Applied:
    with conn.begin():
        return apply(conn, check(text), sha256(text.encode()).digest(), "ada")


def rows(conn: sa.Connection, query: str) -> list[tuple[Any, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


def test_a_book_is_kept_once_and_a_changed_one_supersedes_what_it_says_anew(conn: sa.Connection) -> None:
    assert applied(conn, BOOK) == Applied(1, prices=8, names=1)
    assert applied(conn, BOOK) == Applied(0)
    dearer = BOOK.replace('"1.25", output: "5.00"', '"1.30", output: "5.00"')
    assert applied(conn, dearer) == Applied(2, prices=1, superseded=1, unchanged=7)
    batch = "SELECT amount, superseded_at IS NULL, conditions, per, published_on::text FROM prices WHERE service_tier = 'batch' AND meter = 'input_tokens' ORDER BY id"
    assert rows(conn, batch) == [
        (Decimal("0.00000125"), False, "service_tier=batch", 1_000_000, "2025-12-30"),
        (Decimal("0.0000013"), True, "service_tier=batch", 1_000_000, "2025-12-30"),
    ]
    with conn.begin():
        found = in_force(conn, datetime(2026, 6, 1, tzinfo=UTC), model="GPT")
    assert [
        (row["meter"], row["conditions"], row["book_number"]) for row in found if row["meter"] == "input_tokens"
    ] == [
        ("input_tokens", "", 1),
        ("input_tokens", "above_tokens=200000", 1),
        ("input_tokens", "service_tier=batch", 2),
    ]


def test_a_plain_price_leaves_those_of_conditions_alone(conn: sa.Connection) -> None:
    applied(conn, BOOK)
    plain = (
        "book: other\ncurrency: USD\nprices:\n  - {provider: openai, model: gpt, from: 2026-03-01, input: '0.000003'}\n"
    )
    assert applied(conn, plain).superseded == 1
    current = "SELECT conditions, valid_from::date::text, valid_to::date::text FROM prices WHERE meter = 'input_tokens' AND superseded_at IS NULL ORDER BY 1, 2"
    assert rows(conn, current) == [
        ("", "2026-01-01", "2026-03-01"),
        ("", "2026-03-01", None),
        ("above_tokens=200000", "2026-01-01", None),
        ("service_tier=batch", "2026-01-01", None),
    ]


def test_names_that_a_book_no_longer_has_are_superseded_and_those_of_other_books_stay(conn: sa.Connection) -> None:
    applied(conn, BOOK)
    applied(conn, "book: mine\naliases:\n  - {provider: openai, exact: our-gpt, model: gpt}\n")
    assert applied(conn, "book: list\naliases: []\n").names == 1
    stand = "SELECT pattern FROM model_aliases WHERE superseded_at IS NULL"
    assert rows(conn, stand) == [("our-gpt",)]


def test_a_book_that_names_a_site_there_is_not_is_refused_by_line(conn: sa.Connection) -> None:
    text = "book: b\ncurrency: USD\nprices:\n  - {provider: owned, model: H100, hour: '2', from: 2026-01-01, site: nowhere}\n"
    with pytest.raises(PriceBookError, match="line 4: owned H100: there is no site 'nowhere'"):
        applied(conn, text)


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        (BOOK, {"models": ["openai/"]}),
        ("book: b\naliases:\n  - {provider: Azure/EU, exact: ours, model: gpt}\n", {"models": ["azure/"]}),
        ("book: b\nunknown:\n  - {provider: openai, model: '*', policy: deny}\n", {"models": ["openai/"]}),
        ("book: b\nunknown:\n  - {provider: 'open*', model: '*', policy: deny}\n", None),
    ],
)
def test_names_and_policies_concern_the_hours_with_something_of_their_provider(
    conn: sa.Connection, text: str, scope: dict[str, Any] | None
) -> None:
    applied(conn, text)
    assert rows(conn, "SELECT scope FROM changes WHERE kind = 'prices' ORDER BY id DESC LIMIT 1") == [(scope,)]


def test_a_chain_names_the_conditions_of_a_price_and_says_no_more_of_one_without(
    db: Database, conn: sa.Connection
) -> None:
    small_fleet(db)
    ((site,),) = rows(conn, "SELECT name FROM sites")
    owned = f"  - {{provider: owned, model: H100, hour: '2', from: 2026-01-01, site: {site}}}\n"
    applied(conn, BOOK.replace("aliases:", f"{owned}aliases:"))
    ids = [number for (number,) in rows(conn, "SELECT id FROM prices")]
    with db.connect("worker", autocommit=True) as worker:
        said = set(load_names(worker, (), ids).prices.values())
    since = "since 2026-01-01T00:00:00Z"
    assert {
        f"openai gpt input_tokens: 0.0000025 USD/token {since}",
        f"openai gpt input_tokens: 0.00000125 USD/token {since} if service_tier=batch",
        f"owned H100 accelerator_hour: 2 USD/hour {since} if site={site}",
    } <= said


def call(name: str, minute: int, **told: Any) -> ApiCall:
    at_us = int(HOUR_AT.timestamp() + 60 * minute) * 1_000_000
    usual: dict[str, Any] = {"provider": "openai", "model": "gpt-2026", "usage_known": True, "origin": 1}
    return ApiCall(called_at_us=at_us, dedupe_key=name, **(usual | told))


def test_calls_are_billed_by_the_book_and_what_has_no_price_is_missing(db: Database, conn: sa.Connection) -> None:
    fleet: SmallFleet = small_fleet(db)
    writer = db.create_engine("writer")
    calls = [
        call(
            "corpus", 1, input_uncached_tokens=400, cache_read_tokens=600, output_text_tokens=130, reasoning_tokens=120
        ),
        call("batch", 2, input_uncached_tokens=1_000, is_batch=True),
        call("long", 3, input_uncached_tokens=200_001),
        call("flex", 4, input_uncached_tokens=7, service_tier="flex"),
        call("new", 5, input_uncached_tokens=9, model="other"),
    ]
    write_calls(writer, Registry(writer), fleet.site_id, calls, source=CallSource.SPAN)
    writer.dispose()
    applied(conn, BOOK)
    HourCloser(db, WorkerSettings(code_version="test")).run(LATER)
    billed = "SELECT split_part(holder_key, '/', 3), terms, billed_cost FROM current_ledger_lines WHERE pool = 'api' AND billed_cost IS NOT NULL ORDER BY 1, 2"
    assert rows(conn, billed) == [
        ("cache_read_tokens", None, Decimal("0.000750000")),
        ("input_uncached_tokens", "above 200000 tokens", Decimal("1.000005000")),
        ("input_uncached_tokens", "batch", Decimal("0.001250000")),
        ("input_uncached_tokens", None, Decimal("0.001000000")),
        ("output_text_tokens", None, Decimal("0.001300000")),
        ("reasoning_tokens", None, Decimal("0.001200000")),
    ]
    with conn.begin():
        found = missing(conn, HOUR_AT, LATER)
    assert [(row["model"], row["part"], row["terms"], row["quantity"], row["stands_for"]) for row in found] == [
        ("gpt-2026", "input_uncached_tokens", "flex", 7, "gpt"),
        ("other", "input_uncached_tokens", None, 9, None),
    ]
