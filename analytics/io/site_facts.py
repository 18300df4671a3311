"""What no device tells of a site: one YAML file of dated facts, validated as a whole with line numbers. It stores nothing.

::

    site: berlin-1
    time_zone: Europe/Berlin
    meters:
      - {node: gpu-01, meter: redfish, parent: pdu-a}
      - {node: gpu-02, meter: ipmi, bills: false, from: 2026-11-01}
    overhead:
      - {nodes: "gpu-*", idle_w: 200, active_percent: 10, from: 2026-01-01}
    shared_it:
      - {name: leaf-1, kind: switch, power_w: 150, from: 2026-01-01}
    capacity:
      - {node: gpu-07, kind: maintenance, from: 2026-11-01T08:00Z, to: 2026-11-01T12:00Z}
    assets:
      - {asset: A-4711, device: GPU-1f2e, capitalized: 2025-01-01}
    idle:
      - {policy: proportional, basis: time, from: 2026-01-01}

A section that is there is all that holds of its kind; one that is not there stays as it is known. What is said of meters is the
exception: an entry holds from its ``from`` until the next one of its meter, and what it does not speak of stays as it is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from analytics.io.yaml_lines import Document, Fault, Plain, read, spelled
from analytics.units import PPM
from ingest.store.tenancy import TenantPathError, checked_path

EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Start of a fact without ``from``."""
MAX_ROWS: Final = 100_000
MAX_CHARACTERS: Final = 256
_NUMBER: Final = re.compile(r"\d{1,12}(\.\d{1,9})?")
_MW_PER_W: Final = 1_000
_PPM_PER_PERCENT: Final = 10_000
_MJ_PER_KWH: Final = 3_600_000_000
OVERHEAD_ERROR_PPM: Final = 300_000
"""Of a model that states none: 90 % of nodes are within 30 % of what one says of them."""
POWER_ERROR_PPM: Final = 200_000
"""Of a configured power that states none: a data sheet's, or one reading's."""


class SiteFactsError(ValueError):
    """The file cannot be used; ``faults`` says why, all of it, by line."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        super().__init__("the site's facts are not valid:\n" + "\n".join(f"  {fault}" for fault in faults))


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of a section: its line, and its values by key, in our units."""

    line: int
    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key)


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """A valid file: the sections that are in it, with their entries in the order written."""

    site: str | None
    sections: Mapping[str, tuple[Fact, ...]]


class _ValueFaultError(ValueError):
    """A value that cannot be what its key wants; the message says what it wants."""


Parse = Callable[[str, tzinfo], Any]


def _text(value: str, _: tzinfo) -> str:
    if not value.strip() or len(value) > MAX_CHARACTERS or not value.isprintable():
        raise _ValueFaultError(f"must be text of 1 to {MAX_CHARACTERS} characters")
    return value


def _scaled(factor: int, what: str, most: int, *, least: int = 0) -> Parse:
    """Parse a number of up to ``most`` into units of which ``factor`` make one; ``least``: of those units."""

    def parse(value: str, _: tzinfo) -> int:
        if _NUMBER.fullmatch(value) is None or Decimal(value) > most or round(Decimal(value) * factor) < least:
            raise _ValueFaultError(f"must be {what} as a number, {'more than 0' if least else '0'} to {most:,}")
        return round(Decimal(value) * factor)

    return parse


def _one_of(*words: str) -> Parse:
    def parse(value: str, _: tzinfo) -> str:
        if value not in words:
            raise _ValueFaultError(f"must be one of {', '.join(words)}")
        return value

    return parse


def _flag(value: str, _: tzinfo) -> bool:
    if value not in {"true", "false"}:
        raise _ValueFaultError("must be true or false")
    return value == "true"


def _tenant(value: str, _: tzinfo) -> str:
    try:
        return checked_path(value)
    except TenantPathError as error:
        raise _ValueFaultError(str(error)) from None


def _instant(value: str, zone: tzinfo) -> datetime:
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            return datetime.combine(date.fromisoformat(value), time(), zone).astimezone(UTC)
        if re.match(r"\d{4}-\d{2}-\d{2}[T ]", value):
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except ValueError:
        pass  # named below
    raise _ValueFaultError(f"{value!r} is not a date; write it like 2026-01-31")


