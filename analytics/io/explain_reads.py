"""Reads what explains lines of a bill: the line and its neighbours, usage hours, what was known of who held what, and rates, as its run knew it.

The samples of its devices are read apart (``explain_samples``), where whoever asks may. It sees what its connection may see, and decides
nothing: what is not there is named in a WhyError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

import polars as pl
import psycopg
from psycopg.rows import dict_row

from analytics.errors import AnalyticsError, CloseError
from analytics.frames import (
    CATEGORIES,
    ELECTRICITY,
    GPU_OWNED,
    IDLE_SPREAD,
    NODE_OVERHEAD,
    SHARED_IT,
    ApiCalls,
    Jobs,
    LedgerLines,
    NamedUsage,
)
from analytics.inputs import References
from analytics.io.disputes import name_of, parsed
from analytics.io.holds import DEVICE, JOB_KEY
from analytics.io.load import API_CALLS, JOBS
from analytics.io.load_rating import STORED_USAGE
from analytics.io.references import KNOWN, Known, load_references
from analytics.io.rows import fetch_frame

_HOUR: Final = timedelta(hours=1)
MAX_JOBS_TOLD: Final = 8
_COLUMNS: Final = ", ".join(f"lines.{name}" for name in LedgerLines.column_names() if name != "holder_key")
_LINES: Final[LiteralString] = (
    """
SELECT {columns}, coalesce(lines.holder_key, lines.line_key) AS holder_key, lines.site_id, lines.revision, lines.chain_sha256,
       lines.corrects_hour_at, lines.reason, sites.name AS site, tenants.path AS tenant
FROM current_ledger_lines AS lines JOIN sites ON sites.id = lines.site_id LEFT JOIN tenants ON tenants.id = lines.tenant_id
WHERE lines.hour_at = %(hour_at)s
"""
).replace("{columns}", _COLUMNS)
_ORDER: Final = """
ORDER BY sites.name, lines.corrects_hour_at NULLS FIRST,
         array_position(%(categories)s, lines.charge_category), lines.line_key
"""
_TOLD: Final = (GPU_OWNED, ELECTRICITY, NODE_OVERHEAD, SHARED_IT, IDLE_SPREAD)
_CATEGORIES: Final = [*_TOLD, *(category for category in CATEGORIES if category not in _TOLD)]
"""In the order in which lines are told: what was used, then what it drew, then the rest."""
_JOBS: Final = """
SELECT jobs.id, sites.name AS site, cluster, native_id, started_at, ended_at FROM jobs JOIN sites ON sites.id = jobs.site_id
WHERE (native_id = %(name)s OR cluster || '/' || native_id = %(name)s)
AND (%(start)s::timestamptz IS NULL OR date_trunc('second', started_at) = date_trunc('second', %(start)s::timestamptz))
ORDER BY started_at DESC, sites.name, cluster
"""
_JOB_HOURS: Final = """
SELECT hour_at, max(currency) AS currency, sum(billed_cost) AS billed_cost, sum(energy_mj)::bigint AS energy_mj, sum(carbon_gco2e) AS carbon_gco2e,
       count(*)::integer AS lines, bool_or(status = 'provisional') AS is_open, bool_or(corrects_hour_at IS NOT NULL) AS has_corrections
FROM current_ledger_lines WHERE job_id = %(job_id)s GROUP BY hour_at ORDER BY hour_at
"""
_HOUR_LINES: Final[LiteralString] = (
    """
SELECT {columns}, coalesce(lines.holder_key, lines.line_key) AS holder_key FROM current_ledger_lines AS lines
WHERE lines.site_id = %(site_id)s AND lines.hour_at = %(hour_at)s AND lines.corrects_hour_at IS NULL ORDER BY lines.line_key
"""
).replace("{columns}", _COLUMNS)
_REVISION: Final = """
SELECT {columns}, coalesce(lines.holder_key, lines.line_key) AS holder_key FROM ledger_lines AS lines
WHERE lines.site_id = %(site_id)s AND lines.hour_at = %(hour_at)s AND lines.revision = %(revision)s
""".replace("{columns}", _COLUMNS)
_CORRECTION: Final = "SELECT from_revision, revision FROM ledger_corrections WHERE site_id = %(site_id)s AND chain_sha256 = %(chain_sha256)s"
_USAGE: Final = (
    (
        STORED_USAGE
        + """
