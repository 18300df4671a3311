"""Why ingest refuses a request. A class exists because the caller must answer, retry or record differently.

IngestError
├── BadBodyError          400: these bytes are not a batch; the sender must not send them again
│   └── TooLargeError     413: more than the contract allows, before or after decompression
├── UnsupportedError      415: a content type or encoding this side does not read
├── SlowError         408: the body does not come; the sender may try again
├── UnauthorizedError     401: no token, or one that is unknown, expired or revoked
├── ForbiddenError        403: a good token that does not cover this
└── UnavailableError      503: cannot be kept now; send it again after a while
    └── TooManyError      429: this sender sends more than its share
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

PROBLEM_TYPE: Final = "application/problem+json"


class IngestError(Exception):
    """A refusal with the HTTP status it becomes and a stable ``reason`` for counters and clients."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def headers(self) -> dict[str, str]:
        return {}

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 body."""
        return {
            "type": f"urn:wattledger:problem:{self.reason}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }


class BadBodyError(IngestError):
    status = 400
    title = "The body is not what this endpoint takes"


class TooLargeError(BadBodyError):
    status = 413
    title = "The body is too large"

    def __init__(self, detail: str) -> None:
        super().__init__("too_large", detail)


def malformed(detail: str) -> BadBodyError:
    return BadBodyError("malformed", detail)


class UnsupportedError(IngestError):
    status = 415
    title = "Content type or encoding not supported"

    def __init__(self, detail: str) -> None:
        super().__init__("unsupported_media", detail)


class SlowError(IngestError):
    status = 408
    title = "The body came too slowly"

    def __init__(self, limit_s: float) -> None:
        super().__init__("too_slow", f"the body was not there after {limit_s:g} s; send a smaller one, or again")

    def headers(self) -> dict[str, str]:
        return {"connection": "close"}  # nobody reads what may still come


class UnauthorizedError(IngestError):
    status = 401
    title = "Not authenticated"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class ForbiddenError(IngestError):
    status = 403
    title = "Not allowed"


class UnavailableError(IngestError):
    status = 503
    title = "Cannot be kept now"

    def __init__(self, reason: str, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)}


class TooManyError(UnavailableError):
    status = 429
    title = "Too many requests"
