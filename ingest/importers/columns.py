"""From a foreign header and text cells to our fields: names, units, types. One declaration per importer, applied to any table.

Numbers are read exactly (integers and Decimals from the text, never through a float). Refuses to guess a unit, and refuses
a file whose cells carry two different ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final, Literal

from collector.wire import MAX_STRING_BYTES, cleaned
from ingest.importers.errors import MissingColumnError, OptionError, RowError, UnitError
from ingest.importers.instants import EPOCH, US_PER_TIME_UNIT, iso_reader, numeric_reader, zone
from ingest.importers.report import ImportReport, ProgressCallback, RowLog
from ingest.importers.tabular import Table, open_table

Kind = Literal["text", "integer", "quantity", "decimal", "instant", "flag", "object"]

NULLS: Final = frozenset({"", "null", "(null)", "n/a", "[n/a]", "na", "nan", "none", "unknown", "-"})
TEXT_NULLS: Final = frozenset({"", "null", "(null)"})
"""Fewer for texts: a user may be called None."""
POWER_UNITS: Final = {"W": Decimal(1_000), "mW": Decimal(1), "kW": Decimal(1_000_000)}
"""To milliwatts."""
ENERGY_UNITS: Final = {
    "mJ": Decimal(1),
    "J": Decimal(1_000),
    "kJ": Decimal(1_000_000),
    "Wh": Decimal(3_600_000),
    "kWh": Decimal(3_600_000_000),
}
"""To millijoules."""
DURATION_UNITS: Final = US_PER_TIME_UNIT
"""To microseconds."""
_NUMBER = re.compile(r"([+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][+-]?\d{1,2})?)\s*([^\d\s.,+-][^\s]{0,15})?")
_HEADER_UNIT = re.compile(r"(.+?)\s*[\[(]\s*([^\[\]()]+?)\s*[\])]")
MAX_OBJECT_CHARACTERS: Final = 1 << 18
_TRUE, _FALSE = frozenset({"true", "t", "yes", "1"}), frozenset({"false", "f", "no", "0"})


@dataclass(frozen=True, slots=True)
class Field:
    """One of our fields: the header names it may come under, in order of preference, each with the unit it states."""

    name: str
    kind: Kind
    names: Mapping[str, str | None]
    units: Mapping[str, Decimal] = field(default_factory=dict)
    """Unit to exact factor into ours; for ``quantity`` the result is rounded half-even to a whole number of ours."""
    required: bool = False
    """The column must be there."""
    filled: bool = False
    """A row with an empty cell is refused."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file and what its reader cannot know from the bytes."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    """``--map ours=theirs``."""
    units: Mapping[str, str] = field(default_factory=dict)
    """``--unit ours=kW``."""
    tz: str | None = None
    delimiter: str | None = None
    relative_to: datetime | None = None
    """What bare numbers of time count from; None = the Unix epoch."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Accepted rows as columns; a field without a column is a list of None."""

    lines: list[int]
    values: dict[str, list[Any]]

    def rows(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Iterate the line and the named fields of each row."""
        return zip(self.lines, *(self.values[name] for name in names), strict=True)


@dataclass(frozen=True, slots=True)
class _Bound:
    field: Field
    position: int
    header: str
    unit: str | None


def read(
    source: Source,
    fields: Sequence[Field],
    report: ImportReport,
    progress: ProgressCallback | None = None,
) -> Iterator[Chunk]:
    """Yield the accepted rows of a file; refused rows go to the report with their line. The header is checked first."""
    table = open_table(source.path, source.delimiter)
    bound = _bind(table, fields, source)
    report.columns = {each.field.name: f"{each.header} [{each.unit}]" if each.unit else each.header for each in bound}
    converters = [_converter(each, source) for each in bound]
    missing = [each.name for each in fields if each.name not in {one.field.name for one in bound}]
    log, refused = report.rejections, report.rejections.total
    for raw in table.chunks([each.position for each in bound], log, progress):
        report.rows_read += len(raw.lines) + log.total - refused
        bad: set[int] = set()
        values = {
            each.field.name: _converted(cells, convert, each.field, raw.lines, bad, log)
            for each, cells, convert in zip(bound, raw.columns, converters, strict=True)
        }
        lines = raw.lines
        if bad:
            keep = [index for index in range(len(lines)) if index not in bad]
            lines = [lines[index] for index in keep]
            values = {name: [column[index] for index in keep] for name, column in values.items()}
        values.update({name: [None] * len(lines) for name in missing})
        yield Chunk(lines, values)
        refused = log.total  # whoever refused them, they were counted as read already
    report.rows_read += log.total - refused


def header_of(source: Source) -> list[str]:
    """Return the column names of a file, for importers that meet families of columns."""
    return open_table(source.path, source.delimiter).header


def normalised(header: str) -> tuple[str, str | None]:
    """Return a header as names are declared (lower case, underscores) and the unit it carries in brackets."""
    match = _HEADER_UNIT.fullmatch(header)
    name, unit = match.groups() if match else (header, None)
    return re.sub(r"[^0-9a-z]+", "_", name.strip().casefold()).strip("_"), unit


def _bind(table: Table, fields: Sequence[Field], source: Source) -> list[_Bound]:
    ours = {each.name for each in fields}
    for option, given in (("--map", source.columns), ("--unit", source.units)):
        if unknown := sorted(set(given) - ours):
            raise OptionError(
                f"{option} {unknown[0]}=…: this import has no field {unknown[0]!r}; it has {', '.join(sorted(ours))}"
            )
    found: dict[str, list[int]] = {}
    for place, header in enumerate(table.header):
        found.setdefault(normalised(header)[0], []).append(place)
    bound: list[_Bound] = []
    for each in fields:
        position = _position(each, table.header, found, source)
        if position is None and each.required:
            raise MissingColumnError(
                f"{source.path.name} has no column for {each.name!r}: accepted are {', '.join(each.names)}; "
                f"found are {', '.join(table.header[:40])}. Name it with --map {each.name}=COLUMN"
            )
        if position is None:
            continue
        header = table.header[position]
        name, bracket = normalised(header)
        unit = source.units.get(each.name) or bracket or each.names.get(name)
        if each.kind == "instant":
            bound.append(_Bound(each, position, header, _time_unit(unit, each, header)))
        else:
            bound.append(_Bound(each, position, header, _known_unit(unit, each, header) if each.units else None))
    return bound


def _position(each: Field, header: list[str], found: dict[str, list[int]], source: Source) -> int | None:
    theirs = source.columns.get(each.name)
    if theirs is not None:
        exact = [position for position, name in enumerate(header) if name == theirs.strip()]
        matches = exact or found.get(normalised(theirs)[0], [])
        if not matches:
            raise MissingColumnError(
                f"--map {each.name}={theirs}: {source.path.name} has no such column; found are {', '.join(header[:40])}"
            )
    else:
        matches = next((found[name] for name in each.names if name in found), [])
    if len(matches) > 1:
        raise OptionError(f"{source.path.name} has the column {header[matches[0]]!r} {len(matches)} times; keep one")
    return matches[0] if matches else None


def _known_unit(unit: str | None, each: Field, header: str) -> str | None:
    if unit is None or unit in each.units:
        return unit
    raise UnitError(
        f"column {header!r} is in {unit!r}; {each.name} may be in {', '.join(each.units)}: say --unit {each.name}=…"
    )


def _time_unit(unit: str | None, each: Field, header: str) -> str | None:
    if unit is None or unit in US_PER_TIME_UNIT:
        return unit
    if unit.upper() in {"ISO", "UTC"}:
        return None
    raise UnitError(
        f"column {header!r} is in {unit!r}; instants may be in iso, {', '.join(US_PER_TIME_UNIT)}: --unit {each.name}=…"
    )


def _converter(bound: _Bound, source: Source) -> Callable[[str], Any]:
    each, column = bound.field, bound.header
    match each.kind:
        case "text":
            return _text
        case "integer":
            return _integer
        case "flag":
            return _flag
        case "object":
            return _object
        case "instant":
            if bound.unit is not None:
                base = source.relative_to
                base_us = (base - EPOCH) // (EPOCH.resolution) if base else 0
                return numeric_reader(bound.unit, base_us)
            # A column the header calls UTC needs no --tz.
            stated = "UTC" if re.search(r"(?i)(^|[^a-z])utc($|[^a-z])", column.replace("_", " ")) else source.tz
            return iso_reader(each.name, zone(stated) if stated else None)
        case "quantity" | "decimal":
            return _number(each, bound)


def _number(each: Field, bound: _Bound) -> Callable[[str], Any]:
    whole = each.kind == "quantity"
    factor = each.units[bound.unit] if bound.unit else None
    whole_factor = int(factor) if factor is not None and factor == int(factor) else 0
    seen: list[str] = []

    def read_cell(cell: str) -> int | Decimal:
        if whole and whole_factor and cell.isdecimal() and len(cell) < 16:
            return int(cell) * whole_factor
        match = _NUMBER.fullmatch(cell)
        if match is None:
            hint = "; is it a decimal comma?" if "," in cell else ""
            raise RowError(f"{each.name} is not a number", f"{cell!r}{hint}")
        digits, unit = match.groups()
        value = Decimal(digits)
        if each.units:
            value *= _cell_factor(each, bound, unit, seen, cell)
        elif unit:
            raise RowError(f"{each.name} is not a number", repr(cell))
        if not whole:
            return value
        number = int(value.to_integral_value(ROUND_HALF_EVEN))
        if abs(number) >= 1 << 62:
            raise RowError(f"{each.name} is out of range", repr(cell))
        return number

    return read_cell


def _cell_factor(each: Field, bound: _Bound, unit: str | None, seen: list[str], cell: str) -> Decimal:
    unit = unit or bound.unit
    if unit is None:
        raise UnitError(
            f"column {bound.header!r} states no unit ({cell!r}); say which: --unit {each.name}=" + "|".join(each.units)
        )
    if unit not in each.units:
        raise RowError(f"{each.name} has an unknown unit", repr(cell))
    if not seen:
        seen.append(bound.unit or unit)
    if unit != seen[0]:
        raise UnitError(f"column {bound.header!r} mixes units: {seen[0]} and {unit} ({cell!r}); split the file by unit")
    return each.units[unit]


def _text(cell: str) -> str:
    size = len(cell) if cell.isascii() else len(cell.encode(errors="replace"))
    if size > MAX_STRING_BYTES:
        raise RowError("text too long", f"{size} bytes, at most {MAX_STRING_BYTES}")
    return cleaned(cell)


def _integer(cell: str) -> int:
    match = re.fullmatch(r"([+-]?\d{1,18})(?:\.0*)?", cell)
    if match is None:
        raise RowError("not a whole number", repr(cell))
    return int(match.group(1))


def _object(cell: str) -> dict[str, Any]:
    if len(cell) > MAX_OBJECT_CHARACTERS:
        raise RowError("text too long", f"{len(cell)} characters, at most {MAX_OBJECT_CHARACTERS}")
    try:
        found = json.loads(cell, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise RowError("not a JSON object", repr(cell[:60])) from None
    if isinstance(found, list):
        found = _pairs(found)
    if not isinstance(found, dict):
        raise RowError("not a JSON object", repr(cell[:60]))
    return found


def _pairs(items: list[Any]) -> dict[str, Any] | None:
    """Return ``[{"key": ..., "value": ...}]`` as an object; None where it is another list. Of one key twice the first counts."""
    found: dict[str, Any] = {}
    for item in items:
        named = {str(name).casefold(): value for name, value in item.items()} if isinstance(item, dict) else {}
        if not isinstance(named.get("key"), str) or "value" not in named:
            return None
        found.setdefault(named["key"], named["value"])
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _flag(cell: str) -> bool:
    folded = cell.casefold()
    if folded in _TRUE:
        return True
    if folded in _FALSE:
        return False
    raise RowError("neither true nor false", repr(cell))


def _converted(
    cells: Sequence[str | None],
    convert: Callable[[str], Any],
    each: Field,
    lines: list[int],
    bad: set[int],
    log: RowLog,
) -> list[Any]:
    nulls = TEXT_NULLS if each.kind in {"text", "object"} else NULLS
    out: list[Any] = []
    for index, raw in enumerate(cells):
        cell = raw.strip() if raw is not None else ""
        value, fault = None, None
        if cell.casefold() not in nulls:
            try:
                value = convert(cell)
            except RowError as error:
                fault = error
        elif each.filled:
            fault = RowError(f"{each.name} is empty")
        out.append(value)
        if fault and index not in bad:  # a row is counted once, for its first fault
            bad.add(index)
            log.reject(lines[index], fault.reason, fault.detail)
    return out
