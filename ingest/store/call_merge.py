"""Decides what counts where several reports are of one call: gathers them, merges them, and puts the outcome in place.

Called with the site's lock held, in the transaction that named the reports. Which report counts is ingest.calls' rule;
this module only finds the reports of a call, wherever they are, and writes what changed.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import psycopg

from ingest.calls import ApiCall, CallSource, Report, better, counting, same_report
from ingest.store.call_reuse import MARK, MAX_REPORTS, contradicted, mark
from ingest.store.call_stage import AS_TOLD, AS_VALUE, FIELDS, KNOWN_NAME, NAMED, digest
from ingest.store.imports import EPOCH_SQL

_US: Final = "(extract(epoch FROM {}) * 1000000)::bigint"
_AT: Final = f"{EPOCH_SQL} + %s * interval '1 microsecond'"
_ROW: Final = f"source, tenant_id, {_US.format('rows.called_at')}, " + ", ".join(AS_TOLD)
# Each place is looked up by itself, along the index: a planner that has not seen the new rows yet joins in squares.
_AT_PLACES: Final = (
    f"FROM unnest(%s::bigint[], %s::text[]) AS wanted (at_us, wanted_key), LATERAL (SELECT * FROM {{}} AS found "
    f"WHERE found.site_id = %s AND found.{{}} = {EPOCH_SQL} + wanted.at_us * interval '1 microsecond' "
    "AND found.{} = wanted.wanted_key OFFSET 0) AS rows"
)
_COUNTED: Final = f"SELECT at_us, wanted_key, {_ROW} " + _AT_PLACES.format("api_calls", "called_at", "dedupe_key")
_KEPT: Final = f"SELECT at_us, wanted_key, {_ROW} " + _AT_PLACES.format("call_reports", "counted_at", "counted_key")
_PLACES: Final = (
    f"SELECT named.n, {_US.format('known.called_at')}, known.dedupe_key, named.key FROM {NAMED} AS named, {KNOWN_NAME} AS known "
    "WHERE named.site_id = %s AND named.n = ANY (%s)"
)
_COLUMNS: Final = ", ".join(FIELDS)
_VALUES: Final = ", ".join(AS_VALUE)
_DELETE_REPORTS: Final = (
    "DELETE FROM call_reports AS old USING unnest(%s::text[], %s::text[]) AS gone (source, dedupe_key) "
    "WHERE old.site_id = %s AND old.source = gone.source AND old.dedupe_key = gone.dedupe_key"
)
_INSERT_CALL: Final = (
    f"INSERT INTO api_calls (site_id, source, tenant_id, called_at, {_COLUMNS}) VALUES (%s, %s, %s, {_AT}, {_VALUES})"
)
_DELETE_CALL: Final = f"DELETE FROM api_calls WHERE site_id = %s AND called_at = {_AT} AND dedupe_key = %s"
_PUT_REPORT: Final = (
    f"INSERT INTO call_reports (counted_at, counted_key, site_id, source, tenant_id, called_at, {_COLUMNS}) "
    f"VALUES ({_AT}, %s, %s, %s, %s, {_AT}, {_VALUES}) ON CONFLICT (site_id, source, dedupe_key) DO UPDATE SET "
    + ", ".join(
        f"{name} = excluded.{name}"
        for name in ("counted_at", "counted_key", "tenant_id", "called_at", *FIELDS)
        if name != "dedupe_key"
    )
)
_POINT: Final = (
    "INSERT INTO call_keys (site_id, key, called_at, dedupe_key) "
    f"SELECT %s, name, {_AT}, %s FROM unnest(%s::uuid[]) AS name ORDER BY name "
    "ON CONFLICT (site_id, key) DO UPDATE SET called_at = excluded.called_at, dedupe_key = excluded.dedupe_key "
    f"WHERE call_keys.dedupe_key <> '{MARK}'"
)


class Place(NamedTuple):
    """The row of ``api_calls`` that counts for a call: its instant and its key."""

    at_us: int
    key: str


@dataclass(slots=True)
class _Call:
    """One call while its reports are gathered: those kept by what names them, and the rows that count for it so far."""

    reports: dict[tuple[str, str], Report] = field(default_factory=dict)
    counted: dict[Place, Report] = field(default_factory=dict)
    new: list[tuple[str, str]] = field(default_factory=list)
    found_by: set[Place | str] = field(default_factory=set)
    changed: bool = False


@dataclass(slots=True)
class Merged:
    """How the new reports fared, and the instants (µs) of calls that are no longer what they were."""

    counted: int = 0
    superseded: int = 0
    repeated: int = 0
    touched_us: list[int] = field(default_factory=list)


def merge(driver: psycopg.Connection[Any], site_id: int, reports: Mapping[int, Report]) -> Merged:
    """Put reports of one site, by their position in the stage, among those that are known of their calls."""
    places: dict[int, set[Place]] = {position: set() for position in reports}
    marked: set[str] = set()
    for position, at_us, key, name in driver.execute(_PLACES, [site_id, list(reports)]):
        if key == MARK:
            marked.add(name.hex)
        else:
            places[position].add(Place(at_us, key))
    nameless = {name for report in reports.values() for name in report.call.names() if digest(name).hex() in marked}
    calls = _gathered(driver, site_id, sorted(set().union(*places.values())), nameless)
    for position, report in reports.items():
        _add(calls, report, places[position], nameless)
    merged = Merged()
    for call in {id(call): call for call in calls.values()}.values():
        reused = contradicted(call.reports.values()) - nameless if len(call.reports) > MAX_REPORTS else set()
        if reused:
            mark(driver, site_id, reused, call.reports.values())
            for part in _taken_apart(driver, site_id, call, nameless | reused, merged):
                _store(driver, site_id, part, merged, nameless | reused)
        elif call.changed:
            _store(driver, site_id, call, merged, nameless)
        else:
            merged.repeated += len(call.new)
    return merged


def _taken_apart(
    driver: psycopg.Connection[Any], site_id: int, call: _Call, nameless: AbstractSet[str], merged: Merged
) -> list[_Call]:
    """Take what counts of a call out, and return the calls that its reports are of by names that name one."""
    for old in call.counted:
        driver.execute(_DELETE_CALL, [site_id, *old])
        merged.touched_us.append(old.at_us)
    sources, keys = zip(*call.reports, strict=True)
    driver.execute(_DELETE_REPORTS, [list(sources), list(keys), site_id])
    found: dict[Place | str, _Call] = {}
    for report in call.reports.values():
        _add(found, report, (), nameless)
    parts = list({id(part): part for part in found.values()}.values())
    for part in parts:
        part.new = [name for name in call.new if name in part.reports]
    return parts


def _names(report: Report, nameless: AbstractSet[str]) -> list[str]:
    return [name for name in report.call.names() if name not in nameless]


def _gathered(
    driver: psycopg.Connection[Any], site_id: int, places: Sequence[Place], nameless: AbstractSet[str]
) -> dict[Place | str, _Call]:
    """Return the calls at these places, by place and by each name of their reports."""
    arguments = [[place.at_us for place in places], [place.key for place in places], site_id]
    calls: dict[Place | str, _Call] = {}
    for at_us, key, *row in driver.execute(_COUNTED, arguments):
        call = calls[Place(at_us, key)] = _Call()
        call.counted[Place(at_us, key)] = _report(row)
    for at_us, key, *row in driver.execute(_KEPT, arguments):
        report = _report(row)
        calls.setdefault(Place(at_us, key), _Call()).reports[same_report(report)] = report
    for call in calls.values():
        if not call.reports:  # told by one so far: the row that counts is its report
            call.reports = {same_report(report): report for report in call.counted.values()}
    for place, call in list(calls.items()):
        call.found_by = {place, *(name for report in call.reports.values() for name in _names(report, nameless))}
        calls.update(dict.fromkeys(call.found_by, call))
    return calls


def _add(calls: dict[Place | str, _Call], report: Report, places: Iterable[Place], nameless: AbstractSet[str]) -> None:
    """Put one report among the calls, which become one where it is of several."""
    names: list[Place | str] = [*places, *_names(report, nameless)]
    found = {id(calls[name]): calls[name] for name in names if name in calls}
    call, *others = found.values() or [_Call()]
    for other in others:
        call.changed = True
        call.counted |= other.counted
        call.new += other.new
        for name, kept in other.reports.items():
            call.reports[name] = better(kept, call.reports.get(name, kept))
        call.found_by |= other.found_by
        calls.update(dict.fromkeys(other.found_by, call))
    call.found_by.update(names)
    calls.update(dict.fromkeys(names, call))
    name = same_report(report)
    known = call.reports.get(name)
    kept = report if known is None else better(known, report)
    if kept != known:
        call.reports[name] = kept
        call.changed = True
    call.new.append(name)


def _store(
    driver: psycopg.Connection[Any], site_id: int, call: _Call, merged: Merged, nameless: AbstractSet[str]
) -> None:
    best = counting(call.reports.values())
    place = Place(best.call.called_at_us, best.call.dedupe_key)
    stale = [old for old, row in call.counted.items() if old != place or row != best]
    for old in stale:
        driver.execute(_DELETE_CALL, [site_id, *old])
    if place not in call.counted or place in stale:
        driver.execute(_INSERT_CALL, [site_id, *_row(best)])
        merged.touched_us += [best.call.called_at_us, *(old.at_us for old in stale)]
    if len(call.reports) > 1:
        for report in call.reports.values():
            driver.execute(_PUT_REPORT, [*place, site_id, *_row(report)])
    names = {name for report in call.reports.values() for name in _names(report, nameless)}
    driver.execute(_POINT, [site_id, *place, [digest(name).hex() for name in names]])
    winner = same_report(best)
    merged.counted += winner in call.new
    merged.superseded += len(call.new) - (winner in call.new)


def _row(report: Report) -> list[Any]:
    call = report.call
    return [report.source.value, report.tenant_id, call.called_at_us, *(getattr(call, name) for name in FIELDS)]


def _report(row: Sequence[Any]) -> Report:
    source, tenant_id, at_us, *values = row
    call = ApiCall(called_at_us=at_us, **dict(zip(FIELDS, values, strict=True)))
    return Report(call, CallSource(source), tenant_id)