FROM current_usage_hours AS used JOIN {device} AS device ON device.id = used.device_id LEFT JOIN jobs ON jobs.id = used.job_id
WHERE used.site_id = %(site_id)s AND used.hour_at = %(hour_at)s AND used.holder = ANY (%(holders)s)
ORDER BY used.device_id, used.holder
"""
    )
    .replace("{device}", DEVICE)
    .replace("{job_key}", JOB_KEY)
)
_DEVICES: Final = """
SELECT devices.id, devices.uuid, devices.kind, (
    SELECT nodes.name FROM placements AS placed JOIN nodes ON nodes.id = placed.node_id
    WHERE placed.device_id = devices.id AND placed.superseded_at IS NULL AND placed.valid_from < %(to_at)s
    AND (placed.valid_to IS NULL OR placed.valid_to > %(hour_at)s) ORDER BY placed.valid_from DESC LIMIT 1) AS node
FROM devices WHERE devices.id = ANY (%(ids)s)
"""
_EVIDENCE: Final = f"""
SELECT held.device_id, devices.uuid, nodes.name AS node, held.pool, held.accelerators, held.share_ratio, held.evidence, held.start_at, held.end_at
FROM allocations AS held LEFT JOIN devices ON devices.id = held.device_id LEFT JOIN nodes ON nodes.id = held.node_id
WHERE held.job_id = %(job_id)s AND held.site_id = %(site_id)s AND held.start_at < %(to_at)s AND (held.end_at IS NULL OR held.end_at > %(hour_at)s)
AND held.id IN (SELECT id FROM allocations WHERE job_id = %(job_id)s AND {KNOWN})
ORDER BY held.start_at, nodes.name, devices.uuid, held.id
"""  # noqa: S608 (constants)
_PRICES: Final = (
    "SELECT id, provider, model, meter, amount, currency, valid_from, valid_to FROM prices WHERE id = ANY (%(ids)s)"
)
_TARIFFS: Final = (
    "SELECT id, metering_point, amount_per_kwh, currency, valid_from, valid_to FROM tariffs WHERE id = ANY (%(ids)s)"
)


class WhyError(AnalyticsError):
    """What was asked for is not there to be explained; the message says what is."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job and the hours in which it has lines, in order of time: dicts of hour_at, costs, energy, currency."""

    job_id: int
    name: str
    started_at: datetime
    hours: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class HourRead:
    """Lines of one hour and site with all they are made of, but samples. ``lines``: dicts of LedgerLines' columns and names."""

    site_id: int
    site: str
    hour_at: datetime
    lines: tuple[Mapping[str, Any], ...]
    hour_lines: pl.DataFrame
    """All that are to be seen of the hour's, with ``tenant``."""
    usage: pl.DataFrame
    """NamedUsage of the holders of ``lines``."""
    devices: Mapping[int, str]
    evidence: tuple[Mapping[str, Any], ...]
    references: References
    rates: Mapping[str, Mapping[str, Any]]
    calls: pl.DataFrame
    corrected: Mapping[bytes, tuple[pl.DataFrame, pl.DataFrame]]
    """Of corrections by their links: the hour's lines as posted before, and as they would be by now."""


