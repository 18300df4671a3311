"""LiteLLM's SpendLogs as people export them: CSV, JSON and lines of JSON, with the rows that are no calls."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ingest.importers.columns import Source
from ingest.importers.errors import OptionError, TabularError
from ingest.importers.litellm import LitellmOptions, import_litellm
from ingest.importers.report import ImportReport
from ingest.store.engine import Database

pytestmark = pytest.mark.db
NOW = datetime(2026, 11, 1, tzinfo=UTC)
ROW: dict[str, Any] = {
    "request_id": "chatcmpl-1",
    "call_type": "acompletion",
    "api_key": "ab" * 32,
    "spend": 0.0021,
    "total_tokens": 1250,
    "prompt_tokens": 1000,
    "completion_tokens": 250,
    "startTime": "2026-10-01T10:00:00.250Z",
    "endTime": "2026-10-01T10:00:02.250Z",
    "completionStartTime": "2026-10-01T10:00:00.750Z",
    "model": "gpt-4o",
    "custom_llm_provider": "openai",
    "user": "ada@acme.example",
    "messages": [{"role": "user", "content": "a secret"}],
    "metadata": {
        "user_api_key_alias": "chat-prod",
        "usage_object": {
            "prompt_tokens_details": {"cached_tokens": 600},
            "completion_tokens_details": {"reasoning_tokens": 120},
        },
    },
    "cache_hit": "False",
    "status": "success",
}
KEPT = (
    "SELECT called_at::text, api_key, provider, model, response_id, input_uncached_tokens, cache_read_tokens, "
    "output_text_tokens, reasoning_tokens, status, duration_us, time_to_first_token_us, source, origin FROM api_calls"
)
Load = Callable[..., ImportReport]


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def load(conn: sa.Connection, tmp_path: Path) -> Load:
    """Import rows as a JSON array; each is ROW with changes."""
    numbers = iter(range(100))

    def loaded(*changes: dict[str, Any], **options: Any) -> ImportReport:
        path = tmp_path / f"{next(numbers)}.json"
        path.write_text(json.dumps([{**ROW, **each} for each in changes]))
        return import_litellm(conn, Source(path), LitellmOptions("cloud", **options), now=NOW)

    return loaded


def rows(conn: sa.Connection, query: str) -> list[tuple[Any, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


@pytest.mark.parametrize("form", ["csv", "array", "data", "lines"])
def test_a_call_is_the_same_in_every_form_of_export(conn: sa.Connection, tmp_path: Path, form: str) -> None:
    path = tmp_path / "export"
    if form == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROW))
            writer.writeheader()
            flat = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in ROW.items()}
            # As psql writes a timestamp without a zone.
            writer.writerow(
                {
                    name: str(value).replace("T1", " 1").rstrip("Z") if name.endswith("Time") else value
                    for name, value in flat.items()
                }
            )
    else:
        forms = {"array": [ROW], "data": {"data": [ROW]}}
        text = (
            json.dumps(forms[form], indent=1)
            if form in forms
            else f"{json.dumps(ROW)}\n\n{json.dumps({**ROW, 'request_id': ''})}\n"
        )
        path.write_text(text)
    report = import_litellm(conn, Source(path), LitellmOptions("cloud"), now=NOW)
    assert report.written == {"api_calls": 1}
    assert [(each.line, each.reason) for each in report.rejections.examples] == (
        [(3, "request_id is empty")] if form == "lines" else []
    )
    assert rows(conn, KEPT) == [
        (
            "2026-10-01 10:00:00.25+00",
            "chat-prod",
            "openai",
            "gpt-4o",
            "chatcmpl-1",
            400,
            600,
            130,
            120,
            "ok",
            2_000_000,
            500_000,
            "log",
            2,
        )
    ]
    assert "LiteLLM's own spend of these calls is 0.0021 USD; it bills nothing here" in report.notes
    kept = str(rows(conn, "SELECT c::text FROM api_calls AS c UNION ALL SELECT report::text FROM imports"))
    assert "secret" not in kept
    assert "ada@" not in kept


def test_cache_hits_and_tools_are_no_calls_and_failures_are_calls_of_unknown_usage(
    conn: sa.Connection, load: Load
) -> None:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "metadata": {}}
    report = load(
        {"cache_hit": "True", "request_id": "hit"},
        {"model": "", "call_type": "call_mcp_tool", "request_id": "tool"},
        {"status": "failure", "request_id": "failed", **nothing},
        {"request_id": "image", "call_type": "image_generation", **nothing},
    )
    assert rows(conn, "SELECT response_id, status, usage_known, output_text_tokens FROM api_calls ORDER BY 1") == [
        ("failed", "error", False, None),
        ("image", "ok", False, None),
    ]
    assert report.notes[:3] == [
        "1 rows were answered from LiteLLM's cache: no provider was called",
        "1 rows call no model (tools, health checks)",
        "2 calls do not say how many tokens they used: they are kept as unknown",
    ]


def test_a_key_is_named_by_its_alias_or_a_fingerprint_and_never_by_itself(conn: sa.Connection, load: Load) -> None:
    secret = "sk-" + "a1" * 12
    load(
        {"request_id": "1", "metadata": {}},
        {"request_id": "2", "metadata": {"user_api_key_alias": ""}, "api_key": secret},
        {"request_id": "3", "metadata": None, "api_key": "litellm_proxy_master_key"},
    )
    keys = [key for (key,) in rows(conn, "SELECT api_key FROM api_calls ORDER BY response_id")]
    assert keys[0] == "fingerprint:abababababababab"
    assert keys[2] == "litellm_proxy_master_key"
    assert keys[1].startswith("fingerprint:")
    assert secret[3:11] not in str(keys)


@pytest.mark.parametrize(
    ("usage", "parts"),
    [
        # Anthropic through LiteLLM: the total includes what was read from and written to the cache.
        ({"cache_read_input_tokens": 700, "cache_creation_input_tokens": 200}, (100, 700, 200, 250)),
        # An older one that counts them beside the total.
        ({"cache_read_input_tokens": 7_000}, (1000, 7_000, None, 250)),
        ({"prompt_tokens_details": None, "completion_tokens_details": "?"}, (1000, None, None, 250)),
    ],
)
def test_token_parts_are_disjoint(conn: sa.Connection, load: Load, usage: Any, parts: Any) -> None:
    load({"metadata": {"usage_object": usage}})
    query = "SELECT input_uncached_tokens, cache_read_tokens, cache_write_tokens, output_text_tokens FROM api_calls"
    assert rows(conn, query) == [parts]


def test_bad_rows_say_why_and_good_ones_are_kept(conn: sa.Connection, load: Load) -> None:
    report = load(
        {"request_id": None},
        {"startTime": "2027-01-01T00:00:00Z"},
        {"prompt_tokens": -5},
        {"prompt_tokens": "many"},
        {"model": "", "status": "failure"},
        {"metadata": "{'python': 'dict'}"},
        {"startTime": ""},
        {"request_id": "good"},
    )
    assert [(each.line, each.reason) for each in sorted(report.rejections.examples, key=lambda each: each.line)] == [
        (1, "request_id is empty"),
        (2, "in the future"),
        (3, "tokens out of range"),
        (4, "not a whole number"),
        (5, "model is empty"),
        (6, "not a JSON object"),
        (7, "start is empty"),
    ]
    assert rows(conn, "SELECT response_id FROM api_calls") == [("good",)]


def test_a_provider_is_told_by_its_column_by_the_model_or_by_an_option(conn: sa.Connection, load: Load) -> None:
    load({"request_id": "1", "model": "azure/gpt-4o", "custom_llm_provider": ""})
    with pytest.raises(OptionError, match="does not say who provides gpt-4o; add --provider"):
        load({"request_id": "2", "custom_llm_provider": ""})
    load({"request_id": "3", "custom_llm_provider": None, "spend": None}, provider="vllm", tenant="acme/chat")
    assert rows(conn, "SELECT provider, model, tenant_id IS NULL FROM api_calls ORDER BY response_id") == [
        ("azure", "gpt-4o", True),
        ("vllm", "gpt-4o", False),
    ]


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1', "[1, 2]", "[" * 100_000])
def test_json_that_is_no_table_is_refused(conn: sa.Connection, tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(TabularError):
        import_litellm(conn, Source(path), LitellmOptions("cloud"), now=NOW)
