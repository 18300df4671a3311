"""Where a series goes, by its name and labels: node, row and column; or why it goes nowhere. Pure; nothing is remembered here.

Labels are what a sender chose to write, so each is checked before it names anything of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from collector.wire import MAX_META_CHARACTERS, UNKNOWN_MODEL, DeviceRef, Origin, Stream, cleaned
from ingest.series.kube import KUBE, NodePiece, PodPiece, kube_piece
from ingest.series.labels import Skip, label, origin_of
from ingest.series.names import COUNTED_ELSEWHERE, DCGM, DCGM_HEALTH, ENGINES, HARDWARE, KNOWN, NODES, Meaning, Unit
from ingest.series.xids import XIDS, XidPiece, xid_piece

NODE_LABELS: Final = (
    "Hostname",
    "hostname",
    "host.name",
    "k8s.node.name",
    "node",
    "nodename",
    "kubernetes_node",
    "exported_node",
    "server.address",
    "net.host.name",
    "instance",
    "service.instance.id",
)
"""Which label names the node: the first that is there. Of the last two the port is left out.

A collector that scrapes tells an exporter's address as ``server.address`` (older ones as ``net.host.name``) and, with its port,
as ``service.instance.id``: of one host each exporter has another.
"""
_WITH_PORT: Final = frozenset({"instance", "service.instance.id"})
_PROFILE: Final = re.compile(r"(?:\d+c\.)?(\d+)g\.\d+gb(?:\+.*)?")
_SLICES: Final = 7
_SLICES_A30: Final = 4
_MOST_INSTANCES_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Place:
    """One column of one row-to-be. ``node`` is None where no label names it: then the sender's token has to."""

    stream: Stream
    node: str | None
    subject: tuple[str, ...]
    """Device UUID; meter; port; engine and model; and for the idle time of a processor the processor."""
    column: str
    unit: Unit
    device: DeviceRef | None = None
    board: DeviceRef | None = None
    """Of a MIG instance."""
    origin: Origin = Origin.LIVE
    is_local: bool = False
    """Whether the device's identity is unique on its host only: :func:`on` says whose it is where no label does."""


Entry = Place | Skip | PodPiece | NodePiece | XidPiece
"""What a series is: a column of a row, a word on a pod or node of Kubernetes, a device's last error, or a name to count."""


def place(name: str, labels: Mapping[str, str], node_labels: Sequence[str] = NODE_LABELS) -> Entry:
    """Return where a series goes. ``labels`` are without its name."""
    if not is_known(name):
        return Skip(name, reason_of(name))
    if name in KUBE:
        return kube_piece(name, labels)
    node = _node(labels, node_labels)
    if name in XIDS:
        return xid_piece(name, labels, node)
    origin = origin_of(labels)
    if name in DCGM or name in DCGM_HEALTH:
        return _of_device(name, DCGM.get(name) or DCGM_HEALTH[name], labels, node, origin)
    if name in ENGINES:
        return _of_engine(name, ENGINES[name], labels, node, origin)
    if name in NODES:
        return _of_node(name, NODES[name], labels, node, origin)
    return _of_hardware(name, labels, node, origin)


def on(entry: Place, node: str) -> Place:
    """Return the place of a series whose node no label names, only the sender's token: its device goes by that node."""
    if entry.node is not None or not entry.is_local or entry.device is None:
        return entry
    uuid = _local(node, entry.device.uuid.removeprefix(_local("", "")))
    return replace(entry, node=node, subject=(uuid,), device=replace(entry.device, uuid=uuid))


def reason_of(name: str) -> str:
    """Return why a name that is not known has no place."""
    if name.startswith(COUNTED_ELSEWHERE):
        return "client_histogram"
    return "kubernetes_watcher" if name.startswith("kube_") else "unmapped"


def is_known(name: str) -> bool:
    """Whether a name can have a place at all."""
    return name in KNOWN or name in KUBE or name in HARDWARE or name in XIDS


def _node(labels: Mapping[str, str], names: Sequence[str]) -> str | None:
    for name in names:
        value = label(labels, name)
        if value is not None:
            return _without_port(value) if name in _WITH_PORT else value
    return None


def _local(node: str, identity: str) -> str:
    return f"hw:{node}/{identity}"[:MAX_META_CHARACTERS]


def _without_port(instance: str) -> str:
    host, colon, port = instance.rpartition(":")
    is_address = ":" in host and not host.endswith("]")  # of IPv6, bare: its last group is no port
    return host.strip("[]") if colon and port.isdecimal() and host and not is_address else instance


def _of_device(
    name: str, meaning: Meaning, labels: Mapping[str, str], node: str | None, origin: Origin
) -> Place | Skip:
    uuid = label(labels, "UUID", "gpu_uuid", "uuid")
    if uuid is None:
        return Skip(name, "bad_labels")
    model = label(labels, "modelName", "model_name", "DCGM_FI_DEV_NAME") or UNKNOWN_MODEL
    board = _board(uuid, model, label(labels, "pci_bus_id"))
    number = labels.get("GPU_I_ID", "")
    if meaning.board or not (number.isdecimal() and number.isascii() and len(number) <= _MOST_INSTANCES_DIGITS):
        return Place(meaning.stream, node, (board.uuid,), meaning.column, meaning.unit, board, origin=origin)
    instance = _instance(board, int(number), label(labels, "GPU_I_PROFILE"))
    return Place(meaning.stream, node, (instance.uuid,), meaning.column, meaning.unit, instance, board, origin)