def find_job(connection: psycopg.Connection[Any], text: str) -> Job:
    """Return the one job of that name: ``cluster/native_id`` or ``native_id``, with ``@start`` where it ran more than once."""
    name, _, start = text.rpartition("@")
    started_at = None
    if name:
        try:
            started_at = datetime.fromisoformat(start)
        except ValueError:
            name = ""
    started_at = started_at if started_at is None or started_at.tzinfo else started_at.replace(tzinfo=UTC)
    rows = _dicts(connection, _JOBS, {"name": name, "start": started_at}) if name else []
    rows = rows or _dicts(connection, _JOBS, {"name": text, "start": None})  # an id may hold an @ itself
    if not rows:
        raise WhyError(
            f"there is no job {text!r}; a job is called by its id or CLUSTER/ID, a line like 2026-10-03T08:00Z/3f2a91c0de11 "
            "(`wattledger disputes lines --hour ...` lists them)"
        )
    if len(rows) > 1:
        told = ", ".join(_job_name(row) for row in rows[:MAX_JOBS_TOLD]) + (", …" if len(rows) > MAX_JOBS_TOLD else "")
        raise WhyError(f"{len(rows)} jobs are called {text}: {told}; name one of them")
    (row,) = rows
    hours = tuple(_dicts(connection, _JOB_HOURS, {"job_id": row["id"]}))
    if not hours:
        raise WhyError(f"job {_job_name(row)} has no lines in the books yet, or none that are yours to see")
    return Job(row["id"], _job_name(row), row["started_at"], hours)


def costliest(job: Job) -> datetime:
    """Return the hour that cost most; where nothing is priced, took most energy. Closed hours come before open ones."""
    best = max(job.hours, key=lambda row: (not row["is_open"], row["billed_cost"] or 0, row["energy_mj"] or 0))
    hour_at: datetime = best["hour_at"]
    return hour_at


def lines_of_job(connection: psycopg.Connection[Any], job: Job, hour_at: datetime) -> list[dict[str, Any]]:
    """Return the lines of a job in an hour; raises WhyError where it has none."""
    given = {"hour_at": hour_at, "job_id": job.job_id, "categories": _CATEGORIES}
    found = _dicts(connection, _LINES + " AND lines.job_id = %(job_id)s" + _ORDER, given)
    if not found:
        first, last = (job.hours[at]["hour_at"].astimezone(UTC) for at in (0, -1))
        raise WhyError(
            f"job {job.name} has no line in the hour {hour_at.astimezone(UTC):%Y-%m-%dT%H:%MZ}; its hours are {first:%Y-%m-%dT%H:00Z} to {last:%Y-%m-%dT%H:00Z}"
        )
    return found


