"""Spans as the real senders sent them. Every chat used 1,000 input tokens, 600 of them cached, and 250 output tokens, 120 of
them reasoning; the fake API gave both streamed chats the same response id, so they are one call."""

import gzip
import json
from pathlib import Path

import pytest

from ingest.calls import ApiCall
from ingest.errors import BadBodyError, TooLargeError, UnsupportedError
from ingest.http import decoded
from ingest.receivers.gen_ai import Read, read_calls
from ingest.receivers.otlp import JSON, PROTOBUF, media_type, read_spans, response

NOW_US = 1_900_000_000_000_000


def captured(shared: Path, sender: str) -> Read:
    folder = shared / "captures" / "otlp" / sender
    headers = {
        name.lower(): value for name, value in json.loads((folder / "traces-1.headers.json").read_text()).items()
    }
    body = decoded((folder / "traces-1.raw.bin").read_bytes(), headers.get("content-encoding"), 10_000_000)
    return read_calls(read_spans(body, media_type(headers["content-type"])), NOW_US)


def parts(call: ApiCall) -> tuple[int | None, ...]:
    return (
        call.input_uncached_tokens,
        call.cache_read_tokens,
        call.cache_write_tokens,
        call.output_text_tokens,
        call.reasoning_tokens,
    )


def by_response(read: Read) -> dict[str | None, ApiCall]:
    return {call.response_id: call for call in read.calls if call.response_id}


@pytest.mark.contract
def test_openllmetry_parts_are_disjoint(shared: Path) -> None:
    calls = by_response(captured(shared, "openllmetry-openai"))
    # 1,000 - 600 cached = 400; 250 - 120 reasoning = 130.
    assert parts(calls["chatcmpl-lab1"]) == (400, 600, None, 130, 120)
    assert parts(calls["resp_lab1"]) == (400, 600, None, 130, 120)
    # The streamed one does not report reasoning: all output is output.
    assert parts(calls["chatcmpl-lab2"]) == (400, 600, None, 250, None)
    assert calls["chatcmpl-lab2"].streamed is True
    assert calls["chatcmpl-lab1"].streamed is False
    assert calls["chatcmpl-lab1"].model == "gpt-5-mini-2025-08-07"
    assert calls["chatcmpl-lab1"].provider == "openai"
    assert calls["chatcmpl-lab1"].api_key == "lab-app"


@pytest.mark.contract
def test_the_2025_names_mean_the_same(shared: Path) -> None:
    read = captured(shared, "traceloop-sdk-0.45-legacy")
    calls = by_response(read)
    assert parts(calls["chatcmpl-lab1"]) == (400, 600, None, 250, None)
    assert parts(calls["resp_lab1"]) == (400, 600, None, 250, None)
    # The workflow span around them is no call.
    assert read.other_spans == 1
    assert calls["chatcmpl-lab1"].api_key == "u1"


@pytest.mark.contract
def test_the_plain_convention_reports_totals_only(shared: Path) -> None:
    calls = by_response(captured(shared, "otel-openai-v2"))
    assert parts(calls["chatcmpl-lab1"]) == (1_000, None, None, 250, None)


@pytest.mark.contract
def test_openinference_spans_are_calls_of_their_span(shared: Path) -> None:
    read = captured(shared, "openinference-openai")
    chats = [call for call in read.calls if call.usage_known and call.model == "gpt-5-mini-2025-08-07"]
    assert [parts(call) for call in chats] == [(400, 600, None, 130, 120)] * 3
    assert all(call.dedupe_key.startswith("span/") for call in chats)
    assert sum(call.time_to_first_token_us is not None for call in read.calls) == 2


@pytest.mark.contract
@pytest.mark.parametrize("sender", ["openllmetry-openai", "otel-openai-v2", "openinference-openai"])
def test_an_error_without_usage_is_unknown_never_zero(shared: Path, sender: str) -> None:
    errors = [call for call in captured(shared, sender).calls if call.status == "error"]
    assert len(errors) == 1
    assert not errors[0].usage_known
    assert parts(errors[0]) == (None,) * 5


@pytest.mark.contract
def test_a_stream_without_usage_is_unknown(shared: Path) -> None:
    unknown = [call for call in captured(shared, "openinference-openai").calls if not call.usage_known]
    # One streamed without include_usage, one refused with 429.
    assert sorted(call.status for call in unknown) == ["error", "ok"]


