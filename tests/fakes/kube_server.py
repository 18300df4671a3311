"""An API server on loopback: lists in pages, watches by lines, and the faults that real ones have, on demand.

It speaks the captured dialect (../shared/captures/kubernetes: errors as a Status, lists with a resourceVersion) and has no
controllers and no validation.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Thing = dict[str, Any]
END = object()


def status(code: int, reason: str, message: str) -> Thing:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


@dataclass
class KubeServer:
    """``objects`` by path and UID. ``faults``: answers (code, Status) to give next on a path, oldest first."""

    url: str = ""
    version: int = 100
    page: int = 2
    objects: dict[str, dict[str, Thing]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Versions served of an API group, by its path."""
    faults: dict[str, list[tuple[int, Thing]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    watches: dict[str, list[queue.Queue[Any]]] = field(default_factory=dict)
    history: dict[str, list[tuple[int, Thing]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, path: str, thing: Thing, *, kind: str | None = None) -> None:
        """Add or change an object; ``kind`` DELETED takes it away."""
        with self.lock:
            self.version += 1
            thing = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(self.version)}}
            known = self.objects.setdefault(path, {})
            kind = kind or ("MODIFIED" if thing["metadata"]["uid"] in known else "ADDED")
            if kind == "DELETED":
                known.pop(thing["metadata"]["uid"], None)
            else:
                known[thing["metadata"]["uid"]] = thing
            event = {"type": kind, "object": thing}
            self.history.setdefault(path, []).append((self.version, event))
            for one in self.watches.get(path, []):
                one.put(json.dumps(event).encode() + b"\n")

    def delete(self, path: str, thing: Thing) -> None:
        self.put(path, thing, kind="DELETED")

    def forget(self, path: str, uid: str) -> None:
        """Take an object away so that no watch hears of it."""
        with self.lock:
            self.objects[path].pop(uid)

    def send(self, path: str, line: bytes) -> None:
        """Write bytes to the watches of a path."""
        with self.lock:
            for one in self.watches.get(path, []):
                one.put(line)

    def bookmark(self, path: str) -> None:
        with self.lock:
            self.version += 1
        event = {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": str(self.version)}}}
        self.send(path, json.dumps(event).encode() + b"\n")

    def end_watches(self, path: str, last: bytes = b"") -> None:
        """End the watches of a path, after some last bytes."""
        with self.lock:
            for one in self.watches.pop(path, []):
                one.put(last)
                one.put(END)

    def watched(self, path: str) -> bool:
        with self.lock:
            return bool(self.watches.get(path))


@contextmanager
def kube_server() -> Iterator[KubeServer]:
    made = KubeServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        for path in list(made.watches):
            made.end_watches(path)
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(made: KubeServer) -> type[BaseHTTPRequestHandler]:  # noqa: C901 (a class with four small methods)
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            params = {name: values[0] for name, values in parse_qs(parts.query).items()}
            made.asked.append(self.path)
            made.tokens.add(self.headers.get("authorization", ""))
            with made.lock:
                fault = made.faults.get(parts.path, [])
                code, answer = fault.pop(0) if fault else (0, {})
            if parts.path in made.absent:
                code, answer = 404, status(404, "NotFound", "the server could not find the requested resource")
            if not code and parts.path in made.groups:
                group = parts.path.removeprefix("/apis/")
                versions = [{"groupVersion": f"{group}/{each}", "version": each} for each in made.groups[parts.path]]
                code, answer = 200, {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions}
            if code:
                self._answer(code, answer)
            elif params.get("watch"):
                self._watch(parts.path, int(params["resourceVersion"]))
            else:
                self._list(parts.path, int(params.get("continue", "0")))

        def _list(self, path: str, offset: int) -> None:
            with made.lock:
                things = list(made.objects.get(path, {}).values())
                metadata = {"resourceVersion": str(made.version)}
            if offset + made.page < len(things):
                metadata["continue"] = str(offset + made.page)
            self._answer(200, {"kind": "List", "metadata": metadata, "items": things[offset : offset + made.page]})

        def _watch(self, path: str, since: int) -> None:
            events: queue.Queue[Any] = queue.Queue()
            with made.lock:
                for version, event in made.history.get(path, []):
                    if version > since:
                        events.put(json.dumps(event).encode() + b"\n")
                made.watches.setdefault(path, []).append(events)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while (line := events.get()) is not END:
                if line:
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def _answer(self, code: int, answer: Thing) -> None:
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
