"""What series of kube-state-metrics mean: labels to pieces, pieces to facts, facts to a report on a job."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ingest.series.kube import NodePiece, PodPiece
from ingest.series.labels import Skip
from ingest.series.places import place
from ingest.series.pods import KubeMemory, KubeTold, Words
from ingest.store.kube_report import asked, report, with_words
from tests.fakes import kube_state_metrics
from tests.fakes.kube_state_metrics import Pod, Series

pytestmark = pytest.mark.unit
S = 1_000_000
UID = "0a1b2c3d-0000-4000-8000-00000000000a"
NOON = 1_795_262_400
"""2026-11-21 12:00 UTC."""
OUTSIDE = {"cluster": "prod", "instance": "ksm-0:8080"}
POD = Pod(UID, created=NOON - 30, start=NOON)


def told(*scrapes: tuple[int, list[Series]], now: int = NOON + 3600) -> KubeTold:
    """What is gathered of scrapes at these seconds past noon."""
    return kube_state_metrics.told(*((NOON + second, series) for second, series in scrapes), now=now)


def facts(*scrapes: tuple[int, list[Series]]) -> Words:
    (pod,) = told(*scrapes).pods.values()
    return pod.facts


def piece(name: str, **labels: str) -> Any:
    return place(name, {"namespace": "nlp", "pod": "p", "uid": UID, "cluster": "prod", **labels})


def test_a_running_pod_is_a_run_that_holds_its_devices_on_its_node() -> None:
    assert report(facts((60, POD.series)), None) == {
        "started_at": NOON * S,
        "ended_at": None,
        "state": "running",
        "accelerators": 4,
        "holds": [["gpu-1", None, None, 4]],
        "namespace": "nlp",
        "name": "train",
        "workload": "Job/train",
        "workload_kind": "batch",
        "submitted_at": (NOON - 30) * S,
    }


@pytest.mark.parametrize(("phase", "state"), [("Succeeded", "completed"), ("Failed", "failed")])
def test_a_pod_whose_phase_says_so_ended_with_its_containers(phase: str, state: str) -> None:
    found = report(facts((0, POD.series), (900, POD.over(phase, NOON + 890).series)), None)
    assert found is not None
    assert (found["state"], found["ended_at"]) == (state, (NOON + 890) * S)


def test_a_pod_of_which_one_container_ended_runs_on() -> None:
    series = [*POD.series, ("kube_pod_completion_time", {"namespace": "nlp", "pod": "p", "uid": UID}, NOON + 5.0)]
    found = report(facts((60, series)), None)
    assert found is not None
    assert (found["state"], found["ended_at"]) == ("running", None)


def test_an_evicted_pod_without_containers_ended_when_that_was_told_first() -> None:
    gone = [one for one in POD.over("Failed", 0).series if one[0] != "kube_pod_completion_time"]
    found = report(facts((0, POD.series), (330, gone), (300, gone)), None)
    assert found is not None
    assert (found["state"], found["ended_at"]) == ("failed", (NOON + 300) * S)


def test_pieces_mean_the_same_in_any_order_and_grouping() -> None:
    ended = POD.over("Succeeded", NOON + 95)
    pieces = [(second, [one]) for second, pod in ((0, POD), (30, POD), (100, ended)) for one in pod.series]
    pieces = [
        one for one in pieces if one[1][0][0] != "kube_pod_restart_policy" and one[1][0][1].get("resource") != "cpu"
    ]
    whole = report(facts(*pieces), None)
    chance = random.Random(7)
    for _ in range(20):
        chance.shuffle(pieces)
        known: Words = {}
        cuts = sorted(chance.sample(range(1, len(pieces)), 5))
        for first, last in zip([0, *cuts], [*cuts, len(pieces)], strict=True):
            (pod,) = told(*pieces[first:last]).pods.values()
            known = with_words(known, pod.facts)
        assert report(known, None) == whole


def test_a_pod_that_has_not_started_or_asks_for_no_accelerator_is_no_run() -> None:
    assert report(facts((0, Pod(UID, phase="Pending").series)), None) is None
    assert report(facts((0, Pod(UID, start=NOON, gpus={}).series)), None) is None


def test_what_is_asked_for_is_all_that_runs_together_or_one_that_runs_alone() -> None:
    def ask(kind: str, container: str, resource: str, count: int) -> tuple[str, list[Any]]:
        return f"ask/{kind}/{container}/{resource}", [1, count]

    both = dict([ask("c", "a", "nvidia_com_gpu", 2), ask("c", "b", "nvidia_com_mig_1g_5gb", 1)])
    assert asked(both) == (3, 3)
    assert asked(both | dict([ask("i", "warm", "nvidia_com_gpu", 8), ask("i", "cold", "amd_com_gpu", 1)])) == (8, 8)
    assert asked(dict([ask("c", "a", "nvidia_com_gpu_shared", 2)])) == (0, 2)
    assert asked({"node": [1, "gpu-1"]}) is None


def test_replicas_of_a_shared_board_are_asked_for_and_not_held() -> None:
    found = report(facts((0, Pod(UID, start=NOON, gpus={"nvidia_com_gpu_shared": 2}).series)), None)
    assert found is not None
    assert (found["accelerators"], found["holds"]) == (2, [])


def test_labels_of_the_target_that_were_in_the_way_are_not_taken_for_the_pods() -> None:
    found = piece("kube_pod_info", node="n", exported_pod="mine", exported_namespace="team", pod="ksm-0")
    assert dict(found.says) == {"namespace": "team", "pod": "mine", "node": "n"}


@pytest.mark.parametrize(
    ("labels", "workload"),
    [
        ({"created_by_kind": "ReplicaSet", "created_by_name": "chat-7d4b9c6f58"}, "Deployment/chat"),
        ({"created_by_kind": "ReplicaSet", "created_by_name": "alone"}, "ReplicaSet/alone"),
        ({"created_by_kind": "StatefulSet", "created_by_name": "db"}, "StatefulSet/db"),
        ({"created_by_kind": "<none>", "created_by_name": "<none>"}, None),
    ],
)
def test_what_a_pod_belongs_to(labels: dict[str, str], workload: str | None) -> None:
    assert dict(piece("kube_pod_info", **labels).says).get("owner") == workload


def test_labels_of_a_pod_are_one_text_without_what_controllers_make() -> None:
    found = piece(
        "kube_pod_labels",
        label_team="nlp",
        label_app_kubernetes_io_name="chat",
        label_pod_template_hash="7d4b9c6f58",
        label_batch_kubernetes_io_job_name="train",
        label_jobset_sigs_k8s_io_jobset_name="big",
        label_kueue_x_k8s_io_queue_name="gold",
        label_odd="a,b",
    )
    assert dict(found.says) == {
        "namespace": "nlp",
        "pod": "p",
        "label": "app_kubernetes_io_name=chat,jobset_sigs_k8s_io_jobset_name=big,kueue_x_k8s_io_queue_name=gold,team=nlp",
        "maker": "JobSet/big",
        "partition": "gold",
    }


@pytest.mark.parametrize(
    ("name", "labels", "reason"),
    [
        ("kube_pod_info", {"cluster": ""}, "no_cluster"),
        ("kube_pod_info", {"uid": ""}, "bad_labels"),  # kube-state-metrics before 2.0
        ("kube_pod_info", {"uid": "'; DROP TABLE jobs; --"}, "bad_labels"),
        ("kube_pod_container_resource_requests", {"resource": "cpu", "container": "c"}, "other_resource"),
        ("kube_pod_container_resource_requests", {"resource": "nvidia_com_gpu"}, "bad_labels"),
        ("kube_node_labels", {"node": "n", "label_kubernetes_io_arch": "amd64"}, "unmapped"),
    ],
)
def test_a_series_that_names_no_pod_is_counted_with_the_reason(name: str, labels: dict[str, str], reason: str) -> None:
    assert piece(name, **labels) == Skip(name, reason)


def test_labels_of_a_node_say_where_it_stands_under_the_names_they_have_in_kubernetes() -> None:
    found = piece(
        "kube_node_labels", node="gpu-1", label_topology_kubernetes_io_rack="r7", label_nvidia_com_gpu_clique="c.1"
    )
    assert found == NodePiece("gpu-1", (("topology.kubernetes.io/rack", "r7"), ("nvidia.com/gpu.clique", "c.1")))


def test_a_phase_that_does_not_hold_is_a_sign_of_life_and_no_end() -> None:
    found = told((5, [one for one in POD.series if one[0] == "kube_pod_status_phase"]))
    (pod,) = found.pods.values()
    assert (pod.facts.keys() & {"over"}, pod.seen_us) == (set(), (NOON + 5) * S)


def test_a_series_that_ended_says_when_its_pod_was_missed() -> None:
    (pod,) = told((30, [(*POD.series[0][:2], float("nan"))])).pods.values()
    assert (pod.facts, pod.seen_us, pod.gone_us) == ({}, 0, (NOON + 30) * S)


def test_samples_from_the_future_are_refused_and_instants_that_cannot_be_are_left_out() -> None:
    found = told((600, POD.series), now=NOON)
    assert (found.pods, set(found.refused)) == ({}, {"from_the_future"})
    assert "start" not in facts((0, [("kube_pod_start_time", {"namespace": "n", "pod": "p", "uid": UID}, 1e300)]))


def test_a_steady_pod_is_told_once_and_then_every_five_minutes() -> None:
    memory = KubeMemory()

    def news(second: int) -> bool:
        found = memory.news(1, told((second, POD.series)), (NOON + second) * S)
        memory.kept(1, found, (NOON + second) * S)
        return bool(found.pods)

    assert [second for second in range(0, 660, 30) if news(second)] == [0, 300, 600]


def test_of_a_pod_that_asks_for_nothing_nobody_is_told_that_it_is_still_there() -> None:
    memory, plain = KubeMemory(), Pod(UID, start=NOON, gpus={})

    def news(second: int) -> bool:
        found = memory.news(1, told((second, plain.series)), (NOON + second) * S)
        memory.kept(1, found, (NOON + second) * S)
        return bool(found.pods)

    assert [second for second in range(0, 3600, 30) if news(second)] == [0]


def test_what_was_not_committed_is_told_again() -> None:
    memory = KubeMemory()
    for _ in range(3):
        assert memory.news(1, told((0, POD.series)), NOON * S).pods


def test_only_so_many_new_pods_are_taken_in_an_hour() -> None:
    memory = KubeMemory(max_new_an_hour=1)
    other = Pod(UID.replace("a", "b"), start=NOON)
    found = memory.news(1, told((0, [*POD.series, *other.series])), NOON * S)
    assert (len(found.pods), found.refused) == (1, {"too_many_new": 1})


def test_a_piece_says_who_told_it_and_lower_cases_the_uid() -> None:
    found = place("kube_pod_created", {"uid": UID.upper(), **OUTSIDE})
    assert isinstance(found, PodPiece)
    assert (found.cluster, found.uid, found.exporter, found.number) == ("prod", UID, "ksm-0:8080", "created")
