"""The kubelet's pod-resources over a unix socket: real HTTP/2 and messages that Google's protobuf wrote."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.jobs.kubelet import KubeletClient, KubeletError, PodDevice
from tests.fakes.kubelet import FakeKubelet, pod

pytestmark = pytest.mark.contract

GPU = "GPU-6fcf6f6a-0000-0000-0000-000000000001"


@pytest.fixture
def kubelet() -> Iterator[FakeKubelet]:
    with tempfile.TemporaryDirectory(prefix="wl-kubelet-") as folder:  # a socket's path must be short
        served = FakeKubelet(Path(folder) / "k.sock")
        yield served
        served.close()


@pytest.fixture
def client(kubelet: FakeKubelet) -> Iterator[KubeletClient]:
    connected = KubeletClient(kubelet.path, timeout_s=1.0, max_bytes=50_000)
    yield connected
    connected.close()


def test_every_kind_of_device_is_listed_with_its_pod(kubelet: FakeKubelet, client: KubeletClient) -> None:
    kubelet.pods = [
        pod("team-a", "train-0", {"nvidia.com/gpu": [GPU, "GPU-2"], "rdma/hca": ["mlx5_0"]}),
        pod("team-a", "notebook", {"nvidia.com/gpu.shared": [f"{GPU}::3"]}, container="jupyter"),
        pod("team-b", "mig", {"nvidia.com/mig-1g.10gb": ["MIG-7"]}),
        pod("team-b", "gke", {"nvidia.com/gpu": ["nvidia0/gi0/vgpu1"]}),
        pod("team-b", "dra", {}, claims=[("gpu.nvidia.com", "node-1", "gpu-0")]),
        pod("team-b", "web", {}),
    ]
    assert client.list() == (
        PodDevice("team-a", "train-0", "main", "nvidia.com/gpu", GPU),
        PodDevice("team-a", "train-0", "main", "nvidia.com/gpu", "GPU-2"),
        PodDevice("team-a", "train-0", "main", "rdma/hca", "mlx5_0"),
        PodDevice("team-a", "notebook", "jupyter", "nvidia.com/gpu.shared", f"{GPU}::3"),
        PodDevice("team-b", "mig", "main", "nvidia.com/mig-1g.10gb", "MIG-7"),
        PodDevice("team-b", "gke", "main", "nvidia.com/gpu", "nvidia0/gi0/vgpu1"),
        PodDevice("team-b", "dra", "main", "gpu.nvidia.com", "gpu-0"),
    )
    assert kubelet.asked == ["/v1.PodResourcesLister/List"]


def test_the_pods_of_a_real_api_server_come_through(kubelet: FakeKubelet, client: KubeletClient, shared: Path) -> None:
    captured = json.loads((shared / "captures" / "kubernetes" / "05-list-pods.json").read_text())
    items = captured["response"]["items"]
    kubelet.pods = [
        pod(item["metadata"]["namespace"], item["metadata"]["name"], {"nvidia.com/gpu": [f"GPU-{number}"]})
        for number, item in enumerate(items)
    ]
    assert [(found.namespace, found.pod) for found in client.list()] == [
        (item["metadata"]["namespace"], item["metadata"]["name"]) for item in items
    ]


def test_one_connection_serves_many_questions_and_survives_a_restart_of_the_kubelet(
    kubelet: FakeKubelet, client: KubeletClient
) -> None:
    kubelet.replicas = [f"{GPU}::0", f"{GPU}::1"]
    assert client.list() == ()
    assert client.allocatable() == (f"{GPU}::0", f"{GPU}::1")
    kubelet.close()
    with pytest.raises(KubeletError) as gone:
        client.list()
    assert gone.value.kind == "unreachable"
    again = FakeKubelet(kubelet.path)
    again.pods = [pod("a", "b", {"nvidia.com/gpu": [GPU]})]
    assert len(client.list()) == 1
    again.close()


def test_no_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(KubeletError, match="No such file") as failed:
        KubeletClient(tmp_path / "none.sock").list()
    assert failed.value.kind == "unreachable"


def test_a_kubelet_that_never_answers_costs_the_timeout_and_no_more(
    kubelet: FakeKubelet, client: KubeletClient
) -> None:
    kubelet.answer = lambda _path: None
    begun = time.monotonic()
    with pytest.raises(KubeletError) as failed:
        client.list()
    assert failed.value.kind == "timeout"
    assert time.monotonic() - begun < 10.0


def test_a_refusal_keeps_grpc_s_code(kubelet: FakeKubelet, client: KubeletClient) -> None:
    kubelet.status = "12"  # UNIMPLEMENTED: GetAllocatableResources before 1.23
    with pytest.raises(KubeletError, match="refused GetAllocatableResources: 12 no") as failed:
        client.allocatable()
    assert failed.value.kind == "grpc_12"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "no_message"),
        (b"\0\0\0", "no_message"),
        (b"\1\0\0\0\0", "malformed"),  # compressed
        (struct.pack(">BI", 0, 100) + b"x", "malformed"),
        (struct.pack(">BI", 0, 3) + b"\x0a\xff\x01", "malformed"),  # a field longer than the message
        (struct.pack(">BI", 0, 2) + b"\x0b\x00", "malformed"),  # a group
        (struct.pack(">BI", 0, 12) + b"\x08" + b"\xff" * 11, "malformed"),  # a number without an end
        (struct.pack(">BI", 0, 60_000) + b"\0" * 60_000, "too_large"),
    ],
)
def test_a_broken_answer_is_an_error_of_a_known_kind(
    kubelet: FakeKubelet, client: KubeletClient, body: bytes, kind: str
) -> None:
    kubelet.answer = lambda _path: body
    with pytest.raises(KubeletError) as failed:
        client.list()
    assert failed.value.kind == kind
    kubelet.answer = None
    assert client.list() == ()


def test_importing_the_module_loads_neither_httpx_nor_h2() -> None:
    program = "import sys, collector.jobs.kubelet; sys.exit('httpx' in sys.modules or 'h2' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])


def test_a_kubelet_that_sends_frames_without_end_and_no_answer_is_given_up_in_time(kubelet: FakeKubelet) -> None:
    stop, path = threading.Event(), kubelet.path.with_name("endless.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while not stop.wait(0.02):
                connection.sendall(b"\0\0\0\x04\0\0\0\0\0")  # settings, none of them changed

    thread = threading.Thread(target=serve)
    thread.start()
    client = KubeletClient(path, timeout_s=0.2)
    began_s = time.monotonic()
    with pytest.raises(KubeletError) as failed:
        client.list()
    assert failed.value.kind == "timeout"
    assert time.monotonic() - began_s < 5
    stop.set()
    thread.join()
    client.close()
    listener.close()
