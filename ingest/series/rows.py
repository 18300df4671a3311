"""From samples to rows: which node, which row, which column, in that column's unit. Rows of a node become a body as agents send it.

A row holds what one request told of a thing at an instant. Where another request tells more of it, that is another row,
and both are one where they are read: each column its largest value. So of several values of one column at one instant,
as an exporter tells them for each pod that shares a device, the largest is taken here too, and it makes no difference how
series are spread over requests.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from collector.wire import UNKNOWN_MODEL, DeviceRef, Origin, Stream
from ingest.series import host
from ingest.series.labels import Skip
from ingest.series.memory import Known, Memory
from ingest.series.names import Unit
from ingest.series.places import Entry, Place, on
from ingest.series.samples import Samples
from ingest.series.units import DERIVED, converted, type_of

_STALE_BITS: Final = 0x7FF0_0000_0000_0002
"""The NaN with which Prometheus says that a series ended."""
_HEALTH_US: Final = 60_000_000
Columns = dict[str, np.ndarray[Any, Any]]


@dataclass(slots=True)
class Tally:
    """What became of samples that are in no row, and what was odd about rows. None of it is an error of the request."""

    by_name: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by metric name and reason, of names without a place."""
    samples: Counter[str] = field(default_factory=Counter)
    """Samples by outcome: kept, stale, not_a_number, unusable, no_node, too_many_new,
    too_many_devices, unit_not_known, nothing_before."""
    late_rows: int = 0
    """Rows of which a later one was told before. They are kept."""


@dataclass(frozen=True, slots=True)
class NodeRows:
    """Rows of one node: by stream, what each row is of, and the columns that have values, NaN where a row has none."""

    node: str
    origin: Origin
    known: Known
    streams: Mapping[Stream, tuple[list[tuple[str, ...]], np.ndarray[Any, Any], Columns]]
    """Subjects, instants (µs) and columns."""


class _Row(NamedTuple):
    """A thing of a node that rows are about."""

    node: str
    origin: Origin
    stream: Stream
    subject: tuple[str, ...]


def rows_of(
    samples: Samples, entries: list[Entry], memory: Memory, site_id: int, own_node: str | None, now_us: int
) -> tuple[list[NodeRows], Tally]:
    """Return the rows that samples make. ``own_node`` is whose they are where no label says it."""
    tally = Tally()
    series, at_us, values = _with_values(samples, tally)
    rows: dict[_Row, int] = {}
    columns: dict[tuple[Stream, str, Unit], int] = {}
    devices: dict[int, tuple[DeviceRef, ...]] = {}
    numbers, inverse, counts = np.unique(series, return_inverse=True, return_counts=True)
    row_of, column_of = np.full(len(numbers), -1), np.full(len(numbers), -1)
    for position, (number, count) in enumerate(zip(numbers.tolist(), counts.tolist(), strict=True)):
        entry = entries[number]
        if isinstance(entry, Skip):
            tally.by_name[entry.name, entry.reason] += count
            continue
        if not isinstance(entry, Place):
            continue  # of a pod or an error: ingest.series.pods and ingest.series.xids take it
        node = entry.node or own_node
        if node is None:
            tally.samples["no_node"] += count
            continue
        there = on(entry, node)
        row = _Row(node, there.origin, there.stream, there.subject)
        row_of[position] = number_of_row = rows.setdefault(row, len(rows))
        column_of[position] = columns.setdefault((there.stream, there.column, there.unit), len(columns))
        if there.device is not None:
            devices[number_of_row] = (there.device,) if there.board is None else (there.board, there.device)
    placed = row_of[inverse] >= 0
    cells = _Cells(row_of[inverse][placed], column_of[inverse][placed], at_us[placed], values[placed])
    cells = _in_units(cells, list(columns), tally)
    return _by_node(cells, list(rows), list(columns), devices, memory, (site_id, own_node), now_us, tally), tally


