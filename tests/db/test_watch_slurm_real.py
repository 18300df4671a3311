"""A real Slurm watched into a real ledger: arrays, heterogeneous and requeued jobs, hostile names, an outage of its accounting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.pollers.deliver import Delivery
from ingest.pollers.errors import SourceError
from ingest.pollers.memory import Memory
from ingest.pollers.rounds import Telling
from ingest.pollers.slurm import SlurmSettings, SlurmWatch
from ingest.pollers.slurm_commands import SlurmCommands
from ingest.pollers.slurm_rest import SlurmRest, token_of
from ingest.store.embedded.server import EmbeddedServer
from ingest.store.engine import Database
from tests.db import ingest_server
from tests.db.ingest_harness import make_site
from tests.fakes.slurm_cluster import SlurmCluster, small_cluster

pytestmark = [pytest.mark.db, pytest.mark.slurm, pytest.mark.root]


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[SlurmCluster]:
    with small_cluster(shared) as made:
        yield made


def asked(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(query).fetchall()  # type: ignore[call-overload,no-any-return,unused-ignore]


JOBS = (
    "SELECT native_id, state, jobs.name, jobs.accelerators, array_agg((coalesce(nodes.name, pool), allocations.accelerators)::text "
    "ORDER BY nodes.name) FROM jobs LEFT JOIN allocations ON job_id = jobs.id AND superseded_at IS NULL "
    "LEFT JOIN nodes ON nodes.id = node_id GROUP BY jobs.id, started_at ORDER BY native_id, started_at"
)


@dataclass
class World:
    """A cluster, its watcher, and the ledger it tells."""

    cluster: SlurmCluster
    db: Database
    watch: SlurmWatch

    def until(self, job: str, state: str) -> None:
        """Do rounds until the ledger knows a run of a job in that state; slurmdbd is told of it within seconds."""
        deadline = time.monotonic() + 90
        while state not in self.states(job):
            assert time.monotonic() < deadline, asked(self.db, JOBS)
            time.sleep(0.4)
            with suppress(SourceError):
                self.watch.round()

    def states(self, job: str) -> list[str]:
        return [row[1] for row in asked(self.db, JOBS) if row[0] == job]


@pytest.fixture
def world(cluster: SlurmCluster, db: Database, server: EmbeddedServer, tmp_path: Path) -> Iterator[World]:
    site = make_site(db)
    source = SlurmCommands(environment=cluster.environment)
    memory = Memory(tmp_path / "slurm.sqlite")
    port = ingest_server.free_port()
    process = ingest_server.start(server.placement.socket_dir, db.name, port)
    try:
        with httpx.Client(timeout=30) as client:
            delivery = Delivery(client, f"http://127.0.0.1:{port}", "slurm", lambda: site.site_token)
            settings = SlurmSettings(source.cluster)
            yield World(
                cluster,
                db,
                SlurmWatch(source, Telling(delivery, memory), memory, settings, lambda: datetime.now(UTC)),
            )
    finally:
        process.terminate()
        process.wait(30)
        memory.close()


def test_all_that_slurm_ran_is_in_the_ledger_once(world: World) -> None:
    cluster, db = world.cluster, world.db
    evil = cluster.submit("--gres=gpu:h100:2", "--job-name=evil\n99|lab|research|root")
    array = cluster.submit("--gres=gpu:4", "--array=1-2")
    hetero = cluster.submit("--gres=gpu:1", ":", "--gres=gpu:2")
    wide = cluster.submit("--gres=gpu:8", "-N2")
    odd = cluster.submit("--gpus=3", "-N2")
    for job in (evil, wide, odd):
        cluster.wait_for(job, "COMPLETED")
    world.until(odd, "completed")
    world.until(wide, "completed")
    found = {row[0]: row[1:] for row in asked(db, JOBS)}
    assert found[evil] == ("completed", "evil", 2, ["(gpu1,2)"])
    assert found[f"{array}_1"][2] == found[f"{array}_2"][2] == 4
    assert found[wide][3] == ["(gpu1,8)", "(gpu2,8)"]
    assert found[odd][3] == ["(train,3)"]
    assert (found[f"{hetero}+0"][2], found[f"{hetero}+1"][2]) == (1, 2)
    assert "99" not in found
    assert world.watch.round()["told"] == 0


def test_what_happens_while_the_accounting_is_away_is_told_when_it_is_back(world: World) -> None:
    cluster, db = world.cluster, world.db
    held = cluster.submit("--gres=gpu:8", "-N2", "--hold", script="true")
    again = cluster.submit("--gres=gpu:1", script="sleep 300")
    cluster.wait_for(again, "RUNNING")
    world.watch.round()
    waits = f"SELECT accelerators, outcome FROM queue_entries WHERE native_id = '{held}'"
    assert asked(db, waits) == [(16, None)]
    assert asked(
        db,
        f"SELECT reason FROM queue_reasons JOIN queue_entries ON entry_id = id WHERE native_id = '{held}'",
    ) == [("JobHeldUser",)]

    cluster.stop_accounting()
    with pytest.raises(SourceError, match="sacct"):
        world.watch.round()
    cluster.run("scancel", held)
    cluster.run("scontrol", "requeue", again)
    late = cluster.submit("--gres=gpu:1", script="true")
    cluster.wait_for(late, "COMPLETED")
    cluster.start_accounting()
    world.until(late, "completed")
    world.until(again, "preempted")
    deadline = time.monotonic() + 60
    while asked(db, waits) != [(16, "cancelled")]:
        assert time.monotonic() < deadline, asked(db, waits)
        time.sleep(0.4)
        world.watch.round()


def test_slurmrestd_says_what_the_commands_say(cluster: SlurmCluster, tmp_path: Path) -> None:
    job = cluster.submit("--gres=gpu:2", "--job-name=evil\n99|x")
    cluster.submit("--gres=gpu:1", "--array=1-4%2", "--hold")
    cluster.wait_for(job, "COMPLETED")
    jwt = tmp_path / "jwt"
    jwt.write_text(cluster.run("scontrol", "token", "lifespan=600"))
    commands = SlurmCommands(environment=cluster.environment)
    with cluster.rest(ingest_server.free_port()) as url, httpx.Client(timeout=30) as client:
        rest = SlurmRest(client, url, "root", token_of(jwt))
        assert (rest.version, rest.cluster) == ("v0.0.38", "lab")
        deadline = time.monotonic() + 60
        while True:
            now = datetime.now(UTC)
            said, expected = (
                {each.native_id: each for each in source.ran(now - timedelta(hours=1), now)}
                for source in (rest, commands)
            )
            if job in said and said == expected and said[job].ended_us is not None:
                break
            assert time.monotonic() < deadline, (said, expected)
            time.sleep(0.5)
        assert sorted(map(repr, rest.waiting())) == sorted(map(repr, commands.waiting()))
        assert [each.native_id for each in rest.named([job], now)] == [job]
        bad = SlurmRest(client, url, "root", lambda: "no token")
        with pytest.raises(SourceError, match="is its token valid"):
            bad.waiting()
