"""Pods that kube-state-metrics tells of become jobs and holdings: in any order, through any replica, as often as it is sent."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ingest.series.pods import KubeMemory
from ingest.settings import Settings
from ingest.store import kube_pods
from ingest.store.engine import Database
from ingest.store.intervals import START
from tests.db.ingest_harness import Site, make_site, run
from tests.db.test_job_events import HELD, agent_tells, asked, tell
from tests.fakes.kube_state_metrics import Pod, Series, ended, told
from tests.fakes.series import HEADERS, series, write_request

pytestmark = pytest.mark.db
T0 = datetime(2026, 11, 1, 12, tzinfo=UTC)
"""As in test_job_events, whose agents and watchers tell of the same jobs."""
START_S = T0.timestamp()
UID = "0a1b2c3d-0000-4000-8000-00000000000a"
OTHER = "0a1b2c3d-0000-4000-8000-00000000000b"
POD = Pod(UID, created=START_S - 30, start=START_S)
ELSE = Pod(OTHER, name="ksm", node="cpu-1", created=START_S, start=START_S, gpus={})
"""A pod that is always there: by it the exporter is known to be."""
JOBS = "SELECT native_id, cluster, started_at, ended_at, state, namespace, name, workload, accelerators, source FROM jobs ORDER BY 1"
FACTS = "SELECT source, facts FROM job_reports ORDER BY job_id, source"


def at(minute: float) -> datetime:
    return T0 + timedelta(minutes=minute)


class Replica:
    """One ingest process as far as pods go."""

    def __init__(self, engine: sa.Engine, site: Site, exporter: str = "ksm-0:8080", cluster: str = "c") -> None:
        self.engine, self.site, self.exporter, self.cluster = engine, site, exporter, cluster
        self.memory = KubeMemory()

    def scrape(self, minute: float, *parts: list[Series]) -> dict[str, int]:
        """Take what was scraped at a minute past the start."""
        now = at(minute)
        found = told(
            *((now.timestamp(), part) for part in parts),
            now=now.timestamp(),
            cluster=self.cluster,
            exporter=self.exporter,
        )
        now_us = round(now.timestamp() * 1e6)
        new = self.memory.news(self.site.site_id, found, now_us)
        if new.is_empty:
            return {}
        refused = kube_pods.keep(self.engine, self.site.site_id, new, now)
        self.memory.kept(self.site.site_id, new, now_us)
        return dict(refused)


@pytest.fixture
def site(db: Database) -> Site:
    made = make_site(db)
    with db.connect("admin") as admin:
        # Two boards in node-1, none in node-2.
        admin.execute(
            "WITH made AS (INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-a', 'nvidia', 'H100', 'gpu'), "
            "('GPU-b', 'nvidia', 'H100', 'gpu') RETURNING id) INSERT INTO placements (device_id, node_id, valid_from) "
            "SELECT made.id, nodes.id, %s FROM made, nodes WHERE nodes.name = 'node-1'",
            [T0 - timedelta(days=1)],
        )
    return made


@pytest.fixture
def engine(db: Database) -> Iterator[sa.Engine]:
    engine = db.create_engine("writer")
    yield engine
    engine.dispose()


def holdings(db: Database) -> list[tuple[Any, ...]]:
    return [(row[0], row[1], *row[3:]) for row in asked(db, HELD)]


def test_a_pod_is_a_run_that_holds_its_count_on_its_node_until_its_phase_says_it_ended(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    replica = Replica(engine, site)
    replica.scrape(1, POD.series)
    assert asked(db, JOBS) == [
        (UID, "c", T0, None, "running", "nlp", "train", "Job/train", 4, "kube-state-metrics"),
    ]
    assert holdings(db) == [(UID, "gpu-1", 4, T0, None, "kube-state-metrics")]
    replica.scrape(31, POD.over("Succeeded", START_S + 1800).series)
    assert [(row[3], row[4]) for row in asked(db, JOBS)] == [(at(30), "completed")]
    assert holdings(db) == [(UID, "gpu-1", 4, T0, at(30), "kube-state-metrics")]


def test_pieces_through_two_replicas_in_any_order_and_twice_are_the_same_rows(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    chance = random.Random(3)
    pods = [Pod(f"0a1b2c3d-0000-4000-8000-{number:012d}", start=START_S) for number in range(6)]
    scrapes = [(1, pod) for pod in pods] + [(20, pod.over("Failed", START_S + 1140)) for pod in pods[:3]]
    pieces = [(minute, [one]) for minute, pod in scrapes for one in pod.series] * 2
    chance.shuffle(pieces)
    replicas = [Replica(engine, site), Replica(engine, site)]
    for minute, piece in pieces:
        chance.choice(replicas).scrape(minute, piece)
    assert [(row[0], row[3], row[4]) for row in asked(db, JOBS)] == [
        *((pod.uid, at(19), "failed") for pod in pods[:3]),
        *((pod.uid, None, "running") for pod in pods[3:]),
    ]
    before = asked(db, "SELECT * FROM allocations ORDER BY id"), asked(db, FACTS)
    assert [row[3:] for row in holdings(db)] == [(T0, end, "kube-state-metrics") for end in [at(19)] * 3 + [None] * 3]
    anew = Replica(engine, site)  # started anew, it tells all of it once more
    for minute, piece in pieces:
        anew.scrape(minute, piece)
    assert (asked(db, "SELECT * FROM allocations ORDER BY id"), asked(db, FACTS)) == before


def test_a_pod_that_was_deleted_ended_at_the_scrape_that_missed_it(db: Database, site: Site, engine: sa.Engine) -> None:
    replica = Replica(engine, site)
    for minute in range(1, 20):
        replica.scrape(minute, ELSE.series, POD.series)
    replica.scrape(20, ELSE.series, ended(POD))
    assert holdings(db)[0][4] is None  # it may be back
    for minute in range(21, 32):
        replica.scrape(minute, ELSE.series)
    assert [(row[3], row[4]) for row in asked(db, JOBS)] == [(at(20), "unknown")]
    assert [row[4] for row in holdings(db)] == [at(20)]


def test_while_the_exporter_is_away_nothing_ends_and_a_pod_that_is_back_never_did(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    replica = Replica(engine, site)
    for minute in range(1, 20):
        replica.scrape(minute, ELSE.series, POD.series)
    replica.scrape(20, ended(ELSE), ended(POD))  # Prometheus ends all series of a target it cannot reach
    for minute in range(80, 84):
        replica.scrape(minute, ELSE.series)  # an hour later it tells of one pod already
    assert holdings(db)[0][4] is None
    for minute in range(84, 95):
        replica.scrape(minute, ELSE.series)
    assert [row[4] for row in holdings(db)] == [at(20)]
    replica.scrape(95, ELSE.series, POD.series)
    assert [(row[3], row[4]) for row in asked(db, JOBS)] == [(None, "running")]
    assert [row[4] for row in holdings(db)] == [None]


def test_where_the_exporter_is_another_now_a_pod_it_does_not_know_ended_when_it_was_seen_last_after_a_day(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    Replica(engine, site).scrape(1, POD.series)
    other = Replica(engine, site, exporter="ksm-1:8080")
    for hour in range(1, 24):
        other.scrape(60 * hour, ELSE.series)
    assert holdings(db)[0][4] is None
    other.scrape(60 * 24 + 2, ELSE.series)
    assert holdings(db)[0][4] == at(1)


def test_a_watcher_goes_before_it_and_where_they_disagree_both_words_are_kept(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    replica = Replica(engine, site)
    replica.scrape(1, POD.series)
    run = {"cluster": "c", "id": UID, "start": at(0.05).isoformat()}
    word = {"kind": "job", "at": at(2).isoformat(), "job": run, "state": "running", "account": "a"}
    tell(db, site, word | {"holds": [{"node": "gpu-1", "accelerators": 2}]}, source="kubernetes")
    assert holdings(db) == [(UID, "gpu-1", 2, at(0.05), None, "kubernetes")]
    assert [(row[2], row[9]) for row in asked(db, JOBS)] == [(at(0.05), "kubernetes")]
    # Silence is no match for the watcher's word; a phase that says the pod is over is.
    for minute in range(3, 20):
        replica.scrape(minute, ELSE.series)
    assert holdings(db)[0][4] is None
    replica.scrape(20, POD.over("Succeeded", START_S + 1140).series)
    assert holdings(db) == [(UID, "gpu-1", 2, at(0.05), at(19), "kubernetes")]


def test_a_pod_that_has_not_started_waits_and_a_wait_that_a_watcher_tells_of_is_left_to_it(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    replica = Replica(engine, site)
    pending = replace(POD, start=None, phase="Pending", node="")
    others = [replace(pending, uid=f"{UID[:-1]}{last}") for last in "cd"]
    created = at(-0.5)
    word = {"kind": "queue", "at": at(0).isoformat(), "reason": "Unschedulable", "account": "watcher"}
    known = {"cluster": "c", "id": others[1].uid, "submitted_at": created.isoformat()}
    tell(db, site, word | {"job": known}, source="kubernetes")
    for minute in (1, 1, 2):
        replica.scrape(minute, ELSE.series, pending.series, *(pod.series for pod in others))
    waits = (
        "SELECT native_id, submitted_at, left_at, outcome, accelerators, account, source FROM queue_entries ORDER BY 1"
    )
    watched = (others[1].uid, created, None, None, None, "watcher", "kubernetes")
    still = (others[0].uid, created, None, None, 4, None, "kube-state-metrics")
    assert asked(db, waits) == [(UID, *still[1:]), still, watched]
    replica.scrape(3, ELSE.series, POD.series, *(pod.series for pod in others))
    started = (UID, created, T0, "started", 4, None, "kube-state-metrics")
    assert asked(db, waits) == [started, still, watched]
    for minute in range(4, 16):
        replica.scrape(minute, ELSE.series, POD.series)
    gone = (still[0], created, at(1), "gone", *still[4:])  # noted last, to five minutes
    assert asked(db, waits) == [started, gone, watched]
    replica.scrape(16, ELSE.series, others[0].series)
    assert asked(db, waits) == [started, still, watched]


def test_an_agents_devices_on_the_node_replace_its_count_there(db: Database, site: Site, engine: sa.Engine) -> None:
    Replica(engine, site).scrape(1, Pod(UID, node="node-1", start=START_S).series)
    agent_tells(db, site, START, 1, "GPU-a", UID)
    assert holdings(db) == [(UID, "GPU-a", 1, at(1), None, "hook")]


def test_another_sites_pod_is_refused_and_its_own_stays(db: Database, site: Site, engine: sa.Engine) -> None:
    Replica(engine, site).scrape(1, POD.series)
    with db.connect("admin") as admin:
        row = admin.execute("INSERT INTO sites (name) VALUES ('site-2') RETURNING id").fetchone()
    assert row is not None
    site_id: Any = row[0]
    foreign = Replica(engine, Site(site_id, {}, ""))
    assert foreign.scrape(2, POD.over("Failed", START_S + 60).series) == {"foreign_cluster": 1}
    assert holdings(db)[0][4] is None


def test_labels_of_a_node_say_where_it_stands(db: Database, site: Site, engine: sa.Engine) -> None:
    labels = {"node": "gpu-1", "label_topology_kubernetes_io_rack": "r7"}
    for minute in (1, 2):
        Replica(engine, site).scrape(minute, [("kube_node_labels", labels, 1.0)])
    query = "SELECT name, rack, valid_from, valid_to FROM topology JOIN nodes ON nodes.id = node_id"
    assert asked(db, query) == [("gpu-1", "r7", at(1), None)]


def test_pods_that_ask_for_nothing_and_pods_long_over_are_forgotten(
    db: Database, site: Site, engine: sa.Engine
) -> None:
    replica = Replica(engine, site)
    replica.scrape(1, ELSE.series, POD.over("Succeeded", START_S + 30).series)
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("UPDATE kube_pods SET recorded_at = %s", [T0])
    replica.scrape(60 * 24 * 8, ELSE.series)
    assert asked(db, "SELECT uid FROM kube_pods") == []
    assert [row[4] for row in asked(db, JOBS)] == ["completed"]


def test_over_http_a_scrape_in_two_requests_to_two_servers_is_one_run(db: Database, site: Site) -> None:
    now_ms = time.time_ns() // 1_000_000
    pod = Pod(UID, start=float(now_ms // 1000 - 600))
    outside = {"instance": "ksm-0:8080", "job": "ksm"}

    def parts(chosen: list[Series], **more: str) -> bytes:
        told = [
            series({"__name__": name, **labels, **outside, **more}, (value, now_ms)) for name, labels, value in chosen
        ]
        return write_request(*told)

    async def post(client: httpx.AsyncClient, secret: str, body: bytes) -> httpx.Response:
        return await client.post(
            "/api/v1/write", content=body, headers={**HEADERS, "authorization": f"Bearer {secret}"}
        )

    async def first(client: httpx.AsyncClient) -> None:
        nowhere = await post(client, site.site_token, parts(pod.series))
        assert nowhere.status_code == 204
        metrics = (await client.get("/metrics")).text
        assert 'series_not_stored_total{reason="no_cluster",series="kube_pod_info"} 1' in metrics
        refused = await post(client, site.node_tokens["node-1"], parts(pod.series[:1], cluster="c"))
        assert (refused.status_code, refused.json()["detail"]) == (
            400,
            "kept but for what cannot be: 1 not_with_this_token",
        )
        assert (await post(client, site.site_token, parts(pod.series[:4], cluster="c"))).status_code == 204

    async def second(client: httpx.AsyncClient) -> None:
        assert (await post(client, site.site_token, parts(pod.series[4:], cluster="c"))).status_code == 204

    run(Settings(db), first)
    assert asked(db, JOBS) == []
    run(Settings(db), second)
    start = datetime.fromtimestamp(pod.start or 0, UTC)
    assert [row[:2] for row in asked(db, JOBS)] == [(UID, "c")]
    assert holdings(db) == [(UID, "gpu-1", 4, start, None, "kube-state-metrics")]