@pytest.mark.contract
def test_json_from_node_reads_like_protobuf(shared: Path) -> None:
    (call,) = captured(shared, "node-otlp-json").calls
    assert parts(call) == (1_000, None, None, 250, None)
    assert call.trace_id == "71326064daf2735bd9c884e423b39641"
    assert call.dedupe_key == "span/71326064daf2735bd9c884e423b39641/45499f67063fdf58"
    assert call.called_at_us == 1_795_255_064_555_000
    assert call.duration_us == 226


@pytest.mark.contract
def test_a_gzipped_export_of_a_collector_is_read(shared: Path) -> None:
    # What this collector forwarded was a span of the program itself: read, and no call.
    read = captured(shared, "rotel-collector")
    assert (len(read.calls), read.other_spans) == (0, 1)


@pytest.mark.contract
def test_no_message_content_survives(shared: Path) -> None:
    for sender in ("openllmetry-openai", "openinference-openai", "traceloop-sdk", "traceloop-sdk-0.45-legacy"):
        assert "Paris" not in repr(captured(shared, sender).calls)
        assert "France" not in repr(captured(shared, sender).calls)


def span_json(**attributes: object) -> bytes:
    pairs = [
        {"key": key.replace("__", "."), "value": {"stringValue" if isinstance(value, str) else "intValue": value}}
        for key, value in attributes.items()
    ]
    span = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "startTimeUnixNano": "1795255064555000000",
        "endTimeUnixNano": "1795255064556000000",
        "attributes": pairs,
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


def only_call(**attributes: object) -> ApiCall:
    given = {"gen_ai__operation__name": "chat", "gen_ai__system": "x", "gen_ai__request__model": "m", **attributes}
    (call,) = read_calls(read_spans(span_json(**given), JSON), NOW_US).calls
    return call


@pytest.mark.contract
def test_cache_tokens_beside_the_total_leave_it_whole() -> None:
    call = only_call(gen_ai__usage__input_tokens="7", gen_ai__usage__cache_read__input_tokens=600)
    assert call.input_uncached_tokens is None  # a text is no number, and a guess would be billed
    call = only_call(gen_ai__usage__input_tokens=7, gen_ai__usage__cache_read__input_tokens=600)
    assert (call.input_uncached_tokens, call.cache_read_tokens) == (7, 600)


@pytest.mark.contract
def test_a_secret_in_place_of_a_name_is_not_kept() -> None:
    call = only_call(wattledger__api_key="sk-proj-abcdefghijklmnopqrstuvwxyz")
    assert call.api_key is not None
    assert call.api_key.startswith("fingerprint:")
    assert only_call(wattledger__api_key="team-a-prod").api_key == "team-a-prod"


@pytest.mark.contract
def test_spans_with_impossible_times_are_counted_not_kept() -> None:
    body = span_json(gen_ai__operation__name="chat").replace(b"1795255064555000000", b"5")
    read = read_calls(read_spans(body, JSON), NOW_US)
    assert read.calls == ()
    assert read.refused == {"before_2000": 1}
    assert json.loads(response(JSON, 1, "1 spans before_2000")) == {
        "partialSuccess": {"rejectedSpans": "1", "errorMessage": "1 spans before_2000"}
    }


@pytest.mark.contract
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"resourceSpans": 5}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": 5}]}]}]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}',
    ],
)
def test_what_is_no_export_is_refused(body: bytes) -> None:
    with pytest.raises(BadBodyError):
        read_spans(body, JSON)
    with pytest.raises(BadBodyError):
        read_spans(b"\xff" + body, PROTOBUF)


@pytest.mark.contract
def test_compressed_bodies_are_bounded() -> None:
    assert decoded(gzip.compress(b"abc"), "gzip", 3) == b"abc"
    with pytest.raises(TooLargeError):
        decoded(gzip.compress(bytes(10_000)), "gzip", 9_999)
    with pytest.raises(BadBodyError):
        decoded(gzip.compress(b"abc" * 100)[:-6], "gzip", 1_000)
    with pytest.raises(UnsupportedError):
        decoded(b"", "br", 1)
    with pytest.raises(UnsupportedError):
        media_type("text/plain")
