"""What a month consists of: its hours with the heads of their chains, the corrections posted in it, its sums, and what moved since it was closed before."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

import psycopg

from analytics.frames import LedgerLines
from analytics.io.holds import JOB_KEY
from analytics.io.line_names import names_of, site_name
from analytics.io.period_document import Entry, moved_text
from analytics.io.rows import fetch_frame
from analytics.model.chain import stamp, start_of_hour
from analytics.model.corrections import differences
from analytics.model.later import LATER_AMOUNTS, chain_version
from analytics.model.month import Month

_ENTRIES: Final = """
SELECT sites.name, hours.hour_at, runs.line_count, runs.head_sha256, hours.site_id, NULL::bigint, hours.revision
FROM ledger_hours AS hours JOIN sites ON sites.id = hours.site_id JOIN ledger_runs AS runs ON runs.id = hours.run_id
WHERE hours.site_id = ANY (%(sites)s) AND hours.hour_at >= %(from_at)s AND hours.hour_at < %(to_at)s AND hours.revision > 0
AND hours.status = 'closed' ORDER BY sites.name, hours.hour_at
"""
_POSTED: Final = """
SELECT sites.name, posted.hour_at, count(*), (array_agg(chain_sha256 ORDER BY ordinal DESC))[1], posted.site_id, posted.run_id, posted.revision,
       posted.reason
FROM ledger_corrections AS posted JOIN sites ON sites.id = posted.site_id
WHERE posted.site_id = ANY (%(sites)s) AND posted_hour_at >= %(from_at)s AND posted_hour_at < %(to_at)s
GROUP BY sites.name, posted.hour_at, posted.site_id, posted.run_id, posted.from_revision, posted.revision, posted.reason
ORDER BY sites.name, posted.hour_at, min(posted.id)
"""
_ON_RECORD: Final = """
SELECT sites.name, entry.hour_at, entry.lines, entry.head_sha256,
       CASE WHEN entry.run_id IS NOT NULL THEN (
           SELECT min(reason) FROM ledger_corrections AS posted WHERE posted.run_id = entry.run_id AND posted.revision = entry.revision) END
FROM period_hours AS entry JOIN sites ON sites.id = entry.site_id WHERE entry.period_id = %s ORDER BY entry.ordinal
"""
_TOTALS: Final = """
SELECT currency, sum(billed_cost)::text, sum(effective_cost)::text FROM current_ledger_lines
WHERE site_id = ANY (%(sites)s) AND hour_at >= %(from_at)s AND hour_at < %(to_at)s AND billed_cost IS NOT NULL GROUP BY currency ORDER BY currency
"""
_PHYSICAL: Final = """
SELECT coalesce(sum(energy_mj), 0)::text, coalesce(sum(carbon_gco2e), 0)::text, count(*) FILTER (WHERE status <> 'correction'),
       coalesce(array_agg(DISTINCT origin ORDER BY origin), '{}'), sum(carbon_market_gco2e)::text, sum(carbon_marginal_gco2e)::text,
       sum(embodied_gco2e)::text, sum(water_ml)::text FROM current_ledger_lines
WHERE site_id = ANY (%(sites)s) AND hour_at >= %(from_at)s AND hour_at < %(to_at)s
"""
_LATER_TOTALS: Final = ("carbon_market_gco2e", "carbon_marginal_gco2e", "embodied_gco2e", "water_ml")
_UNCHAINED: Final = """
SELECT hours.site_id, hours.hour_at, hours.revision, hours.run_id FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = hours.run_id
WHERE hours.site_id = ANY (%(sites)s) AND hours.hour_at >= %(from_at)s AND hours.hour_at < %(to_at)s AND hours.status = 'closed'
AND runs.head_sha256 IS NULL ORDER BY hours.site_id, hours.hour_at
"""
_LINES: Final = (
    "SELECT * FROM ledger_lines WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s"
)
# As lines are made today, so that a line is followed by the same name when its hour is computed again: a job by its scheduler's words, a call
# by what it used. What an id in a key stood for is only known here.
_NAME_HOLDERS: Final = f"""
UPDATE ledger_lines AS line SET holder_key = CASE WHEN line.pool = 'api' THEN 'api:' || split_part(line.line_key, '|', -3) ELSE coalesce(
    (SELECT 'job:' || {JOB_KEY} FROM jobs WHERE jobs.id = line.job_id), split_part(line.line_key, '|', 2)) END
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s AND holder_key IS NULL
"""  # noqa: S608 (constants)
_MOVED: Final = """
SELECT sites.name, entry.site_id, entry.hour_at, coalesce(before.revision, 0), {now}, (
    SELECT array_agg(DISTINCT reason ORDER BY reason) FROM ledger_runs AS runs WHERE runs.site_id = entry.site_id
    AND runs.hour_at = entry.hour_at AND runs.kind <> 'attest' AND runs.revision > coalesce(before.revision, 0) AND runs.revision <= {now})
