"""Imports what meters of a site above its nodes showed: utility, PDU, CDU; energy of a period, or a register at an instant.

A register that falls is refused unless it is said where it begins anew, and what it shows then is like what it showed before or after.
A file goes on from the register that an earlier one ended with. Readings of meters of nodes are samples and come by
``node-power``. It knows no books.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa

from ingest.importers.columns import ENERGY_UNITS, Chunk, Field, Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.rates import INTERVAL_FIELDS, intervals
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.store.import_meters import MeterError, MeterFact, Periods, is_open, known_registers, site_meters

LEVELS: Final = ("utility", "pdu", "cdu", "other")
COVERS: Final = ("it", "part", "cooling", "all")
_NAMES: Final = {"kwh": "kWh", "wh": "Wh", "mj": "mJ", "j": "J", "kj": "kJ"}
_STEADY: Final = 10
Reading = tuple[int, int, int]
"""at_us, line, register_mj."""
_METER: Final = Field("meter", "text", {"meter": None, "meter_id": None, "name": None, "sensor": None, "outlet": None})
_ENERGY: Final = Field(
    "energy",
    "quantity",
    {
        **{f"energy_{unit}": known for unit, known in _NAMES.items()},
        "kwh": "kWh",
        "energy": None,
        "consumption_kwh": "kWh",
        "consumption": None,
    },
    units=ENERGY_UNITS,
)
_REGISTER: Final = Field(
    "register",
    "quantity",
    {
        **{f"register_{unit}": known for unit, known in _NAMES.items()},
        "register": None,
        "counter": None,
        "total_kwh": "kWh",
    },
    units=ENERGY_UNITS,
)
_AT: Final = Field("at", "instant", {"at": None, "read_at": None, "reading_at": None})
_LEVEL: Final = Field("level", "text", {"level": None})
_PARENT: Final = Field("parent", "text", {"parent": None, "upstream": None, "fed_by": None})
_COVERS: Final = Field("covers", "text", {"covers": None})
FIELDS: Final = (*INTERVAL_FIELDS, _AT, _METER, _ENERGY, _REGISTER, _LEVEL, _PARENT, _COVERS)


@dataclass(frozen=True, slots=True)
class MeterOptions:
    site: str
    meter: str | None = None
    """Where the file has no such column."""
    level: str | None = None
    parent: str | None = None
    covers: str | None = None
    gain_ppm: int | None = None
    wrap_mj: int | None = None
    """Where a register begins anew; None: a fall is refused."""
    step: timedelta = timedelta(minutes=15)
    """Length of a row that has a start only."""


@dataclass
class _Read:
    """What a file says, before ids are known."""

    facts: dict[str, MeterFact] = field(default_factory=dict)
    periods: list[tuple[int, str, int, int, int]] = field(default_factory=list)
    registers: dict[str, list[Reading]] = field(default_factory=dict)


def import_meters(
    conn: sa.Connection,
    source: Source,
    options: MeterOptions,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import readings of one site's meters; new meters are made. Raises ImportFileError."""
    with importing(conn, source, kind="meters", site=options.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        found = _Read()
        for number, chunk in enumerate(read(source, FIELDS, report, progress)):
            if not number:
                _check_columns(report, options)
            _take(chunk, options, report, found)
        try:
            ids = site_meters(conn, site_id, found.facts.values())
        except MeterError as error:
            raise OptionError(str(error)) from error
        known = known_registers(conn, site_id, found.registers) if found.registers else {}
        for meter, told in found.registers.items():
            readings = _in_order(told, report)
            report.kept[meter] = [[at_us, register] for at_us, _, register in {readings[0]: None, readings[-1]: None}]
            gone_on = _joined(conn, ids[meter], readings, known.get(meter, []))
            found.periods.extend(_from_registers(meter, gone_on, options, report))
        rows = Periods(conn)
        rows.add((line, ids[meter], start, end, energy) for line, meter, start, end, energy in found.periods)
        written = rows.store(source.path.name, report.import_id, site_id)
        for line, at in written.overlapping:
            report.rejections.reject(abs(line), "overlaps another period of its meter", at)
        report.written["meter_readings"] = written.inserted
        report.unchanged = written.unchanged
        report.note(f"{len(found.facts)} meters")
        if written.superseded:
            report.note(f"{written.superseded} periods known before are superseded")
        if written.first_us is not None and written.last_us is not None:
            report.saw(written.first_us, written.last_us)
    return report


def _check_columns(report: ImportReport, options: MeterOptions) -> None:
    columns = report.columns.keys()
    if len({"energy", "register"} & columns) != 1:
        raise OptionError(
            f"{report.file_name} must have energy of periods, or a register, and not both: name it with --map energy=… or --map register=…"
        )
    if "register" in columns and not {"at", "start"} & columns:
        raise OptionError(f"{report.file_name} has a register but no instant: name it with --map at=…")
    if "energy" in columns and not {"start", "valid_from"} & columns:
        raise OptionError(f"{report.file_name} does not say when its periods begin: name it with --map start=…")
    if "meter" not in columns and options.meter is None:
        raise OptionError(f"{report.file_name} does not name its meter: say --meter NAME, or --map meter=…")


def _take(chunk: Chunk, options: MeterOptions, report: ImportReport, found: _Read) -> None:
    usable: dict[int, str] = {}
    for index, row in enumerate(chunk.rows("meter", "level", "parent", "covers")):
        try:
            fact = _fact(row, options)
        except RowError as error:
            report.rejections.reject(chunk.lines[index], error.reason, error.detail)
            continue
        usable[index] = fact.name
        found.facts[fact.name] = fact
    if "register" in report.columns:
        _take_registers(chunk, usable, report, found)
    else:
        _take_periods(chunk, usable, options, report, found)


def _fact(row: tuple[Any, ...], options: MeterOptions) -> MeterFact:
    _, meter, level, parent, covers = row
    name = meter or options.meter
    said, kind = level or options.level, covers or options.covers
    if name is None:
        raise RowError("meter is empty")
    if said not in {None, *LEVELS}:
        raise RowError("level unknown", f"{said!r} is none of {', '.join(LEVELS)}")
    if kind not in {None, *COVERS}:
        raise RowError("covers unknown", f"{kind!r} is none of {', '.join(COVERS)}")
    return MeterFact(name, said, parent or options.parent, kind, options.gain_ppm)


def _take_registers(chunk: Chunk, usable: Mapping[int, str], report: ImportReport, found: _Read) -> None:
    values = chunk.values
    for index, name in usable.items():
        at_us = values["at"][index] if values["at"][index] is not None else values["start"][index]
        register = values["register"][index]
        if at_us is None or register is None or register < 0:
            reason = "at is empty" if at_us is None else "no value, stays missing"
            report.rejections.reject(chunk.lines[index], reason)
        else:
            found.registers.setdefault(name, []).append((at_us, chunk.lines[index], register))


def _take_periods(
    chunk: Chunk, usable: Mapping[int, str], options: MeterOptions, report: ImportReport, found: _Read
) -> None:
    for index, to_us, from_us in intervals(chunk, report, options.step):
        if index not in usable:
            continue
        line, energy = chunk.lines[index], chunk.values["energy"][index]
        if energy is None:
            report.rejections.reject(line, "no value, stays missing")
        elif energy < 0:
            report.rejections.reject(line, "energy negative", f"{energy} mJ")
        elif to_us is None:
            report.rejections.reject(line, "end is empty")
        else:
            found.periods.append((line, usable[index], from_us, to_us, energy))


def _in_order(told: list[Reading], report: ImportReport) -> list[Reading]:
    """Return a meter's readings by their instants; of one instant the first line counts."""
    readings: list[Reading] = []
    for reading in sorted(told):
        if readings and readings[-1][0] == reading[0]:
            report.rejections.reject(reading[1], "repeated timestamp")
        else:
            readings.append(reading)
    return readings


def _joined(conn: sa.Connection, meter_id: int, readings: list[Reading], known: list[tuple[int, int]]) -> list[Reading]:
    """Return the readings with the known register before and behind them, as files tell of one register in turn.

    Not over time that something else is known of. What lies behind has the last line's number, less than nothing: a line has one period.
    """
    (first_us, _, _), (last_us, line, _) = readings[0], readings[-1]
    before = max((each for each in known if each[0] <= first_us), default=None)
    behind = min((each for each in known if each[0] >= last_us), default=None)
    joined = list(readings)
    if before is not None and before[0] < first_us and is_open(conn, meter_id, before[0], first_us):
        joined.insert(0, (before[0], 0, before[1]))
    if behind is not None and behind[0] > last_us and is_open(conn, meter_id, last_us, behind[0]):
        joined.append((behind[0], -line, behind[1]))
    return joined


def _from_registers(
    meter: str, readings: list[Reading], options: MeterOptions, report: ImportReport
) -> Iterator[tuple[int, str, int, int, int]]:
    """Yield the periods between a meter's readings, which are in the order of their instants."""
    steps = [(to_us - from_us, after - before) for (from_us, _, before), (to_us, _, after) in pairwise(readings)]
    for number, ((from_us, _, _), (to_us, line, _)) in enumerate(pairwise(readings)):
        took_us, energy = steps[number]
        if energy < 0 and options.wrap_mj is not None:
            lifted = energy + options.wrap_mj
            beside = steps[max(number - 1, 0) : number] + steps[number + 1 : number + 2]
            if lifted < 0 or not _goes_on(took_us, lifted, beside):
                report.rejections.reject(abs(line), "register fell", "too far for one that begins anew at its limit")
                continue
            energy = lifted
        if energy < 0:
            report.rejections.reject(abs(line), "register fell", "say where it begins anew: --wrap")
        else:
            yield line, meter, from_us, to_us, energy


def _goes_on(took_us: int, energy: int, beside: list[tuple[int, int]]) -> bool:
    """Whether so much is at most ten times the power of the step before or after; else the meter was swapped, or set back.

    As the books judge the counters of nodes (docs/methodology.md §2). Where nothing stands beside it, its word is taken.
    """
    return not beside or any(grown >= 0 and energy * took <= _STEADY * grown * took_us for took, grown in beside)