@lru_cache(maxsize=65_536)
def _board(uuid: str, model: str, pci_bus_id: str | None) -> DeviceRef:
    """Return a board; of its fifty series each would have one of its own."""
    return DeviceRef(uuid, model, pci_bus_id=pci_bus_id)


@lru_cache(maxsize=65_536)
def _instance(board: DeviceRef, number: int, profile: str | None) -> DeviceRef:
    """Name a MIG instance as drivers before 470 did: DCGM tells its board and number only."""
    match = _PROFILE.fullmatch(profile or "")
    slices = _SLICES_A30 if "A30" in board.model else _SLICES
    share = min(1.0, int(match[1]) / slices) if match is not None and int(match[1]) > 0 else 1.0 / slices
    return DeviceRef(
        f"MIG-{board.uuid}/{number}/0"[:MAX_META_CHARACTERS],
        board.model,
        kind="mig",
        parent_uuid=board.uuid,
        mig_profile=profile,
        slice_ratio=share,
        pci_bus_id=board.pci_bus_id,
    )


def _of_engine(
    name: str, meaning: Meaning, labels: Mapping[str, str], node: str | None, origin: Origin
) -> Place | Skip:
    instance = label(labels, "instance", "service.instance.id", "exported_instance")
    if instance is None or any(labels.get(rank, "0") != "0" for rank in ("tp_rank", "pp_rank")):
        return Skip(name, "bad_labels" if instance is None else "other_rank")
    # Each engine of a process counts its own: engine 0, which most have alone, goes by the address.
    number = label(labels, "engine", "engine_index") or "0"
    engine = instance if number == "0" else f"{instance}/{number}"
    model = label(labels, "model_name", "gen_ai.request.model") or "unknown"
    return Place(Stream.ENGINE, node, (cleaned(engine), cleaned(model)), meaning.column, meaning.unit, origin=origin)


def _of_node(name: str, meaning: Meaning, labels: Mapping[str, str], node: str | None, origin: Origin) -> Place | Skip:
    unit = meaning.unit
    subject: tuple[str, ...]
    if meaning.part == "port":
        adapter, port = label(labels, "device"), label(labels, "port")
        if adapter is None or port is None:
            return Skip(name, "bad_labels")
        subject = (cleaned(f"{adapter}/{port}"),)
    elif meaning.part == "hwmon":
        chip, sensor = label(labels, "chip"), label(labels, "sensor")
        if chip is None or sensor is None:
            return Skip(name, "bad_labels")
        subject = (cleaned(f"hwmon/{chip}/{sensor}"),)
    elif meaning.part == "host":
        subject = ("host",)
        if meaning.column == "cpu_idle_s":
            cpu = label(labels, "cpu")
            if labels.get("mode") != "idle":
                return Skip(name, "only_idle_is_needed")
            if cpu is None:
                return Skip(name, "bad_labels")
            subject = ("host", cpu)
    else:
        index = label(labels, "path", "index")
        if index is None:
            return Skip(name, "bad_labels")
        subject = (cleaned(f"{meaning.part}/{index.rpartition('/')[2]}"),)
    return Place(meaning.stream, node, subject, meaning.column, unit, origin=origin)


def _of_hardware(name: str, labels: Mapping[str, str], node: str | None, origin: Origin) -> Place | Skip:
    identity = label(labels, "hw.id", "id")
    kind = labels.get("hw.type", "gpu" if name.startswith("hw.gpu.") else "host" if name.startswith("hw.host.") else "")
    for entry in HARDWARE[name]:
        attribute, meant = entry.where
        if attribute and labels.get(attribute, "") not in meant:
            continue
        if kind == "gpu" and entry.device is not None:
            if identity is None:
                return Skip(name, "bad_labels")
            # The identity is unique on its host only, unless it is the vendor's own.
            is_local = not identity.startswith(("GPU-", "MIG-"))
            uuid = _local(node or "", identity) if is_local else identity
            model = label(labels, "hw.model", "hw.name") or UNKNOWN_MODEL
            vendor = label(labels, "hw.vendor") or ("unknown" if is_local else "nvidia")
            device = DeviceRef(uuid, model, vendor=vendor.lower())
            column, unit = entry.device.column, entry.device.unit
            return Place(Stream.DEVICE, node, (uuid,), column, unit, device, origin=origin, is_local=is_local)
        if kind in ("host", "physical_host", "enclosure", "power_supply") and entry.node is not None:
            meter = cleaned(f"hw/{kind}/{identity or 'host'}")
            return Place(Stream.NODE, node, (meter,), entry.node.column, entry.node.unit, origin=origin)
    return Skip(name, "unmapped")
