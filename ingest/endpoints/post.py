"""The form in which a module of this package names an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ingest.errors import IngestError
from ingest.http import JSON, SENT_AGAIN, Answer, Failure, Request, problem
from ingest.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Post:
    """A path that takes bodies of at most ``max_body_bytes``, as sent. ``name`` labels its counters.

    ``failure`` words a refusal, where the wire has a form of its own for it. ``media``, ``answers``, ``success`` and
    ``refusals`` are for the OpenAPI document alone.
    """

    name: str
    path: str
    handle: Callable[[Runtime, Request], Awaitable[Answer]]
    max_body_bytes: int
    failure: Failure = problem
    media: tuple[str, ...] = (JSON,)
    """Content types it takes."""
    answers: tuple[str, ...] = (JSON,)
    """Content types it answers with, beside problem+json."""
    success: int = 200
    sent_again: frozenset[int] = SENT_AGAIN
    """Of 408 and 429 those after which this wire's senders send again; instead of the others they are answered 503."""
    refusals: tuple[type[IngestError], ...] = ()
    """Beside those of every endpoint."""