def line_of(connection: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    """Return the line of that name, alone; raises WhyError where there is none or the name is of several."""
    try:
        hour_at, digits = parsed(name)
    except CloseError as error:
        raise WhyError(str(error)) from None
    given = {"hour_at": hour_at, "digits": f"{digits}%", "categories": _CATEGORIES}
    found = _dicts(connection, _LINES + " AND encode(lines.chain_sha256, 'hex') LIKE %(digits)s" + _ORDER, given)
    if len(found) != 1:
        much = "more than one line is" if found else "there is no line"
        raise WhyError(f"{much} called {name}; `wattledger disputes lines --hour {hour_at:%Y-%m-%dT%H:00Z}` lists them")
    return found


def is_line(text: str) -> bool:
    """Say whether a text is the name of a line."""
    try:
        parsed(text)
    except CloseError:
        return False
    return True


def read_hour(connection: psycopg.Connection[Any], lines: Sequence[Mapping[str, Any]], known: Known) -> HourRead:
    """Return all that explains these lines of one hour and site, but samples, as it was ``known``."""
    line = lines[0]
    hour_at, site_id = line["hour_at"], line["site_id"]
    scope: dict[str, Any] = {
        "site_id": site_id,
        "hour_at": hour_at,
        "from_at": hour_at,
        "to_at": hour_at + _HOUR,
        "as_of": known.at,
        "snapshot": known.snapshot,
        "job_id": line["job_id"],
    }
    ours = [each for each in lines if each["corrects_hour_at"] is None]
    holders = sorted({_holder(each) for each in ours if each["pool"] != "api"})
    usage = fetch_frame(connection, _USAGE, scope | {"holders": holders}, NamedUsage)
    ids = usage["device_id"].unique().to_list()
    jobs = [line["job_id"]] if line["job_id"] is not None else []
    references = load_references(
        connection,
        site_id=site_id,
        from_at=hour_at,
        to_at=hour_at + _HOUR,
        as_of=known,
        currency=line["currency"],
        jobs=fetch_frame(connection, JOBS, {"job_ids": jobs}, Jobs),
    )
    paths = references.tenants.select("tenant_id", pl.col("path").alias("tenant"))
    hour_lines = fetch_frame(connection, _HOUR_LINES, scope, LedgerLines).join(paths, on="tenant_id", how="left")
    evidence = _dicts(connection, _EVIDENCE, scope) if jobs else []
    told = {row["id"]: row for row in _dicts(connection, _DEVICES, scope | {"ids": ids})}
    is_api = any(each["pool"] == "api" for each in ours)
    return HourRead(
        site_id,
        line["site"],
        hour_at,
        tuple(lines),
        hour_lines,
        usage,
        {number: _called(row["node"], row["uuid"], row["kind"]) for number, row in told.items()},
        tuple({**row, "name": _called(row["node"], row["uuid"] or row["pool"])} for row in evidence),
        references,
        _rates(connection, ours),
        fetch_frame(connection, API_CALLS, scope, ApiCalls) if is_api else ApiCalls.create_empty(),
        _corrected(connection, [each for each in lines if each["corrects_hour_at"] is not None]),
    )


def line_name(line: Mapping[str, Any]) -> str | None:
    """Return what a line is called; None in the open window."""
    return name_of(line["hour_at"], line["chain_sha256"])


def usage_of(read: HourRead, line: Mapping[str, Any]) -> pl.DataFrame:
    """Return the usage hours that a line is made of."""
    return read.usage.filter(
        (pl.col("holder") == _holder(line)) & (pl.col("device_model") == pl.lit(line["device_model"]))
    )


def _holder(line: Mapping[str, Any]) -> str:
    return str(line["holder_key"]) if line["job_id"] is None else f"job:{line['job_id']}"


def _corrected(
    connection: psycopg.Connection[Any], lines: Sequence[Mapping[str, Any]]
) -> dict[bytes, tuple[pl.DataFrame, pl.DataFrame]]:
    found: dict[bytes, tuple[pl.DataFrame, pl.DataFrame]] = {}
    for line in lines:
        given = {"site_id": line["site_id"], "chain_sha256": line["chain_sha256"], "hour_at": line["corrects_hour_at"]}
        (row,) = _dicts(connection, _CORRECTION, given)
        before, after = (
            fetch_frame(connection, _REVISION, given | {"revision": row[name]}, LedgerLines)
            for name in ("from_revision", "revision")
        )
        found[bytes(line["chain_sha256"])] = before, after
    return found


def _rates(connection: psycopg.Connection[Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the prices and tariffs that lines name, under ``price:<id>`` and ``tariff:<id>``."""
    found: dict[str, Mapping[str, Any]] = {}
    for kind, query in (("price", _PRICES), ("tariff", _TARIFFS)):
        ids = sorted({line[f"{kind}_id"] for line in lines} - {None})
        if ids:
            found |= {f"{kind}:{row['id']}": row for row in _dicts(connection, query, {"ids": ids})}
    return found


def _called(node: str | None, device: str | None, kind: str = "gpu") -> str:
    """Return what a device is called in words: its node, and enough of its UUID; what is no board bears its node's name, or its own."""
    if kind in ("chassis", "site"):
        return str(device)
    short = "" if device is None else device[:12]
    return " ".join(filter(None, [node, short])) or "a device"


def _job_name(row: Mapping[str, Any]) -> str:
    return f"{row['cluster']}/{row['native_id']}@{row['started_at'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _dicts(connection: psycopg.Connection[Any], query: LiteralString, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, given).fetchall()
