"""Replays a trace recorded from devices as if they were here, marked ``replayed`` in everything that is sent.

A trace is CSV or JSON lines, one reading each: ``at_us``, ``uuid``, optionally ``model``, and any columns of the device
stream. Its instants are moved so that the first reading happens now; values are given as recorded and nothing between
two recorded readings is invented.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from collector import wire
from collector.clock import Clock
from collector.errors import TraceError
from collector.probe import DeviceReading, Epoch, Sweep, Values
from collector.wire import DeviceRef, Feed, Origin, Stream

_NOT_RECORDED: Final = frozenset({"at_us", "device", "reading", "span_us", "samples", "samples_missed"})
_KINDS: Final = {entry.name: entry.type for entry in wire.COLUMNS[Stream.DEVICE] if entry.name not in _NOT_RECORDED}
_UNKNOWN_MODEL: Final = "unknown"


class ReplayProbe:
    """The devices of one trace."""

    def __init__(self, path: Path, clock: Clock, *, boot_id: str, driver_epoch: int = 0) -> None:
        """Load the trace. Raises TraceError naming the first bad line."""
        self._clock = clock
        self._epoch = Epoch(boot_id, driver_epoch, Feed.NATIVE, Origin.REPLAYED)
        self._devices, self._readings = _load(path)
        self._next = 0
        self._shift_us: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every reading of the trace was given out."""
        return self._next == len(self._readings)

    def read(self) -> Sweep:
        """Return the readings that are due; where several of one device are, only its last."""
        now_us = self._clock.now().wall_us
        if self._shift_us is None:
            self._shift_us = now_us - self._readings[0].at_us
        due: dict[int, DeviceReading] = {}
        while not self.finished and self._readings[self._next].at_us + self._shift_us <= now_us:
            reading = self._readings[self._next]
            due[reading.device] = DeviceReading(reading.device, reading.at_us + self._shift_us, dict(reading.values))
            self._next += 1
        return Sweep(self._epoch, self._devices, tuple(due[position] for position in sorted(due)))

    def close(self) -> None:
        """Do nothing: the trace is in memory."""


def _load(path: Path) -> tuple[tuple[DeviceRef, ...], list[DeviceReading]]:
    positions: dict[str, int] = {}
    devices: list[DeviceRef] = []
    readings: list[DeviceReading] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            records = _jsonl(lines) if path.suffix in (".jsonl", ".ndjson") else _csv(lines)
            for number, record in records:
                where = f"{path}:{number}"
                uuid = record.get("uuid")
                if not isinstance(uuid, str) or not uuid:
                    raise TraceError(f"{where}: a reading needs the uuid of its device")
                if uuid not in positions:
                    positions[uuid] = len(devices)
                    devices.append(DeviceRef(uuid, str(record.get("model") or _UNKNOWN_MODEL)))
                at_us = _number(where, "at_us", record.get("at_us"))
                if at_us is None:
                    raise TraceError(f"{where}: a reading needs at_us")
                readings.append(DeviceReading(positions[uuid], int(at_us), _values(where, record)))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read the trace {path}: {error}") from error
    if not readings:
        raise TraceError(f"the trace {path} holds no reading")
    readings.sort(key=lambda reading: reading.at_us)
    return tuple(devices), readings


def _jsonl(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TraceError(f"line {number} of the trace is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TraceError(f"line {number} of the trace is not a JSON object")
        yield number, record


def _csv(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.DictReader(lines)
    for record in reader:
        if None in record or None in record.values():
            raise TraceError(f"line {reader.line_num} of the trace has not as many cells as the header")
        yield reader.line_num, dict(record)


def _values(where: str, record: dict[str, object]) -> Values:
    unknown = record.keys() - _KINDS.keys() - {"at_us", "uuid", "model"}
    if unknown:
        raise TraceError(f"{where}: no such column: {', '.join(sorted(unknown))}")
    values: Values = {}
    for name, kind in _KINDS.items():
        if name in record:
            number = _number(where, name, record[name])
            values[name] = number if number is None or kind == "f32" else round(number)
    return values


def _number(where: str, name: str, cell: object) -> int | float | None:
    if cell is None or cell == "":
        return None
    number: int | float | None = None
    if isinstance(cell, str):
        with contextlib.suppress(ValueError):
            number = int(cell) if cell.lstrip("-").isdecimal() else float(cell)
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        number = cell
    if number is None or not math.isfinite(number):
        raise TraceError(f"{where}: {name} is not a number: {cell!r:.40}")
    return number
