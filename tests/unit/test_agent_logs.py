"""What the agent logs, at whichever level, holds no secret of those it talks to."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from collector import logs
from collector.source.fetch import Fetcher
from tests.fakes.rude_server import server

pytestmark = pytest.mark.contract


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in ("", "collector")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def session(connection: socket.socket, _stop: threading.Event) -> None:
    connection.recv(65_536)
    connection.sendall(
        b"HTTP/1.1 201 Created\r\nX-Auth-Token: answered-secret\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    )


def test_at_debug_neither_what_is_sent_nor_what_is_answered_is_written_down(caplog: pytest.LogCaptureFixture) -> None:
    logs.set_level("debug")
    caplog.handler.setLevel(logging.NOTSET)
    logging.getLogger("collector.any").debug("the agent's own")
    with server(session) as url:
        fetcher = Fetcher(timeout_s=5, max_bytes=100)
        answer = fetcher.request("POST", url, headers={"Authorization": "Bearer sent-secret"}, body=b"password-secret")
        fetcher.close()
    assert answer.headers["x-auth-token"] == "answered-secret"
    assert [record.getMessage() for record in caplog.records] == ["the agent's own"]


@pytest.mark.parametrize(
    ("level", "ours", "others"),
    [("debug", 10, 30), ("info", 20, 30), ("warning", 30, 30), ("error", 40, 40)],
)
def test_libraries_are_heard_only_where_something_is_wrong(level: str, ours: int, others: int) -> None:
    logs.set_level(level)
    assert logging.getLogger("collector.ship").getEffectiveLevel() == ours
    assert {logging.getLogger(name).getEffectiveLevel() for name in ("httpx", "httpcore.http11", "hpack")} == {others}
