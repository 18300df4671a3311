"""What travels over the network: the native wire, OTLP, remote write, events, orders, and the compressions around them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import zstandard
from google.protobuf.json_format import MessageToJson

from collector.commands import check as orders
from collector.wire import Stream
from ingest.content_encoding import decoded
from ingest.errors import IngestError
from ingest.receivers import native, open_lineage, otlp, outcomes, remote_write, work
from ingest.receivers.gen_ai import read_calls
from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.otlp_logs import read_logs
from ingest.receivers.otlp_spans import read_spans
from ingest.series.intake import Intake
from tests.db.ingest_harness import batch_meta, body_of, device_row, rows, wide_body
from tests.fakes.series import device_labels, otlp_export, series, write_request
from tests.fuzz.targets import Target

NOW: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
NOW_US: Final = int(NOW.timestamp()) * 1_000_000
_KEY: Final = b"k" * 32
_MOST_BYTES: Final = 32 * 1024 * 1024
_CAPTURES: Final = Path(__file__).resolve().parents[3] / "shared" / "captures" / "otlp"
_JSON_WORDS: Final = (
    b"null",
    b"{}",
    b"[]",
    b'""',
    b'"a"',
    b"-1",
    b"1e999",
    b'"2026-11-21T12:00:00Z"',
    b'"\\u0000"',
    b'"\\ud800"',
)


def targets() -> list[Target]:
    """Return the decoders of what arrives over HTTP."""
    refused = (IngestError,)
    intake = Intake()
    found = [
        Target("native", _native_bodies(), _native, refused, (zstandard.compress(b""), b"\xff\xff\xff\xff", b"ARROW1")),
        Target("native-arrow", [_unpacked(body) for body in _native_bodies()], _native_arrow, refused, (b"\xff" * 8,)),
        Target("remote-write", [_writes()], partial(_written, intake, packed=False), refused),
        Target("remote-write-snappy", [write_request(_writes())], partial(_written, intake, packed=True), refused),
        Target("jobs", _job_events(), lambda data: work.read_work(data, NOW), refused, _JSON_WORDS),
        Target("lineage", _lineage(), lambda data: open_lineage.read_events(data, NOW_US), refused, _JSON_WORDS),
        Target("outcomes", _outcomes(), lambda data: outcomes.read_outcomes(data, NOW_US), refused, _JSON_WORDS),
        Target("orders", _orders(), _order, (orders.RefusedError,), _JSON_WORDS),
    ]
    for encoding, pack in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        seeds = [pack(b"abc" * 1000), pack(b""), pack(pack(bytes(2_000_000)))]
        found.append(Target(encoding, seeds, partial(_undone, encoding=encoding), refused))
    for media, name in ((otlp.PROTOBUF, "protobuf"), (otlp.JSON, "json")):
        words = _JSON_WORDS if media == otlp.JSON else (b"gen_ai.usage.input_tokens", b"\xff\xff\xff\xff\x0f")
        calls = list(_captured("traces", media))
        found += [
            Target(f"traces-{name}", calls, partial(_traced, media=media), refused, words),
            Target(
                f"logs-{name}", [*_captured("logs", media), *calls[:1]], partial(_logs, media=media), refused, words
            ),
            Target(
                f"metrics-{name}",
                _metrics(media),
                partial(_measured, intake, is_json=media == otlp.JSON),
                refused,
                words,
            ),
        ]
    return found


_READER: Final = native.Reader()


def _native(data: bytes) -> None:
    body = _READER.read(data)
    for entry in body.streams:
        native.decode([entry])


def _native_arrow(data: bytes) -> None:
    _native(zstandard.ZstdCompressor(level=1).compress(data))


def _unpacked(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


def _native_bodies() -> list[bytes]:
    at_us = NOW_US
    meta = batch_meta(created_at_us=at_us)
    node = rows(Stream.NODE, {"at_us": at_us, "meter": "psu", "span_us": 10, "power_mw": 7})
    return [
        body_of(meta, device_row(at_us), device_row(at_us, 1, power_average_mw=None)),
        body_of(meta, device_row(at_us), node=node),
        wide_body(meta, 40, at_us),
    ]


def _written(intake: Intake, data: bytes, *, packed: bool) -> None:
    body = data if packed else write_request(data)
    intake.remote_write(body, 1, "n", NOW_US, None)


def _writes() -> bytes:
    at_ms = NOW_US // 1000
    return remote_write.decompressed(
        write_request(
            series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-1"), (312.5, at_ms), (0.0, at_ms + 1000)),
            series({"__name__": "node_load1", "instance": "gpu-1:9100"}, (1.5, at_ms)),
            series({"__name__": "vllm:num_requests_running", "instance": "a:8000", "model_name": "m"}, (0.0, at_ms)),
        )
    )


def _metrics(media: str) -> list[bytes]:
    points: list[Any] = [
        ("hw.power", {"hw.id": "GPU-1", "hw.type": "gpu"}, 71.5, NOW_US * 1000),
        ("hw.energy", {"hw.id": "GPU-1", "hw.type": "gpu"}, 12, NOW_US * 1000),
        ("other", {}, 1.0, NOW_US * 1000),
    ]
    export = otlp_export(points, {"host.name": "gpu-1"}, counters=["hw.energy"])
    own = export.SerializeToString() if media == otlp.PROTOBUF else MessageToJson(export).encode()
    return [*_captured("metrics", media), own]


def _measured(intake: Intake, data: bytes, *, is_json: bool) -> None:
    intake.otlp(data, 1, "n", NOW_US, None, is_json=is_json)


def _traced(data: bytes, *, media: str) -> None:
    export = read_spans(data, media, WANTED)
    read_calls(export, NOW_US)
    outcomes.evaluations(export.spans, NOW_US)


def _logs(data: bytes, *, media: str) -> None:
    read_logs(data, media)


def _undone(data: bytes, *, encoding: str) -> None:
    decoded(data, encoding, _MOST_BYTES)


def _captured(signal: str, media: str) -> Iterator[bytes]:
    """Yield what real senders sent, without its compression."""
    for path in sorted(_CAPTURES.glob(f"*/{signal}-*.headers.json")):
        headers = {name.lower(): value for name, value in json.loads(path.read_text()).items()}
        if headers["content-type"].partition(";")[0] == media:
            raw = path.with_name(path.name.replace("headers.json", "raw.bin")).read_bytes()
            yield decoded(raw, headers.get("content-encoding"), _MOST_BYTES)


def _job_events() -> list[bytes]:
    at = "2026-11-21T11:00:00Z"
    run = {"cluster": "c", "id": "17", "start": "2026-11-21T10:00:00Z"}
    events = [
        {
            "kind": "job",
            "at": at,
            "job": run,
            "state": "running",
            "account": "a",
            "name": "n",
            "labels": {"k": "v"},
            "holds": [{"node": "n1", "accelerators": 8}],
        },
        {"kind": "allocation_start", "at": at, "job": run, "device": "GPU-1", "share_ratio": 0.5, "energy_mj": 7},
        {
            "kind": "queue",
            "at": at,
            "job": {"cluster": "c", "id": "9", "submitted_at": at},
            "reason": "Priority",
            "tasks": 3,
        },
        {"kind": "node", "at": at, "node": "n1", "rack": "r1"},
    ]
    return [json.dumps({"version": 1, "source": "slurm", "events": chosen}).encode() for chosen in (events, events[:1])]


def _lineage() -> list[bytes]:
    event = {
        "eventTime": "2026-11-21T10:00:00Z",
        "eventType": "COMPLETE",
        "producer": "https://example.org/producer",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json",
        "run": {"runId": "0190b5c2-7c8e-7b3a-9d53-0242ac120002", "facets": {}},
        "job": {"namespace": "n", "name": "train", "facets": {}},
        "inputs": [{"namespace": "s3://data", "name": "set", "facets": {"version": {"datasetVersion": "1"}}}],
        "outputs": [{"namespace": "s3://models", "name": "m", "facets": {}}],
    }
    return [json.dumps(event).encode(), json.dumps([event, event]).encode()]


def _outcomes() -> list[bytes]:
    outcome = {"response_id": "r-1", "kind": "helpful", "score": 0.5, "label": "good", "at": "2026-11-21T10:00:00Z"}
    more = {**outcome, "value": "1.25", "trace_id": "a" * 32, "span_id": "b" * 16, "dataset_ids": ["d-1"]}
    return [json.dumps(outcome).encode(), json.dumps([outcome, more]).encode()]


def _orders() -> list[bytes]:
    order = {
        "id": 1,
        "node": "n",
        "verb": "power_limit",
        "args": {"device": "*", "watts": 300},
        "nonce": "n" * 20,
        "issued_at_us": NOW_US,
        "expires_at_us": NOW_US + 1,
        "signature": "s",
    }
    return [json.dumps([order]).encode(), json.dumps([order, {**order, "args": {}}]).encode()]


def _order(data: bytes) -> None:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:  # as the agent's channel has it
        raise orders.RefusedError("not JSON") from error
    for raw in answer if isinstance(answer, list) else ():
        command = orders.parse(raw)
        signed = replace(command, signature=command.sign(_KEY))
        orders.check(signed, key=_KEY, node="n", now_us=NOW_US, seen=(), bounds=orders.Bounds(100, 700))
