"""Finds the device that a manager's name means: a UUID, a minor number, an index, a PCI address, a plugin's own word.

Slurm's numbers are those at the end of the files in gres.conf (/dev/nvidia3), so they are minor numbers, which follow the order in
which the driver met the boards; NVML's and DCGM's indices follow the PCI bus. On many servers the two differ, so without the
driver's own list a minor number of an NVIDIA board means nothing here, as does any that could mean several things.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from collector.wire import DeviceRef

Numbering = Literal["minor", "index"]

_MAX_INFORMATION_BYTES: Final = 4_096
PATIENCE_S: Final = 1.0
_MAX_BOARDS: Final = 1_024
_MINOR: Final = re.compile(r"^Device Minor:\s*([0-9]{1,4})\s*$", re.MULTILINE)
_UUID: Final = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]{8,64})\s*$", re.MULTILINE)
_PLUGIN: Final = re.compile(r"(?:nvidia|gpu-)([0-9]{1,4})(?:/vgpu[0-9]{1,4})?")
_PCI: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-9a-f])")


def read_minors(proc_root: Path) -> dict[int, str]:
    """Return the board's UUID by minor number as the NVIDIA driver lists them; empty where there is none."""
    found: dict[int, str] = {}
    try:
        folders = sorted((proc_root / "driver" / "nvidia" / "gpus").iterdir())[:_MAX_BOARDS]
    except OSError:
        return found
    for folder in folders:
        try:
            with (folder / "information").open("rb") as file:
                text = file.read(_MAX_INFORMATION_BYTES).decode(errors="replace")
        except OSError:
            continue
        minor, uuid = _MINOR.search(text), _UUID.search(text)
        if minor is not None and uuid is not None:
            found[int(minor[1])] = uuid[1]
    return found


class MinorNumbers:
    """The driver's minor numbers, asked for in a thread of their own: a driver that hangs does not answer there either."""

    def __init__(self, read: Callable[[], dict[int, str]], patience_s: float = PATIENCE_S) -> None:
        """Ask ``read``, and wait for it at most so long."""
        self._read = read
        self._patience_s = patience_s
        self._known: dict[int, str] = {}
        self._asking: threading.Thread | None = None

    def ask(self) -> tuple[dict[int, str], bool]:
        """Return the numbers as known last, and whether the driver has answered. Only one question is open at a time."""
        patience_s = 0.0
        if self._asking is None:
            patience_s = self._patience_s
            self._asking = threading.Thread(target=self._ask, name="jobs-minors", daemon=True)
            self._asking.start()
        self._asking.join(patience_s)
        if self._asking.is_alive():
            return self._known, False
        self._asking = None
        return self._known, True

    def _ask(self) -> None:
        self._known = self._read()


class DeviceNames:
    """The devices of a node by every name they go by."""

    def __init__(self, devices: Sequence[DeviceRef], minors: dict[int, str]) -> None:
        """Learn the names of the devices that are there."""
        self.devices = tuple(devices)
        boards = [device for device in devices if device.kind == "gpu"]
        self._uuids = {device.uuid.lower(): device.uuid for device in devices}
        self._cut_up = {device.parent_uuid for device in devices if device.kind == "mig"}
        ordered = boards
        if all(device.pci_bus_id for device in boards):
            ordered = sorted(boards, key=lambda device: _pci(device.pci_bus_id or ""))
        self._indices = {number: device.uuid for number, device in enumerate(ordered)}
        self._minors = minors
        self.numbered = bool(minors) or not any(device.vendor == "nvidia" for device in boards)
        """Whether minor numbers can be told; other vendors' follow their indices."""
        self._buses = {_pci(device.pci_bus_id): device.uuid for device in boards if device.pci_bus_id}

    def find(self, name: str, numbering: Numbering = "minor") -> str | None:
        """Return the UUID of the device that is meant; None where it is not here or the name is ambiguous.

        A replica's ending (``::3``) is no part of a name. The number of a board that is cut into MIG instances names none of them.
        """
        name = name.partition("::")[0]
        uuid = self._uuids.get(name.lower())
        if uuid is not None:
            return uuid
        plugin = _PLUGIN.fullmatch(name)
        if plugin is not None:
            return self._number(int(plugin[1]), "minor")
        if name.isascii() and name.isdigit() and len(name) <= 4:
            return self._number(int(name), numbering)
        return self._buses.get(_pci(name)) if _PCI.fullmatch(name.lower()) else None

    def _number(self, number: int, numbering: Numbering) -> str | None:
        if numbering == "minor" and (self._minors or not self.numbered):
            uuid = self._uuids.get(self._minors.get(number, "").lower())
        else:
            uuid = self._indices.get(number)
        return None if uuid in self._cut_up else uuid


def _pci(address: str | None) -> tuple[int, ...]:
    """Return a PCI address in a form that sorts and compares: NVML writes eight digits of domain, the kernel four."""
    found = _PCI.fullmatch((address or "").lower())
    return (-1,) if found is None else tuple(int(part or "0", 16) for part in found.groups())
