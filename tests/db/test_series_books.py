"""What arrives as series is billed like any other measurement: once, however it is cut and however often it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from analytics.jobs import HourCloser, WorkerSettings
from collector.wire import Feed
from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from tests.db.ingest_harness import run
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.fakes.kube_state_metrics import Pod
from tests.fakes.series import HEADERS, device_labels, series, write_request

pytestmark = pytest.mark.db
SCRAPE_S = 30
USAGE = (
    "SELECT hour_at, device_id, job_id, feed, energy_mj, held_us, covered_us, revision "
    "FROM current_usage_hours ORDER BY 1, 2, 3"
)


def scrapes(
    from_at: datetime, to_at: datetime, watts: int, start_mj: int = 0
) -> Iterator[tuple[int, dict[str, float]]]:
    """Instants in ms with what the exporter tells of a device that draws this much all the time."""
    for number in range(int((to_at - from_at).total_seconds()) // SCRAPE_S + 1):
        elapsed_s = number * SCRAPE_S
        yield (
            int(from_at.timestamp() + elapsed_s) * 1000,
            {
                "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": float(start_mj + elapsed_s * watts * 1000),
                "DCGM_FI_DEV_POWER_USAGE": float(watts),
                "DCGM_FI_DEV_GPU_UTIL": 50.0,
            },
        )


def sharded(told: Iterator[tuple[int, dict[str, float]]], shards: int, scrapes_each: int = 25) -> list[bytes]:
    """Requests of a sender that spreads its series over shards: none holds all metrics of an instant."""
    queues: list[list[bytes]] = [[] for _ in range(shards)]
    requests: list[bytes] = []
    for at_ms, values in told:
        for shard, (name, value) in enumerate(values.items()):
            queue = queues[shard % shards]
            queue.append(series(device_labels(name, "GPU-1", "n1"), (value, at_ms)))
            if len(queue) >= scrapes_each:
                requests.append(write_request(*queue))
                queue.clear()
    return requests + [write_request(*queue) for queue in queues if queue]


def send(fleet: SmallFleet, requests: list[bytes]) -> None:
    engine = fleet.database.create_engine("admin")
    with engine.begin() as conn:
        secret = tokens.create(conn, "prometheus", [Scope.WRITE], actor="test", site_id=fleet.site_id).secret
    engine.dispose()

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in requests:
            answer = await client.post(
                "/api/v1/write", content=body, headers={**HEADERS, "authorization": f"Bearer {secret}"}
            )
            assert answer.status_code == 204, answer.text

    run(Settings(fleet.database), scenario)


def close(fleet: SmallFleet) -> list[tuple[Any, ...]]:
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(HOUR_AT + timedelta(hours=4))
    return fleet.rows(USAGE)


@pytest.mark.parametrize("shards", [1, 3])
def test_an_hour_told_in_shards_is_billed_as_one_told_at_once_and_sending_it_again_changes_nothing(
    db: Database, shards: int
) -> None:
    fleet = small_fleet(db)
    job = fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    requests = sharded(scrapes(HOUR_AT, HOUR_AT + HOUR, 100), shards)
    send(fleet, requests)
    usage = close(fleet)
    assert [(row[0], row[2], row[3], row[4]) for row in usage if row[4]] == [
        (HOUR_AT, job, int(Feed.REMOTE_WRITE), 360_000_000)  # 100 W x 3600 s
    ]
    send(fleet, requests)
    assert close(fleet) == usage  # the same revision, too


def test_a_device_that_an_agent_and_prometheus_tell_of_is_billed_once(db: Database) -> None:
    fleet = small_fleet(db)
    # The agent: 100 W for an hour, then silence. Prometheus: two hours, its counter 3 % off.
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    send(fleet, sharded(scrapes(HOUR_AT, HOUR_AT + 2 * HOUR, 103, 5_000_000), 1))
    fleet.job("7", HOUR_AT, HOUR_AT + 2 * HOUR)
    assert [(row[0], row[3], row[4]) for row in close(fleet) if row[4]] == [
        (HOUR_AT, int(Feed.NATIVE), 360_000_000),  # 100 W x 3600 s
        (HOUR_AT + HOUR, int(Feed.REMOTE_WRITE), 370_800_000),  # 103 W x 3600 s
    ]


def test_a_counter_that_starts_anew_begins_a_new_account_and_nothing_is_negative(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    half = HOUR_AT + HOUR / 2
    before, after = list(scrapes(HOUR_AT, half, 100, 9_000_000)), list(scrapes(half + HOUR / 120, HOUR_AT + HOUR, 100))
    send(fleet, sharded(iter(before + after), 2))
    energy_mj = [row[4] for row in close(fleet) if row[4]]
    # 100 W x 1,800 s, then 30 s in which the driver was loaded and no meter tells, then 100 W x 1,770 s.
    assert sum(energy_mj) == 357_000_000


def test_a_pod_of_kube_state_metrics_pays_for_what_dcgm_exporter_measured_while_it_ran(db: Database) -> None:
    fleet = small_fleet(db)
    uid = "0a1b2c3d-0000-4000-8000-00000000000a"
    start_s = HOUR_AT.timestamp()
    pod = Pod(uid, node="n1", start=start_s + 600, gpus={"nvidia_com_gpu": 1})  # from ten past
    outside = {"cluster": "prod", "instance": "ksm:8080", "job": "ksm"}

    def scraped(told: Pod, at_s: float) -> list[bytes]:
        return [series({"__name__": n, **labels, **outside}, (v, int(at_s * 1000))) for n, labels, v in told.series]

    # Each series in a request of its own; the pod ends at twenty to.
    over = pod.over("Succeeded", start_s + 2400)
    pieces = [*scraped(pod, start_s + 660), *scraped(over, start_s + 2430)]
    send(fleet, [*sharded(scrapes(HOUR_AT, HOUR_AT + HOUR, 100), 1), *(write_request(piece) for piece in pieces)])
    close(fleet)
    paid = "SELECT jobs.native_id, energy_mj, held_us FROM current_usage_hours JOIN jobs ON jobs.id = job_id"
    assert fleet.rows(paid) == [(uid, 180_000_000, 1_800_000_000)]  # 100 W x 1800 s
    whole = fleet.rows("SELECT sum(energy_mj) FROM current_usage_hours")
    assert whole == [(360_000_000,)]
