"""The processes of the weather tests: `up HOME PORT` supervises PostgreSQL, serve and worker; `feed HOME URL` sends the fleet.

The same commands and classes as `wattledger up` and `wattledger demo`, without the dashboard: it holds no data.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from wattledger.home import Home, resolve_home
from wattledger.simulate import feed as feed_module
from wattledger.simulate.cursor import Cursor
from wattledger.simulate.feed import Feed
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import BLOCK_US, FleetSpec
from wattledger.supervise import Child, supervise


@dataclass(frozen=True)
class Place:
    """A home with the fleet it is fed."""

    root: Path

    @property
    def home(self) -> Home:
        return resolve_home({}, self.root)

    @property
    def database(self) -> Database:
        return EmbeddedServer.in_home(self.root).database()

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def cursor(self) -> Path:
        return self.root / "cursor.json"

    def write(self, spec: FleetSpec, hours: int) -> None:
        """Keep what `feed` is to send."""
        kept = {"start_at_us": spec.start_at_us, "nodes": spec.nodes, "devices_per_node": spec.devices_per_node}
        (self.root / "fleet.json").write_text(json.dumps({"spec": kept, "hours": hours}))

    def read(self) -> tuple[FleetSpec, int]:
        kept = json.loads((self.root / "fleet.json").read_text())
        return FleetSpec(**kept["spec"]), kept["hours"]

    def hours_fed(self) -> int:
        """Return how many hours are acknowledged whole."""
        if not self.cursor.exists():
            return 0
        kept = json.loads(self.cursor.read_text())
        return int(kept["done_until_us"] - kept["fleet_start_us"]) // BLOCK_US


def run_up(place: Place, port: int) -> None:
    def children(_: Database, bound: object) -> list[Child]:
        command = [sys.executable, "-m", "wattledger", "--home", str(place.root)]
        return [
            Child("serve", [*command, "serve", "--port", str(port)], is_ready=lambda: answers(port)),
            Child("worker", [*command, "worker", "--interval", "0.5"]),
        ]

    supervise(place.home, children, ports={"--port": port}, prepare=lambda database: upgrade(database.url))


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).is_success
    except httpx.TransportError:
        return False


def run_feed(place: Place, url: str) -> None:
    # A real feed waits up to half a minute between tries; here what is away comes back in seconds.
    vars(feed_module).update(LONGEST_PAUSE_S=1.0, MAX_ATTEMPTS=120)
    spec, hours = place.read()
    token = place.token.read_text().strip()
    with Feed(Fleet(spec), url, token, cursor=Cursor(place.cursor, spec.start_at_us)) as feed:
        feed.catch_up(spec.start_at_us + hours * BLOCK_US)


if __name__ == "__main__":
    verb, root, where = sys.argv[1:]
    if verb == "up":
        run_up(Place(Path(root)), int(where))
    else:
        run_feed(Place(Path(root)), where)
