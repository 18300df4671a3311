"""Mutated bodies on every route that takes one: no answer is a failure of ours, and good bodies are counted exactly afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from collector.wire import CONTENT_ENCODING, CONTENT_TYPE, SAMPLES_PATH
from ingest.app import IngestApp, create_app
from ingest.receivers import remote_write
from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from tests.db.ingest_harness import batch_meta, body_of, device_row, make_site, now_us, running, send
from tests.fakes import series
from tests.fuzz import wires
from tests.fuzz.mutate import mutated

pytestmark = pytest.mark.db
SECONDS = float(os.environ.get("WATTLEDGER_FUZZ_SECONDS", "16")) / 2
SEED = int(time.time()) if "WATTLEDGER_FUZZ_SECONDS" in os.environ else 7
AFTER_EACH = 400
"""Bodies, after which one good batch must be taken and counted."""


def cases() -> dict[str, list[tuple[dict[str, str], list[bytes]]]]:
    """By path: headers and bodies to begin with, as of now."""
    plain = {"content-type": "application/json"}
    by_name = {target.name: list(target.seeds) for target in wires.targets()}
    at_us = now_us()
    native = [body_of(batch_meta(), device_row(at_us)), *by_name["native"]]
    found = {
        SAMPLES_PATH: [({"content-type": CONTENT_TYPE, "content-encoding": CONTENT_ENCODING}, native)],
        remote_write.PATH: [(dict(series.HEADERS), by_name["remote-write-snappy"])],
        "/v1/jobs/events": [(plain, by_name["jobs"])],
        "/api/v1/lineage": [(plain, by_name["lineage"])],
        "/api/v1/lineage/batch": [(plain, by_name["lineage"])],
        "/v1/outcomes": [(plain, by_name["outcomes"])],
        "/v1/enroll": [(plain, [b'{"node": "n-1"}'])],
    }
    for signal in ("traces", "metrics", "logs"):
        found[f"/v1/{signal}"] = [
            ({"content-type": "application/x-protobuf"}, by_name[f"{signal}-protobuf"]),
            (plain, by_name[f"{signal}-json"]),
        ]
    return found


@dataclass
class Attack:
    """One run: what was answered, and what good batches in between had accepted."""

    secrets: dict[str, str]
    node_token: str
    folder: Path
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    good_rows: int = 0

    async def run(self, client: httpx.AsyncClient) -> None:
        routes = cases()
        ends_at = time.monotonic() + SECONDS
        await self.send_good(client)
        while time.monotonic() < ends_at:
            for _ in range(AFTER_EACH):
                path = self.chance.choice(list(routes))
                await self._send_bad(client, path, *self.chance.choice(routes[path]))
            await self.send_good(client)

    async def send_good(self, client: httpx.AsyncClient) -> None:
        at_us = now_us()
        meta = batch_meta(node="node-2", boot_id="good")
        answer = await send(client, body_of(meta, device_row(at_us), device_row(at_us, 1)), self.node_token)
        # Of a device that a spoiled batch placed on its own node the rows are refused, and said to be.
        assert answer.json()["accepted_rows"] + sum(each["rows"] for each in answer.json()["refused"]) == 2
        self.good_rows += int(answer.json()["accepted_rows"])

    async def _send_bad(self, client: httpx.AsyncClient, path: str, told: dict[str, str], bodies: list[bytes]) -> None:
        body = mutated(self.chance.choice(bodies), self.chance, bodies, (b"'; DROP TABLE nodes; --", b"\\u0000"))
        odd = {"content-encoding": self.chance.choice(("gzip", "zstd", "br", "\xff"))}
        secret = self.secrets.get(path, self.secrets["*"])
        headers = {"authorization": f"Bearer {secret}", **told, **(odd if self.chance.random() < 0.03 else {})}
        answer = await client.post(path, content=body, headers=_latin(headers))
        self.statuses[path, answer.status_code] += 1
        if answer.status_code >= 500:
            kept = self.folder / "body.bin"
            kept.write_bytes(body)
            pytest.fail(f"{path} {headers} answered {answer.status_code} {answer.text[:500]}; the body is {kept}")


def test_no_body_on_any_route_fails_the_server_and_good_ones_are_counted_exactly(
    db: Database, tmp_path: Path, shared: Path
) -> None:
    assert (shared / "captures").is_dir()
    site = make_site(db)
    engine = db.create_engine("admin")
    scopes = [scope for scope in Scope if scope is not Scope.JOIN]
    with engine.begin() as conn:
        anything = tokens.create(conn, "any", scopes, actor="test", site_id=site.site_id, tenant_path="*").secret
        soon = datetime.now(UTC) + timedelta(hours=1)
        join = tokens.create(conn, "join", [Scope.JOIN], actor="test", site_id=site.site_id, expires_at=soon).secret
    engine.dispose()
    attack = Attack({"*": anything, "/v1/enroll": join}, site.node_tokens["node-2"], tmp_path)

    async def main() -> None:
        async with running(Settings(db, node_bodies_per_s=0, node_kib_per_s=0, node_new_per_h=0)) as client:
            app = client._transport.app  # type: ignore[attr-defined]
            assert isinstance(app, IngestApp)
            assert set(app.direct) == set(cases()), "a new route has to be among the cases"
            await attack.run(client)
            assert (await client.get("/readyz")).json()["status"] == "ready"

    asyncio.run(main())
    with db.connect("admin") as admin:
        counted = admin.execute(
            "SELECT count(*) FROM device_samples JOIN epochs ON epochs.id = epoch_id WHERE boot_id = 'good'"
        ).fetchone()
    assert counted == (attack.good_rows,)
    assert attack.good_rows >= 2
    assert {path for path, _ in attack.statuses} == set(cases()), "every route was tried"


def _latin(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def test_the_document_names_every_route_with_its_bounds_and_refusals(db: Database) -> None:
    document = create_app(Settings(db)).openapi()
    json.dumps(document)
    for path in cases():
        told = document["paths"][path]["post"]
        assert told["summary"], path
        assert {"400", "401", "403", "408", "413", "429", "503"} <= set(told["responses"]), path
    assert document["paths"][SAMPLES_PATH]["post"]["requestBody"]["content"].keys() == {CONTENT_TYPE}
    assert "204" in document["paths"]["/api/v1/write"]["post"]["responses"]
    assert document["paths"]["/v1/enroll"]["post"]["responses"]["409"]["description"] == "The node has joined before"
