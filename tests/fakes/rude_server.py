"""A server on the loopback that sends bytes as it likes: late, without end, one at a time, or nonsense."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Serve = Callable[[socket.socket, threading.Event], None]


@contextlib.contextmanager
def server(serve: Serve) -> Iterator[str]:
    """Serve every connection with a function, on the loopback."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    serve(connection, stop)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
    finally:
        stop.set()
        thread.join()
        listener.close()


def trickle(first: bytes, again: bytes) -> Serve:
    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(first)
        while not stop.wait(0.02):
            connection.sendall(again)

    return serve


def silence(_connection: socket.socket, stop: threading.Event) -> None:
    stop.wait()


def answer(head: bytes, body: bytes) -> Serve:
    def serve(connection: socket.socket, _stop: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 " + head + b"\r\nConnection: close\r\n\r\n" + body)

    return serve
