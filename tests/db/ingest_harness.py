"""What the ingest tests share: bodies as an agent makes them, a site with tokens, and the app over an in-process client."""

from __future__ import annotations

import asyncio
import time
import uuid
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from collector.arrow import ColumnData
from collector.batch import Columns, Rows, encode_body
from collector.wire import (
    COLUMNS,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    SAMPLES_PATH,
    SENT_AT_HEADER,
    BatchMeta,
    DeviceRef,
    Feed,
    Origin,
    Stream,
)
from ingest.app import create_app
from ingest.settings import Settings
from ingest.store import identities, tokens
from ingest.store.engine import Database
from ingest.store.identities import NodeKey
from ingest.store.tokens import Scope

SECOND_US = 1_000_000


def now_us() -> int:
    return time.time_ns() // 1_000


def device(name: str) -> DeviceRef:
    return DeviceRef(uuid=f"GPU-{name}", model="NVIDIA H100 80GB HBM3")


def batch_meta(**changes: Any) -> BatchMeta:
    """A plausible batch of node-1 with two devices; a new spool unless one is given."""
    meta = BatchMeta(
        spool=str(uuid.uuid4()),
        sequence=1,
        node="node-1",
        boot_id="boot-1",
        driver_epoch=1,
        feed=Feed.NATIVE,
        origin=Origin.SIMULATED,
        cadence_us=10 * SECOND_US,
        agent_version="0.1.0",
        created_at_us=now_us(),
        monotonic_us=1,
        clock_offset_us=None,
        devices=(device("a"), device("b")),
    )
    return replace(meta, **changes)


def device_row(at_us: int, index: int = 0, **values: Any) -> dict[str, Any]:
    required = {"reading": 0, "span_us": 10 * SECOND_US, "samples": 10, "samples_missed": 0}
    return {"at_us": at_us, "device": index, "energy_mj": 1_000, "power_average_mw": 300_000, **required, **values}


def rows(stream: Stream, *values: Mapping[str, Any]) -> Rows:
    gathered = Rows(stream)
    for row in values:
        gathered.append(row)
    return gathered


def body_of(meta: BatchMeta, *device_rows: Mapping[str, Any], **streams: Rows) -> bytes:
    given: dict[Stream, Rows | Columns] = {Stream.DEVICE: rows(Stream.DEVICE, *device_rows)}
    given |= {Stream[name.upper()]: value for name, value in streams.items()}
    return encode_body(meta, given)


def wide_body(meta: BatchMeta, count: int, last_at_us: int) -> bytes:
    """A body of ``count`` rows with every column but three filled, as a real GPU gives them."""
    codes = {"i16": "h", "i32": "i", "i64": "q", "f32": "f"}
    data = {}
    devices = len(meta.devices)
    for column in COLUMNS[Stream.DEVICE]:
        if column.name in {"encoder_util_percent", "decoder_util_percent", "memory_temp_c"}:
            continue
        values: list[Any] = [(row * 7) % 100 for row in range(count)]
        if column.name == "at_us":
            values = [last_at_us - (count - 1 - row) // devices * SECOND_US for row in range(count)]
        elif column.name == "device":
            values = [row % devices for row in range(count)]
        elif column.name == "reading":
            values = [0] * count
        elif column.name == "energy_mj":
            values = [10**9 + row * 300_000 for row in range(count)]
        data[column.name] = ColumnData(array(codes[column.type], values))
    return encode_body(meta, {Stream.DEVICE: Columns(count, data)})


@dataclass(frozen=True)
class Site:
    """A site, a token for each of two nodes, and one for the whole site."""

    site_id: int
    node_tokens: Mapping[str, str]
    site_token: str


def make_site(database: Database, *, nodes: tuple[str, ...] = ("node-1", "node-2")) -> Site:
    engine = database.create_engine("owner")
    admin = database.create_engine("admin")
    try:
        with admin.begin() as conn:
            site_id = identities.site_ids(conn, ["site-1"])["site-1"]
            ids = identities.node_ids(conn, [NodeKey(site_id, name) for name in nodes])
            issued = {
                key.name: tokens.create(
                    conn, key.name, [Scope.AGENT], actor="test", site_id=site_id, node_id=node_id
                ).secret
                for key, node_id in ids.items()
            }
            whole = tokens.create(conn, "site", [Scope.AGENT, Scope.WRITE], actor="test", site_id=site_id).secret
    finally:
        engine.dispose()
        admin.dispose()
    return Site(site_id, issued, whole)


def headers(secret: str, **changes: str) -> dict[str, str]:
    return {
        "authorization": f"Bearer {secret}",
        "content-type": CONTENT_TYPE,
        "content-encoding": CONTENT_ENCODING,
        SENT_AT_HEADER: str(now_us()),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """The app with its writer threads, spoken to in process."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://ingest") as client,
    ):
        yield client


async def send(client: httpx.AsyncClient, body: bytes, secret: str, **changes: str) -> httpx.Response:
    return await client.post(SAMPLES_PATH, content=body, headers=headers(secret, **changes))


def run(settings: Settings, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run a scenario against the app in an event loop of its own."""

    async def main() -> None:
        async with running(settings) as client:
            await scenario(client)

    asyncio.run(main())
