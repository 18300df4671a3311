"""The service as `wattledger up` runs it tells of ingest and the API on one page."""

from __future__ import annotations

import os

import httpx
import pytest

from ingest.store.engine import Database
from tests.fakes.serving import serving
from wattledger.service import create_service

pytestmark = pytest.mark.db


def test_requests_of_the_api_are_on_the_page_of_ingest_and_no_path_is(db: Database) -> None:
    with serving(create_service(db, os.environ)) as url, httpx.Client(base_url=url, timeout=30) as client:
        client.get("/v1/budgets/acme%2Fsecret-project")
        client.get("/wp-login.php")
        client.post("/v1/samples", content=b"{}")
        text = client.get("/metrics").text
    counted = {
        line
        for line in text.splitlines()
        if line.startswith(("wattledger_api_requests", "wattledger_ingest_bodies_total"))
    }
    assert counted == {
        'wattledger_api_requests_total{route="/v1/budgets/{path:path}",status="4xx"} 1',
        'wattledger_api_requests_total{route="none",status="4xx"} 1',
        'wattledger_ingest_bodies_total{endpoint="samples",outcome="token_missing"} 1',
    }
    assert "secret-project" not in text
