"""Pods' devices from a kubelet to allocations: idle pods, replicas, MIG instances, completed pods, UIDs from the node's folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.wire import DeviceRef, Stream
from tests.fakes.job_node import GPUS, JobNode, S
from tests.fakes.kubelet import FakeKubelet, pod

pytestmark = pytest.mark.contract

UID = "2fc932ce-fdcc-454b-97bd-aadfdeb4c340"
OTHER = "3fc932ce-fdcc-454b-97bd-aadfdeb4c341"
IN_POD = f"0::/kubepods/burstable/pod{UID}/{'a' * 64}"
GPU = "nvidia.com/gpu"


@pytest.fixture
def node() -> Iterator[JobNode]:
    with tempfile.TemporaryDirectory(prefix="wl-pods-") as folder:  # a socket's path must be short
        yield (made := JobNode(Path(folder)))
        made.source.close()


@pytest.fixture
def kubelet(node: JobNode) -> Iterator[FakeKubelet]:
    served = FakeKubelet(node.socket)
    yield served
    served.close()


def test_an_idle_pod_keeps_its_gpus_and_is_named(node: JobNode, kubelet: FakeKubelet) -> None:
    kubelet.pods = [pod("team-a", "train-0", {GPU: [GPUS[0].uuid, GPUS[1].uuid], "rdma/hca": ["mlx5_0"]})]
    assert node.read() == ["5 +team-a/train-0 gpu0 pod-resources", "5 +team-a/train-0 gpu1 pod-resources"]
    row = node.rows[Stream.ALLOCATION][0]
    assert (row["cluster"], row["namespace"], row["job_name"]) == ("lab", "team-a", "train-0")
    assert [node.read() for _ in range(4)] == [[]] * 4
    kubelet.pods = []
    node.read()
    assert node.read() == ["25 -team-a/train-0 gpu0 pod-resources", "25 -team-a/train-0 gpu1 pod-resources"]


def test_a_pod_is_its_uid_where_the_node_tells_it_and_its_process_is_no_stranger(
    node: JobNode, kubelet: FakeKubelet
) -> None:
    (node.root / "pods" / f"team-a_train-0_{UID}").mkdir(parents=True)
    kubelet.pods = [pod("team-a", "train-0", {GPU: [GPUS[0].uuid]})]
    node.run(700, 0, IN_POD)
    assert node.read() == [f"5 +{UID} gpu0 pod-resources"]
    assert [node.read() for _ in range(4)] == [[]] * 4
    assert Stream.NODE_EVENT not in node.rows
    assert node.rows[Stream.DEVICE_SHARE][0]["native_job_id"] == UID
    assert node.rows[Stream.DEVICE_SHARE][0]["namespace"] == "team-a"


def test_a_process_seen_before_the_kubelet_s_word_gives_the_pod_its_name_for_good(
    node: JobNode, kubelet: FakeKubelet
) -> None:
    (node.root / "pods" / f"team-a_train-0_{UID}").mkdir(parents=True)
    kubelet.close()
    node.run(700, 0, IN_POD)
    assert node.read() == [f"-1 +{UID} gpu0 cgroup"]
    again = FakeKubelet(node.socket)
    again.pods = [pod("team-a", "train-0", {GPU: [GPUS[0].uuid]})]
    assert [node.read() for _ in range(4)] == [[]] * 4
    again.close()


def test_a_strange_pod_s_process_on_a_granted_gpu_is_a_contradiction(node: JobNode, kubelet: FakeKubelet) -> None:
    (node.root / "pods" / f"team-a_train-0_{UID}").mkdir(parents=True)
    (node.root / "pods" / f"team-b_other-0_{OTHER}").mkdir(parents=True)
    kubelet.pods = [pod("team-a", "train-0", {GPU: [GPUS[0].uuid]})]
    node.run(700, 0, IN_POD.replace(UID, OTHER))
    assert node.read() == [f"5 +{UID} gpu0 pod-resources"]
    assert node.read() == [f"5 -{UID} gpu0 pod-resources"]
    (event,) = node.rows[Stream.NODE_EVENT]
    assert event["detail"] == f"pod-resources says job {UID}, cgroup says job {OTHER} uses it"


def test_replicas_are_shares_of_all_there_are(node: JobNode, kubelet: FakeKubelet) -> None:
    kubelet.replicas = [f"{GPUS[0].uuid}::{number}" for number in range(4)]
    kubelet.pods = [
        pod("a", "one", {"nvidia.com/gpu.shared": [f"{GPUS[0].uuid}::0"]}),
        pod("a", "two", {"nvidia.com/gpu.shared": [f"{GPUS[0].uuid}::1", f"{GPUS[0].uuid}::3"]}),
    ]
    assert node.read() == ["5 +a/one gpu0 0.25 pod-resources", "5 +a/two gpu0 0.5 pod-resources"]


def test_where_the_kubelet_does_not_count_replicas_those_present_share(node: JobNode, kubelet: FakeKubelet) -> None:
    kubelet.pods = [
        pod("a", "one", {GPU: ["nvidia0/vgpu0"]}),
        pod("a", "two", {GPU: ["nvidia0/vgpu1"]}),
        pod("a", "lost", {GPU: ["nvidia9"]}),
    ]
    assert node.read() == ["5 +a/one gpu0 0.5 pod-resources", "5 +a/two gpu0 0.5 pod-resources"]
    assert node.errors["jobs:pod_device_unknown"] == 1


def test_a_mig_instance_is_held_as_itself(node: JobNode, kubelet: FakeKubelet) -> None:
    instance = DeviceRef("MIG-7", "H100", kind="mig", parent_uuid=GPUS[0].uuid)
    node.devices = (*GPUS, instance)
    kubelet.pods = [pod("a", "one", {"nvidia.com/mig-1g.10gb": ["MIG-7"]})]
    node.clock.advance(5)
    (row,) = node.source.read().rows[Stream.ALLOCATION]
    assert (row["device_uuid"], row["share_ratio"]) == ("MIG-7", None)


def test_a_completed_pod_that_an_old_kubelet_still_lists_gives_way_to_the_one_that_came(
    node: JobNode, kubelet: FakeKubelet
) -> None:
    done, new = pod("a", "done", {GPU: [GPUS[0].uuid]}), pod("a", "new", {GPU: [GPUS[0].uuid]})
    kubelet.pods = [done]
    assert node.read() == ["5 +a/done gpu0 pod-resources"]
    kubelet.pods = [done, new]
    node.read()
    assert node.read() == ["5 -a/done gpu0 pod-resources", "15 +a/new gpu0 pod-resources"]


def test_a_claim_of_dynamic_allocation_may_be_shared(node: JobNode, kubelet: FakeKubelet) -> None:
    claim = [("gpu.nvidia.com", "node-1", "gpu-2")]
    kubelet.pods = [pod("a", "one", {}, claims=claim), pod("a", "two", {}, claims=claim)]
    assert node.read() == ["5 +a/one gpu2 0.5 pod-resources", "5 +a/two gpu2 0.5 pod-resources"]


def test_a_kubelet_that_is_away_ends_nothing(node: JobNode, kubelet: FakeKubelet) -> None:
    kubelet.pods = [pod("team-a", "train-0", {GPU: [GPUS[0].uuid]})]
    assert len(node.read()) == 1
    kubelet.status = "14"
    assert [node.read() for _ in range(4)] == [[]] * 4
    kubelet.status = "0"
    assert [node.read() for _ in range(2)] == [[]] * 2
    assert node.clock.wall_us > 5 * S
