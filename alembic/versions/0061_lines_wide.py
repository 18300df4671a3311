"""Lines have room for what later chapters of the books say of them: other carbon, water, charges, exchange rates, how they were priced.

Nothing is written: a line of before says none of it, and neither its hash nor its place in a chain changes. Sums for bills of before are made
again (their ``revisions`` begin with ``3|`` now). On the way back what the columns hold is lost.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0061_lines_wide"
down_revision = "0060_meter_words"
branch_labels = None
depends_on = None

OWNER, WORKER, API = "wattledger_owner", "wattledger_worker", "wattledger_api"
MONEY = sa.Numeric(38, 9)
MORE = "; the difference, and so of either sign"
SCOPE = "Greenhouse Gas Protocol: 2, or 3.1, 3.2, 3.3, 3.8 (scope 3 by category); null = not said"
AMOUNTS: dict[str, tuple[Any, str]] = {
    "carbon_market_gco2e": (MONEY, "grams of CO2 equivalent, market-based; null = not known"),
    "carbon_marginal_gco2e": (
        MONEY,
        "grams of CO2 equivalent at the margin, never part of an inventory; null = not known",
    ),
    "embodied_gco2e": (MONEY, "grams of CO2 equivalent of making the hardware; null = not known"),
    "water_ml": (sa.BigInteger(), "millilitres; null = not known"),
    "list_cost": (MONEY, "in currency, at list prices; null = none is known"),
}
"""Type and comment."""
WORDS: dict[str, tuple[Any, str]] = {
    "ghg_scope": (sa.Text(), SCOPE),
    "basis": (sa.Text(), "allocation or usage: what its cost is shared by; null = by what it says itself"),
    "terms": (sa.Text(), "tier, region and purchase it was priced by; null = no price says any"),
}
SOURCES: dict[str, tuple[Any, str]] = {
    "intensity_id": (sa.Integer(), "surrogate id: of the intensity its carbon is of"),
    "market_factor_id": (sa.Integer(), "surrogate id: of the factor its market-based carbon is of"),
    "charge_id": (sa.BigInteger(), "surrogate id: of the imported charge it is"),
    "fx_rate_id": (sa.Integer(), "surrogate id: of the exchange rate its cost is converted by"),
    "source_currency": (sa.String(3), "of source_cost; null = its cost was not converted"),
    "source_cost": (sa.Numeric(), "in source_currency, every digit, before it was converted"),
}
TABLES = {
    "ledger_lines": {**AMOUNTS, **WORDS, **SOURCES},
    "ledger_corrections": {**{name: (kind, comment + MORE) for name, (kind, comment) in AMOUNTS.items()}, **WORDS},
    "bill_lines": AMOUNTS,
}
NAMED = {"intensity_id": "intensity", "fx_rate_id": "fx_rates"}
"""Columns of lines by the table whose ids they hold; a trigger looks them up once a statement, as of the others (0052)."""
NAMED_BEFORE = {
    "site_id": "sites",
    "tenant_id": "tenants",
    "job_id": "jobs",
    "price_id": "prices",
    "tariff_id": "tariffs",
}
LINE_COLUMNS = (
    "site_id", "hour_at", "revision", "line_key", "tenant_id", "job_id", "api_key", "pool", "device_model", "charge_category", "price_id",
    "tariff_id", "quantity", "quantity_unit", "energy_mj", "carbon_gco2e", "billed_cost", "effective_cost", "currency", "status", "source",
    "coverage", "origin", "holder_key", "energy_low_mj", "energy_high_mj", "facility_mj", "facility_category", "method", "ordinal",
    "chain_sha256", "api_key_seal",
)  # fmt: skip
POSTED = {
    "hour_at": "posted_hour_at",
    "price_id": "NULL::integer",
    "tariff_id": "NULL::integer",
    "status": "'correction'::text",
    "intensity_id": "NULL::integer",
    "market_factor_id": "NULL::integer",
    "charge_id": "NULL::bigint",
    "fx_rate_id": "NULL::integer",
    "source_currency": "NULL::varchar(3)",
    "source_cost": "NULL::numeric",
}


def upgrade() -> None:
    for table, columns in TABLES.items():
        for name, (kind, comment) in columns.items():
            op.add_column(table, sa.Column(name, kind, nullable=True, comment=comment))
    version = "how its lines are chained; null = 1, as all were before lines said more"
    op.add_column("ledger_runs", sa.Column("chain_version", sa.SmallInteger(), nullable=True, comment=version))
    scope = "which of the hours it touches: those with calls of {provider, models}; null = all of them"
    op.add_column("changes", sa.Column("scope", postgresql.JSONB(), nullable=True, comment=scope))
    _known_by({**NAMED_BEFORE, **NAMED})
    _kept("intensity", ("usage_hours", "intensity_id"), ("ledger_lines", "intensity_id"))
    _kept("fx_rates", ("ledger_lines", "fx_rate_id"))
    op.execute(_view(tuple(TABLES["ledger_lines"]), or_replace=True))


def downgrade() -> None:
    # A view takes more columns where it stands, but gives none back.
    op.execute("DROP VIEW current_ledger_lines")
    _known_by(NAMED_BEFORE)
    _kept("intensity", ("usage_hours", "intensity_id"))
    _forget("fx_rates")
    op.drop_column("changes", "scope")
    op.drop_column("ledger_runs", "chain_version")
    for table, columns in TABLES.items():
        for name in columns:
            op.drop_column(table, name)
    op.execute(_view((), or_replace=False))
    op.execute(
        "COMMENT ON VIEW current_ledger_lines IS "
        "'Rows of ledger_lines of the revision that counts, and corrections in the hour they are posted in.'"
    )
    op.execute(f"ALTER VIEW current_ledger_lines OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT ON current_ledger_lines TO {WORKER}, {API}")


def _view(more: tuple[str, ...], *, or_replace: bool) -> str:
    lines = [
        *(f"rows.{name}" for name in LINE_COLUMNS),
        "NULL::timestamptz AS corrects_hour_at",
        "NULL::text AS reason",
    ]
    posted = [*(POSTED.get(name, name) for name in LINE_COLUMNS), "hour_at", "reason"]
    return f"""
