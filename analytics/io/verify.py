"""Reads the books as an auditor would: recomputes every chain from the stored lines and adds the lines up again, and names what is wrong.

Nothing it compares with is made by the code that wrote the books: links by ``model.chain`` from the rows as they lie there, sums by SQL, groups by
exact fractions. It repairs nothing. What a whole hour says once all of its links were made anew, only a root kept elsewhere can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import polars as pl
import psycopg

from analytics.frames import API_TOKENS, CARRIERS, ELECTRICITY, GPU_OWNED, LedgerLines
from analytics.io.corrections import start_of_corrections
from analytics.io.line_names import load_names
from analytics.io.verify_usage import look_at_usage
from analytics.model.chain import Link, Names, canonical, first_break, opens, start_of_hour
from analytics.model.corrections import AMOUNTS, WHO, differences
from analytics.model.later import LATER_IDS, LATER_SOURCES
from analytics.model.money import exact_nano
from analytics.units import MJ_PER_KWH, NANO, US_PER_HOUR

_HOURS: Final = """
SELECT sites.name, hours.site_id, hours.hour_at, hours.revision, hours.run_id, hours.frozen_period_id, hours.shadow_revision, hours.shadow_run_id
FROM ledger_hours AS hours JOIN sites ON sites.id = hours.site_id
WHERE hours.status = 'closed' AND hours.hour_at >= %(from_at)s AND hours.hour_at < %(to_at)s
AND (%(site)s::text IS NULL OR sites.name = %(site)s) ORDER BY sites.name, hours.hour_at
"""
_POSTING: Final = """
SELECT sites.name, posted.site_id, posted.hour_at, hours.revision, hours.run_id, hours.frozen_period_id, hours.shadow_revision, hours.shadow_run_id
FROM (SELECT DISTINCT site_id, hour_at FROM ledger_corrections WHERE posted_hour_at >= %(from_at)s AND posted_hour_at < %(to_at)s) AS posted
JOIN sites ON sites.id = posted.site_id
LEFT JOIN ledger_hours AS hours ON hours.site_id = posted.site_id AND hours.hour_at = posted.hour_at AND hours.status = 'closed'
WHERE %(site)s::text IS NULL OR sites.name = %(site)s ORDER BY sites.name, posted.hour_at
"""
_RUNS: Final = """
SELECT id, kind, revision, coalesce(usage_revision, revision), line_count, head_sha256, coalesce(chain_version, 1) FROM ledger_runs
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision > 0 ORDER BY id
"""
_LINES: Final = "SELECT * FROM ledger_lines WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s"
_POSTED: Final = "SELECT * FROM ledger_corrections WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s ORDER BY id"
_USAGE: Final = """
SELECT holder, sum(energy_mj)::bigint, sum(carbon_gco2e) FROM usage_hours
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s GROUP BY holder ORDER BY holder
"""
_TOLD: Final[dict[str, Any]] = {
    **LedgerLines.create_empty().schema,
    "revision": pl.Int32,
    "ordinal": pl.Int32,
    "chain_sha256": pl.Binary,
    "api_key_seal": pl.Binary,
}
_CORRECTED: Final[dict[str, Any]] = {
    **{name: kind for name, kind in _TOLD.items() if name not in {"price_id", "tariff_id", "status", *LATER_SOURCES}},
    "posted_hour_at": pl.Datetime("us", "UTC"),
    "from_revision": pl.Int32,
    "run_id": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True, slots=True)
class Hour:
    """A closed hour as ``ledger_hours`` has it."""

    site: str
    site_id: int
    hour_at: datetime
    revision: int
    run_id: int
    frozen_period_id: int | None
    shadow_revision: int | None
    shadow_run_id: int | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written.

    ``kind``: altered, dropped, reordered or invented for lines; sums; usage; bills for what is summed
    for them; revision where another counts than the newest; period and document.
    """

    site: str
    hour_at: datetime | None
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at in one hour. ``heads``: last link of each chained revision, recomputed."""

    problems: tuple[Problem, ...]
    lines: int
    unchained: int
    """Lines of revisions from before chains were kept."""
    forgotten: int
    """Lines whose API key was replaced: their hash cannot be opened any more, and the chain has it still."""
    heads: Mapping[int, bytes]


def hours_between(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime, site: str | None = None
) -> list[Hour]:
    """Return closed hours by site and time."""
    given = {"from_at": from_at, "to_at": to_at, "site": site}
    return [Hour(row[0], row[1], row[2].astimezone(UTC), *row[3:]) for row in connection.execute(_HOURS, given)]


def hours_posting(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime, site: str | None = None
) -> tuple[list[Hour], list[Problem]]:
    """Return the hours whose corrections are posted in a span, by site and time, and a problem for each that has no books at all."""
    hours, problems = [], []
    given = {"from_at": from_at, "to_at": to_at, "site": site}
    for name, site_id, hour_at, revision, *rest in connection.execute(_POSTING, given):
        at = hour_at.astimezone(UTC)
        if revision is None:
            problems.append(Problem(name, at, "invented", "corrections of an hour that is not in the books"))
        else:
            hours.append(Hour(name, site_id, at, revision, *rest))
    return hours, problems


def look_at_posted(connection: psycopg.Connection[Any], hour: Hour) -> list[Problem]:
    """Check the corrections of an hour alone: their chains, and that they are what its revisions differ by."""
    at = {"site_id": hour.site_id, "hour_at": hour.hour_at}
    stored, posted = _frame(connection, _LINES, at, _TOLD), _frame(connection, _POSTED, at, _CORRECTED)
    names = load_names(connection, _ids("tenant_id", stored, posted))
    versions = _versions(connection.execute(_RUNS, at).fetchall())
    found = [
        Problem(hour.site, hour.hour_at, kind, what)
        for kind, what in _corrections(hour, stored, posted, names, versions)
    ]
    openings = (opens(seal, key) for key, seal in _sealed(posted).iter_rows())
    other = Problem(hour.site, hour.hour_at, "altered", "the API key of a correction is not the one that was chained")
    return found + [other for opened in openings if opened is False]


def look_at(connection: psycopg.Connection[Any], hour: Hour) -> Looked:
    """Check all that is stored of one hour: every closed revision's chain, the sums of those that count, and its corrections."""
    at = {"site_id": hour.site_id, "hour_at": hour.hour_at}
    stored = _frame(connection, _LINES, at, _TOLD)
    posted = _frame(connection, _POSTED, at, _CORRECTED)
    named = ("tenant_id", "price_id", "tariff_id", *LATER_IDS)
    names = load_names(connection, **{name: _ids(name, stored, posted) for name in named})
    every = connection.execute(_RUNS, at).fetchall()
    runs = {revision: rest for _, kind, revision, *rest in every if kind != "attest"}
    problems: list[Problem] = []
    heads: dict[int, bytes] = {}
    unchained = 0

    def wrong(kind: str, what: str) -> None:
        problems.append(Problem(hour.site, hour.hour_at, kind, what))

    for revision in sorted({*runs, *stored["revision"].to_list()}):
        lines = stored.filter(pl.col("revision") == revision)
        if revision not in runs:
            wrong("invented", f"{lines.height} lines of revision {revision}, which no run wrote")
            continue
        _, count, head, version = runs[revision]
        if head is None:
            unchained += lines.height
            continue
        heads[revision] = bytes(head)
        start = start_of_hour(hour.site, hour.hour_at, version)
        found = first_break(_links(lines, names), start, count, bytes(head))
        if found is not None:
            wrong(found.fault.value, f"line {found.ordinal} of {count}, revision {revision}: {found.called}")
    for what in _newest(hour, every):
        wrong("revision", what)
    for kind, what in _carried(connection, hour, stored, {revision: rest[0] for revision, rest in runs.items()}):
        wrong(kind, what)
    for what in _groups(connection, stored.filter(pl.col("revision") == hour.revision)):
        wrong("sums", what)
    for kind, what in _corrections(hour, stored, posted, names, _versions(every)):
        wrong(kind, what)
    openings = [opens(seal, key) for key, seal in pl.concat([_sealed(stored), _sealed(posted)]).iter_rows()]
    for _ in range(openings.count(False)):
        wrong("altered", "the API key of a line is not the one that was chained")
    return Looked(tuple(problems), stored.height + posted.height, unchained, openings.count(None), heads)


