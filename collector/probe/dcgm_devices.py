"""Sorts what dcgm-exporter tells by device: boards and MIG instances.

Pure: a scrape in, devices out. Labels of pods and jobs only tell repeats apart; they are no evidence of who holds a device (docs/jobs.md). The exporter repeats a device's series for each pod and job that shares it, and a board's
power for each of its MIG instances; here each device has each metric once, or not at all where the repeats contradict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from collector.probe.dcgm_fields import HEALTH_MEANINGS, MEANINGS
from collector.probe.prometheus_text import Sample
from collector.wire import UNKNOWN_MODEL, DeviceRef

_MAX_DEVICES: Final = 512
_MAX_LABEL: Final = 255
_PROFILE: Final = re.compile(r"(?:\d+c\.)?(\d+)g\.\d+gb(?:\+.*)?")
_SLICES: Final = 7
_SLICES_A30: Final = 4


class _Told(NamedTuple):
    rank: int
    """0 where it was told for the device itself, else 1 + the number of the MIG instance it was told for."""
    held: bool
    """Told for a pod or job."""
    sample: Sample


@dataclass(slots=True)
class Device:
    """One device of a scrape, and its metrics by name."""

    ref: DeviceRef
    told: dict[str, list[_Told]] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)


def devices_of(samples: Iterable[Sample], errors: Counter[str], hostname: str | None = None) -> dict[str, Device]:
    """Return the devices by UUID, boards before their instances, in order of appearance.

    DCGM tells a MIG instance by its board and number only; it gets the UUID ``MIG-<board>/<number>/0``, which is how drivers
    before 470 named the first compute instance.
    """
    devices: dict[str, Device] = {}
    for sample in samples:
        labels = sample.labels
        uuid = labels.get("UUID") or labels.get("gpu_uuid") or labels.get("uuid") or ""
        if hostname is not None and labels.get("Hostname", labels.get("hostname")) != hostname:
            errors["dcgm:other_host"] += 1
            continue
        if not 0 < len(uuid) <= _MAX_LABEL or not uuid.isprintable():
            errors["dcgm:no_uuid"] += 1
            continue
        board = devices.get(uuid)
        if board is None:
            if len(devices) >= _MAX_DEVICES:
                errors["dcgm:too_many_devices"] += 1
                continue
            board = devices[uuid] = Device(_board(uuid, labels))
        target, rank = board, 0
        number = labels.get("GPU_I_ID", "")
        if number.isdecimal() and len(number) <= 3:
            rank = 1 + int(number)
            instance = _instance(devices, board.ref, number, labels)
            meaning = MEANINGS.get(sample.name) or HEALTH_MEANINGS.get(sample.name)
            if meaning is not None and not meaning.board:
                target, rank = instance, 0
        target.told.setdefault(sample.name, []).append(_Told(rank, _is_held(labels), sample))
    for device in devices.values():
        _settle(device, errors)
    return devices


def _settle(device: Device, errors: Counter[str]) -> None:
    for name, told in device.told.items():
        rank = min(entry.rank for entry in told)
        best = [entry for entry in told if entry.rank == rank]
        if len({entry.sample.text for entry in best}) > 1:
            # Newer exporters tell each pod's own part of a shared device: the device's own is the line without a pod.
            best = [entry for entry in best if not entry.held]
        if len({entry.sample.text for entry in best}) == 1:
            device.samples[name] = best[0].sample
        else:
            errors[f"dcgm:contradiction:{name}"] += 1


def _board(uuid: str, labels: dict[str, str]) -> DeviceRef:
    model = _label(labels, "modelName", "model_name", "DCGM_FI_DEV_NAME") or UNKNOWN_MODEL
    return DeviceRef(uuid, model, pci_bus_id=_label(labels, "pci_bus_id"))


def _instance(devices: dict[str, Device], board: DeviceRef, number: str, labels: dict[str, str]) -> Device:
    uuid = f"MIG-{board.uuid}/{int(number)}/0"
    known = devices.get(uuid)
    if known is not None:
        return known
    profile = _label(labels, "GPU_I_PROFILE")
    match = _PROFILE.fullmatch(profile or "")
    slices = _SLICES_A30 if "A30" in board.model else _SLICES
    share = min(1.0, int(match[1]) / slices) if match is not None and int(match[1]) > 0 else 1.0 / slices
    ref = DeviceRef(
        uuid,
        board.model,
        kind="mig",
        parent_uuid=board.uuid,
        mig_profile=profile,
        slice_ratio=share,
        pci_bus_id=board.pci_bus_id,
    )
    device = devices[uuid] = Device(ref)
    return device


def _is_held(labels: dict[str, str]) -> bool:
    # A scraper between us and the exporter that keeps its own labels renames the exporter's to exported_*.
    return _label(labels, "hpc_job", "exported_pod", "pod") is not None


def _label(labels: dict[str, str], *names: str) -> str | None:
    for name in names:
        value = labels.get(name)
        if value and len(value) <= _MAX_LABEL and value.isprintable():
            return value
    return None
