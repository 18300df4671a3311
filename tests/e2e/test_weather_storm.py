"""A storm after an outage: 500 agents send what they kept to two replicas, much of it twice, while the database is killed.

The measure is arithmetic: as many rows as were made, each once, whoever answered what to whom.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from collector.wire import SAMPLES_PATH
from ingest.store.embedded import EmbeddedServer
from ingest.store.migrate import upgrade
from tests.db import ingest_server
from tests.db.ingest_harness import batch_meta, body_of, device, device_row, headers, make_site, now_us
from tests.scratch import quick_folder

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
AGENTS = 500
BATCHES = 2
ROWS = 6
SECOND_US = 1_000_000
AT_ONCE = 200
"""Requests under way: what the machine of a test has in file descriptors, not what a site has in agents."""


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A PostgreSQL that may be killed."""
    home = quick_folder("wl-storm-")
    running = EmbeddedServer.in_home(home)
    try:
        running.start()
        upgrade(running.database().url)
        yield running
    finally:
        running.destroy()
        shutil.rmtree(home)


def bodies(node: str, first_at_us: int) -> list[bytes]:
    """What one agent kept while nobody answered."""
    spool = str(uuid.uuid4())
    return [
        body_of(
            batch_meta(spool=spool, sequence=batch + 1, node=node, devices=(device(node),)),
            *(
                device_row(first_at_us + (batch * ROWS + row) * SECOND_US, energy_mj=batch * ROWS + row)
                for row in range(ROWS)
            ),
        )
        for batch in range(BATCHES)
    ]


class Storm:
    """The agents; each sends a batch until it is acknowledged, and every third one again, to the other replica."""

    def __init__(self, urls: list[str], token: str, client: httpx.AsyncClient) -> None:
        self.acknowledged = 0
        self.told_to_wait = 0
        self._urls = urls
        self._token = token
        self._client = client
        self._room = asyncio.Semaphore(AT_ONCE)

    async def agent(self, number: int, first_at_us: int) -> None:
        for count, body in enumerate(bodies(f"node-{number}", first_at_us)):
            copies = 2 if (number + count) % 3 == 0 else 1
            await asyncio.gather(*(self._send(body, self._urls[(number + copy) % 2]) for copy in range(copies)))
            self.acknowledged += 1

    async def _send(self, body: bytes, url: str) -> None:
        while True:
            async with self._room:
                with suppress(httpx.TransportError):
                    answer = await self._client.post(url + SAMPLES_PATH, content=body, headers=headers(self._token))
                    if answer.status_code == 200:
                        return
                    assert answer.status_code == 503, answer.text
                    self.told_to_wait += 1
            await asyncio.sleep(random.uniform(0.5, 1.5))


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_whatever_is_sent_twice_and_killed_meanwhile_each_row_is_there_once(
    own_server: EmbeddedServer, kills: int
) -> None:
    database = own_server.database()
    site = make_site(database)
    ports = [ingest_server.free_port() for _ in range(2)]

    async def scenario() -> Storm:
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:
            storm = Storm([f"http://127.0.0.1:{port}" for port in ports], site.site_token, client)
            at_us = now_us() - 3_600 * SECOND_US
            rounds = max(1, kills // 5)
            for each in range(rounds):
                first = at_us + each * BATCHES * ROWS * SECOND_US
                sending = [asyncio.ensure_future(storm.agent(number, first)) for number in range(AGENTS)]
                wanted = AGENTS * BATCHES // (kills // rounds + 1)
                for kill in range(1, kills // rounds + 1):
                    while storm.acknowledged < each * AGENTS * BATCHES + kill * wanted:
                        await asyncio.sleep(0.02)
                        assert not any(task.done() and task.exception() for task in sending)
                    postmaster = own_server.postmaster()
                    assert postmaster is not None
                    postmaster.signal(signal.SIGKILL)
                    await asyncio.to_thread(own_server.start)
                await asyncio.gather(*sending)
            return storm

    with ExitStack() as stack:
        for port in ports:
            process = ingest_server.start(own_server.placement.socket_dir, database.name, port)
            stack.callback(process.wait)
            stack.callback(process.kill)
        storm = asyncio.run(scenario())
    made = AGENTS * BATCHES * max(1, kills // 5)
    assert storm.acknowledged == made
    assert storm.told_to_wait, "the database was never seen away"
    counted = "SELECT count(*), count(DISTINCT (device_id, at)), count(DISTINCT device_id) FROM device_samples"
    with database.connect("admin") as connection:
        assert connection.execute(counted).fetchone() == (made * ROWS, made * ROWS, AGENTS)
