"""A process's counts for a scraper, on loopback unless told otherwise. It serves one text and reads nothing of a request but its path."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def serve(text: Callable[[], str], port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """Answer GET /metrics on an address and port (0: any free one) until the process ends; the caller may shut it down earlier. OSError: taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            body = text().encode() if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a line a scrape would be all there is to see."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
