"""What of a call is billed apart is told apart: audio by side, hour-long cache writes, tier, tools."""

import pytest

from ingest.calls import ApiCall, CallSource, Report, counting, tier_of, tools_told, written
from ingest.importers.litellm import billed_parts, token_parts
from ingest.importers.llm_log import token_parts as log_parts
from ingest.receivers.gen_ai_tokens import parts_of

pytestmark = pytest.mark.unit
OF_LOG = dict.fromkeys(
    ("input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_in", "audio_out", "image")
)


def told(source: CallSource, **more: object) -> Report:
    usual = {"called_at_us": 1, "dedupe_key": source.value, "provider": "openai", "model": "gpt", "origin": 1}
    return Report(ApiCall(**usual, usage_known=True, response_id="r", **more), source)  # type: ignore[arg-type]


def test_audio_heard_and_audio_spoken_are_two_parts() -> None:
    parts = parts_of({"input": 300, "audio_in": 200, "output": 150, "audio_out": 90}, "openai")
    assert (parts.input_uncached, parts.audio_in, parts.output_text, parts.audio_out) == (100, 200, 60, 90)


def test_what_is_written_for_an_hour_is_no_longer_among_what_is_written_for_minutes() -> None:
    parts = parts_of({"input": 1_000, "cache_write": 700, "cache_write_1h": 200, "output": 5}, "anthropic")
    assert (parts.input_uncached, parts.cache_write, parts.cache_write_1h) == (300, 500, 200)
    parts = parts_of({"input": 1_000, "cache_write_1h": 200, "output": 5}, "anthropic")  # only that part is told
    assert (parts.input_uncached, parts.cache_write, parts.cache_write_1h) == (800, 0, 200)
    assert written(100, 300) == (0, 100)  # more than all of it is all of it
    assert written(100, None) == (100, None)


def test_tiers_have_one_name_each_and_what_was_asked_for_says_none() -> None:
    assert [tier_of(told) for told in ("default", "on_demand", "Priority", "batches", "flex", "scale")] == [
        *("standard", "standard", "priority", "batch", "flex", "scale")
    ]
    assert [tier_of(told) for told in ("auto", "", None, 3)] == [None] * 4


def test_equal_uses_of_tools_are_equal_texts_and_none_is_no_text() -> None:
    assert tools_told({"web_search": 3, "maps": 1}) == tools_told({"maps": 1, "web_search": 3})
    assert tools_told({"web_search": 3, "maps": 1}) == '{"maps": 1, "web_search": 3}'  # as jsonb is written
    assert tools_told({"web_search": 0}) is None


def test_a_report_of_both_sides_audio_and_one_by_side_are_not_added_up() -> None:
    before = told(CallSource.SPAN, output_text_tokens=10, audio_tokens=300)
    since = told(CallSource.LOG, input_uncached_tokens=5, audio_input_tokens=200)
    call = counting([before, since]).call
    assert (call.audio_input_tokens, call.audio_tokens, call.input_uncached_tokens) == (200, 100, 5)


def test_terms_of_a_call_come_from_whoever_knows_them() -> None:
    call = counting(
        [told(CallSource.SPAN, input_uncached_tokens=5), told(CallSource.LOG, service_tier="flex", images=2)]
    ).call
    assert (call.service_tier, call.images, call.input_uncached_tokens) == ("flex", 2, 5)


def test_a_litellm_row_tells_of_hour_long_writes_tools_and_tiers() -> None:
    usage = {
        "cache_creation_input_tokens": 700,
        "prompt_tokens_details": {
            "cache_creation_token_details": {"ephemeral_1h_input_tokens": 200},
            "audio_tokens": 50,
        },
        "server_tool_use": {"web_search_requests": 3, "tool_search_requests": None},
        "service_tier": "batch",
    }
    row = {"prompt": 1_000, "completion": 5, "call_type": "acompletion", "metadata": {"usage_object": usage}}
    parts = token_parts(row)
    assert parts["cache_write_tokens"] == 500
    assert parts["cache_write_1h_tokens"] == 200
    assert parts["audio_input_tokens"] == 50
    assert parts["input_uncached_tokens"] == 250
    assert billed_parts(row) == {"service_tier": "batch", "tool_calls": '{"web_search": 3}'}


def test_a_log_with_audio_and_images_has_them_out_of_its_totals() -> None:
    row = OF_LOG | {"input": 300, "audio_in": 200, "output": 150, "audio_out": 90, "image": 40}
    parts = log_parts(row, excludes_cache=False)
    assert (parts["input_uncached_tokens"], parts["output_text_tokens"]) == (100, 20)
    assert sum(part or 0 for part in parts.values()) == 450
