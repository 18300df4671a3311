"""The API's requests are counted by what was asked of it, not by who made up which path."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException

from analytics.api.metrics import ApiMetrics, Measured
from ingest.exposition import REQUEST_SECONDS, Meters

pytestmark = pytest.mark.unit


@pytest.fixture
def meters() -> Iterator[Meters]:
    meters = Meters("test", REQUEST_SECONDS)
    yield meters
    meters.close()


def application(meters: Meters) -> FastAPI:
    app, router = FastAPI(), APIRouter()

    @router.get("/v1/budgets/{path:path}")
    async def budget(path: str) -> str:
        if path == "broken":
            raise ZeroDivisionError
        if path == "absent":
            raise HTTPException(404)
        return path

    @app.get("/readyz")
    async def readyz() -> str:
        return "ok"

    app.include_router(router)
    app.add_middleware(Measured, metrics=ApiMetrics(meters.meter("api")))
    return app


def asked(app: FastAPI, *paths: str) -> None:
    async def all_of_them() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            for path in paths:
                await client.get(path)

    asyncio.run(all_of_them())


def counts(meters: Meters, name: str) -> list[str]:
    return sorted(line for line in meters.exposition().splitlines() if line.startswith(name))


def test_requests_are_counted_by_template_and_class_of_the_status(meters: Meters) -> None:
    asked(application(meters), "/v1/budgets/acme/nlp", "/v1/budgets/b", "/v1/budgets/absent", "/v1/budgets/broken")
    assert counts(meters, "wattledger_api_requests_total") == [
        'wattledger_api_requests_total{route="/v1/budgets/{path:path}",status="2xx"} 2',
        'wattledger_api_requests_total{route="/v1/budgets/{path:path}",status="4xx"} 1',
        'wattledger_api_requests_total{route="/v1/budgets/{path:path}",status="5xx"} 1',
    ]
    assert counts(meters, "wattledger_api_request_duration_seconds_count") == [
        'wattledger_api_request_duration_seconds_count{route="/v1/budgets/{path:path}"} 4'
    ]


def test_a_thousand_made_up_paths_are_one_series(meters: Meters) -> None:
    asked(application(meters), *(f"/{number}" for number in range(1_000)))
    assert counts(meters, "wattledger_api_requests_total") == [
        'wattledger_api_requests_total{route="none",status="4xx"} 1000'
    ]


def test_probes_of_machines_are_not_counted(meters: Meters) -> None:
    asked(application(meters), "/readyz")
    assert counts(meters, "wattledger_api_requests_total") == []
