"""Asks the kubelet which pod was given which device, over its unix socket: gRPC by hand on httpx, without grpcio.

``v1.PodResourcesLister`` knows devices of device plugins and of dynamic resource allocation. It does not know a pod's UID, so a
pod is its namespace and name here; ``pods`` finds the UID. The answer is bounded in bytes and time, and nothing is asked that
changes anything.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from collector.exchange import Connections, no_cookies
from collector.jobs.protobuf import ProtobufError, children, text
from collector.memory import no_authorities

SOCKET: Final = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
MAX_DEVICES: Final = 65_536
TIMEOUT_S: Final = 2.0
_PATIENCE: Final = 3
"""The whole exchange may take this many times the timeout of one step."""
_SERVICE: Final = "http://localhost/v1.PodResourcesLister/"
_EMPTY_REQUEST: Final = b"\0\0\0\0\0"
_HEADERS: Final = {"content-type": "application/grpc", "te": "trailers"}
_FRAME_BYTES: Final = 5


class KubeletError(Exception):
    """The kubelet gave no usable answer; ``kind`` is a word for counting, the message is for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class PodDevice:
    """One device a container of a pod was given."""

    namespace: str
    pod: str
    container: str
    resource: str
    """``nvidia.com/gpu``, or the driver of a dynamic resource."""
    device: str
    """As the plugin calls it: ``GPU-…``, ``MIG-…``, ``GPU-…::3``, ``nvidia0/gi0``; with dynamic resources the driver's name."""


class KubeletClient:
    """A connection to one kubelet, kept between questions."""

    def __init__(
        self, socket: Path = SOCKET, *, timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_ANSWER_BYTES
    ) -> None:
        """Connect with the first question."""
        self.socket = socket
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._client: Any = None
        self._connections = Connections()

    def list(self) -> tuple[PodDevice, ...]:
        """Return the devices of all pods of the node. Raises KubeletError."""
        try:
            return tuple(_pod_devices(self._ask("List")))
        except ProtobufError as error:
            raise KubeletError("malformed", f"the kubelet's answer cannot be read: {error}") from error

    def allocatable(self) -> tuple[str, ...]:
        """Return the ids of all devices that pods may be given, replicas of shared ones included. Raises KubeletError.

        Kubelets before 1.23 do not answer this.
        """
        try:
            found: list[str] = []
            for devices in children(self._ask("GetAllocatableResources"), 1):
                found += [value.decode(errors="replace") for value in children(devices, 2)]
                if len(found) > MAX_DEVICES:
                    raise KubeletError("too_large", f"the kubelet lists more than {MAX_DEVICES} devices")
        except ProtobufError as error:
            raise KubeletError("malformed", f"the kubelet's answer cannot be read: {error}") from error
        return tuple(found)

    def close(self) -> None:
        """Let go of the connection; the next question opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(self, method: str) -> bytes:
        if not self.socket.exists():  # httpx would leave the socket it could not connect to the garbage collector
            self.close()
            raise KubeletError("unreachable", f"{self.socket}: No such file or directory")
        from collector.http import httpx  # noqa: PLC0415  nodes without a kubelet need neither it nor h2

        kept, late = self._client is not None, threading.Event()
        try:
            if self._client is None:
                transport = httpx.HTTPTransport(uds=str(self.socket), http1=False, http2=True, verify=no_authorities())
                self._client = httpx.Client(
                    transport=transport, timeout=self._timeout_s, trust_env=False, cookies=no_cookies()
                )
            trace = {"trace": self._connections.note}
            with (
                self._connections.within(_PATIENCE * self._timeout_s) as late,
                self._client.stream(
                    "POST", _SERVICE + method, content=_EMPTY_REQUEST, headers=_HEADERS, extensions=trace
                ) as answer,
            ):
                return _message(self._body(method, answer))
        except ImportError as error:
            raise KubeletError(
                "no_http2", "install h2 (pip install 'httpx[http2]'): the kubelet speaks HTTP/2 only"
            ) from error
        # Beside httpx's own errors what it does not translate: a head with impossible texts, a connection cut meanwhile.
        except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
            self.close()
            over = isinstance(error, httpx.TimeoutException) or late.is_set()
            if kept and not over:
                return self._ask(method)  # the kubelet was restarted since: once more, on a new connection
            kind = "timeout" if over else "unreachable"
            raise KubeletError(kind, f"{self.socket}: {error}") from error
        except KubeletError:
            self.close()
            raise

    def _body(self, method: str, answer: Any) -> bytes:
        """Return the body of a streamed answer, no larger and no later than allowed."""
        if answer.status_code != 200:
            raise KubeletError("status", f"the kubelet answered {answer.status_code}")
        status = answer.headers.get("grpc-status", "0")
        if status != "0":
            # An answer without a message carries its status where headers are; that of one with a message is in the trailers,
            # where httpx does not look: then the message itself tells.
            detail = answer.headers.get("grpc-message", "")
            raise KubeletError(f"grpc_{status:.3}", f"the kubelet refused {method}: {status:.3} {detail:.200}")
        body = bytearray()
        until = time.monotonic() + self._timeout_s
        for part in answer.iter_raw():
            body += part
            if len(body) > self._max_bytes:
                raise KubeletError("too_large", f"the kubelet's answer passes {self._max_bytes} bytes")
            if time.monotonic() > until:
                raise KubeletError("timeout", f"the kubelet's answer takes longer than {self._timeout_s:g} s")
        return bytes(body)


def _message(body: bytes) -> bytes:
    """Return the one message of a gRPC body."""
    if len(body) < _FRAME_BYTES:
        raise KubeletError("no_message", "the kubelet sent no message (its status is in the trailers)")
    compressed, length = struct.unpack(">BI", body[:_FRAME_BYTES])
    if compressed or length != len(body) - _FRAME_BYTES:
        raise KubeletError("malformed", "the kubelet's answer is compressed or cut off")
    return body[_FRAME_BYTES:]


def _pod_devices(message: bytes) -> Iterator[PodDevice]:
    count = 0
    for pod in children(message, 1):
        name, namespace = text(pod, 1), text(pod, 2)
        for container in children(pod, 3):
            for device in _container_devices(container, namespace, name):
                count += 1
                if count > MAX_DEVICES:
                    raise KubeletError("too_large", f"the kubelet lists more than {MAX_DEVICES} devices")
                yield device


def _container_devices(container: bytes, namespace: str, pod: str) -> Iterator[PodDevice]:
    name = text(container, 1)
    for devices in children(container, 2):
        resource = text(devices, 1)
        for identity in children(devices, 2):
            yield PodDevice(namespace, pod, name, resource, identity.decode(errors="replace"))
    for claim in children(container, 5):
        for resource_of_claim in children(claim, 4):
            driver, device = text(resource_of_claim, 2), text(resource_of_claim, 4)
            if device:
                yield PodDevice(namespace, pod, name, driver, device)