def _with_values(
    samples: Samples, tally: Tally
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    finite = np.isfinite(samples.values)
    if finite.all():
        return samples.series, samples.at_us, samples.values
    stale = samples.values.view(np.int64) == _STALE_BITS
    tally.samples["stale"] += int(stale.sum())
    tally.samples["not_a_number"] += int((~finite & ~stale).sum())
    return samples.series[finite], samples.at_us[finite], samples.values[finite]


@dataclass(frozen=True, slots=True)
class _Cells:
    """Values with where they go, a column each."""

    row: np.ndarray[Any, Any]
    column: np.ndarray[Any, Any]
    at_us: np.ndarray[Any, Any]
    value: np.ndarray[Any, Any]

    def only(self, chosen: np.ndarray[Any, Any]) -> _Cells:
        return _Cells(self.row[chosen], self.column[chosen], self.at_us[chosen], self.value[chosen])

    def tuples(self) -> Iterator[tuple[int, int, int, float]]:
        """Return row, column, instant and value of each."""
        return zip(self.row.tolist(), self.column.tolist(), self.at_us.tolist(), self.value.tolist(), strict=True)


def _in_units(cells: _Cells, columns: list[tuple[Stream, str, Unit]], tally: Tally) -> _Cells:
    """Return the cells with values as their columns have them, without those that cannot be taken."""
    values = np.empty(len(cells.value))
    for column, (stream, name, unit) in enumerate(columns):
        chosen = cells.column == column
        values[chosen] = converted(cells.value[chosen], unit, type_of(stream, name))
    good = ~np.isnan(values)
    tally.samples["unusable"] += int((~good).sum())
    return _Cells(cells.row[good], cells.column[good], cells.at_us[good], values[good])


def _by_node(
    cells: _Cells,
    rows: list[_Row],
    columns: list[tuple[Stream, str, Unit]],
    devices: Mapping[int, tuple[DeviceRef, ...]],
    memory: Memory,
    sender: tuple[int, str | None],
    now_us: int,
    tally: Tally,
) -> list[NodeRows]:
    by_node: dict[tuple[str, Origin], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_node[row.node, row.origin].append(number)
    node_of_row = np.zeros(len(rows), dtype=np.int64)
    for position, members in enumerate(by_node.values()):
        node_of_row[members] = position
    order = np.lexsort((cells.at_us, cells.row, node_of_row[cells.row]))
    cells = cells.only(order)
    bounds = np.searchsorted(node_of_row[cells.row], np.arange(len(by_node) + 1))
    found: list[NodeRows] = []
    memory.ask(sender[0], by_node.keys())
    for position, (node, origin) in enumerate(by_node):
        mine = cells.only(np.arange(bounds[position], bounds[position + 1]))
        known = memory.of(sender[0], node, origin)
        strange = [
            number
            for number in by_node[node, origin]
            if not memory.admits(known, rows[number].stream, rows[number].subject, now_us, sender)
        ]
        if strange:
            admitted = ~np.isin(mine.row, strange)
            tally.samples["too_many_new"] += int((~admitted).sum())
            mine = mine.only(admitted)
        # Only what has rows: each that is named becomes a row of the database.
        named = [device for number in np.unique(mine.row).tolist() for device in devices.get(number, ())]
        if named and not known.name(list(_described(named).values()), now_us):
            of_devices = np.isin(mine.row, list(devices))
            tally.samples["too_many_devices"] += int(of_devices.sum())
            mine = mine.only(~of_devices)
        streams = {
            stream: made
            for stream in sorted({columns[column][0] for column in np.unique(mine.column).tolist()})
            if (made := _stream(stream, mine, rows, columns, known, now_us, tally)) is not None
        }
        if streams:
            found.append(NodeRows(node, origin, known, streams))
    return found


def _described(named: Iterable[DeviceRef]) -> dict[str, DeviceRef]:
    """Return each device once: of several descriptions one that says something, the same whatever their order."""
    ordered = sorted(
        named, key=lambda ref: (ref.model != UNKNOWN_MODEL, ref.model, ref.mig_profile or "", ref.pci_bus_id or "")
    )
    return {device.uuid: device for device in ordered}


def _stream(
    stream: Stream,
    cells: _Cells,
    rows: list[_Row],
    columns: list[tuple[Stream, str, Unit]],
    known: Known,
    now_us: int,
    tally: Tally,
) -> tuple[list[tuple[str, ...]], np.ndarray[Any, Any], Columns] | None:
    """Return one node's rows of one stream: their subjects, instants and columns; None where no value is left."""
    table: dict[tuple[tuple[str, ...], int], int] = {}
    filled: dict[str, dict[int, float]] = defaultdict(dict)
    idle: list[tuple[str, int, float]] = []
    kept = 0
    for number, column, at_us, value in cells.tuples():
        of_stream, name, unit = columns[column]
        if of_stream is not stream:
            continue
        subject = rows[number].subject
        if name == "cpu_idle_s":
            idle.append((subject[1], at_us, value))
            continue
        taken: float | None = value
        if unit == "violation":
            taken = host.throttled_ns(known, subject[0], name, at_us, value)
        if taken is None:
            tally.samples["unit_not_known"] += 1
            continue
        row = table.setdefault((subject, at_us), len(table))
        kept += name not in DERIVED
        values = filled[name]
        held = values.get(row)
        values[row] = taken if held is None or taken > held else held
    tally.samples["kept"] += kept
    _derive(filled, table, idle, known, tally)
    return _finished(stream, filled, table, known, now_us, tally)


def _derive(
    filled: dict[str, dict[int, float]],
    table: dict[tuple[tuple[str, ...], int], int],
    idle: list[tuple[str, int, float]],
    known: Known,
    tally: Tally,
) -> None:
    """Fill the columns that are made of several series."""
    totals = filled.get("memory_total_bytes", {})
    for row, available in filled.pop("memory_available_bytes", {}).items():
        used = host.used_bytes(known, totals.get(row), available)
        tally.samples["kept" if used is not None else "nothing_before"] += 1
        if used is not None:
            filled["memory_used_bytes"][row] = used
    for total in totals.values():
        known.memory_total_bytes = total
    loads = host.load_ratio(known, idle)
    for at_us, ratio in loads.items():
        filled["cpu_util_ratio"][table.setdefault((("host",), at_us), len(table))] = ratio
    used_for_load = sum(at_us in loads for _, at_us, _ in idle)
    tally.samples["kept"] += used_for_load
    tally.samples["nothing_before"] += len(idle) - used_for_load


def _finished(
    stream: Stream,
    filled: Mapping[str, Mapping[int, float]],
    table: Mapping[tuple[tuple[str, ...], int], int],
    known: Known,
    now_us: int,
    tally: Tally,
) -> tuple[list[tuple[str, ...]], np.ndarray[Any, Any], Columns] | None:
    used = {row for column in filled.values() for row in column}
    if stream is Stream.DEVICE_HEALTH:
        used = {row for (subject, at_us), row in table.items() if row in used and _is_due(known, subject, at_us)}
    if not used:
        return None
    # In order of time, so that a node's spacing is learned as it was.
    ordered = sorted((at_us, subject, row) for (subject, at_us), row in table.items() if row in used)
    for at_us, subject, _ in ordered:
        tally.late_rows += known.is_late(stream, subject, at_us)
        if stream is Stream.DEVICE and at_us <= now_us:
            known.cadence.saw(at_us)
    place_of = {row: place for place, (_, _, row) in enumerate(ordered)}
    columns = {name: _column(values.items(), place_of) for name, values in filled.items() if values}
    at = np.array([at_us for at_us, _, _ in ordered], dtype=np.int64)
    return [subject for _, subject, _ in ordered], at, columns


def _is_due(known: Known, subject: tuple[str, ...], at_us: int) -> bool:
    """Whether a health row is kept: a minute after the last, or another piece of that."""
    latest_us = known.latest_us.get((Stream.DEVICE_HEALTH, subject), 0)
    return at_us <= latest_us or at_us >= latest_us + _HEALTH_US


def _column(values: Iterable[tuple[int, float]], place_of: Mapping[int, int]) -> np.ndarray[Any, Any]:
    column = np.full(len(place_of), np.nan)
    for row, value in values:
        if row in place_of:
            column[place_of[row]] = value
    return column
