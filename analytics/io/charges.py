"""What providers charged: invoices against what was taken in, sums by tenant or service, and token charges beside the calls.

Sums are exact, every digit of the files; a tenant is found as the books find one, by dated bindings over tags and accounts,
unless an import named it. Token charges are compared with calls and are in no sum of charges: they are never added to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

import polars as pl
import psycopg
from psycopg.rows import namedtuple_row

from analytics.frames import Bindings
from analytics.io.lineage_rows import BINDINGS
from analytics.io.rows import fetch_frame
from analytics.model import tenancy

GroupBy = Literal["tenant", "provider", "service", "category"]
_INVOICES: Final = """
WITH counted AS (
    SELECT site_id, provider, coalesce(invoice_issuer, '') AS invoice_issuer, coalesce(invoice_id, '') AS invoice_id,
           billing_account_id, period_start_at, currency, count(*) AS rows, sum(billed_cost) AS billed_cost,
           sum(effective_cost) AS effective_cost, sum(billed_cost) FILTER (WHERE is_correction) AS corrections,
           sum(billed_cost) FILTER (WHERE billed_cost < 0) AS credits, sum(billed_cost) FILTER (WHERE covers IS NOT NULL) AS of_calls
    FROM imported_charges WHERE superseded_at IS NULL GROUP BY 1, 2, 3, 4, 5, 6, 7
), told AS (
    SELECT site_id, provider, invoice_issuer, invoice_id, billing_account_id, period_start_at, currency, count(*) AS files,
           sum(billed_cost) AS files_cost,
           (array_agg(stated_total ORDER BY import_id DESC) FILTER (WHERE stated_total IS NOT NULL))[1] AS stated_total
    FROM invoice_totals GROUP BY 1, 2, 3, 4, 5, 6, 7
)
SELECT sites.name AS site, provider, invoice_issuer, invoice_id, billing_account_id, period_start_at, currency,
       coalesce(rows, 0) AS rows, coalesce(billed_cost, 0) AS billed_cost, coalesce(effective_cost, 0) AS effective_cost,
       coalesce(corrections, 0) AS corrections, coalesce(credits, 0) AS credits, coalesce(of_calls, 0) AS of_calls,
       coalesce(files, 0) AS files, files_cost, stated_total, stated_total - coalesce(billed_cost, 0) AS difference
FROM told FULL JOIN counted
    USING (site_id, provider, invoice_issuer, invoice_id, billing_account_id, period_start_at, currency)
JOIN sites ON sites.id = site_id
WHERE (%(from_at)s::timestamptz IS NULL OR period_start_at >= %(from_at)s)
AND (%(to_at)s::timestamptz IS NULL OR period_start_at < %(to_at)s)
ORDER BY period_start_at, provider, invoice_issuer, invoice_id, billing_account_id, currency
"""
_CHARGES: Final = """
SELECT CASE WHEN tenant_id IS NULL THEN charge_start_at END AS bound_at, tenant_id AS named_tenant_id, provider AS cluster,
       coalesce(sub_account_id, billing_account_id) AS account, sub_account_name AS namespace, tags, provider, service_name AS service,
       category, currency, count(*) AS rows, sum(billed_cost) AS billed_cost, sum(effective_cost) AS effective_cost
FROM imported_charges WHERE superseded_at IS NULL AND covers IS NULL
AND charge_start_at >= %(from_at)s AND charge_start_at < %(to_at)s GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
"""
_COMPARED: Final = """
WITH charged AS (
    SELECT site_id, call_provider AS provider, call_model AS model, date_trunc('day', charge_start_at, 'UTC') AS day_at, currency,
           count(*) AS rows, sum(billed_cost) AS billed_cost, sum(call_tokens)::bigint AS tokens, count(DISTINCT call_id) AS listed_calls
    FROM imported_charges WHERE superseded_at IS NULL AND covers IS NOT NULL
    AND charge_start_at >= %(from_at)s AND charge_start_at < %(to_at)s GROUP BY 1, 2, 3, 4, 5
)
SELECT sites.name AS site, charged.provider, charged.model, charged.day_at, charged.currency, charged.rows, charged.listed_calls,
       charged.billed_cost, charged.tokens, called.calls, called.tokens AS called_tokens, called.unknown AS usage_unknown_calls,
       booked.cost AS booked_cost, booked.provisional
