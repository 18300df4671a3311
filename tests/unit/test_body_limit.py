"""Bodies over the bound are refused before they are held: by what they claim, and by what they turn out to be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import httpx
import pytest
from fastapi import Body, FastAPI, Request

from ingest.body_limit import BodyLimit

pytestmark = pytest.mark.unit
KIB = 1024


class Sent:
    """A body that counts how much of it was asked for."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.asked = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.pieces):
            self.asked += 1
            yield b" " * KIB


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(BodyLimit, max_body_bytes=4 * KIB)

    @app.post("/json")
    async def take_json(given: Annotated[dict[str, int], Body()]) -> dict[str, int]:
        return given

    @app.post("/size")
    async def take_bytes(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.fixture
def post(app: FastAPI) -> Callable[..., httpx.Response]:
    def post(path: str, content: bytes | Sent) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
                return await client.post(path, content=content)

        return asyncio.run(ask())

    return post


def test_a_body_of_just_the_bound_passes(post: Callable[..., httpx.Response]) -> None:
    assert post("/size", b"x" * 4 * KIB).json() == 4096
    assert post("/size", Sent(4)).json() == 4096


@pytest.mark.parametrize("path", ["/json", "/size", "/nowhere"])
def test_a_body_that_claims_more_is_refused_unread(path: str, post: Callable[..., httpx.Response]) -> None:
    answer = post(path, b"x" * (4 * KIB + 1))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:wattledger:problem:too_large",
        "title": "The body is too large",
        "status": 413,
        "detail": "4097 bytes; at most 4096 are taken",
    }


@pytest.mark.parametrize("path", ["/json", "/size"])
def test_a_body_without_a_length_is_read_no_further_than_the_bound(
    path: str, post: Callable[..., httpx.Response]
) -> None:
    sent = Sent(1_000)
    answer = post(path, sent)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
    assert answer.json()["detail"] == "more than 4096 bytes"
    assert sent.asked <= 6  # 5 make it too large; the client's transport may be one ahead
