"""Joining a fleet: one token in, another out, kept where only its owner can read it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from collector.config import Settings
from collector.enrol import enroll
from collector.errors import AgentError
from tests.fakes.rude_server import Serve, trickle
from tests.fakes.rude_server import answer as rude
from tests.fakes.rude_server import server as rude_server

pytestmark = pytest.mark.unit


@pytest.fixture
def join(tmp_path: Path) -> Path:
    file = tmp_path / "join"
    file.write_text("j0in\n")
    return file


def run(folder: Path, join: Path, answer: Callable[[httpx.Request], httpx.Response]) -> Path:
    settings = Settings(server_url="https://ledger.test", node="gpu-01", token_file=str(folder / "token"))
    with httpx.Client(transport=httpx.MockTransport(answer), base_url=settings.server_url) as client:
        return enroll(settings, client, join)


def test_the_node_s_own_token_is_kept_for_its_owner_alone(tmp_path: Path, join: Path) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"node": "gpu-01", "token": "n0de"})

    (tmp_path / "token").write_text("old\n")
    assert run(tmp_path, join, answer) == tmp_path / "token"
    assert (tmp_path / "token").read_text() == "n0de\n"
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    (request,) = asked
    assert (request.method, request.url.path) == ("POST", "/v1/enroll")
    assert request.headers["Authorization"] == "Bearer j0in"
    body = json.loads(request.content)
    assert (body["node"], set(body)) == ("gpu-01", {"node", "agent_version"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["join", "token"]


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (httpx.Response(401), "unknown or no longer valid"),
        (httpx.Response(403), "may not let nodes join"),
        (httpx.Response(404), "is server_url right"),
        (httpx.Response(409), "revoke its token first"),
        (httpx.Response(429), "try again in a minute"),
        (httpx.Response(500, text="oops"), "answered 500: oops"),
        (httpx.Response(200, text="<html>"), "holds no token"),
        (httpx.Response(200, json=[]), "holds no token"),
        (httpx.Response(200, json={"token": "a\nb"}), "holds no token"),
        (httpx.Response(200, json={"token": 5}), "holds no token"),
        (httpx.Response(200, json={"token": "t\u00f6k"}), "holds no token.*revoke its token"),
        (httpx.Response(200, text="[" * 5_000), "holds no token"),
    ],
)
def test_a_refusal_says_what_to_do_and_changes_nothing(
    answer: httpx.Response, advice: str, tmp_path: Path, join: Path
) -> None:
    (tmp_path / "token").write_text("old\n")
    with pytest.raises(AgentError, match=advice) as caught:
        run(tmp_path, join, lambda _request: answer)
    assert "j0in" not in str(caught.value)
    assert (tmp_path / "token").read_text() == "old\n"


def test_nothing_is_asked_where_the_answer_could_not_be_kept(tmp_path: Path, join: Path) -> None:
    def never(_request: httpx.Request) -> httpx.Response:
        pytest.fail("the join was spent")

    with pytest.raises(AgentError, match="cannot write to"):
        run(tmp_path / "nowhere", join, never)
    os.truncate(join, 0)
    with pytest.raises(AgentError, match="holds no join token"):
        run(tmp_path, join, never)
    with pytest.raises(AgentError, match="cannot read the join token"):
        run(tmp_path, tmp_path / "none", never)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("serve", "advice"),
    [
        (trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "no answer within"),
        (trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"), "cannot be read"),
        (rude(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(bytes(30_000_000))), "cannot be read"),
        (rude(b"nonsense", b""), "does not answer"),
    ],
)
def test_a_server_that_does_not_end_its_answer_is_left_in_time(
    serve: Serve, advice: str, tmp_path: Path, join: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.enrol._LIMIT_S", 0.3)
    settings = Settings(node="gpu-01", token_file=str(tmp_path / "token"))
    with (
        rude_server(serve) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        pytest.raises(AgentError, match=advice),
    ):
        enroll(settings, client, join)
    assert not (tmp_path / "token").exists()
