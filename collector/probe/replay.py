"""Replays a trace recorded from devices as if they were here, marked ``replayed`` in everything that is sent.

A trace is CSV or JSON lines, one reading each: ``at_us``, ``uuid``, optionally ``model``, and any columns of the device
stream. A JSON line with ``stream`` (``device_health`` or ``fabric_samples``) is a row of that stream instead; a health row names its
device by ``uuid``. The instants are moved so that the first reading happens now; values are given as recorded and nothing
between two recorded readings is invented.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector import wire
from collector.clock import Clock
from collector.errors import TraceError
from collector.probe import DeviceReading, Epoch, Row, Sweep, Values
from collector.wire import DeviceRef, Feed, Origin, Stream

_NOT_RECORDED: Final = frozenset({"at_us", "device", "reading", "span_us", "samples", "samples_missed"})
_KINDS: Final = {entry.name: entry.type for entry in wire.COLUMNS[Stream.DEVICE] if entry.name not in _NOT_RECORDED}
_ROW_STREAMS: Final = (Stream.DEVICE_HEALTH, Stream.FABRIC)
_UNKNOWN_MODEL: Final = "unknown"


@dataclass(slots=True)
class _Trace:
    """Everything of one trace, in the order of time."""

    devices: list[DeviceRef]
    readings: list[DeviceReading]
    rows: list[tuple[int, Stream, Row]]


class ReplayProbe:
    """The devices of one trace."""

    def __init__(self, path: Path, clock: Clock, *, boot_id: str, driver_epoch: int = 0) -> None:
        """Load the trace. Raises TraceError naming the first bad line."""
        self._clock = clock
        self._epoch = Epoch(boot_id, driver_epoch, Feed.NATIVE, Origin.REPLAYED)
        trace = _load(path)
        self._devices, self._readings, self._rows = tuple(trace.devices), trace.readings, trace.rows
        self._next = 0
        self._next_row = 0
        self._shift_us: int | None = None

    @property
    def finished(self) -> bool:
        """Whether all of the trace was given out."""
        return self._next == len(self._readings) and self._next_row == len(self._rows)

    def read(self) -> Sweep:
        """Return the readings that are due; where several of one device are, only its last."""
        now_us = self._clock.now().wall_us
        if self._shift_us is None:
            self._shift_us = now_us - self._readings[0].at_us
        due: dict[int, DeviceReading] = {}
        while self._next < len(self._readings) and self._readings[self._next].at_us + self._shift_us <= now_us:
            reading = self._readings[self._next]
            due[reading.device] = DeviceReading(reading.device, reading.at_us + self._shift_us, dict(reading.values))
            self._next += 1
        readings = tuple(due[position] for position in sorted(due))
        return Sweep(self._epoch, self._devices, readings, rows=self._due_rows(now_us - self._shift_us))

    def close(self) -> None:
        """Do nothing: the trace is in memory."""

    def _due_rows(self, until_us: int) -> dict[Stream, tuple[Row, ...]]:
        due: dict[Stream, tuple[Row, ...]] = {}
        while self._next_row < len(self._rows) and self._rows[self._next_row][0] <= until_us:
            at_us, stream, row = self._rows[self._next_row]
            due[stream] = (*due.get(stream, ()), row | {"at_us": at_us + (self._shift_us or 0)})
            self._next_row += 1
        return due


def _load(path: Path) -> _Trace:
    trace = _Trace([], [], [])
    positions: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            records = _jsonl(lines) if path.suffix in (".jsonl", ".ndjson") else _csv(lines)
            for number, record in records:
                where = f"{path}:{number}"
                at_us = _number(where, "at_us", record.get("at_us"))
                if at_us is None:
                    raise TraceError(f"{where}: a reading needs at_us")
                if "stream" in record:
                    trace.rows.append((int(at_us), *_row(where, record)))
                    continue
                uuid = record.get("uuid")
                if not isinstance(uuid, str) or not uuid:
                    raise TraceError(f"{where}: a reading needs the uuid of its device")
                if uuid not in positions:
                    positions[uuid] = len(trace.devices)
                    trace.devices.append(DeviceRef(uuid, str(record.get("model") or _UNKNOWN_MODEL)))
                trace.readings.append(DeviceReading(positions[uuid], int(at_us), _values(where, record)))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read the trace {path}: {error}") from error
    if not trace.readings:
        raise TraceError(f"the trace {path} holds no reading")
    trace.readings.sort(key=lambda reading: reading.at_us)
    trace.rows.sort(key=lambda entry: entry[0])
    return trace


def _row(where: str, record: dict[str, object]) -> tuple[Stream, Row]:
    stream = next((entry for entry in _ROW_STREAMS if entry == record["stream"]), None)
    if stream is None:
        raise TraceError(f"{where}: no such stream: {record['stream']!r:.40}; there are {', '.join(_ROW_STREAMS)}")
    types = {entry.name: entry.type for entry in wire.COLUMNS[stream]}
    row: Row = {}
    for name, cell in record.items():
        if name == "uuid" and "device" in types:
            row["device_uuid"] = str(cell)
        elif name in ("stream", "at_us"):
            continue
        elif name not in types or name == "device":
            raise TraceError(f"{where}: no such column: {name}")
        elif types[name] == "utf8":
            row[name] = None if cell is None else str(cell)
        else:
            row[name] = _number(where, name, cell)
    return stream, row


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
