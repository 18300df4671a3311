"""A kubelet's pod-resources service: real HTTP/2 frames and gRPC trailers on a unix socket, messages by Google's own protobuf."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TEXT, _MESSAGE, _INT64 = 9, 11, 3
_ONE, _MANY = 1, 3
# k8s.io/kubelet/pkg/apis/podresources/v1/api.proto, as far as devices go: name, number, type, label, message.
_SCHEMA: dict[str, list[tuple[str, int, int, int, str | None]]] = {
    "NUMANode": [("ID", 1, _INT64, _ONE, None)],
    "TopologyInfo": [("nodes", 1, _MESSAGE, _MANY, "NUMANode")],
    "ContainerDevices": [
        ("resource_name", 1, _TEXT, _ONE, None),
        ("device_ids", 2, _TEXT, _MANY, None),
        ("topology", 3, _MESSAGE, _ONE, "TopologyInfo"),
    ],
    "ClaimResource": [
        ("driver_name", 2, _TEXT, _ONE, None),
        ("pool_name", 3, _TEXT, _ONE, None),
        ("device_name", 4, _TEXT, _ONE, None),
    ],
    "DynamicResource": [
        ("claim_name", 2, _TEXT, _ONE, None),
        ("claim_namespace", 3, _TEXT, _ONE, None),
        ("claim_resources", 4, _MESSAGE, _MANY, "ClaimResource"),
    ],
    "ContainerResources": [
        ("name", 1, _TEXT, _ONE, None),
        ("devices", 2, _MESSAGE, _MANY, "ContainerDevices"),
        ("cpu_ids", 3, _INT64, _MANY, None),
        ("dynamic_resources", 5, _MESSAGE, _MANY, "DynamicResource"),
    ],
    "PodResources": [
        ("name", 1, _TEXT, _ONE, None),
        ("namespace", 2, _TEXT, _ONE, None),
        ("containers", 3, _MESSAGE, _MANY, "ContainerResources"),
    ],
    "ListPodResourcesResponse": [("pod_resources", 1, _MESSAGE, _MANY, "PodResources")],
    "AllocatableResourcesResponse": [("devices", 1, _MESSAGE, _MANY, "ContainerDevices")],
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="wattledger_test_podresources.proto", package="v1", syntax="proto3")
    for name, columns in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for column, number, kind, label, of in columns:
            entry = message.field.add(name=column, number=number, type=kind, label=label)
            if of is not None:
                entry.type_name = f".v1.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}")) for name in _SCHEMA}


MESSAGES = _classes()


def pod(namespace: str, name: str, devices: dict[str, list[str]], *, container: str = "main", claims: Any = ()) -> Any:
    """Return a pod of one container with devices by resource name, and claims as (driver, pool, device)."""
    dynamic = [
        MESSAGES["DynamicResource"](
            claim_name="c", claim_namespace=namespace,
            claim_resources=[MESSAGES["ClaimResource"](driver_name=d, pool_name=p, device_name=n)],
        )
        for d, p, n in claims
    ]  # fmt: skip
    topology = MESSAGES["TopologyInfo"](nodes=[MESSAGES["NUMANode"](ID=1)])
    held = [
        MESSAGES["ContainerDevices"](resource_name=resource, device_ids=ids, topology=topology)
        for resource, ids in devices.items()
    ]
    containers = [
        MESSAGES["ContainerResources"](name=container, devices=held, cpu_ids=[1, 2], dynamic_resources=dynamic)
    ]
    return MESSAGES["PodResources"](name=name, namespace=namespace, containers=containers)


class FakeKubelet:
    """Serves until closed; what it answers may be changed at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pods: list[Any] = []
        self.replicas: list[str] = []
        self.asked: list[str] = []
        self.answer: Callable[[str], bytes | None] | None = None
        """Instead of the true answer: the bytes of the body, or None for none at all, ever."""
        self.status = "0"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._run(self._serve)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        for connection in self._open:
            with suppress(OSError):  # closed by the other side already
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10.0)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self._run(self._speak, connection)

    def _run(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _speak(self, connection: socket.socket) -> None:
        try:
            with connection:
                server = h2.connection.H2Connection(
                    h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
                )
                server.initiate_connection()
                connection.sendall(server.data_to_send())
                paths: dict[int, Any] = {}
                while data := connection.recv(65_536):
                    for event in server.receive_data(data):
                        if isinstance(event, h2.events.RequestReceived):
                            paths[event.stream_id] = dict[Any, Any](event.headers)[":path"]
                        elif isinstance(event, h2.events.StreamEnded):
                            self._respond(server, event.stream_id, paths[event.stream_id])
                    connection.sendall(server.data_to_send())
        except (OSError, h2.exceptions.ProtocolError):
            return

    def _respond(self, server: h2.connection.H2Connection, stream: int, path: str) -> None:
        self.asked.append(path)
        head = [(":status", "200"), ("content-type", "application/grpc")]
        if self.status != "0":
            refused = [*head, ("grpc-status", self.status), ("grpc-message", "no")]
            server.send_headers(stream, refused, end_stream=True)
            return
        if self.answer is not None:
            body = self.answer(path)
            if body is None:
                return
        else:
            message = (
                MESSAGES["ListPodResourcesResponse"](pod_resources=self.pods)
                if path.endswith("/List")
                else MESSAGES["AllocatableResourcesResponse"](
                    devices=[MESSAGES["ContainerDevices"](resource_name="nvidia.com/gpu", device_ids=self.replicas)]
                )
            ).SerializeToString()
            body = struct.pack(">BI", 0, len(message)) + message
        server.send_headers(stream, head)
        size = server.max_outbound_frame_size
        for start in range(0, len(body), size):
            if server.local_flow_control_window(stream) < size:
                break
            server.send_data(stream, body[start : start + size])
        server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