def called(line: Mapping[str, Any], names: Names) -> str:
    """Return what to call a line: whose, who, what, which charge, how much."""
    tenant = names.tenants.get(line["tenant_id"]) if line["tenant_id"] is not None else None
    cost = "unpriced" if line["billed_cost"] is None else f"{line['billed_cost']:f} {line['currency']}"
    return f"{tenant or line['pool']}, {line['holder_key'] or '-'}, {line['device_model'] or '-'}, {line['charge_category']}: {cost}"


def _links(lines: pl.DataFrame, names: Names) -> list[Link]:
    rows = lines.to_dicts()
    texts = canonical(lines, names) if rows else []
    return [
        Link(row["ordinal"], row["chain_sha256"], text, called(row, names))
        for row, text in zip(rows, texts, strict=True)
    ]


def _sealed(lines: pl.DataFrame) -> pl.DataFrame:
    return lines.filter(pl.col("api_key_seal").is_not_null()).select("api_key", "api_key_seal")


def _carried(
    connection: psycopg.Connection[Any], hour: Hour, stored: pl.DataFrame, usage_of: Mapping[int, int]
) -> Iterator[tuple[str, str]]:
    """Hold the lines of what counts, and of what would by now, against the usage hours they are made of."""
    at = {"site_id": hour.site_id, "hour_at": hour.hour_at}
    counting = sorted({hour.revision, hour.shadow_revision or hour.revision} - {0})
    for revision in counting:
        if revision not in usage_of:
            yield "dropped", f"revision {revision}, which counts, has no run"
            continue
        for what in _sums(connection, at, stored.filter(pl.col("revision") == revision), usage_of[revision]):
            yield "sums", f"revision {revision}: {what}"
    used = {number: stored.filter(pl.col("revision") == number) for number in counting if number in usage_of}
    yield from look_at_usage(connection, at, usage_of, used)


