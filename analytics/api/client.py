"""Asks a gate over HTTP, for ``wattledger gate check``: a job specification in, an answer and an exit code out.

Exit codes: 0 it may run (a warning is printed), 1 the answer is no, 2 it could not be answered. CI must be able to tell a
budget that is gone from a server that is down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

ALLOWED: Final = 0
DENIED: Final = 1
UNANSWERED: Final = 2
TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class GateResult:
    """``exit_code`` for the process, ``message`` for people, ``answer`` for programs (empty where there is none)."""

    exit_code: int
    message: str
    answer: Mapping[str, Any] = field(default_factory=dict)


def check(spec: Mapping[str, Any], base_url: str, token: str, *, client: httpx.Client | None = None) -> GateResult:
    """Ask ``POST /v1/gate``; every failure to get an answer is a result with exit code 2, never an exception."""
    if client is None:
        with httpx.Client(timeout=TIMEOUT_S) as own:
            return check(spec, base_url, token, client=own)
    try:
        response = client.post(
            f"{base_url.rstrip('/')}/v1/gate", json=dict(spec), headers={"Authorization": f"Bearer {token}"}
        )
        answer = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, TypeError) as error:
        return GateResult(
            UNANSWERED, f"{base_url} could not be asked: {type(error).__name__}; is `wattledger up` running?"
        )
    except ValueError:
        return GateResult(UNANSWERED, f"{base_url} answered {response.status_code} without JSON; is this Wattledger?")
    if not isinstance(answer, dict):
        return GateResult(UNANSWERED, f"{base_url} answered {response.status_code} with something else than an answer")
    if response.status_code != httpx.codes.OK:
        return GateResult(
            UNANSWERED, f"{answer.get('title', response.status_code)}: {answer.get('detail', '')}", answer
        )
    match answer.get("verdict"):
        case "allow" | "warn":
            return GateResult(ALLOWED, f"{answer['verdict']}: {answer.get('reason', '')}", answer)
        case "deny":
            return GateResult(DENIED, f"deny: {answer.get('reason', '')}", answer)
        case other:
            return GateResult(UNANSWERED, f"unknown verdict {other!r}; this client is older than the server", answer)
