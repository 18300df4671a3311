"""Imports logs of node power meters: one row per node, meter and instant, in watts or as an energy counter.

Readings that cannot be power (zero, negative, more than 2.1 MW, repeated, in the future) are counted and left out, so they are neither billed
nor smoothed over. Rows of nodes that share a meter all count: whether the log splits a shared reading it does not say, and
the published totals of such logs are sums over all rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from ingest.accept import MOST_MW
from ingest.importers.columns import ENERGY_UNITS, POWER_UNITS, Chunk, Field, Source, read
from ingest.importers.errors import OptionError
from ingest.importers.instants import EPOCH
from ingest.importers.report import KEPT_EXAMPLES, ImportReport, ProgressCallback, RowLog
from ingest.importers.run import importing
from ingest.store.import_samples import NodeDevice, Readings
from ingest.store.segments import Segments

MAX_AHEAD: Final = timedelta(minutes=5)
"""A reading later than this after now was not taken yet: the clock or the unit is wrong."""
_US_PER_DAY: Final = 86_400_000_000
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")

FIELDS: Final = (
    Field(
        "at",
        "instant",
        {
            "at": None,
            "timestamp": None,
            "time": None,
            "ts": None,
            "datetime": None,
            "date_time": None,
            "ts_s": "s",
            "ts_ms": "ms",
            "timestamp_ms": "ms",
            "time_ms": "ms",
            "at_us": "us",
            "ts_us": "us",
            "ts_ns": "ns",
            "unix_time": "s",
            "epoch_s": "s",
        },
        required=True,
        filled=True,
    ),
    Field(
        "power",
        "quantity",
        {
            "power_w": "W",
            "watts": "W",
            "power_mw": "mW",
            "power_kw": "kW",
            "power": None,
            "power_draw": None,
            "node_power": None,
            "power_watts": "W",
        },
        units=POWER_UNITS,
    ),
    Field(
        "energy",
        "quantity",
        {"energy_mj": "mJ", "energy_j": "J", "energy_kj": "kJ", "energy_wh": "Wh", "energy_kwh": "kWh", "energy": None},
        units=ENERGY_UNITS,
    ),
    Field(
        "node", "text", {"node": None, "host": None, "hostname": None, "server": None, "node_name": None}, filled=True
    ),
    Field("meter", "text", {"meter": None, "sensor": None, "psu_side": None, "feed": None}),
    Field("run", "text", {"run": None, "run_id": None, "job": None, "job_id": None}),
    Field("bench", "text", {"bench": None, "benchmark": None}),
)
_NAMING: Final = ("node", "run", "bench")


@dataclass(frozen=True, slots=True)
class NodePowerOptions:
    """How a log's rows become nodes and meters."""

    site: str
    bills: str | None = None
    """The meter that bills where a node has several; the others check it. Not needed with one meter."""
    node_name: str = "{node}"
    """Template over node, run and bench, for logs whose node numbers are local to a run: ``{run}/{node}``."""
    meter: str = "import"
    """Name of the meter where the log has no such column."""
    accelerators: int | None = None
    """Accelerators of each node: books the node as one device of that many. None: its devices have meters of their own."""
    model: str | None = None
    """Accelerator model, with ``accelerators``."""


