"""What may be posted to ingest, as a part of the application's OpenAPI document: these endpoints are plain ASGI, which FastAPI cannot see.

Made from the endpoints themselves, so that a new one is described by being there. Bodies are described where their formats
are; here stand media types, bounds and answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ingest import errors
from ingest.endpoints.post import Post
from ingest.errors import PROBLEM_TYPE, IngestError
from ingest.http import JSON, problem

_REFUSALS: Final[tuple[type[IngestError], ...]] = (
    errors.BadBodyError,
    errors.UnauthorizedError,
    errors.ForbiddenError,
    errors.SlowError,
    errors.TooLargeError,
    errors.UnsupportedError,
    errors.TooManyError,
    errors.UnavailableError,
)
_OF_EVERY_BODY: Final[tuple[type[IngestError], ...]] = (errors.SlowError, errors.TooLargeError)
_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "urn:wattledger:problem:REASON"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
BEARER: Final = "token"


def describe(document: dict[str, Any], posts: Iterable[Post]) -> dict[str, Any]:
    """Return ``document`` with the paths of ``posts`` added in place."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Refusal"] = _PROBLEM
    components.setdefault("securitySchemes", {})[BEARER] = {"type": "http", "scheme": "bearer"}
    _say_problem(document)
    for post in posts:
        document["paths"][post.path] = {"post": _operation(post)}
    return document


def _say_problem(document: dict[str, Any]) -> None:
    """Give refusals of the other operations their content type, which FastAPI takes for that of the answers."""
    for methods in document["paths"].values():
        for operation in methods.values():
            answers = operation["responses"]
            for refusal in _OF_EVERY_BODY:
                answers.setdefault(str(refusal.status), _told(refusal))
            for status, answer in answers.items():
                content = answer.get("content", {})
                if status >= "400" and JSON in content:
                    content[PROBLEM_TYPE] = content.pop(JSON)


def _told(refusal: type[IngestError]) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Refusal"}}
    return {"description": refusal.title, "content": {PROBLEM_TYPE: schema}}


def _operation(post: Post) -> dict[str, Any]:
    summary, _, more = (post.handle.__doc__ or post.name).partition("\n\n")
    answers: dict[str, Any] = {
        str(post.success): {
            "description": "committed" if post.success != _NO_CONTENT else "committed; there is no body",
            **({} if post.success == _NO_CONTENT else {"content": {media: {} for media in post.answers}}),
        }
    }
    for refusal in (*_REFUSALS, *post.refusals):
        # A protocol with words of its own for failures uses them; the status is the same.
        own = post.failure is not problem
        told = _told(refusal)
        answers[str(refusal.status)] = {**told, "content": {media: {} for media in post.answers}} if own else told
    return {
        "tags": ["ingest"],
        "operationId": f"post_{post.name}",
        "summary": summary.partition(";")[0].strip().rstrip("."),
        "description": f"{more.strip()}\n\nAt most {post.max_body_bytes} bytes as sent.".strip(),
        "security": [{BEARER: []}],
        "requestBody": {
            "required": True,
            "content": {media: {"schema": _body_schema(media)} for media in post.media},
        },
        "responses": answers,
    }


def _body_schema(media: str) -> dict[str, Any]:
    return {} if media.endswith("json") else {"type": "string", "format": "binary"}


_NO_CONTENT: Final = 204