FROM {entries} AS entry JOIN sites ON sites.id = entry.site_id
LEFT JOIN period_hours AS before ON before.period_id = %(before)s AND before.run_id IS NULL AND before.site_id = entry.site_id
     AND before.hour_at = entry.hour_at
WHERE {where} AND before.revision IS DISTINCT FROM {now} ORDER BY sites.name, entry.hour_at
"""
_MOVED_SINCE: Final = _MOVED.format(
    now="entry.revision",
    entries="ledger_hours",
    where="entry.site_id = ANY (%(sites)s) AND entry.hour_at >= %(from_at)s AND entry.hour_at < %(to_at)s AND entry.revision > 0",
)
_MOVED_ON_RECORD: Final = _MOVED.format(
    now="entry.revision", entries="period_hours", where="entry.period_id = %(period)s AND entry.run_id IS NULL"
)
_BEFORE: Final = """
SELECT before.id FROM ledger_periods AS period JOIN ledger_periods AS before ON before.name = period.name
AND before.site_id IS NOT DISTINCT FROM period.site_id AND before.number = period.number - 1 WHERE period.id = %s
"""
Reference = tuple[int, Any, int | None, int]
"""Site, hour, run of corrections, revision: where an entry is in the database."""


def entries_within(
    connection: psycopg.Connection[Any], month: Month, site_ids: Sequence[int]
) -> tuple[list[Entry], list[Reference]]:
    """Return the links of a month in their order, hours first, and where each is in the database."""
    given = {"sites": list(site_ids), "from_at": month.from_at, "to_at": month.to_at}
    entries: list[Entry] = []
    references: list[Reference] = []
    for query in (_ENTRIES, _POSTED):
        for site, hour_at, lines, head, site_id, run_id, revision, *reason in connection.execute(query, given):
            entries.append(Entry(site, hour_at, lines, bytes(head), *reason))
            references.append((site_id, hour_at, run_id, revision))
    return entries, references


def entries_on_record(connection: psycopg.Connection[Any], period_id: int) -> list[Entry]:
    """Return the links of a month that was closed, as they were noted then."""
    rows = connection.execute(_ON_RECORD, [period_id])
    return [Entry(site, hour_at, lines, bytes(head), reason) for site, hour_at, lines, head, reason in rows]


def totals(connection: psycopg.Connection[Any], month: Month, site_ids: Sequence[int]) -> dict[str, Any]:
    """Return what a month comes to, corrections posted in it included: decimal text by currency, mJ, g, ml, lines, origins.

    What came later is told where some line says it: a month without it has the figures it always had.
    """
    given = {"sites": list(site_ids), "from_at": month.from_at, "to_at": month.to_at}
    costs = connection.execute(_TOTALS, given).fetchall()
    row = connection.execute(_PHYSICAL, given).fetchone()
    if row is None:
        raise AssertionError("an aggregate without GROUP BY has one row")
    return {
        "billed_cost": {currency: billed for currency, billed, _ in costs},
        "effective_cost": {currency: effective for currency, _, effective in costs},
        "energy_mj": row[0],
        "carbon_gco2e": row[1],
        "lines": row[2],
        "origins": list(row[3]),
        **{name: sum_ for name, sum_ in zip(_LATER_TOTALS, row[4:], strict=True) if sum_ is not None},
    }


def are_unchained(connection: psycopg.Connection[Any], month: Month, site_ids: Sequence[int]) -> bool:
    """Say whether something counts that was closed before chains were kept."""
    given = {"sites": list(site_ids), "from_at": month.from_at, "to_at": month.to_at}
    return connection.execute(_UNCHAINED + "LIMIT 1", given).fetchone() is not None


def chain_old_hours(connection: psycopg.Connection[Any], month: Month, site_ids: Sequence[int]) -> None:
    """Chain what counts of hours that were closed before chains were kept; as the owner, and only what has no link yet."""
    given = {"sites": list(site_ids), "from_at": month.from_at, "to_at": month.to_at}
    for site_id, hour_at, revision, run_id in connection.execute(_UNCHAINED, given).fetchall():
        at = {"site_id": site_id, "hour_at": hour_at, "revision": revision}
        connection.execute(_NAME_HOLDERS.encode(), at)
        lines = fetch_frame(connection, _LINES, at, LedgerLines)
        version = chain_version(lines)
        start = start_of_hour(site_name(connection, site_id), hour_at, version)
        chained = stamp(lines, names_of(connection, lines), start, secrets.token_bytes(32))
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE ledger_lines SET ordinal = %s, chain_sha256 = %s, api_key_seal = %s "
                "WHERE site_id = %s AND hour_at = %s AND revision = %s AND line_key = %s",
                [
                    (ordinal, link, seal, site_id, hour_at, revision, key)
                    for ordinal, link, seal, key in chained.select(
                        "ordinal", "chain_sha256", "api_key_seal", "line_key"
                    ).iter_rows()
                ],
            )
        head = bytes(chained["chain_sha256"][-1]) if chained.height else start
        connection.execute(
            "UPDATE ledger_runs SET line_count = %s, head_sha256 = %s, chain_version = nullif(%s, 1) "
            "WHERE site_id = %s AND hour_at = %s AND revision = %s AND (id = %s OR kind <> 'attest')",
            [chained.height, head, version, site_id, hour_at, revision, run_id],
        )


def moved_lines(
    connection: psycopg.Connection[Any], before_id: int, site_ids: Sequence[int], month: Month
) -> Iterator[str]:
    """Yield every line of a reopened month that is not what it was when it was closed before, as JSON with the reasons; amounts are differences.

    By site and hour, and then by what is told, so that no name that is forgotten later moves a line. One hour is in memory at a time.
    """
    given = {"sites": list(site_ids), "from_at": month.from_at, "to_at": month.to_at, "before": before_id}
    yield from _differing(connection, connection.execute(_MOVED_SINCE.encode(), given).fetchall())


def moved_since(connection: psycopg.Connection[Any], period_id: int) -> Iterator[str]:
    """Yield the same of a period on record, against the one before it; nothing for the first."""
    row = connection.execute(_BEFORE, [period_id]).fetchone()
    if row is not None:
        given = {"period": period_id, "before": row[0]}
        yield from _differing(connection, connection.execute(_MOVED_ON_RECORD.encode(), given).fetchall())


def _differing(connection: psycopg.Connection[Any], hours: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    for site, site_id, hour_at, old, new, reasons in hours:
        at = {"site_id": site_id, "hour_at": hour_at}
        before, after = (
            fetch_frame(connection, _LINES, at | {"revision": revision}, LedgerLines) for revision in (old, new)
        )
        moved = differences(before, after)
        names = names_of(connection, moved)
        yield from sorted(
            moved_text(
                {
                    "site": site,
                    "hour": hour_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "tenant": names.tenants.get(row["tenant_id"]),
                    "holder": row["holder_key"],
                    "model": row["device_model"],
                    "category": row["charge_category"],
                    "currency": row["currency"],
                    "billed_cost": None if row["billed_cost"] is None else f"{row['billed_cost']:f}",
                    "energy_mj": None if row["energy_mj"] is None else str(row["energy_mj"]),
                    "carbon_gco2e": None if row["carbon_gco2e"] is None else f"{row['carbon_gco2e']:f}",
                    "reasons": list(reasons or ()),
                    # Only what moved: a line of before is told as it was.
                    **{name: f"{Decimal(row[name]):f}" for name in LATER_AMOUNTS if row[name]},
                }
            )
            for row in moved.to_dicts()
        )
