"""Sources that disagree: each disagreement a finding, and the books balance all the same, no device counted twice."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from analytics.io.disagreements import raise_disagreements
from analytics.jobs import HourCloser, WorkerSettings
from ingest.receivers.work import read_work
from ingest.store import job_events
from ingest.store.allocations import Event, JobKey, apply
from ingest.store.engine import Database
from ingest.store.intervals import END, START
from tests.db.independent_energy import INDEPENDENT
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
LATER = HOUR_AT + timedelta(hours=3)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def minute(number: int) -> datetime:
    return HOUR_AT + timedelta(minutes=number)


def scheduler(
    fleet: SmallFleet, native_id: str, end: int | None, count: int = 1, *, source: str = "slurm", **facts: Any
) -> None:
    """Let a scheduler say that a job ran from the full hour on, holding so many devices of the node."""
    event = {
        "kind": "job",
        "at": minute(100).isoformat(),
        "job": {"cluster": "c1", "id": native_id, "start": HOUR_AT.isoformat()},
        "state": "running" if end is None else "completed",
        "holds": [{"node": "n1", "accelerators": count}],
        **({} if end is None else {"ended_at": minute(end).isoformat()}),
        **facts,
    }
    engine = fleet.database.create_engine("writer")
    try:
        work = read_work(json.dumps({"version": 1, "source": source, "events": [event]}).encode(), LATER)
        job_events.keep(engine, fleet.site_id, work, node=None, now=LATER)
    finally:
        engine.dispose()


def agent(fleet: SmallFleet, native_id: str, start: int, end: int | None) -> None:
    """Let the node's agent say that a job held the device."""

    def event(action: int, at: int) -> Event:
        def us(moment: datetime) -> int:
            return int(moment.timestamp()) * 1_000_000

        key = JobKey("c1", native_id, us(HOUR_AT))
        return Event(fleet.site_id, fleet.device_id, key, us(minute(at)), action, None, None, 1, "hook", 1, (None,) * 8)

    with fleet.database.connect("writer") as writer:
        apply(writer, [event(START, start), *([] if end is None else [event(END, end)])])
        writer.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'allocations')",
            [fleet.site_id, HOUR_AT, LATER],
        )


def found(fleet: SmallFleet) -> Counter[str]:
    with fleet.database.connect("worker") as worker:
        return raise_disagreements(worker, LATER)


def standing(fleet: SmallFleet) -> list[str]:
    return [kind for (kind,) in fleet.rows("SELECT kind FROM findings WHERE withdrawn_at IS NULL ORDER BY kind")]


def evidence(fleet: SmallFleet) -> Any:
    ((found,),) = fleet.rows("SELECT evidence FROM findings")
    return found


def balanced(fleet: SmallFleet) -> dict[str, int]:
    """Close the hour, hold it against the raw samples, and return the energy of each holder."""
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    with fleet.admin() as connection:
        ((_, independent_mj),) = connection.execute(INDEPENDENT, {"hour": HOUR_AT}).fetchall()
    usage = dict(
        fleet.rows(
            "SELECT holder, sum(energy_mj)::bigint FROM current_usage_hours WHERE hour_at = %s GROUP BY 1", HOUR_AT
        )
    )
    assert sum(usage.values()) == independent_mj
    assert min(usage.values()) >= 0
    return usage


def test_a_job_held_by_agents_after_its_scheduler_ended_it_is_found_and_billed_once(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5))
    scheduler(fleet, "7", 15)
    agent(fleet, "7", 0, 45)
    assert found(fleet) == {"held_after_end": 1}
    assert evidence(fleet)["devices"] == ["GPU-1"]
    # 100 W: the agent's 45 minutes are the job's, the rest is idle; the scheduler's 15 add nothing.
    usage = balanced(fleet)
    assert sorted(usage.values()) == [90_000_000, 270_000_000]


def test_another_number_of_devices_than_the_scheduler_gave_is_found_and_nothing_counts_twice(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5))
    scheduler(fleet, "7", 30, count=4)
    agent(fleet, "7", 0, 30)
    assert found(fleet) == {"devices_disagree": 1}
    assert (evidence(fleet)["by_scheduler"], evidence(fleet)["by_agent"]) == (4, 1)
    assert fleet.rows("SELECT count(*) FROM allocations WHERE superseded_at IS NULL") == [(1,)]
    assert sorted(balanced(fleet).values()) == [180_000_000, 180_000_000]


