"""Writes what providers charge: each charge once, a restated one in the place of what it restates, totals by invoice.

A row that is known word for word is not written again. A row that says something else of the same charge replaces it; the
old one stays, superseded. Rows of which a file knows nothing stay as they are, unless the file is said to be the whole of its
billing periods. Nothing is added to LLM calls here.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names; what a file says travels by COPY and parameters

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from collector.wire import Origin
from ingest.store import identities
from ingest.store.imports import Stage, at_sql

CHARGE_COLUMNS: Final = {
    "line": "bigint",
    "identity_sha256": "bytea",
    "content_sha256": "bytea",
    "provider": "text",
    "publisher": "text",
    "invoice_issuer": "text",
    "invoice_id": "text",
    "billing_account_id": "text",
    "sub_account_id": "text",
    "sub_account_name": "text",
    "period_start_us": "bigint",
    "period_end_us": "bigint",
    "charge_start_us": "bigint",
    "charge_end_us": "bigint",
    "category": "text",
    "is_correction": "boolean",
    "service_category": "text",
    "service_name": "text",
    "description": "text",
    "frequency": "text",
    "pricing_category": "text",
    "sku_id": "text",
    "sku_price_id": "text",
    "sku_meter": "text",
    "resource_id": "text",
    "resource_name": "text",
    "region_id": "text",
    "commitment_id": "text",
    "billed_cost": "numeric",
    "effective_cost": "numeric",
    "list_cost": "numeric",
    "contracted_cost": "numeric",
    "currency": "text",
    "pricing_quantity": "numeric",
    "pricing_unit": "text",
    "consumed_quantity": "numeric",
    "consumed_unit": "text",
    "tags": "text",
    "covers": "text",
    "call_id": "text",
    "call_provider": "text",
    "call_model": "text",
    "call_tokens": "bigint",
}
"""What is staged of a charge, in this order: column and PostgreSQL's type; instants in microseconds."""
_INSTANTS: Final = {name: f"{name.removesuffix('_us')}_at" for name in CHARGE_COLUMNS if name.endswith("_us")}
_TARGETS: Final = ", ".join(_INSTANTS.get(name, name) for name in CHARGE_COLUMNS)
_VALUES: Final = ", ".join(
    at_sql(name) if name in _INSTANTS else "tags::jsonb" if name == "tags" else name for name in CHARGE_COLUMNS
)
_GROUP: Final = (
    "provider, coalesce(invoice_issuer, ''), coalesce(invoice_id, ''), billing_account_id, {period}, currency"
)
# The n-th row of one content in the file is the n-th of it in the store: equal rows of a file are all charged.
_NUMBERED: Final = """
CREATE TEMPORARY TABLE import_charge_match ON COMMIT DROP AS
WITH ours AS (
    SELECT line, content_sha256, row_number() OVER (PARTITION BY content_sha256 ORDER BY line) AS n FROM import_charges
), known AS (
    SELECT c.id, c.content_sha256, row_number() OVER (PARTITION BY c.content_sha256 ORDER BY c.id) AS n
    FROM imported_charges AS c WHERE c.site_id = :site_id AND c.superseded_at IS NULL
    AND c.identity_sha256 IN (SELECT identity_sha256 FROM import_charges)
) SELECT ours.line, known.id FROM ours JOIN known USING (content_sha256, n)
"""
_RESTATED: Final = """
UPDATE imported_charges AS c SET superseded_at = clock_timestamp() WHERE c.site_id = :site_id AND c.superseded_at IS NULL
AND c.id NOT IN (SELECT id FROM import_charge_match) AND c.identity_sha256 IN (
    SELECT identity_sha256 FROM import_charges WHERE line NOT IN (SELECT line FROM import_charge_match)
) RETURNING c.billed_cost, c.currency
"""
_MISSING: Final = """
UPDATE imported_charges AS c SET superseded_at = clock_timestamp() WHERE c.site_id = :site_id AND c.superseded_at IS NULL
AND c.import_id <> :import_id AND c.id NOT IN (SELECT id FROM import_charge_match)
AND (c.provider, c.billing_account_id, c.period_start_at) IN (
    SELECT provider, billing_account_id, {period} FROM import_charges
) RETURNING c.billed_cost, c.currency
""".replace("{period}", at_sql("period_start_us"))


