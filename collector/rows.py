"""Checks single rows and devices against the contract before they meet the others of a batch: one must not cost its neighbours.

It knows columns and their types, not what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from collector import wire
from collector.wire import MAX_META_CHARACTERS, UNKNOWN_MODEL, DeviceRef, Stream

_INTEGER_BITS: Final = {"i16": 15, "i32": 31, "i64": 63}
_BOUNDS: Final[dict[str, int]] = {kind: 2**bits for kind, bits in _INTEGER_BITS.items()}
_F32_MAX: Final = 3.4028234e38
_TYPES: Final = {stream: {entry.name: entry for entry in columns} for stream, columns in wire.COLUMNS.items()}
_REQUIRED: Final = {
    stream: tuple(entry.name for entry in columns if not entry.nullable) for stream, columns in wire.COLUMNS.items()
}


def fault_of(stream: Stream, row: Mapping[str, int | float | str | None]) -> str | None:
    """Return why a row cannot travel in a stream, or None."""
    columns = _TYPES[stream]
    for name in _REQUIRED[stream]:
        if row.get(name) is None:
            return f"{name} is missing"
    for name, value in row.items():
        entry = columns.get(name)
        if entry is None:
            return f"there is no column {name}"
        if value is not None and not _fits(entry.type, value):
            return f"{name} cannot hold {value!r:.60}"
    return None


def fits_i64(value: int) -> bool:
    """Say whether a 64-bit column can hold a number: drivers tell unsigned ones."""
    return -_BOUNDS["i64"] <= value < _BOUNDS["i64"]


def fitting(device: DeviceRef) -> DeviceRef:
    """Return a device with its texts as a batch may name it: a driver's odd byte must not have all batches refused."""
    texts = {
        "uuid": _label(device.uuid),
        "model": _label(device.model) or UNKNOWN_MODEL,
        "vendor": _label(device.vendor) or UNKNOWN_MODEL,
        "parent_uuid": _label(device.parent_uuid),
        "mig_profile": _label(device.mig_profile),
        "pci_bus_id": _label(device.pci_bus_id),
    }
    same = all(getattr(device, name) == text for name, text in texts.items())
    return device if same else replace(device, **texts)  # type: ignore[arg-type]


def _label(text: str | None) -> str | None:
    if text is None:
        return None
    shown = text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
    return shown[:MAX_META_CHARACTERS]


def _fits(kind: wire.ColumnType, value: object) -> bool:
    if kind == "utf8":
        return isinstance(value, str)
    if kind == "f32":
        return isinstance(value, int | float) and -_F32_MAX <= value <= _F32_MAX  # which nothing that is no number is
    bound = _BOUNDS[kind]
    return isinstance(value, int) and -bound <= value < bound
