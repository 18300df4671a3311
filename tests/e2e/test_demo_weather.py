"""`wattledger demo` itself in bad weather: what it runs is killed while it loads, then the demo is, and then it is started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from ingest.store.embedded import EmbeddedServer
from tests.e2e.fleet_stand import await_end, await_true, command, rows, seen
from tests.scratch import quick_folder
from wattledger.home import Home, resolve_home
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import BLOCK_US, FleetSpec
from wattledger.standing import down, status

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

WORDS = ("demo", "--once", "--nodes", "1", "--port", "0", "--dashboard-port", "0")
PATIENCE_S = 400.0


@pytest.fixture
def home() -> Iterator[Home]:
    folder = quick_folder("wl-demo-")
    made = resolve_home({}, folder)
    yield made
    down(made)
    EmbeddedServer.in_home(folder).destroy()
    shutil.rmtree(folder)


def hours_fed(home: Home) -> int:
    cursor = home.spool / "simulator.json"
    if not cursor.exists():
        return 0
    kept = json.loads(cursor.read_text())
    return int(kept["done_until_us"] - kept["fleet_start_us"]) // BLOCK_US


def kill_child(home: Home, name: str) -> None:
    (pid,) = [child.pid for child in status(home).children if child.name == name]
    os.kill(pid, signal.SIGKILL)


def test_the_demo_survives_its_children_and_its_own_death(home: Home) -> None:
    log = home.root / "test.log"
    words = ["--home", str(home.root), *WORDS]
    with command(words, log) as first:

        def has_fed(hours: int) -> bool:
            assert first.poll() is None, seen(log, home.log)
            return hours_fed(home) >= hours

        await_true(lambda: has_fed(3), PATIENCE_S, "the demo loads", log, home.log)
        kill_child(home, "serve")
        await_true(lambda: has_fed(12), PATIENCE_S, "the load goes on with a new serve", log, home.log)
        postmaster = status(home).postgres_pid
        assert postmaster is not None
        os.kill(postmaster, signal.SIGKILL)
        await_true(lambda: has_fed(20), PATIENCE_S, "the load goes on with a new PostgreSQL", log, home.log)
        first.kill()
        first.wait()
    assert 20 <= hours_fed(home) < 48
    with command(words, log) as second:
        assert await_end(second, PATIENCE_S, log, home.log) == 0, seen(log, home.log)
    assert "acme/research/nlp" in log.read_text()

    kept = json.loads((home.root / "demo.json").read_text())
    spec = FleetSpec(start_at_us=kept["start_at_us"], seed=kept["seed"], nodes=kept["nodes"])
    fed_us = json.loads((home.spool / "simulator.json").read_text())["done_until_us"]
    fleet = Fleet(spec)
    expected = sum(
        sum(1 for at_us in segment.at_us if at_us < fed_us)
        for segments in fleet.truth(spec.start_at_us, fed_us).segments.values()
        for segment in segments
    )
    own = EmbeddedServer.in_home(home.root)
    own.start()
    stored = rows(own.database(), "SELECT count(*), count(DISTINCT (device_id, at)) FROM device_samples")
    late = rows(own.database(), "SELECT count(*) FROM late_samples")
    assert late == [(0,)]
    assert stored == [(expected, expected)]
