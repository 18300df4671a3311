"""What of a call is billed apart is kept as it was told, and told again it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from ingest.calls import ApiCall, CallSource, tools_told
from ingest.store.calls import Written, write_calls
from ingest.store.engine import Database
from ingest.store.registry import Registry
from tests.db.ingest_harness import make_site

pytestmark = pytest.mark.db
AT_US = 1_763_715_600_000_000
"""2025-11-21 09:00 UTC."""
KEPT = (
    "SELECT audio_input_tokens, audio_output_tokens, cache_write_1h_tokens, service_tier, is_batch, tool_calls, images, "
    "media_ms, characters, pages, deployment FROM {}"
)
TOLD = (200, 90, 100, "flex", True, {"maps": 1, "web_search": 3}, 2, 61_500, 1_234, 4, "eastus-ptu")


def call(name: str, **more: Any) -> ApiCall:
    usual: dict[str, Any] = {"provider": "openai", "model": "m", "usage_known": True, "origin": 1, "response_id": "r-1"}
    return ApiCall(called_at_us=AT_US, dedupe_key=name, **(usual | more))


SPAN = call(
    "span/1/1",
    audio_input_tokens=200,
    audio_output_tokens=90,
    cache_write_1h_tokens=100,
    service_tier="flex",
    is_batch=True,
    tool_calls=tools_told({"web_search": 3, "maps": 1}),
    images=2,
    media_ms=61_500,
    characters=1_234,
    pages=4,
    deployment="eastus-ptu",
)


@pytest.fixture
def engine(db: Database) -> Iterator[sa.Engine]:
    make_site(db)
    made = db.create_engine("writer")
    yield made
    made.dispose()


def written(engine: sa.Engine, source: CallSource, *calls: ApiCall) -> Written:
    with engine.connect() as conn:
        site = conn.execute(sa.text("SELECT id FROM sites")).scalar_one()
    return write_calls(engine, Registry(engine), site, calls, source=source)


def rows(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(query.encode()).fetchall()


def test_what_is_billed_apart_is_kept_as_it_was_told(db: Database, engine: sa.Engine) -> None:
    written(engine, CallSource.SPAN, SPAN)
    assert rows(db, KEPT.format("api_calls")) == [TOLD]


def test_a_call_with_tools_told_again_changes_nothing(db: Database, engine: sa.Engine) -> None:
    written(engine, CallSource.SPAN, SPAN)
    before = rows(db, "SELECT xmin::text, received_at FROM api_calls")
    changes = rows(db, "SELECT count(*) FROM changes")
    assert written(engine, CallSource.SPAN, SPAN).repeated == 1
    assert rows(db, "SELECT xmin::text, received_at FROM api_calls") == before
    assert rows(db, "SELECT count(*) FROM changes") == changes


def test_a_call_and_its_log_have_the_terms_of_whoever_knows_them(db: Database, engine: sa.Engine) -> None:
    written(engine, CallSource.SPAN, call("span/1/1", input_uncached_tokens=5))
    written(engine, CallSource.LOG, call("log/1", service_tier="priority", tool_calls=tools_told({"web_search": 1})))
    assert rows(db, "SELECT source, input_uncached_tokens, service_tier, tool_calls FROM api_calls") == [
        ("span", 5, "priority", {"web_search": 1})
    ]
    assert rows(db, "SELECT source, tool_calls FROM call_reports ORDER BY source") == [
        ("log", {"web_search": 1}),
        ("span", None),
    ]
