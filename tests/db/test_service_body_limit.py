"""The service as `wattledger up` runs it holds no large body of a stranger."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from ingest.store.engine import Database
from tests.fakes.serving import serving
from wattledger.service import create_service

pytestmark = pytest.mark.db
MIB = 1024 * 1024


def test_a_large_body_without_a_token_is_refused_while_it_comes_in(db: Database) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(32):
            yield b" " * (MIB // 8)

    with serving(create_service(db, os.environ)) as url, httpx.Client(base_url=url, timeout=30) as client:
        claimed = client.post("/v1/gate", content=b" " * (2 * MIB))
        streamed = client.post("/v1/gate", content=pieces())
        small = client.post("/v1/gate", content=b"{}")
        samples = client.post("/v1/samples", content=b" " * (2 * MIB))
    assert [answer.status_code for answer in (claimed, streamed)] == [413, 413]
    assert {answer.headers["content-type"] for answer in (claimed, streamed)} == {"application/problem+json"}
    assert small.status_code in {400, 401}
    assert samples.status_code == 401  # its own bound is 8 MiB
