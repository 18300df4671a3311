"""The form in which a module of this package names an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ingest.http import Answer, Failure, Request, problem
from ingest.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Post:
    """A path that takes bodies of at most ``max_body_bytes``, as sent. ``name`` labels its counters.

    ``failure`` words a refusal, where the wire has a form of its own for it.
    """

    name: str
    path: str
    handle: Callable[[Runtime, Request], Awaitable[Answer]]
    max_body_bytes: int
    failure: Failure = problem
