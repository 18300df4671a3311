"""Hostile bodies for the OTLP decoders: what real senders sent, with bytes changed, is read or refused, and nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.calls import MAX_TOKENS, TOKEN_PARTS
from ingest.content_encoding import decoded
from ingest.errors import BadBodyError
from ingest.receivers.gen_ai import read_calls
from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.gen_ai_span import MAX_TEXT
from ingest.receivers.otlp import JSON, PROTOBUF
from ingest.receivers.otlp_logs import read_logs
from ingest.receivers.otlp_spans import read_spans

pytestmark = pytest.mark.property

NOW_US = 1_900_000_000_000_000
CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures" / "otlp"
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "drop", "insert", "repeat")),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=8,
)


def bodies() -> list[tuple[str, bytes]]:
    """Each captured export, uncompressed, with its media type."""
    found = []
    for path in sorted(CAPTURES.glob("*/traces-*.headers.json")):
        headers = {name.lower(): value for name, value in json.loads(path.read_text()).items()}
        raw = path.with_name(path.name.replace("headers.json", "raw.bin")).read_bytes()
        found.append((headers["content-type"], decoded(raw, headers.get("content-encoding"), 10_000_000)))
    return found


def edited(body: bytes, edits: list[tuple[str, float, int, int]]) -> bytes:
    data = bytearray(body)
    for kind, place, byte, count in edits:
        at = int(place * len(data))
        if kind == "flip" and data:
            data[at] ^= byte
        elif kind == "drop":
            del data[at : at + count]
        elif kind == "insert":
            data[at:at] = bytes((byte,)) * count
        elif kind == "repeat":
            data[at:at] = data[at : at + count] * 3
    return bytes(data)


@pytest.fixture(scope="module")
def captured(shared: Path) -> list[tuple[str, bytes]]:
    assert shared in CAPTURES.parents
    return bodies()


@given(st.integers(0, 1_000), EDITS)
@settings(max_examples=400)
def test_a_changed_export_is_read_or_refused(
    captured: list[tuple[str, bytes]], which: int, edits: list[tuple[str, float, int, int]]
) -> None:
    media, body = captured[which % len(captured)]
    try:
        read = read_calls(read_spans(edited(body, edits), media, WANTED), NOW_US)
    except BadBodyError:
        return
    for call in read.calls:
        # What the store's columns hold, whatever the sender says.
        parts = [getattr(call, name) for name in TOKEN_PARTS]
        assert all(part is None or 0 <= part < 2 * MAX_TOKENS for part in parts)
        assert 0 < call.called_at_us < 2**62
        texts = (call.provider, call.model, call.api_key, call.response_id, call.request_id)
        assert all(text is None or (text and "\0" not in text and len(text) <= MAX_TEXT) for text in texts)
    for span in read.spans:
        assert len(span.name) <= MAX_TEXT
        assert len(span.attributes) <= 16
        assert all(len(value) <= MAX_TEXT for value in span.attributes.values())


@given(st.binary(max_size=300), st.sampled_from((PROTOBUF, JSON)))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(body: bytes, media: str) -> None:
    for reader in (lambda: read_calls(read_spans(body, media, WANTED), NOW_US), lambda: read_logs(body, media)):
        with contextlib.suppress(BadBodyError):
            reader()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "traceId",
    "spanId",
    "parentSpanId",
    "name",
    "startTimeUnixNano",
    "endTimeUnixNano",
    "status",
    "attributes",
    "events",
)


@given(
    st.dictionaries(st.sampled_from(NAMES), JSON_VALUES), st.sampled_from(("resourceSpans", "scopeSpans", "spans", ""))
)
@settings(max_examples=300)
def test_json_of_other_shapes_is_read_or_refused(span: dict[str, object], instead: str) -> None:
    body: object = span
    for name in ("spans", "scopeSpans", "resourceSpans"):
        body = {name: span if name == instead else [body]}
    with contextlib.suppress(BadBodyError):
        read_calls(read_spans(json.dumps(body).encode(), JSON, WANTED), NOW_US)