def _newest(hour: Hour, runs: list[tuple[Any, ...]]) -> Iterator[str]:
    """What counts is the newest revision, or what is posted beside it leads there; and the runs an hour rests on are of what counts."""
    newest, says = max((run[2] for run in runs), default=0), hour.shadow_revision or hour.revision
    if newest != says:
        yield f"revision {says} counts with what is posted for it, the newest is {newest}"
    used = {run[0]: (run[2], run[3]) for run in runs}
    wrote = {run[2]: run[3] for run in runs if run[1] != "attest"}
    for run_id, revision in ((hour.run_id, hour.revision or says), (hour.shadow_run_id, hour.shadow_revision)):
        if run_id is not None and used.get(run_id) != (revision, wrote.get(revision or 0)):
            yield f"it rests on run {run_id}, which is none of revision {revision}"


def _sums(
    connection: psycopg.Connection[Any], at: Mapping[str, Any], lines: pl.DataFrame, usage_revision: int
) -> Iterator[str]:
    """Lines of a holder carry exactly the energy and carbon of its usage hours."""
    carriers = lines.filter(pl.col("charge_category").is_in(CARRIERS)).with_columns(
        pl.col("line_key").str.split("|").list.get(1).alias("holder")
    )
    sums = carriers.group_by("holder").agg(_sum("energy_mj"), _sum("carbon_gco2e"))
    of_lines = {holder: (energy, carbon) for holder, energy, carbon in sums.iter_rows()}
    of_usage = {row[0]: row[1:] for row in connection.execute(_USAGE, {**at, "revision": usage_revision})}
    for holder in sorted({*of_lines, *of_usage}):
        for what, unit, line, used in zip(
            ("energy", "carbon"),
            ("mJ", "g"),
            of_lines.get(holder, (None, None)),
            of_usage.get(holder, (None, None)),
            strict=True,
        ):
            if (line or 0) != (used or 0) and not (what == "carbon" and used is None):
                yield f"{what} of {holder}: lines say {line or 0} {unit}, usage hours {used or 0} {unit}"