def test_of_two_jobs_that_claim_one_device_the_one_its_node_saw_there_has_it(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5))
    agent(fleet, "7", 0, 60)
    scheduler(fleet, "8", 60)
    usage = balanced(fleet)
    assert list(usage) == ["job:1"]
    assert fleet.rows("SELECT DISTINCT kind FROM findings WHERE withdrawn_at IS NULL") == [("count_exceeds_devices",)]


def test_a_job_that_no_agent_sees_is_found_where_the_agent_tells_of_others(fleet: SmallFleet) -> None:
    with fleet.admin() as connection:
        connection.execute("UPDATE epochs SET first_seen_at = %s", [HOUR_AT - HOUR])
        connection.execute(
            "INSERT INTO spools (spool, node_id, received, last_seen_at) VALUES (gen_random_uuid(), %s, '{}', %s)",
            [fleet.node_id, LATER],
        )
    scheduler(fleet, "7", 45)
    assert found(fleet) == {}
    agent(fleet, "6", 50, 55)
    assert found(fleet)["job_unseen_by_agent"] == 1
    # The agent's word comes late: they agree, and the finding is withdrawn.
    agent(fleet, "7", 0, 45)
    found(fleet)
    assert standing(fleet) == []


def test_a_job_that_the_watched_scheduler_does_not_know_is_found(fleet: SmallFleet) -> None:
    agent(fleet, "9", 0, None)
    assert found(fleet) == {}
    with fleet.admin() as connection:
        connection.execute("UPDATE jobs SET started_at = %s", [minute(20)])
    scheduler(fleet, "7", 15)
    assert found(fleet) == {"job_unknown_to_scheduler": 1}
    assert found(fleet) == {}
    assert standing(fleet) == ["job_unknown_to_scheduler"]


def test_two_schedulers_that_tell_of_other_holdings_are_found_and_the_first_in_rank_counts(fleet: SmallFleet) -> None:
    scheduler(fleet, "7", 15, count=2)
    scheduler(fleet, "7", 15, count=3, source="other")
    assert found(fleet) == {"schedulers_disagree": 1}
    assert fleet.rows("SELECT accelerators FROM allocations WHERE superseded_at IS NULL") == [(2,)]


def test_a_node_whose_devices_nobody_knows_is_found_once_with_what_is_in_no_bill(fleet: SmallFleet) -> None:
    holds = [{"node": "n2", "accelerators": 4}]
    scheduler(fleet, "7", 30, holds=holds)
    scheduler(fleet, "8", 15, holds=holds)
    assert found(fleet) == {"node_devices_unknown": 1}
    # 4 devices for 30 and for 15 minutes.
    assert evidence(fleet) == {"node": "n2", "jobs": 2, "accelerators": 4, "unbilled_accelerator_s": 10_800}


def test_a_pod_that_two_sources_put_into_two_clusters_is_found_with_both_names(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5))
    pod = "0198f5b2-aaaa-7c3a-9d2b-000000000001"
    agent(fleet, pod, 0, 60)
    scheduler(fleet, pod, 60, source="kubernetes", job={"cluster": "prod", "id": pod, "start": HOUR_AT.isoformat()})
    assert found(fleet)["pod_in_two_clusters"] == 1
    ((told,),) = fleet.rows("SELECT evidence FROM findings WHERE kind = 'pod_in_two_clusters'")
    assert (told["clusters"], told["pods"], told["pod"], told["by_agents"]) == (["c1", "prod"], 1, pod, [["c1"]])
    assert list(balanced(fleet)) == ["job:1"], "what its node saw is billed, to the cluster that the agent names"
    assert found(fleet)["pod_in_two_clusters"] == 0, "once"


def test_a_pod_of_one_cluster_and_ids_that_are_no_uids_are_no_such_finding(fleet: SmallFleet) -> None:
    pod = "0198f5b2-aaaa-7c3a-9d2b-000000000001"
    agent(fleet, pod, 0, 60)
    scheduler(fleet, pod, 60, source="kubernetes")
    scheduler(fleet, "7", 60)
    scheduler(fleet, "7", 60, job={"cluster": "c2", "id": "7", "start": HOUR_AT.isoformat()})
    assert "pod_in_two_clusters" not in found(fleet)
