"""The API's own metrics: how often each route was asked, how it was answered, and how long that took.

A route is named by its template, never by the path that was asked for: paths hold names of tenants and budgets, and whoever
asks can make up any number of them. Requests that no route takes are counted together.
"""

from __future__ import annotations

import time
from typing import Final

from opentelemetry.metrics import Meter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_ROUTE: Final = "none"
NOT_COUNTED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked by machines every few seconds: they would drown what people and gates see."""
_BROKEN: Final = 500


class ApiMetrics:
    """The instruments of the API, in the meter of whoever serves it."""

    def __init__(self, meter: Meter) -> None:
        self._requests = meter.create_counter(
            "wattledger_api_requests_total", description="Requests by template of the route and class of the status"
        )
        self._seconds = meter.create_histogram(
            "wattledger_api_request_duration_seconds", description="From a request's head to its answer's end", unit="s"
        )

    def answered(self, route: str, status: int, duration_s: float) -> None:
        """Count one request."""
        self._requests.add(1, {"route": route, "status": f"{status // 100}xx"})
        self._seconds.record(duration_s, {"route": route})


def route_of(scope: Scope) -> str:
    """Return the template of the route that took a request; :data:`NO_ROUTE` before routing and where none did."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else NO_ROUTE


class Measured:
    """ASGI middleware: each request is counted once it is answered."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _BROKEN  # what the server answers for an application that raises

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_s = time.perf_counter()
        try:
            await self._app(scope, receive, noted)
        finally:
            route = route_of(scope)
            if route not in NOT_COUNTED:
                self._metrics.answered(route, status, time.perf_counter() - began_s)
