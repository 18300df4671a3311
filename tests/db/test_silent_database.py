"""A database that gives no answer and no error: senders are told to come again within seconds, and probes go on answering."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psycopg
import pytest

from ingest.receivers.otlp import PROTOBUF
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db import test_ingest_app_traces as traces
from tests.db.ingest_harness import batch_meta, body_of, device_row, headers, make_site, now_us, run
from tests.fakes.series import HEADERS, device_labels, series, write_request
from tests.fakes.silent_link import SilentLink
from tests.scratch import quick_folder
from tests.unit.test_open_lineage import event

pytestmark = pytest.mark.db
_WITHIN_S = 4.0
"""A second until the silence is noticed, and what a busy machine adds."""


@pytest.fixture
def link(db: Database) -> Iterator[tuple[SilentLink, Database]]:
    """A link to the database, and the database through it."""
    folder = quick_folder("wl-link-")
    made = SilentLink(folder, Path(str(psycopg.conninfo.conninfo_to_dict(db.url)["host"])))
    try:
        yield made, Database.on_socket(folder, db.name)
    finally:
        made.close()
        shutil.rmtree(folder)


@dataclass
class Asked:
    """What was answered, and after how many seconds."""

    client: httpx.AsyncClient
    site_token: str
    took_s: dict[str, float] = field(default_factory=dict)

    async def ask(self, name: str, answer: Awaitable[httpx.Response]) -> tuple[str, httpx.Response]:
        begun = time.monotonic()
        given = await answer
        self.took_s[name] = time.monotonic() - begun
        return name, given

    async def everything(self, number: int) -> dict[str, httpx.Response]:
        """Send a body of every kind that writes."""
        bearer = {"authorization": f"Bearer {self.site_token}"}
        at = datetime.now(UTC).isoformat()
        spans = traces.export((number, now_us() - 3_000_000, {}))
        job = {"kind": "job", "at": at, "job": {"cluster": "c", "id": str(number), "start": at}, "state": "running"}
        jobs = {"version": 1, "source": "slurm", "events": [job]}
        judged = {"response_id": f"r{number}", "kind": "thumbs", "label": "up", "at": at}
        told = device_labels("DCGM_FI_DEV_POWER_USAGE", f"GPU-{number}")
        written = write_request(series(told, (300.0, now_us() // 1_000)))
        batch = body_of(batch_meta(), device_row(now_us()))
        post = self.client.post
        given = [
            self.ask("samples", post("/v1/samples", content=batch, headers=headers(self.site_token))),
            self.ask("traces", post("/v1/traces", content=spans, headers={**bearer, "content-type": PROTOBUF})),
            self.ask("jobs", post("/v1/jobs/events", json=jobs, headers=bearer)),
            self.ask("lineage", post("/api/v1/lineage", content=json.dumps(event()).encode(), headers=bearer)),
            self.ask("outcomes", post("/v1/outcomes", json=judged, headers=bearer)),
            self.ask("series", post("/api/v1/write", content=written, headers={**HEADERS, **bearer})),
        ]
        return dict(await asyncio.gather(*given))


def test_a_silent_database_is_answered_503_within_seconds_by_every_writer_and_probes_go_on(
    db: Database, link: tuple[SilentLink, Database]
) -> None:
    site = make_site(db)
    wire, through = link

    async def scenario(client: httpx.AsyncClient) -> None:
        asked = Asked(client, site.site_token)
        before = await asked.everything(1)
        assert {name: given.status_code // 100 for name, given in before.items()} == dict.fromkeys(before, 2)
        with wire.silent():
            refused, (_, ready), (_, metrics), (_, alive) = await asyncio.gather(
                asked.everything(2),
                asked.ask("readyz", client.get("/readyz")),
                asked.ask("metrics", client.get("/metrics")),
                asked.ask("healthz", client.get("/healthz")),
            )
            assert {name: given.status_code for name, given in refused.items()} == dict.fromkeys(refused, 503)
            assert all(given.headers["retry-after"] == "5" for given in refused.values())
            assert max(asked.took_s.values()) < _WITHIN_S, asked.took_s
            assert [fault["dependency"] for fault in ready.json()["faults"]] == ["database"]
            assert (metrics.status_code, alive.status_code) == (200, 200)
            assert max(asked.took_s["metrics"], asked.took_s["healthz"]) < 1.0
            begun = time.monotonic()
            again = await asked.everything(3)  # known to be silent: nobody waits
            assert {given.status_code for given in again.values()} == {503}
            assert time.monotonic() - begun < 1.0
        deadline = time.monotonic() + 20
        while (await client.get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        after = await asked.everything(4)
        assert {name: given.status_code // 100 for name, given in after.items()} == dict.fromkeys(after, 2)

    run(Settings(through, database_silent_s=1), scenario)
    # What was told 503 may have been kept; it is there once all the same.
    found = traces.rows(db, "SELECT count(*), count(DISTINCT trace_id) FROM api_calls")
    assert found in ([(2, 2)], [(3, 3)])


def test_a_network_that_goes_away_ends_a_connection_unless_the_url_says_otherwise(db: Database) -> None:
    with db.connect("writer") as conn:
        told = conn.info.get_parameters()
    assert (told["tcp_user_timeout"], told["keepalives_idle"]) == ("20000", "10")
    with Database.at_url(f"{db.url}&tcp_user_timeout=7000").connect("admin") as conn:
        told = conn.info.get_parameters()
    assert (told["tcp_user_timeout"], told["keepalives_idle"]) == ("7000", "10")