def _groups(connection: psycopg.Connection[Any], lines: pl.DataFrame) -> Iterator[str]:
    """Lines of one price add up to the exact price of their quantity, rounded once; where the price says all that is needed."""
    query = "SELECT id, amount, '', currency FROM prices WHERE id = ANY (%s)"
    prices = _rates(connection, query, _ids("price_id", lines))
    query = "SELECT id, amount_per_kwh, metering_point, currency FROM tariffs WHERE id = ANY (%s)"
    tariffs = _rates(connection, query, _ids("tariff_id", lines))
    for category, price, rates, per in (
        (GPU_OWNED, "price_id", prices, US_PER_HOUR),
        (API_TOKENS, "price_id", prices, 1),
        (ELECTRICITY, "tariff_id", tariffs, MJ_PER_KWH),
    ):
        of_kind = lines.filter((pl.col("charge_category") == category) & pl.col(price).is_not_null())
        sums = of_kind.group_by(price, "currency").agg(pl.col("quantity").sum(), _sum("billed_cost"))
        for number, currency, quantity, billed in sums.sort(price, "currency").iter_rows():
            amount, point, of_price = rates.get(number, (None, "", currency))
            if of_price != currency and billed is not None:
                yield f"{category} at {price.removesuffix('_id')} {amount:f} {of_price}: lines are priced in {currency}"
            if amount is None or of_price != currency or point == "facility":  # whose factor is not of the price
                continue
            exact = Decimal(exact_nano(quantity, amount, per=per)) / NANO
            if billed != exact:
                yield f"{category} at {price.removesuffix('_id')} {amount:f}: lines add up to {billed or 0:f}, their quantity costs {exact:f}"


def _versions(runs: list[tuple[Any, ...]]) -> dict[int, int]:
    """Return how the lines of each revision are chained."""
    return {revision: version for _, kind, revision, *_, version in runs if kind != "attest"}


def _corrections(
    hour: Hour, stored: pl.DataFrame, posted: pl.DataFrame, names: Names, versions: Mapping[int, int]
) -> Iterator[tuple[str, str]]:
    for _, group in posted.group_by("run_id", "from_revision", "revision", maintain_order=True):
        first = group.row(0, named=True)
        version = max(versions.get(first[name], 1) for name in ("from_revision", "revision"))
        start = start_of_corrections(
            hour.site, hour.hour_at, first["posted_hour_at"].astimezone(UTC), first["reason"], version
        )
        priceless = group.with_columns(
            pl.lit(None, pl.Int32).alias("price_id"), pl.lit(None, pl.Int32).alias("tariff_id")
        )
        links = _links(priceless, names)
        last = max(links, key=lambda link: link.ordinal or 0)
        found = first_break(links, start, last.ordinal or 0, last.chain or b"")
        if found is not None:
            yield (
                found.fault.value,
                f"correction {found.ordinal} of {last.ordinal} by run {first['run_id']}: {found.called}",
            )
    # What counts for the hour, wherever it is counted, is what its newest revision says.
    newest = hour.shadow_revision or hour.revision
    before, after = (stored.filter(pl.col("revision") == revision) for revision in (hour.revision, newest))
    wanted = {_who(row): _amounts(row) for row in differences(before, after).to_dicts()}
    summed = posted.group_by(*WHO).agg(*(_sum(name) for name in AMOUNTS)).to_dicts()
    have = {_who(row): _amounts(row) for row in summed}
    for who in sorted({*wanted, *have}, key=repr):
        zero = dict.fromkeys(AMOUNTS, 0)
        want, got = wanted.get(who, zero), have.get(who, zero)
        for name in AMOUNTS:
            if want[name] != got[name]:
                word = names.tenants.get(who[0], who[3]) if isinstance(who[0], int) else who[3]
                yield (
                    "sums",
                    f"corrections of {word}, {who[6]}, {who[5]}: {name} is {got[name]}, the hour's revisions differ by {want[name]}",
                )


def _who(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in WHO)


def _amounts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] or 0 for name in AMOUNTS}


def _sum(name: str) -> pl.Expr:
    return pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)


def _ids(name: str, *frames: pl.DataFrame) -> list[int]:
    return sorted(
        {number for frame in frames if name in frame.columns for number in frame[name].drop_nulls().to_list()}
    )


def _rates(connection: psycopg.Connection[Any], query: str, ids: list[int]) -> dict[int, tuple[Decimal, str, str]]:
    return {number: tuple(rest) for number, *rest in connection.execute(query.encode(), [ids])} if ids else {}


def _frame(
    connection: psycopg.Connection[Any], query: str, given: Mapping[str, Any], schema: Mapping[str, Any]
) -> pl.DataFrame:
    """Return rows as they are stored, unchecked: what somebody altered may fit no rule."""
    cursor = connection.execute(query.encode(), given)
    names = [column.name for column in cursor.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    data = {name: [_plain(row[name]) for row in rows] for name in schema}
    return pl.DataFrame({name: pl.Series(name, values, schema[name], strict=False) for name, values in data.items()})


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