_PERCENT: Final = _scaled(_PPM_PER_PERCENT, "a percentage", 1_000)
_PART: Final = _scaled(_PPM_PER_PERCENT, "a percentage", 100)
_WATTS: Final = _scaled(_MW_PER_W, "watts", 10**9)
_DATES: Final[dict[str, Parse]] = {"from": _instant, "to": _instant}
SECTIONS: Final[Mapping[str, Mapping[str, Parse]]] = {
    "meters": {
        "node": _text,
        "meter": _text,
        "bills": _flag,
        "level": _one_of("utility", "pdu", "cdu", "other"),
        "covers": _one_of("it", "part", "cooling", "all"),
        "parent": _text,
        "error_percent": _PERCENT,
        "wrap_kwh": _scaled(_MJ_PER_KWH, "kWh", 10**9, least=1),
        "from": _instant,
    },
    "overhead": {"nodes": _text, "idle_w": _WATTS, "active_percent": _PERCENT, "error_percent": _PERCENT, **_DATES},
    "shared_it": {
        "name": _text,
        "kind": _one_of("switch", "storage", "management", "other"),
        "power_w": _WATTS,
        "node": _text,
        "meter": _text,
        "error_percent": _PERCENT,
        **_DATES,
    },
    "capacity": {
        "node": _text,
        "device": _text,
        "kind": _one_of("reservation", "maintenance", "stranded"),
        "tenant": _tenant,
        **_DATES,
    },
    "assets": {
        "asset": _text,
        "node": _text,
        "device": _text,
        "capitalized": _instant,
        "disposed": _instant,
        **_DATES,
    },
    "idle": {
        "policy": _one_of("keep", "proportional", "fixed"),
        "basis": _one_of("time", "energy"),
        "tenant": _tenant,
        "share_percent": _PART,
        **_DATES,
    },
}
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "meters": ("meter",),
    "overhead": ("nodes", "idle_w"),
    "shared_it": ("name", "kind"),
    "capacity": ("kind",),
    "assets": ("asset", "capitalized"),
    "idle": ("policy",),
}


def check(text: str) -> SiteFacts:
    """Return the file's content, or raise :class:`SiteFactsError` with every fault of it."""
    document = read(text)
    faults = list(document.faults)
    root = document.data
    if not isinstance(root, dict):
        faults = faults or [Fault(1, "", f"must be a mapping with any of {', '.join(SECTIONS)}")]
        raise SiteFactsError(tuple(faults))
    known = {"site", "time_zone", *SECTIONS}
    for key in root.keys() - known:
        faults.append(Fault(document.line_of((key,)), key, f"unknown key; known are {', '.join(sorted(known))}"))
    zone = _zone(document, root, faults)
    site = root.get("site")
    if site is not None and not isinstance(site, str):
        faults.append(Fault(document.line_of(("site",)), "site", "must be a site's name"))
    sections = {name: tuple(_section(document, name, root[name], zone, faults)) for name in SECTIONS if name in root}
    if not faults:
        faults += [fault for name, facts in sections.items() for fault in _overlapping(name, facts)]
    if faults:
        raise SiteFactsError(tuple(sorted(faults)))
    return SiteFacts(str(site) if site is not None else None, sections)


def _zone(document: Document, root: Mapping[str, Plain], faults: list[Fault]) -> tzinfo:
    name = root.get("time_zone", "UTC")
    try:
        if isinstance(name, str):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # named below
    faults.append(Fault(document.line_of(("time_zone",)), "time_zone", f"{name!r} is not an IANA time zone"))
    return UTC


def _section(document: Document, name: str, given: Plain, zone: tzinfo, faults: list[Fault]) -> Iterator[Fact]:
    if given in ("", "null", "~"):
        return
    if not isinstance(given, list) or len(given) > MAX_ROWS:
        faults.append(Fault(document.line_of((name,)), name, f"must be a list of at most {MAX_ROWS} entries"))
        return
    for position, raw in enumerate(given):
        here = (name, position)
        if not isinstance(raw, dict):
            faults.append(
                Fault(document.line_of(here), spelled(here), f"must be a mapping of {', '.join(SECTIONS[name])}")
            )
            continue
        before = len(faults)
        values = _values(document, here, raw, SECTIONS[name], zone, faults)
        lacking = [key for key in _NEEDED[name] if key not in raw]
        faults += [Fault(document.line_of(here), spelled(here), f"says no {key}") for key in lacking]
        if len(faults) == before:
            fault = _fault(name, values)
            if fault is None:
                yield Fact(document.line_of(here), values)
            else:
                faults.append(Fault(document.line_of(here), spelled(here), fault))


