"""Texts a database refuses are refused at the door: by name, before any row or identity of the body is made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
import zstandard

from collector.wire import BatchMeta, DeviceRef, Stream
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device, device_row, make_site, now_us, rows, run, send

pytestmark = pytest.mark.db


def named_job(name: str) -> bytes:
    """A body of node-2 with a job of this name, put in behind the sender's own cleaning."""
    at = now_us()
    event = {
        "at_us": at,
        "device": 0,
        "action": 1,
        "cluster": "c",
        "native_job_id": "7",
        "job_started_at_us": at,
        "evidence": "cgroup",
        "job_name": "N" * len(name),
    }
    body = body_of(batch_meta(node="node-2", devices=(device("c"),)), allocation=rows(Stream.ALLOCATION, event))
    raw = zstandard.ZstdDecompressor().decompress(body)
    assert raw.count(b"N" * len(name)) == 1
    return zstandard.ZstdCompressor().compress(raw.replace(b"N" * len(name), name.encode()))


def with_meta(**changes: Any) -> bytes:
    meta: BatchMeta = replace(batch_meta(node="node-2", devices=(device("c"),)), **changes)
    return body_of(meta, device_row(now_us()))


BAD: list[tuple[Callable[[], bytes], str, str]] = [
    (lambda: named_job("train\0er"), "bad_text", "column allocation_events.job_name: the text of row 0"),
    (lambda: named_job("train\ner"), "bad_text", "U+000A"),
    (lambda: with_meta(labels={"rack": "r\0"}), "malformed", "labels"),
    (lambda: with_meta(boot_id="b\0"), "malformed", "boot_id"),
    (lambda: with_meta(devices=(DeviceRef("MIG-1", "H100", parent_uuid="GPU-\0"),)), "malformed", "parent_uuid"),
    (lambda: with_meta(devices=(DeviceRef("GPU-1", "H100", pci_bus_id="\0"),)), "malformed", "pci_bus_id"),
    (lambda: with_meta(devices=(DeviceRef("GPU-1", "H100\ud800"),)), "malformed", ""),
    (lambda: with_meta(spool="spool-1"), "malformed", "spool must be a UUID"),
    (lambda: with_meta(sequence=2**63 - 1), "malformed", "sequence"),
]


def test_a_text_the_store_cannot_hold_is_refused_by_name_and_costs_its_group_nothing(db: Database) -> None:
    site = make_site(db)

    async def scenario(client: httpx.AsyncClient) -> None:
        good = body_of(batch_meta(), device_row(now_us()))
        bad = [make() for make, _, _ in BAD]
        answers = await asyncio.gather(
            *(send(client, body, site.site_token) for body in bad), send(client, good, site.site_token)
        )
        for answer, (_, reason, named) in zip(answers, BAD, strict=False):
            assert answer.status_code == 400
            assert answer.json()["type"] == f"urn:wattledger:problem:{reason}"
            assert named in answer.json()["detail"]
        assert answers[-1].json()["accepted_rows"] == 1

    run(Settings(db, linger_ms=200), scenario)
    with db.connect("admin") as conn:
        assert conn.execute("SELECT count(*) FROM device_samples").fetchall() == [(1,)]
        # Nothing was even looked up for the others: the only devices are those of the good body.
        assert conn.execute("SELECT count(*) FROM devices").fetchall() == [(2,)]
        assert conn.execute("SELECT count(*) FROM spools").fetchall() == [(1,)]


def test_a_header_no_database_holds_does_not_keep_a_body_from_the_dead_letters(db: Database) -> None:
    site = make_site(db)

    async def scenario(client: httpx.AsyncClient) -> None:
        body, sent_at = body_of(batch_meta(), device_row(now_us())), str(now_us() - 400_000_000)
        answer = await send(client, body, site.site_token, user_agent="cu\0rl", Wattledger_Sent_At=sent_at)
        assert answer.status_code == 202

    run(Settings(db), scenario)
    with db.connect("admin") as conn:
        assert conn.execute("SELECT headers ->> 'user-agent' FROM dead_letters").fetchall() == [("cu\ufffdrl",)]
