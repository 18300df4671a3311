"""Makes the sums that bills are read from once more, of the lines that count, and names the spans whose stored ones are others.

Of no interest are spans that nobody reads: whose hours have another revision by now. It repairs nothing; the worker makes a span anew when it
is deleted.
"""

# ruff: noqa: S608 - built of the words of bill_sql alone

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from analytics.io.bill_sql import LINES_SUMMED, SIGNATURE, SUM_LINES, SUM_TIMES, SUM_WASTE, TIMES_SUMMED, WASTE_SUMMED
from analytics.io.verify import Problem

# A span that reaches over an end of what is looked at is read by bills all the same.
_READ: Final = f"""
SELECT span.id, sites.name, span.site_id, span.from_at, span.to_at FROM bill_spans AS span JOIN sites ON sites.id = span.site_id
WHERE span.from_at < %(to_at)s AND span.to_at > %(from_at)s AND (%(site)s::text IS NULL OR sites.name = %(site)s)
AND span.revisions = (
    SELECT {SIGNATURE} FROM ledger_hours AS hours
    WHERE hours.site_id = span.site_id AND hours.hour_at >= span.from_at AND hours.hour_at < span.to_at)
ORDER BY sites.name, span.from_at
"""
_STORED: Final = "SELECT {columns} FROM {table} WHERE span_id = %(span_id)s"
_COMPARED: Final = """
WITH stored AS MATERIALIZED ({stored}), made ({columns}) AS MATERIALIZED ({made})
SELECT count(*) FROM ((TABLE stored EXCEPT ALL TABLE made) UNION ALL (TABLE made EXCEPT ALL TABLE stored)) AS other
"""
_SUMS: Final = (
    ("bill_lines", LINES_SUMMED, SUM_LINES),
    ("bill_times", TIMES_SUMMED, SUM_TIMES),
    ("bill_waste", WASTE_SUMMED, SUM_WASTE),
)


def look_at_sums(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime, site: str | None = None
) -> list[Problem]:
    """Return a problem for each table and span of which some sum is not what the lines, usage hours and findings of its hours add up to.

    Call it inside a transaction of one snapshot.
    """
    problems = []
    for span_id, name, site_id, first, last in connection.execute(
        _READ.encode(), {"from_at": from_at, "to_at": to_at, "site": site}
    ).fetchall():
        given = {"span_id": span_id, "site_id": site_id, "from_at": first, "to_at": last}
        for table, columns, made in _SUMS:
            stored = _STORED.format(columns=columns, table=table)
            query = _COMPARED.format(stored=stored, columns=columns, made=made)
            row = connection.execute(query.encode(), given).fetchone()
            if row is None:
                raise AssertionError("an aggregate without GROUP BY has one row")
            if row[0]:
                said = f"{row[0]} rows of {table} from {first.astimezone(UTC):%Y-%m-%d %H:%M} to {last.astimezone(UTC):%Y-%m-%d %H:%M} are not what its hours add up to"
                problems.append(Problem(name, first.astimezone(UTC), "bills", said))
    return problems
