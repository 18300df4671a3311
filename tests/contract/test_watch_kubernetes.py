"""The Kubernetes watcher against an API server with faults: expired places, broken watches, missing rights, outages of ingest."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.pollers.deliver import Delivery
from ingest.pollers.errors import DeliveryError, RightsError
from ingest.pollers.kube_api import BrokenWatchError, ExpiredError, KubeApi
from ingest.pollers.kubernetes import KubernetesWatch
from ingest.pollers.memory import Memory
from ingest.pollers.rounds import Telling
from ingest.receivers.work import read_work
from tests.fakes.kube_server import KubeServer, kube_server, status

pytestmark = pytest.mark.contract
PODS, NODES, JOBS = "/api/v1/pods", "/api/v1/nodes", "/apis/batch/v1/jobs"
KUEUE = "/apis/kueue.x-k8s.io"
T0 = datetime(2026, 11, 21, 12, tzinfo=UTC)


def pod(number: int, start: str | None = "2026-11-21T10:05:00Z", phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"p{number}",
            "namespace": "team-a",
            "uid": f"00000000-0000-0000-0000-{number:012}",
            "creationTimestamp": "2026-11-21T10:00:00Z",
        },
        "spec": {"nodeName": "n1", "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": phase, **({"startTime": start} if start else {})},
    }


@dataclass
class Ingest:
    events: list[dict[str, Any]] = field(default_factory=list)
    down: bool = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            return httpx.Response(503)
        assert not read_work(request.content, T0 + timedelta(days=1)).refused
        events = json.loads(request.content)["events"]
        self.events += events
        return httpx.Response(200, json={"accepted": len(events), "refused_count": 0, "refused": []})

    def runs(self) -> list[tuple[int, str]]:
        """Return number and state of each run told of since the last question."""
        found = [(int(each["job"]["id"][-12:]), each["state"]) for each in self.events if each["kind"] == "job"]
        self.events.clear()
        return found


@dataclass
class World:
    server: KubeServer
    ingest: Ingest
    memory: Memory
    stop: threading.Event
    now: datetime = T0
    clients: list[httpx.Client] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def close(self) -> None:
        self.stop.set()
        while any(thread.is_alive() for thread in self.threads):
            for path in list(self.server.watches):
                self.server.end_watches(path)
            time.sleep(0.01)
        for client in self.clients:
            client.close()
        self.memory.close()

    def follow(self, watch: KubernetesWatch) -> None:
        self.threads += watch.start(self.stop)
        self.wait_for(lambda: self.server.watched(PODS))

    def watch(self, *, follow: bool = True) -> KubernetesWatch:
        client = httpx.Client(transport=httpx.MockTransport(self.ingest))
        delivery = Delivery(client, "http://ingest", "kubernetes", lambda: "secret", wait=lambda _: None)
        self.clients.append(httpx.Client(timeout=10))
        api = KubeApi(self.clients[-1], self.server.url, lambda: "account")
        made = KubernetesWatch(api, Telling(delivery, self.memory), self.memory, "c", lambda: self.now)
        if follow:
            self.follow(made)
        return made

    def wait_for(self, claim: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not claim():
            assert time.monotonic() < deadline, self.server.asked
            time.sleep(0.01)

    def until_told(self, watch: KubernetesWatch, count: int) -> None:
        def told() -> bool:
            watch.round()
            return len([each for each in self.ingest.events if each["kind"] == "job"]) >= count

        self.wait_for(told)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    stop = threading.Event()
    with kube_server() as server:
        server.absent.add(KUEUE)
        made = World(server, Ingest(), Memory(tmp_path / "kube.sqlite"), stop)
        yield made
        made.close()


def test_pods_of_all_pages_and_changes_are_told_once(world: World) -> None:
    for number in range(5):
        world.server.put(PODS, pod(number))
    watch = world.watch()
    watch.round()
    assert sorted(world.ingest.runs()) == [(number, "running") for number in range(5)]
    world.server.put(PODS, pod(1, phase="Succeeded"))
    world.server.delete(PODS, pod(2))
    world.until_told(watch, 2)
    assert sorted(world.ingest.runs()) == [(1, "completed"), (2, "cancelled")]
    assert watch.round()["told"] == 0
    assert world.server.tokens == {"Bearer account"}


def test_an_expired_place_is_listed_anew_and_nothing_is_missed(world: World) -> None:
    world.server.put(PODS, pod(1))
    watch = world.watch()
    watch.round()
    gone = status(410, "Expired", "too old resource version: 100 (120)")
    world.server.forget(PODS, pod(1)["metadata"]["uid"])
    world.server.send(PODS, json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
    world.server.put(PODS, pod(2))
    world.server.end_watches(PODS)
    world.until_told(watch, 3)
    # The first was deleted while nobody watched: it ended when it was seen last.
    assert sorted(world.ingest.runs()) == [(1, "running"), (1, "unknown"), (2, "running")]


def test_a_watch_refused_with_410_is_listed_anew(world: World) -> None:
    watch = world.watch()
    watch.round()
    lists = world.server.asked.count(f"{PODS}?limit=500")
    world.server.faults[PODS] = [(410, status(410, "Expired", "too old resource version"))]
    world.server.end_watches(PODS)
    world.wait_for(lambda: world.server.asked.count(f"{PODS}?limit=500") > lists and world.server.watched(PODS))
    world.server.put(PODS, pod(7))
    world.until_told(watch, 1)


def test_a_watch_that_breaks_off_within_an_event_goes_on_from_the_last_whole_one(world: World) -> None:
    watch = world.watch()
    watch.round()
    world.server.put(PODS, pod(1))
    world.until_told(watch, 1)
    world.server.end_watches(PODS, b'{"type":"ADDED","object":{"metadata":{"na')
    world.server.put(PODS, pod(2))
    world.until_told(watch, 2)
    assert sorted(world.ingest.runs()) == [(1, "running"), (2, "running")]
    versions = [
        asked.partition("resourceVersion=")[2].partition("&")[0]
        for asked in world.server.asked
        if "watch=1" in asked and PODS in asked
    ]
    assert len(versions) == 2
    assert int(versions[1]) > int(versions[0])


def test_a_bookmark_moves_the_place_to_go_on_from(world: World) -> None:
    watch = world.watch()
    watch.round()
    world.server.bookmark(PODS)
    expected = str(world.server.version)
    world.server.end_watches(PODS)
    world.wait_for(lambda: any(f"resourceVersion={expected}" in asked for asked in world.server.asked if PODS in asked))


def test_a_missing_right_is_named_with_what_grants_it(world: World) -> None:
    world.server.faults[PODS] = [(403, status(403, "Forbidden", "pods is forbidden: cannot list resource"))] * 2
    watch = world.watch(follow=False)
    with pytest.raises(RightsError, match=r"pods is forbidden.*deploy/kubernetes/watcher\.yaml"):
        watch.look()
    world.follow(watch)  # the right came in the meantime


def test_a_token_that_is_not_valid_is_named(world: World) -> None:
    world.server.faults[PODS] = [(401, status(401, "Unauthorized", "Unauthorized"))]
    with pytest.raises(RightsError, match="is the service account's token mounted and valid"):
        world.watch(follow=False).look()


def test_what_is_seen_while_ingest_is_away_is_told_when_it_is_back(world: World) -> None:
    watch = world.watch()
    watch.round()
    world.ingest.down = True
    world.server.put(PODS, pod(1))
    world.server.put(PODS, pod(2))

    def fails() -> bool:
        try:
            watch.round()
        except DeliveryError:
            return True
        return False

    world.wait_for(fails)
    world.server.delete(PODS, pod(2))
    world.wait_for(lambda: watch._live["pods"].keys() == {pod(1)["metadata"]["uid"]})
    world.ingest.down = False
    world.until_told(watch, 2)
    assert sorted(world.ingest.runs()) == [(1, "running"), (2, "cancelled")]


def test_what_ended_between_two_lives_of_the_watcher_ends_when_it_was_seen_last(world: World) -> None:
    world.server.put(PODS, pod(1))
    first = world.watch(follow=False)
    first.look()
    first.round()
    world.ingest.events.clear()
    world.server.forget(PODS, pod(1)["metadata"]["uid"])
    world.now += timedelta(hours=3)
    second = world.watch(follow=False)
    second.look()
    second.round()
    (told,) = world.ingest.events
    assert (told["ended_at"], told["state"], told["reason"]) == (
        T0.isoformat(),
        "unknown",
        "deleted while nobody watched",
    )
    second.look()
    assert second.round()["told"] == 0


def test_nodes_and_suspended_jobs_are_told_and_jobs_that_never_waited_are_not(world: World) -> None:
    labels = {"topology.kubernetes.io/rack": "r1"}
    world.server.put(NODES, {"metadata": {"name": "n1", "uid": "u1", "labels": labels}})
    job: dict[str, Any] = {
        "metadata": {"name": "train", "namespace": "a", "uid": "u2", "creationTimestamp": "2026-11-21T10:00:00Z"},
        "spec": {"suspend": True, "parallelism": 2, "template": {"spec": pod(1)["spec"]}},
    }
    running = {**job, "metadata": {**job["metadata"], "uid": "u3"}, "spec": {**job["spec"], "suspend": False}}
    world.server.put(JOBS, job)
    world.server.put(JOBS, running)
    watch = world.watch()
    watch.round()
    told = {each.get("node") or each["job"]["id"]: each for each in world.ingest.events}
    assert told.keys() == {"n1", "u2"}
    assert (told["n1"]["rack"], told["u2"]["reason"]) == ("r1", "Suspended")
    world.server.put(JOBS, {**job, "spec": {**job["spec"], "suspend": False}})

    def left() -> bool:
        watch.round()
        return any(each.get("outcome") == "started" for each in world.ingest.events)

    world.wait_for(left)


def test_an_error_that_nobody_foresaw_is_told_and_the_resource_is_listed_anew(world: World) -> None:
    watch = world.watch()
    watch.round()
    world.server.send(PODS, b'{"type":"ADDED","object":{"metadata":null}}\n')
    world.server.put(PODS, pod(1))
    rounds: list[Counter[str]] = []

    def told() -> bool:
        rounds.append(watch.round())
        return any(each["kind"] == "job" for each in world.ingest.events)

    world.wait_for(told)
    world.wait_for(lambda: world.server.watched(PODS))
    assert sum(counts["unexpected"] for counts in rounds) == 1
    assert all(thread.is_alive() for thread in world.threads)
    world.server.put(PODS, pod(2))
    world.until_told(watch, 2)
    assert watch.round()["faults"] == 0


def test_one_object_that_cannot_be_read_hides_no_other_and_ends_nothing(world: World) -> None:
    world.server.put(PODS, pod(1))
    world.server.put(PODS, pod(2))
    first = world.watch(follow=False)
    first.look()
    first.round()
    world.ingest.runs()
    world.server.put(PODS, {**pod(1), "spec": {"containers": "none"}})
    world.server.put(PODS, pod(2, phase="Succeeded"))
    second = world.watch(follow=False)
    second.look()
    assert second.round()["unreadable"] == 1
    assert world.ingest.runs() == [(2, "completed")]  # the first stays as it was told
    world.server.put(PODS, pod(1, phase="Failed"))
    second.look()
    assert second.round()["unreadable"] == 0
    assert world.ingest.runs() == [(1, "failed")]


def workload(number: int) -> dict[str, Any]:
    made = pod(number)
    sets = [{"name": "main", "count": 2, "template": {"spec": made["spec"]}}]
    return {"metadata": made["metadata"], "spec": {"queueName": "q", "podSets": sets}, "status": {}}


@pytest.mark.parametrize(
    ("served", "read"), [(["v1beta1"], "v1beta1"), (["v1beta1", "v1beta2"], "v1beta2"), (["v1", "v1beta2"], "v1beta2")]
)
def test_kueue_is_read_in_the_best_version_that_is_served(world: World, served: list[str], read: str) -> None:
    world.server.absent.clear()
    world.server.groups[KUEUE] = served
    world.server.put(f"{KUEUE}/{read}/workloads", workload(1))
    watch = world.watch()
    watch.round()
    (told,) = world.ingest.events
    assert (told["kind"], told["reason"], told["accelerators"]) == ("queue", "Pending", 2)
    assert not [asked for asked in world.server.asked if "workloads" in asked and f"/{read}/" not in asked]


def test_versions_of_kueue_that_are_not_known_are_a_fault_and_no_kueue_is_none(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.server.put(PODS, pod(1))
    assert world.watch().round()["faults"] == 0
    assert world.ingest.runs() == [(1, "running")]
    world.server.absent.clear()
    world.server.groups[KUEUE] = ["v1"]
    world.server.forget(PODS, pod(1)["metadata"]["uid"])
    watch = world.watch(follow=False)
    watch.look()
    # Pods go on being told; what is missing may be among what cannot be seen, so nothing is said to be gone.
    assert (watch.round()["faults"], world.ingest.events) == (1, [])
    assert "kueue.x-k8s.io is served as v1, of which this version of Wattledger reads none" in caplog.text
    world.server.groups[KUEUE] = ["v1", "v1beta2"]
    watch.look()
    assert (watch.round()["faults"], world.ingest.runs()) == (0, [(1, "unknown")])


def test_a_version_of_kueue_that_is_taken_away_is_followed_in_the_next(world: World) -> None:
    world.server.absent.clear()
    world.server.groups[KUEUE] = ["v1beta1"]
    old, new = f"{KUEUE}/v1beta1/workloads", f"{KUEUE}/v1beta2/workloads"
    watch = world.watch()
    watch.round()
    world.wait_for(lambda: world.server.watched(old))
    world.server.groups[KUEUE] = ["v1beta2"]
    world.server.absent.add(old)
    world.server.put(new, workload(3))
    world.server.end_watches(old)
    world.wait_for(lambda: world.server.watched(new))
    watch.round()
    assert [each["kind"] for each in world.ingest.events] == ["queue"]


def test_what_a_watch_says_wrongly_is_a_broken_watch(world: World) -> None:
    def api(*lines: bytes) -> KubeApi:
        def answer(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=b"".join(lines))

        return KubeApi(httpx.Client(transport=httpx.MockTransport(answer)), "http://x", lambda: None)

    whole = b'{"type":"ADDED","object":{"metadata":{}}}\n'
    assert [kind for kind, _ in api(whole, whole).watch(PODS, "1")] == ["ADDED", "ADDED"]
    for broken in (whole[:-5], b"no json\n", b"[]\n", b'{"type":"ERROR","object":{"code":500}}\n'):
        with pytest.raises(BrokenWatchError):
            list(api(whole, broken).watch(PODS, "1"))
    with pytest.raises(ExpiredError):
        list(api(b'{"type":"ERROR","object":{"code":410}}\n').watch(PODS, "1"))