FROM charged JOIN sites ON sites.id = charged.site_id
CROSS JOIN LATERAL (
    SELECT count(*) AS calls, count(*) FILTER (WHERE NOT usage_known) AS unknown,
           sum(coalesce(input_uncached_tokens, 0) + coalesce(cache_read_tokens, 0) + coalesce(cache_write_tokens, 0)
               + coalesce(output_text_tokens, 0) + coalesce(reasoning_tokens, 0) + coalesce(audio_tokens, 0)
               + coalesce(image_tokens, 0) + coalesce(audio_input_tokens, 0) + coalesce(audio_output_tokens, 0)
               + coalesce(cache_write_1h_tokens, 0))::bigint AS tokens
    FROM api_calls AS c WHERE c.site_id = charged.site_id AND c.called_at >= charged.day_at
    AND c.called_at < charged.day_at + interval '1 day'
    AND lower(c.provider) = lower(charged.provider) AND lower(c.model) = lower(charged.model)
) AS called
CROSS JOIN LATERAL (
    SELECT sum(lines.billed_cost) AS cost, bool_or(lines.status = 'provisional') AS provisional
    FROM current_ledger_lines AS lines JOIN prices ON prices.id = lines.price_id
    WHERE lines.site_id = charged.site_id AND lines.pool = 'api' AND lines.hour_at >= charged.day_at
    AND lines.hour_at < charged.day_at + interval '1 day' AND lines.currency = charged.currency
    AND lower(prices.provider) = lower(charged.provider) AND lower(prices.model) = lower(charged.model)
) AS booked
ORDER BY charged.day_at, charged.provider, charged.model, charged.currency
"""
_FILES: Final = """
SELECT imports.id, sites.name AS site, kind, file_name, encode(sha256, 'hex') AS sha256, rows_read, rows_written, rows_rejected,
       imported_at FROM imports JOIN sites ON sites.id = site_id
WHERE (%(kind)s::text IS NULL OR kind = %(kind)s) ORDER BY imports.id DESC LIMIT %(top)s
"""


@dataclass(frozen=True, slots=True)
class ChargeSum:
    """Charges of one group and currency; ``key`` None = no binding gives them to a tenant, or no such name."""

    key: str | None
    currency: str
    rows: int
    billed_cost: Decimal
    effective_cost: Decimal


def invoices(
    conn: psycopg.Connection[Any], from_at: datetime | None = None, to_at: datetime | None = None
) -> list[Any]:
    """Return each invoice (or month without one) with what counts of it, what files said, and what it states itself.

    ``difference`` is what the invoice states less what was taken in, None where nobody told what it states.
    """
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(_INVOICES, {"from_at": from_at, "to_at": to_at}).fetchall()


def compared(conn: psycopg.Connection[Any], from_at: datetime, to_at: datetime) -> list[Any]:
    """Return token charges by model and UTC day beside the calls they cover and what the books bill for these.

    ``booked_cost`` None: the books hold no priced line of the model on that day.
    """
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(_COMPARED, {"from_at": from_at, "to_at": to_at}).fetchall()


def files(conn: psycopg.Connection[Any], kind: str | None, top: int) -> list[Any]:
    """Return the files imported, the latest first."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(_FILES, {"kind": kind, "top": top}).fetchall()


def sums(conn: psycopg.Connection[Any], from_at: datetime, to_at: datetime, by: GroupBy) -> list[ChargeSum]:
    """Return charges that begin in a period, by group and currency, the dearest first. Token charges are not among them."""
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        rows: list[Any] = cursor.execute(_CHARGES, {"from_at": from_at, "to_at": to_at}).fetchall()
    keys = _tenants(conn, rows) if by == "tenant" else [getattr(row, by) for row in rows]
    gathered: dict[tuple[str | None, str], tuple[int, Decimal, Decimal]] = {}
    for key, row in zip(keys, rows, strict=True):
        count, billed, effective = gathered.get((key, row.currency), (0, Decimal(0), Decimal(0)))
        gathered[key, row.currency] = (count + row.rows, billed + row.billed_cost, effective + row.effective_cost)
    made = [ChargeSum(key, currency, *figures) for (key, currency), figures in gathered.items()]
    return sorted(made, key=lambda each: (each.currency, -each.billed_cost, each.key is None, each.key or ""))


def _tenants(conn: psycopg.Connection[Any], rows: Sequence[Any]) -> list[str | None]:
    bindings = fetch_frame(conn, BINDINGS, {}, Bindings)
    paths: dict[int, str] = dict(conn.execute("SELECT id, path FROM tenants").fetchall())
    subjects = pl.DataFrame(
        {
            "place": range(len(rows)),
            "hour_at": [row.bound_at for row in rows],
            **{name: [getattr(row, name) for row in rows] for name in ("cluster", "account", "namespace")},
            "tag": [_tag(row.tags) for row in rows],
        },
        schema={
            "place": pl.Int64,
            "hour_at": pl.Datetime("us", "UTC"),
            **dict.fromkeys(("cluster", "account", "namespace", "tag"), pl.String),
        },
    )
    asked = subjects.filter(pl.col("hour_at").is_not_null())
    bound = tenancy.bind_hours(subjects.drop("hour_at"), asked.select("hour_at", "place"), "place", bindings)
    by_place = dict(bound.select("place", "tenant_id").iter_rows())
    ids = [row.named_tenant_id if row.named_tenant_id is not None else by_place.get(at) for at, row in enumerate(rows)]
    return [None if tenant_id is None else paths[tenant_id] for tenant_id in ids]


def _tag(tags: dict[str, str] | None) -> str | None:
    """Return tags as bindings match them: ``key=value`` joined by commas."""
    return None if not tags else ",".join(f"{key}={value}".replace(",", " ") for key, value in sorted(tags.items()))
