"""Refusals of the API as RFC 9457 problem+json, with a stable type and a sentence on what to do."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ingest.errors import PROBLEM_TYPE, IngestError


class ApiError(Exception):
    """A refusal by status and reason; ``detail`` says what to do."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail


class Problem(BaseModel):
    """The body of every refusal."""

    type: str
    title: str
    status: int
    detail: str


TITLES = {
    400: "The request is not valid",
    401: "Not authenticated",
    403: "Not allowed",
    404: "There is no such thing",
    409: "What was asked about has changed",
    422: "The question cannot be answered as asked",
    503: "Cannot be answered now",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": title} for status, title in TITLES.items()
}


def problem(status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    body = {"type": f"urn:wattledger:problem:{reason}", "title": TITLES[status], "status": status, "detail": detail}
    return JSONResponse(body, status, dict(headers or {}), PROBLEM_TYPE)


def _detail(request: Request, error: HTTPException) -> str:
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND and path != "/" and path.endswith("/"):
        return f"there is no path {path!r:.200}; ask without the slash at its end"
    return str(error.detail)


def install(app: FastAPI) -> None:
    """Make an application answer refusals of this API as problems."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, ApiError):
            raise error
        return problem(error.status, error.reason, error.detail)

    async def refused_by_store(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, IngestError):
            raise error
        return JSONResponse(error.problem(), error.status, error.headers(), PROBLEM_TYPE)

    async def not_valid(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise error
        faults = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'][1:]) or item['loc'][0]}: {item['msg']}"
            for item in jsonable_encoder(error.errors(), exclude={"input", "ctx"})
        )
        return problem(400, "invalid_request", faults)

    async def unavailable(_: Request, __: Exception) -> JSONResponse:
        return problem(
            503, "database_unavailable", "the database did not answer in time; ask again", {"retry-after": "2"}
        )

    async def refused_by_router(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise error
        title = HTTPStatus(error.status_code).phrase
        body = {
            "type": f"urn:wattledger:problem:{title.lower().replace(' ', '_')}",
            "title": TITLES.get(error.status_code, title),
            "status": error.status_code,
            "detail": _detail(request, error),
        }
        return JSONResponse(body, error.status_code, dict(error.headers or {}), PROBLEM_TYPE)

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(HTTPException, refused_by_router)
    app.add_exception_handler(IngestError, refused_by_store)
    app.add_exception_handler(RequestValidationError, not_valid)
    for trouble in (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError):
        app.add_exception_handler(trouble, unavailable)