CREATE {"OR REPLACE " if or_replace else ""}VIEW current_ledger_lines WITH (security_invoker = true) AS
SELECT {", ".join([*lines, *(f"rows.{name}" for name in more)])}
FROM ledger_lines AS rows JOIN ledger_hours USING (site_id, hour_at, revision)
UNION ALL
SELECT {", ".join([*posted, *(POSTED.get(name, name) for name in more)])} FROM ledger_corrections
"""  # noqa: S608 (constants)


def _known_by(names: dict[str, str]) -> None:
    for event in ("INSERT", "UPDATE"):
        op.execute(f"DROP TRIGGER known_after_{event.lower()} ON ledger_lines")
        op.execute(
            f"CREATE TRIGGER known_after_{event.lower()} AFTER {event} ON ledger_lines REFERENCING NEW TABLE AS written "
            f"FOR EACH STATEMENT EXECUTE FUNCTION names_what_is_known({_listed(*names.items())})"
        )


def _kept(named: str, *places: tuple[str, str]) -> None:
    _forget(named)
    given = f"EXECUTE FUNCTION stays_while_named({_listed(*places)})"
    op.execute(f"CREATE TRIGGER stays_while_named BEFORE DELETE OR UPDATE OF id ON {named} FOR EACH ROW {given}")
    op.execute(f"CREATE TRIGGER stays_whole_while_named BEFORE TRUNCATE ON {named} FOR EACH STATEMENT {given}")


def _forget(named: str) -> None:
    for trigger in ("stays_while_named", "stays_whole_while_named"):
        op.execute(f"DROP TRIGGER IF EXISTS {trigger} ON {named}")


def _listed(*pairs: tuple[str, str]) -> str:
    return ", ".join(f"'{word}'" for pair in pairs for word in pair)