@dataclass(frozen=True, slots=True)
class WrittenCharges:
    """``restated`` and ``missing``: charges of earlier files that no longer count, with what they amounted to by currency."""

    inserted: int
    unchanged: int
    restated: int
    restated_cost: Mapping[str, Decimal]
    missing: int
    missing_cost: Mapping[str, Decimal]
    totals: int
    first_us: int | None
    last_us: int | None


class StatedTotalError(ValueError):
    """A total was stated of an invoice that is not in the file, or that several groups of rows could be."""


class Charges:
    """Charges of one file on their way into the store."""

    def __init__(self, conn: sa.Connection, site_id: int, import_id: int) -> None:
        self._conn, self._site_id, self._import_id = conn, site_id, import_id
        self._stage = Stage(conn, "import_charges", CHARGE_COLUMNS)

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Stage rows in the order of CHARGE_COLUMNS."""
        self._stage.copy(rows)

    def store(
        self, *, tenant: str | None, one_of_several: bool, whole_periods: bool, stated: Mapping[str, Decimal]
    ) -> WrittenCharges:
        """Write what was staged.

        ``one_of_several``: a part of one export; its rows are all new whatever others say. ``whole_periods``: what earlier
        files said of the same provider, billing account and billing period and this one does not counts no longer.
        ``stated``: totals by invoice id, or by provider or issuer (``@YYYY-MM`` the month) where the file names no invoices.
        Raises StatedTotalError.
        """
        conn, at = self._conn, {"site_id": self._site_id, "import_id": self._import_id}
        self._stage.ready()
        # Two imports of one site would both find a charge unknown.
        conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.charges', :site_id))"), at)
        conn.execute(sa.text(_NUMBERED + (" WHERE false" if one_of_several else "")), at)
        restated = [] if one_of_several else list(conn.execute(sa.text(_RESTATED), at))
        tenant_id = identities.tenant_ids(conn, [tenant])[tenant] if tenant else None
        inserted = conn.execute(
            sa.text(
                f"INSERT INTO imported_charges (site_id, import_id, tenant_id, origin, {_TARGETS}) "
                f"SELECT :site_id, :import_id, :tenant_id, :origin, {_VALUES} FROM import_charges "
                "WHERE line NOT IN (SELECT line FROM import_charge_match) ORDER BY line"
            ),
            {**at, "tenant_id": tenant_id, "origin": int(Origin.IMPORTED)},
        ).rowcount
        missing = list(conn.execute(sa.text(_MISSING), at)) if whole_periods else []
        staged, first_us, last_us = conn.exec_driver_sql(
            "SELECT count(*), min(charge_start_us), max(charge_end_us) FROM import_charges"
        ).one()
        totals = self._totals(stated)
        return WrittenCharges(
            inserted,
            staged - inserted,
            len(restated),
            _by_currency(restated),
            len(missing),
            _by_currency(missing),
            totals,
            first_us,
            last_us,
        )

    def _totals(self, stated: Mapping[str, Decimal]) -> int:
        conn, at = self._conn, {"site_id": self._site_id, "import_id": self._import_id}
        group = _GROUP.replace("{period}", at_sql("period_start_us"))
        written = conn.execute(
            sa.text(
                "INSERT INTO invoice_totals (import_id, site_id, provider, invoice_issuer, invoice_id, billing_account_id, "
                "period_start_at, currency, rows, billed_cost, effective_cost) "
                f"SELECT :import_id, :site_id, {group}, count(*), sum(billed_cost), sum(effective_cost) FROM import_charges "
                f"GROUP BY {group}"
            ),
            at,
        ).rowcount
        for name, total in stated.items():
            updated = conn.execute(
                sa.text(
                    "UPDATE invoice_totals SET stated_total = :total WHERE import_id = :import_id AND (:name = invoice_id OR "
                    "(invoice_id = '' AND :name IN (provider, invoice_issuer, provider || '@' || {month}, "
                    "invoice_issuer || '@' || {month})))".replace(
                        "{month}", "to_char(period_start_at AT TIME ZONE 'UTC', 'YYYY-MM')"
                    )
                ),
                {**at, "name": name, "total": total},
            ).rowcount
            if updated != 1:
                raise StatedTotalError(
                    f"{name!r} names {updated} invoices of the file, not one; where it names none, say ISSUER@YYYY-MM"
                )
        return written


def _by_currency(rows: Iterable[Any]) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for row in rows:
        sums[row.currency] = sums.get(row.currency, Decimal(0)) + row.billed_cost
    return sums
