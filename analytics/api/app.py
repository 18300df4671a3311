"""The read API as an application of its own, or mounted into ingest's. Built by calls; nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry.trace import Tracer

from analytics.api import (
    audit,
    bill,
    budgets,
    disputes,
    gate,
    lineage,
    logs,
    meters,
    periods,
    problems,
    tenant_energy,
    why,
)
from analytics.api.metrics import ApiMetrics, Measured
from analytics.api.service import ApiSettings, Service
from analytics.api.tracing import Traced
from ingest.body_limit import BodyLimit
from ingest.store.engine import Database


def mount(app: FastAPI, service: Service, metrics: ApiMetrics | None = None, tracer: Tracer | None = None) -> None:
    """Add the read API to an application; who made ``service`` closes it.

    ``metrics``: where its requests are counted; ``tracer``: what makes a span of each.
    """
    app.state.api = service
    if metrics is not None:
        app.add_middleware(Measured, metrics=metrics)
    if tracer is not None:
        app.add_middleware(Traced, tracer=tracer)
    problems.install(app)
    for module in (bill, budgets, gate, lineage, logs, meters, tenant_energy, periods, disputes, audit, why):
        app.include_router(module.router)


def create_api(database: Database, settings: ApiSettings | None = None) -> FastAPI:
    """Return the read API alone, as an application that closes what it opened."""
    service = Service.open(database, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="Wattledger API", version="1", lifespan=lifespan, redirect_slashes=False)
    app.add_middleware(BodyLimit)
    mount(app, service)
    return app
