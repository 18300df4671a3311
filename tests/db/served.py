"""An application behind the product's own web server, in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import uvicorn

from wattledger.connections import ConnectionLimits, guarded

WAIT_S: Final = 15.0


@contextmanager
def serving(app: Any, limits: ConnectionLimits) -> Iterator[int]:
    """Give the port on which ``app`` is served."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=guarded(limits), loop="asyncio", log_level="critical", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            deadline = time.monotonic() + WAIT_S
            while not server.started:
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