def import_node_power(
    conn: sa.Connection,
    source: Source,
    options: NodePowerOptions,
    *,
    now: datetime,
    segments: Segments | None = None,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one log; the connection (owner role) must be idle and is committed. Raises ImportFileError.

    ``segments``: where sealed hours lie, to find what is known there; without them a log of such hours is refused.
    """
    device = _device(options)
    with importing(conn, source, kind="node-power", site=options.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        readings = Readings(conn, options.site, site_id, now=now, segments=segments)
        parsed = Parsed()
        for rows in parse(source, options, report, parsed, now, progress):
            readings.add(rows)
        names = [meter for _, meter in parsed.keys]
        bills = meter_roles(set(names), options.bills)
        written = readings.store(list(parsed.keys), bills, device, parsed.refused, KEPT_EXAMPLES)
        report.rejections.reject_many(written.repeated, "repeated timestamp", written.repeated_lines)
        report.written["node_samples"] = written.inserted
        report.unchanged = written.already_stored
        if written.first_us is not None and written.last_us is not None:
            report.saw(written.first_us, written.last_us)
        report.note(
            f"{written.nodes} nodes, {written.meters} meters, {written.devices} booked as devices; "
            f"cadence {written.cadence_us / 1_000_000:g} s"
        )
        checks = sorted(name for name, role in bills.items() if not role)
        if checks:
            report.note(f"meter {options.bills} bills, {', '.join(checks)} checks")
    return report


@dataclass
class Parsed:
    """What parsing learns besides the rows: the (node, meter) pairs by number, and refusals by day and pair."""

    keys: dict[tuple[str, str], int] = field(default_factory=dict)
    refused: Counter[tuple[int, int, str]] = field(default_factory=Counter)


def parse(
    source: Source,
    options: NodePowerOptions,
    report: ImportReport,
    parsed: Parsed,
    now: datetime,
    progress: ProgressCallback | None = None,
) -> Iterator[list[tuple[int, int, int, int | None, int | None]]]:
    """Yield chunks of (line, key, at_us, power_mw, energy_mj); zero, negative and future readings go to the report."""
    template = _template(options.node_name)
    latest_us = (now + MAX_AHEAD - EPOCH) // timedelta(microseconds=1)
    checked = False
    for chunk in read(source, FIELDS, report, progress):
        if not checked:
            _check_columns(report, template)
            checked = True
        yield list(_accepted(chunk, options, report.rejections, parsed, latest_us))


def meter_roles(names: set[str], bills: str | None) -> dict[str, bool]:
    """Return which meter bills; with several and none named, raise."""
    if bills is None and len(names) > 1:
        raise OptionError(
            f"the log has {len(names)} meters ({', '.join(sorted(names))}); say which one bills: --bills NAME"
        )
    if bills is not None and names and bills not in names:
        raise OptionError(f"--bills {bills}: the log has no such meter, only {', '.join(sorted(names))}")
    return {name: bills is None or name == bills for name in names}


def _accepted(
    chunk: Chunk, options: NodePowerOptions, log: RowLog, parsed: Parsed, latest_us: int
) -> Iterator[tuple[int, int, int, int | None, int | None]]:
    plain = options.node_name == "{node}"
    cached: dict[tuple[str | None, ...], int] = {}
    for line, at_us, power_mw, energy_mj, node, meter, run, bench in chunk.rows(
        "at", "power", "energy", "node", "meter", "run", "bench"
    ):
        place = (node, meter, run, bench)
        key = cached.get(place)
        if key is None:
            name = node if plain else _name(options.node_name, node=node, run=run, bench=bench)
            if name is None:
                log.reject(line, "node name incomplete", f"{options.node_name} with an empty part")
                continue
            key = parsed.keys.setdefault((name, meter or options.meter), len(parsed.keys))
            cached[place] = key
        reason = _fault(at_us, power_mw, energy_mj, latest_us)
        if reason is None:
            yield line, key, at_us, power_mw, energy_mj
        else:
            log.reject(line, reason, f"{power_mw} mW" if power_mw is not None else "")
            parsed.refused[at_us - at_us % _US_PER_DAY if at_us <= latest_us else 0, key, reason] += 1


def _fault(at_us: int, power_mw: int | None, energy_mj: int | None, latest_us: int) -> str | None:
    if at_us > latest_us:
        return "in the future"
    if power_mw is None and energy_mj is None:
        return "power is empty"
    if power_mw is not None and power_mw <= 0:
        return "power not positive"
    if power_mw is not None and power_mw > MOST_MW:
        return "power impossible"
    if energy_mj is not None and energy_mj < 0:
        return "energy negative"
    return None


def _device(options: NodePowerOptions) -> NodeDevice | None:
    if options.accelerators is None:
        return None
    if options.accelerators < 1 or not options.model:
        raise OptionError("--accelerators N (at least 1) needs --model, the accelerator model of the nodes")
    return NodeDevice(options.model, options.accelerators)


def _template(text: str) -> set[str]:
    names = set(_PLACEHOLDER.findall(text))
    if unknown := sorted(names - set(_NAMING)):
        raise OptionError(f"--node-name {text!r}: {{{unknown[0]}}} is none of {', '.join(_NAMING)}")
    return names


def _check_columns(report: ImportReport, template: set[str]) -> None:
    if missing := sorted(template - report.columns.keys()):
        raise OptionError(
            f"--node-name uses {{{missing[0]}}}, but {report.file_name} has no such column; write a fixed name, or --map {missing[0]}=…"
        )
    if not {"power", "energy"} & report.columns.keys():
        names = ", ".join(name for each in FIELDS if each.name in {"power", "energy"} for name in each.names)
        raise OptionError(
            f"{report.file_name} has neither power nor energy: accepted are {names}; name one with --map power=…"
        )


def _name(template: str, **values: str | None) -> str | None:
    if any(not values[name] for name in _PLACEHOLDER.findall(template)):
        return None
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)] or "", template)
