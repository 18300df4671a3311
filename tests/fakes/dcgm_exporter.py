"""A dcgm-exporter that tells what it is told to: each scrape is one step further on every counter, so a lost one shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

STEP_MJ = 1_000
POWER_W = 100


class Exporter:
    """Two boards of one host; ``scrapes`` counts how often it was asked."""

    def __init__(self, uuids: tuple[str, ...] = ("GPU-a", "GPU-b"), host: str = "gpu-1") -> None:
        self.uuids, self.host = uuids, host
        self.scrapes = 0
        self._lock = threading.Lock()
        self.port = 0

    def text(self) -> str:
        """Return the next scrape in Prometheus' text format."""
        with self._lock:
            self.scrapes += 1
            energy_mj = self.scrapes * STEP_MJ
        lines = []
        values = {
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("counter", energy_mj),
            "DCGM_FI_DEV_POWER_USAGE": ("gauge", POWER_W),
            "DCGM_FI_DEV_GPU_UTIL": ("gauge", 42),
            "DCGM_FI_DEV_FB_USED": ("gauge", 1024),
            "DCGM_FI_DEV_VGPU_LICENSE_STATUS": ("gauge", 0),
        }
        for name, (kind, value) in values.items():
            lines += [f"# HELP {name} of a fake", f"# TYPE {name} {kind}"]
            lines += [
                f'{name}{{gpu="{number}",UUID="{uuid}",device="nvidia{number}",modelName="NVIDIA H100 80GB HBM3",'
                f'Hostname="{self.host}",DCGM_FI_DRIVER_VERSION="550.54.15"}} {value}'
                for number, uuid in enumerate(self.uuids)
            ]
        return "\n".join(lines) + "\n"


class Exposition(Protocol):
    """Whatever tells its series in text when it is asked."""

    port: int

    def text(self) -> str: ...


@contextmanager
def exporting(exporter: Exposition) -> Iterator[Exposition]:
    """Serve it on loopback while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exporter.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    exporter.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
