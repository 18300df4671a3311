"""`POST /v1/jobs/events` to jobs, allocations and the queue: any order, any repetition, each fact once."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from analytics.io.queue_reads import waiting
from ingest.errors import UnavailableError
from ingest.receivers.work import read_work
from ingest.receivers.work_events import PATH
from ingest.settings import Settings
from ingest.store import job_events
from ingest.store.allocations import Event, JobKey, apply
from ingest.store.engine import Database
from ingest.store.intervals import END, START
from tests.db.ingest_harness import Site, make_site, run

pytestmark = pytest.mark.db
T0 = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOW = T0 + timedelta(days=1)
Told = dict[str, Any]


def at(minute: float) -> str:
    return (T0 + timedelta(minutes=minute)).isoformat()


def instant(minute: float) -> datetime:
    return T0 + timedelta(minutes=minute)


def us(minute: float) -> int:
    return int((T0 + timedelta(minutes=minute)).timestamp()) * 1_000_000


def job(minute: float, native_id: str = "7", start: float = 0, **facts: Any) -> Told:
    return {"kind": "job", "at": at(minute), "job": {"cluster": "c", "id": native_id, "start": at(start)}, **facts}


def hold(action: str, minute: float, native_id: str = "7", start: float = 0, **facts: Any) -> Told:
    told = {"cluster": "c", "id": native_id, "start": at(start)}
    return {"kind": f"allocation_{action}", "at": at(minute), "job": told, **facts}


def wait(minute: float, reason: str | None = None, **facts: Any) -> Told:
    told = {"cluster": "c", "id": "9", "submitted_at": at(0)}
    return {"kind": "queue", "at": at(minute), "job": told, **({"reason": reason} if reason else {}), **facts}


def body(*events: Mapping[str, Any], source: str = "slurm") -> bytes:
    return json.dumps({"version": 1, "source": source, "events": events}).encode()


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


def tell(db: Database, site: Site, *events: Told, source: str = "slurm", node: str | None = None) -> job_events.Kept:
    engine = db.create_engine("writer")
    try:
        work = read_work(body(*events, source=source), NOW)
        assert not work.refused, work.refused
        return job_events.keep(engine, site.site_id, work, node=node, now=NOW)
    finally:
        engine.dispose()


def agent_tells(
    db: Database, site: Site, action: int, minute: float, uuid: str, native_id: str = "7", start: float = 0
) -> None:
    with db.connect("writer") as writer:
        row = writer.execute("SELECT id FROM devices WHERE uuid = %s", [uuid]).fetchone()
        assert row is not None
        device_id: Any = row[0]
        key = JobKey("c", native_id, us(start))
        apply(writer, [Event(site.site_id, device_id, key, us(minute), action, None, None, 1, "hook", 1, (None,) * 8)])


def asked(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(query).fetchall()  # type: ignore[call-overload,no-any-return,unused-ignore]


HELD = (
    "SELECT native_id, coalesce(devices.uuid, nodes.name, pool), allocations.model, allocations.accelerators, start_at, end_at, evidence "
    "FROM allocations JOIN jobs ON jobs.id = job_id LEFT JOIN nodes ON nodes.id = node_id "
    "LEFT JOIN devices ON devices.id = device_id WHERE superseded_at IS NULL ORDER BY 1, 2, 5"
)
JOBS = (
    "SELECT native_id, started_at, ended_at, state, account, user_name, workload_kind, accelerators, source, suspended_us "
    "FROM jobs ORDER BY 1, 2"
)
WAITS = (
    "SELECT native_id, submitted_at, left_at, outcome, account, accelerators, since_at, reason FROM queue_entries "
    "LEFT JOIN queue_reasons ON entry_id = queue_entries.id ORDER BY 1, 2, since_at"
)


def test_a_job_that_ran_on_two_nodes_holds_its_count_on_each_from_start_to_end(db: Database, site: Site) -> None:
    holds = [{"node": "node-1", "accelerators": 4}, {"node": "node-2", "accelerators": 4}]
    tell(db, site, job(1, state="running", holds=holds, account="nlp", accelerators=8))
    assert [row[5] for row in asked(db, HELD)] == [None, None]
    tell(db, site, job(61, state="completed", ended_at=at(60), holds=holds, account="nlp"))
    assert asked(db, HELD) == [
        ("7", "node-1", None, 4, instant(0), instant(60), "slurmctld"),
        ("7", "node-2", None, 4, instant(0), instant(60), "slurmctld"),
    ]
    assert asked(db, JOBS) == [("7", instant(0), instant(60), "completed", "nlp", None, "unknown", 8, "slurm", None)]


def test_agents_word_on_a_node_replaces_the_schedulers_for_that_node_alone(db: Database, site: Site) -> None:
    holds = [{"node": "node-1", "accelerators": 2}, {"node": "node-2", "accelerators": 2}]
    scheduler = job(1, ended_at=at(60), state="completed", holds=holds)
    expected = [
        ("7", "GPU-a", None, 1, instant(0), instant(59), "hook"),
        ("7", "node-2", None, 2, instant(0), instant(60), "slurmctld"),
    ]
    tell(db, site, scheduler)
    agent_tells(db, site, START, 0, "GPU-a")
    agent_tells(db, site, END, 59, "GPU-a")
    assert asked(db, HELD) == expected
    tell(db, site, scheduler)  # again, now that the agent's word is there
    assert asked(db, HELD) == expected


def test_a_pool_gives_way_to_known_devices_and_has_a_device_of_its_own(db: Database, site: Site) -> None:
    tell(db, site, job(1, holds=[{"pool": "gpu", "model": "h100", "accelerators": 3}]))
    assert asked(db, HELD) == [("7", "gpu", "h100", 3, instant(0), None, "slurmctld")]
    assert asked(db, "SELECT kind, model FROM devices WHERE kind = 'pool'") == [("pool", "h100")]
    agent_tells(db, site, START, 0, "GPU-a")
    assert [row[1] for row in asked(db, HELD)] == ["GPU-a"]


def test_what_an_import_said_of_a_node_gives_way_to_the_agent_there(db: Database, site: Site) -> None:
    with db.connect("admin") as admin:
        admin.execute(
            "WITH made AS (INSERT INTO jobs (site_id, cluster, native_id, started_at, origin, source) "
            "VALUES (%(site)s, 'c', '7', %(start)s, 2, 'sacct') RETURNING id) "
            "INSERT INTO allocations (job_id, site_id, node_id, accelerators, start_at, end_at, evidence) "
            "SELECT made.id, %(site)s, nodes.id, 2, %(start)s, %(end)s, 'sacct' FROM made, nodes",
            {"site": site.site_id, "start": instant(0), "end": instant(60)},
        )
    agent_tells(db, site, START, 1, "GPU-a")
    agent_tells(db, site, END, 59, "GPU-a")
    expected = [
        ("7", "GPU-a", None, 1, instant(1), instant(59), "hook"),
        ("7", "node-2", None, 2, instant(0), instant(60), "sacct"),
    ]
    assert asked(db, HELD) == expected
    # A scheduler's word replaces the import's where no agent sees.
    tell(db, site, job(70, ended_at=at(58), holds=[{"node": "node-2", "accelerators": 2}]))
    assert asked(db, HELD)[1] == ("7", "node-2", None, 2, instant(0), instant(58), "slurmctld")


def test_prologs_tell_of_devices_nodes_and_pools(db: Database, site: Site) -> None:
    tell(
        db,
        site,
        hold("start", 1, device="GPU-a", energy_mj=100, account="nlp", evidence="hook"),
        hold("end", 5, device="GPU-a", energy_mj=900, evidence="hook"),
        hold("start", 1, native_id="8", node="node-2", accelerators=4),
        hold("end", 9, native_id="8", node="node-2", accelerators=4),
        source="prolog",
    )
    assert asked(db, HELD) == [
        ("7", "GPU-a", None, 1, instant(1), instant(5), "hook"),
        ("8", "node-2", None, 4, instant(1), instant(9), "api"),
    ]
    # Nobody but prologs spoke of these: their last end is the job's.
    assert [row[1:5] for row in asked(db, JOBS)] == [
        (instant(0), instant(5), "unknown", "nlp"),
        (instant(0), instant(9), "unknown", None),
    ]


def test_what_comes_with_a_prolog_gives_way_to_what_the_scheduler_says(db: Database, site: Site) -> None:
    tell(db, site, job(1, account="nlp"))
    tell(db, site, hold("start", 2, node="node-1", account="vision", user="ada"), source="prolog")
    assert [row[4:6] for row in asked(db, JOBS)] == [("nlp", "ada")]


def test_a_requeued_job_is_two_runs_and_a_start_two_seconds_off_is_one(db: Database, site: Site) -> None:
    agent_tells(db, site, START, 0, "GPU-a", start=0.02)
    tell(db, site, job(1, start=0, state="preempted", ended_at=at(10)), job(20, start=12, state="running"))
    # The run's start is the scheduler's.
    assert [row[:4] for row in asked(db, JOBS)] == [
        ("7", instant(0), instant(10), "preempted"),
        ("7", instant(12), None, "running"),
    ]


REQUEUED = (
    job(0.01, start=0, state="running", holds=[{"node": "node-1", "accelerators": 1}]),
    job(1, start=0, state="preempted", ended_at=at(0.02), holds=[{"node": "node-1", "accelerators": 1}]),
    job(1, start=0.05, state="running", holds=[{"node": "node-2", "accelerators": 1}]),
)


@pytest.mark.parametrize(
    "bodies", [[[1, 2]], [[2, 1]], [[1], [2]], [[2], [1]], [[0], [1, 2]], [[0, 1, 2]], [[0], [1], [2]]]
)
def test_a_run_that_ended_before_the_next_began_three_seconds_later_is_another(
    db: Database, site: Site, bodies: list[list[int]]
) -> None:
    for _ in range(2):  # and told again
        for body_ in bodies:
            tell(db, site, *(REQUEUED[place] for place in body_))
    assert [row[:4] for row in asked(db, JOBS)] == [
        ("7", instant(0), instant(0.02), "preempted"),
        ("7", instant(0.05), None, "running"),
    ]
    assert [(row[1], row[4], row[5]) for row in asked(db, HELD)] == [
        ("node-1", instant(0), instant(0.02)),
        ("node-2", instant(0.05), None),
    ]


def test_an_end_told_by_another_source_makes_no_second_run(db: Database, site: Site) -> None:
    tell(db, site, job(1, start=0, state="completed", ended_at=at(0.02)))
    tell(db, site, job(1, start=0.05, state="completed", ended_at=at(0.06)), source="script")
    tell(db, site, hold("start", 0.05, start=0.05, node="node-2"), source="prolog")
    assert [row[:2] for row in asked(db, JOBS)] == [("7", instant(0))]


def test_a_pod_is_one_run_whenever_its_sources_say_it_began(db: Database, site: Site) -> None:
    uid = "240eb8bd-a70f-4720-b308-bc72f296352e"
    agent_tells(db, site, START, 1, "GPU-a", uid, start=1)
    tell(
        db,
        site,
        job(3, uid, start=0, state="running", holds=[{"node": "node-1", "accelerators": 1}]),
        source="kubernetes",
    )
    # Whoever speaks first, the run's start is the scheduler's.
    assert [row[:2] for row in asked(db, JOBS)] == [(uid, instant(0))]
    assert [row[1] for row in asked(db, HELD)] == ["GPU-a"]


def test_an_agent_that_speaks_after_the_scheduler_speaks_of_the_same_run(db: Database, site: Site) -> None:
    uid = "240eb8bd-a70f-4720-b308-bc72f296352e"
    holds = [{"node": "node-1", "accelerators": 1}]
    tell(db, site, job(1, state="running", holds=holds), source="slurm")
    tell(db, site, job(1, uid, state="running", holds=holds), source="kubernetes")
    agent_tells(db, site, START, 0, "GPU-a", start=0.05)
    agent_tells(db, site, START, 2, "GPU-b", uid, start=2)
    assert [row[:2] for row in asked(db, JOBS)] == [(uid, instant(0)), ("7", instant(0))]
    assert [row[1] for row in asked(db, HELD)] == ["GPU-b", "GPU-a"]


def test_a_wait_has_its_reasons_with_their_instants_and_an_end(db: Database, site: Site) -> None:
    tell(db, site, wait(1, "Resources", account="nlp", accelerators=8), wait(5, "Priority", since=at(4)))
    tell(db, site, wait(9, left_at=at(8), outcome="started"))
    assert asked(db, WAITS) == [
        ("9", instant(0), instant(8), "started", "nlp", 8, instant(1), "Resources"),
        ("9", instant(0), instant(8), "started", "nlp", 8, instant(4), "Priority"),
    ]


def test_what_waits_is_listed_with_the_reason_of_the_moment(db: Database, site: Site) -> None:
    tell(db, site, wait(1, "Resources", account="nlp", accelerators=8), wait(5, "Priority", since=at(4)))
    with db.connect("worker") as worker:
        (row,) = waiting(worker, instant(60))
        assert (row["native_id"], row["reason"], row["reason_since_at"], row["waiting_s"]) == (
            "9",
            "Priority",
            instant(4),
            3_600,
        )
        assert waiting(worker, instant(60), cluster="other") == []
        assert [row["waiting_s"] for row in waiting(worker, instant(-1))] == [0]  # submitted by a clock that is ahead
    tell(db, site, wait(9, left_at=at(8), outcome="started"))
    with db.connect("worker") as worker:
        assert waiting(worker, instant(60)) == []


EVENTS = (
    job(
        1,
        state="running",
        account="nlp",
        holds=[{"node": "node-1", "accelerators": 2}, {"node": "node-2", "accelerators": 2}],
    ),
    job(61, state="completed", account="nlp-2", ended_at=at(60)),
    job(30, state="running", suspended_s=5),
    job(2, "8", holds=[{"pool": "gpu", "accelerators": 3}]),
    hold("start", 0, device="GPU-a", evidence="hook", user="ada"),
    hold("end", 58, device="GPU-a", evidence="hook"),
    hold("start", 3, "8", node="node-2", accelerators=4),
    hold("end", 9, "8", node="node-2", accelerators=4),
    wait(1, "Resources", account="nlp"),
    wait(3, "Priority"),
    wait(3, "Dependency"),
    wait(9, left_at=at(8), outcome="started"),
)


def test_any_order_grouping_and_repetition_of_events_gives_the_same_tables(db: Database, site: Site) -> None:
    chance = random.Random(7)
    tables = (
        "queue_reasons",
        "queue_entries",
        "hold_events",
        "job_ends",
        "job_reports",
        "allocation_events",
        "allocations",
        "changes",
        "jobs",
    )
    found: list[Sequence[list[tuple[Any, ...]]]] = []
    for _ in range(12):
        events = [*EVENTS, *chance.sample(EVENTS, 4)]
        chance.shuffle(events)
        while events:
            size = chance.randint(1, 6)
            tell(db, site, *events[:size])
            events = events[size:]
        found.append([asked(db, query) for query in (HELD, JOBS, WAITS)])
        assert asked(db, "SELECT count(*) FROM allocations WHERE superseded_at <= recorded_at") == [(0,)]
        with db.connect("admin") as admin:
            for table in tables:
                admin.execute(f"DELETE FROM {table}")  # type: ignore[call-overload,unused-ignore]
    for each in found:
        assert each == found[0]
    assert found[0][0] == [
        ("7", "GPU-a", None, 1, instant(0), instant(58), "hook"),
        ("7", "node-2", None, 2, instant(0), instant(60), "slurmctld"),
        ("8", "node-2", None, 4, instant(3), instant(9), "api"),
    ]


def test_what_changes_makes_its_hours_due_again(db: Database, site: Site) -> None:
    told = job(1, account="nlp", state="completed", ended_at=at(60), holds=[{"node": "node-1", "accelerators": 2}])
    tell(db, site, told)
    changes = "SELECT kind, from_at, to_at FROM changes ORDER BY 1"
    assert asked(db, changes) == [("allocations", instant(0), NOW), ("jobs", instant(0), instant(60))]
    tell(db, site, told)
    assert len(asked(db, changes)) == 2
    tell(db, site, job(70, account="vision"))
    assert [row[0] for row in asked(db, changes)] == ["allocations", "jobs", "jobs"]


def test_a_jobs_end_makes_the_hours_due_in_which_it_held_a_device_without_an_end(db: Database, site: Site) -> None:
    """The agent is gone and told no end; the scheduler says it an hour later."""
    tell(db, site, job(0))
    agent_tells(db, site, START, 0, "GPU-a")
    with db.connect("admin") as admin:
        admin.execute("DELETE FROM changes")
    tell(db, site, job(60, ended_at=at(30), state="failed"))
    with db.connect("admin") as admin:
        found = admin.execute("SELECT from_at, to_at FROM changes WHERE kind = 'allocations'").fetchall()
    assert found == [(instant(30), NOW)]


def test_a_cluster_of_another_site_is_refused(db: Database, site: Site) -> None:
    tell(db, site, job(1))
    with db.connect("admin") as admin:
        row = admin.execute("INSERT INTO sites (name) VALUES ('site-2') RETURNING id").fetchone()
    assert row is not None
    other = Site(int(str(row[0])), {}, "")
    kept = tell(db, other, job(5, account="mine"), job(5, "8"))
    assert (kept.accepted, [each.reason for each in kept.refused]) == (1, ["foreign_cluster"])
    assert asked(db, "SELECT account FROM jobs WHERE native_id = '7'") == [(None,)]


def test_a_nodes_token_speaks_of_holdings_on_that_node_alone(db: Database, site: Site) -> None:
    events = (
        hold("start", 1, node="node-1", accelerators=2),
        hold("start", 1, device="GPU-b"),
        hold("start", 1, node="node-2", accelerators=2),
        job(1, account="mine"),
        {"kind": "node", "at": at(0), "node": "node-1", "rack": "r1"},
    )
    kept = tell(db, site, *events, source="prolog", node="node-1")
    assert (kept.accepted, sorted(each.index for each in kept.refused)) == (2, [2, 3, 4])
    kept = tell(db, site, hold("start", 1, device="GPU-a"), source="prolog", node="node-2")
    assert (kept.accepted, [each.reason for each in kept.refused]) == (0, ["wrong_node"])


def test_topology_is_dated_and_a_repetition_is_no_row(db: Database, site: Site) -> None:
    def stands(minute: float, **place: str) -> Told:
        return {"kind": "node", "at": at(minute), "node": "node-1", **place}

    tell(db, site, stands(0, rack="r1", switch="core/leaf1"))
    tell(db, site, stands(5, rack="r1", switch="core/leaf1"))
    tell(db, site, stands(10, rack="r2", switch="core/leaf2", nvlink_domain="d1"))
    current = "SELECT rack, switch, nvlink_domain, valid_from, valid_to FROM topology WHERE superseded_at IS NULL ORDER BY valid_from"
    assert asked(db, current) == [
        ("r1", "core/leaf1", None, instant(0), instant(10)),
        ("r2", "core/leaf2", "d1", instant(10), None),
    ]


def test_over_http_the_good_events_are_kept_and_the_bad_ones_named(db: Database, site: Site) -> None:
    bad = {**job(1), "acount": "typo"}

    async def scenario(client: httpx.AsyncClient) -> None:
        sent = {"authorization": f"Bearer {site.site_token}", "content-type": "application/json"}
        answer = await client.post(PATH, content=body(job(1, account="nlp"), bad), headers=sent)
        assert answer.status_code == 200
        assert answer.json()["accepted"] == 1
        assert answer.json()["refused"] == [
            {"index": 1, "reason": "malformed", "detail": "job.acount: Extra inputs are not permitted"}
        ]
        agent = {**sent, "authorization": f"Bearer {site.node_tokens['node-1']}"}
        assert (await client.post(PATH, content=body(job(1)), headers=agent)).json()["refused"][0][
            "reason"
        ] == "wrong_node"
        assert (await client.post(PATH, content=b"[]", headers=sent)).status_code == 400
        assert (await client.post(PATH, content=b'{"version": 2}', headers=sent)).status_code == 400
        assert (await client.post(PATH, content=body(job(1)))).status_code == 401

    run(Settings(db), scenario)
    assert asked(db, "SELECT account FROM jobs") == [("nlp",)]


def test_senders_at_once_wait_for_each_other_and_come_to_the_same(db: Database, site: Site) -> None:
    """Two watchers, a prolog and an agent tell of the same jobs at once, each in another order; who is told 503 sends again."""
    told = [each for number in range(12) for each in _of_one_job(str(number))]
    agents = [(action, minute, str(number)) for number in range(12) for action, minute in ((START, 0), (END, 50))]

    def watcher(seed: int) -> None:
        events = random.Random(seed).sample(told, len(told))
        for first in range(0, len(events), 9):
            for _ in range(20):
                try:
                    tell(db, site, *events[first : first + 9])
                except UnavailableError:
                    continue
                break

    def agent() -> None:
        for action, minute, native_id in agents:
            agent_tells(db, site, action, minute, "GPU-a", native_id, start=0.02)

    with ThreadPoolExecutor(4) as pool:
        for running in [pool.submit(watcher, 1), pool.submit(watcher, 2), pool.submit(watcher, 3), pool.submit(agent)]:
            running.result(60)
    assert asked(db, "SELECT count(*), count(DISTINCT native_id) FROM jobs") == [(12, 12)]
    assert {row[1:] for row in asked(db, HELD)} == {
        ("GPU-a", None, 1, instant(0), instant(50), "hook"),
        ("node-2", None, 2, instant(0), instant(60), "slurmctld"),
    }
    assert asked(db, "SELECT count(*) FROM allocations WHERE superseded_at <= recorded_at") == [(0,)]


def _of_one_job(native_id: str) -> list[Told]:
    holds = [{"node": "node-1", "accelerators": 2}, {"node": "node-2", "accelerators": 2}]
    return [
        job(1, native_id, state="running", account="nlp", holds=holds),
        job(61, native_id, state="completed", ended_at=at(60)),
        hold("start", 0, native_id, node="node-1", accelerators=2, user="ada"),
    ]