def _values(
    document: Document,
    here: tuple[str | int, ...],
    raw: Mapping[str, Plain],
    keys: Mapping[str, Parse],
    zone: tzinfo,
    faults: list[Fault],
) -> dict[str, Any]:
    values = {}
    for key, value in raw.items():
        place = (*here, key)
        if key not in keys:
            known = ", ".join(sorted(keys))
            faults.append(Fault(document.line_of(place), spelled(place), f"unknown key; known are {known}"))
            continue
        try:
            values[key] = keys[key](value if isinstance(value, str) else "", zone)
        except _ValueFaultError as bad:
            faults.append(Fault(document.line_of(place), spelled(place), str(bad)))
    return values


def _fault(section: str, values: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the values of an entry together."""
    if values.get("to") is not None and values["to"] <= values.get("from", EVER):
        return "ends before it starts"
    if section == "capacity" and {"node", "device"} <= values.keys():
        return "names a node and a device; one of them"
    if section == "assets" and len({"node", "device"} & values.keys()) != 1:
        return "names a node or a device, and not both"
    if section == "assets" and values.get("disposed") is not None and values["disposed"] <= values["capitalized"]:
        return "is disposed of before it is capitalized"
    if section == "shared_it" and ("power_w" in values) == ("meter" in values):
        return "says its power_w or its meter, and not both"
    if section == "idle":
        wanted = {"proportional": {"basis"}, "fixed": {"tenant", "share_percent"}}.get(values["policy"], set())
        if {"basis", "tenant", "share_percent"} & values.keys() != wanted:
            return f"a policy {values['policy']} says {' and '.join(sorted(wanted)) or 'nothing else'}"
    return None


_SAME: Final[Mapping[str, tuple[str, ...]]] = {
    "overhead": ("nodes",),
    "shared_it": ("name",),
    "assets": ("node", "device"),
    "idle": ("tenant",),
}


def _overlapping(section: str, facts: tuple[Fact, ...]) -> Iterator[Fault]:
    """Find entries of one thing that hold at once: which of them counts nobody could say."""
    latest: dict[tuple[Any, ...], tuple[datetime | None, int]] = {}
    for fact in sorted(facts, key=lambda fact: (fact["from"] or EVER, fact.line)):
        if section not in _SAME:
            return
        same = tuple(fact[key] for key in _SAME[section])
        known = latest.get(same)
        if known is not None and (known[0] is None or known[0] > (fact["from"] or EVER)):
            yield Fault(fact.line, section, f"overlaps the entry on line {known[1]} in time; make their dates meet")
            continue
        latest[same] = (fact["to"], fact.line)
    if section == "idle":
        yield from _impossible_together(facts)


def _impossible_together(facts: tuple[Fact, ...]) -> Iterator[Fault]:
    """Find fixed parts beside another policy, and those that are more than all together: no hour could be closed by them."""
    begins = [(fact["from"] or EVER, True, fact) for fact in facts]
    ends = [(fact["to"], False, fact) for fact in facts if fact["to"] is not None]
    fixed_ppm = fixed = others = 0
    for at, is_begin, fact in sorted([*ends, *begins], key=lambda each: (each[0], each[1], each[2].line)):
        sign, is_fixed = 1 if is_begin else -1, fact["policy"] == "fixed"
        fixed, others = fixed + sign * is_fixed, others + sign * (not is_fixed)
        fixed_ppm += sign * (fact["share_percent"] or 0)
        if is_begin and fixed and others:
            yield Fault(
                fact.line, "idle", f"fixed parts and another policy hold at once from {at:%Y-%m-%d} on; one at a time"
            )
        elif is_begin and fixed_ppm > PPM:
            yield Fault(
                fact.line, "idle", f"fixed parts that hold from {at:%Y-%m-%d} on are more than 100 percent together"
            )
