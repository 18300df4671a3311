"""Months are closed: their hours are frozen and chained, what changes later is posted as corrections in the open month; lines can be disputed.

Replicas of the version before know of no frozen hour, so none is closed while one runs (docs/closing.md). On the way back, periods, corrections
and disputes are lost; hours that changed since their month was closed count as they are known now, so no amount is.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0046_periods"
down_revision = "0045_meter_tree"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
MORE = "; the difference, and so of either sign"
SEAL = "salt (16 bytes) and SHA-256 of salt and api_key; the hash alone once the name was replaced; null = no key, or not chained"
LINE_COLUMNS = (
    "site_id", "hour_at", "revision", "line_key", "tenant_id", "job_id", "api_key", "pool", "device_model", "charge_category", "price_id",
    "tariff_id", "quantity", "quantity_unit", "energy_mj", "carbon_gco2e", "billed_cost", "effective_cost", "currency", "status", "source",
    "coverage", "origin", "holder_key", "energy_low_mj", "energy_high_mj", "facility_mj", "facility_category", "method", "ordinal",
    "chain_sha256",
)  # fmt: skip
POSTED = {
    "hour_at": "posted_hour_at",
    "price_id": "NULL::integer",
    "tariff_id": "NULL::integer",
    "status": "'correction'::text",
}
LINES = f"""
CREATE OR REPLACE VIEW current_ledger_lines WITH (security_invoker = true) AS
SELECT {", ".join(f"rows.{name}" for name in LINE_COLUMNS)}, rows.api_key_seal, NULL::timestamptz AS corrects_hour_at, NULL::text AS reason
FROM ledger_lines AS rows JOIN ledger_hours USING (site_id, hour_at, revision)
UNION ALL
SELECT {", ".join(POSTED.get(name, name) for name in LINE_COLUMNS)}, api_key_seal, hour_at, reason FROM ledger_corrections
"""  # noqa: S608 (constants)
LINES_BEFORE = """
CREATE VIEW current_ledger_lines WITH (security_invoker = true) AS
SELECT rows.* FROM ledger_lines AS rows JOIN ledger_hours USING (site_id, hour_at, revision)
"""
# A name that is replaced takes the salt of its hash along: what is left tells nobody whose it was, and the chain holds.
FORGET = """
CREATE FUNCTION forget_salt() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.api_key IS DISTINCT FROM OLD.api_key AND length(OLD.api_key_seal) > 32 THEN
        NEW.api_key_seal := substring(OLD.api_key_seal FROM 17);
    END IF;
    RETURN NEW;
END $$
"""
# What was posted as corrections is in the hours themselves for a schema that has no corrections.
AS_BEFORE = """
UPDATE ledger_hours AS hours SET revision = hours.shadow_revision, run_id = hours.shadow_run_id, content_sha256 = runs.content_sha256
FROM ledger_runs AS runs WHERE runs.id = hours.shadow_run_id AND hours.shadow_revision IS NOT NULL
"""


def upgrade() -> None:
    _periods()
    for name, kind, target, comment in (
        ("frozen_period_id", sa.Integer(), "ledger_periods", "surrogate id of the closed month it is frozen in; null = open"),
        ("shadow_revision", sa.Integer(), None, "of a frozen hour: what it would be by now, posted as corrections; null = the same"),
        ("shadow_run_id", sa.BigInteger(), "ledger_runs", "surrogate id of the run that wrote that"),
    ):  # fmt: skip
        op.add_column("ledger_hours", sa.Column(name, kind, nullable=True, comment=comment))
        if target is not None:
            op.create_foreign_key(op.f(f"ledger_hours_{name}_fk"), "ledger_hours", target, [name], ["id"])
    for name, kind, comment in (
        ("line_count", sa.Integer(), "of its revision; null = not chained"),
        ("head_sha256", sa.LargeBinary(), "last link of the chain of its revision's lines; null = not chained"),
        ("after_period_id", sa.Integer(), "surrogate id: it computed a frozen hour anew, which moved nothing there; null = any other"),
    ):  # fmt: skip
        op.add_column("ledger_runs", sa.Column(name, kind, nullable=True, comment=comment))
    op.create_foreign_key(
        op.f("ledger_runs_after_period_id_fk"), "ledger_runs", "ledger_periods", ["after_period_id"], ["id"]
    )
    op.add_column("ledger_lines", sa.Column("api_key_seal", sa.LargeBinary(), nullable=True, comment=SEAL))
    _entries()
    _corrections()
    _disputes()
    op.execute(FORGET)
    op.execute(f"ALTER FUNCTION forget_salt() OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION forget_salt() FROM PUBLIC")
    for table in ("ledger_lines", "ledger_corrections"):
        op.execute(
            f"CREATE TRIGGER forget_salt BEFORE UPDATE OF api_key ON {table} FOR EACH ROW EXECUTE FUNCTION forget_salt()"
        )
    # Why a line of a reopened month moved is told to whoever may close it.
    op.execute(f"GRANT SELECT (site_id, hour_at, kind, revision, reason) ON ledger_runs TO {API}")
    op.execute(LINES)
    op.execute(
        "COMMENT ON VIEW current_ledger_lines IS "
        "'Rows of ledger_lines of the revision that counts, and corrections in the hour they are posted in.'"
    )


def downgrade() -> None:
    op.execute(AS_BEFORE)
    op.execute("DROP VIEW current_ledger_lines")
    op.execute("DROP TRIGGER forget_salt ON ledger_lines")
    op.execute(f"REVOKE SELECT (site_id, hour_at, kind, revision, reason) ON ledger_runs FROM {API}")  # noqa: S608 (constants)
    for table in ("line_disputes", "ledger_corrections", "period_hours"):
        op.drop_table(table)
    op.execute("DROP FUNCTION forget_salt()")
    op.drop_column("ledger_lines", "api_key_seal")
    for table, names in (
        ("ledger_runs", ("after_period_id", "head_sha256", "line_count")),
        ("ledger_hours", ("shadow_run_id", "shadow_revision", "frozen_period_id")),
    ):
        for name in names:
            op.drop_column(table, name)
    op.drop_table("ledger_periods")
    op.execute(LINES_BEFORE)
    op.execute("COMMENT ON VIEW current_ledger_lines IS 'Rows of ledger_lines of the revision that counts.'")
    op.execute(f"ALTER VIEW current_ledger_lines OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT ON current_ledger_lines TO {WORKER}, {API}")


def _periods() -> None:
    op.create_table(
        "ledger_periods",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="the month, e.g. 2026-10"),
        sa.Column(
            "site_id",
            sa.Integer(),
            nullable=True,
            comment="surrogate id; null = all sites that have no period of their own",
        ),
        sa.Column(
            "number",
            sa.Integer(),
            nullable=False,
            comment="1 for the first close of this month, then one more after each reopening",
        ),
        _instant("from_at"),
        _instant("to_at"),
        sa.Column("hours", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column("lines", sa.BigInteger(), nullable=False, comment="count or ordinal"),
        sa.Column(
            "corrections",
            sa.BigInteger(),
            nullable=False,
            comment="count of corrections of older months that this one holds",
        ),
        sa.Column(
            "checklist",
            postgresql.JSONB(),
            nullable=False,
            comment="what was looked at, with its figures, and what was accepted",
        ),
        sa.Column(
            "totals",
            postgresql.JSONB(),
            nullable=False,
            comment="sums by currency and of energy and carbon, as decimal text",
        ),
        sa.Column(
            "root_sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="SHA-256 over the chain of all its hours and corrections",
        ),
        sa.Column(
            "signature", sa.LargeBinary(), nullable=True, comment="Ed25519 of the root's text; null = not signed"
        ),
        sa.Column(
            "key_id",
            sa.Text(),
            nullable=True,
            comment="first 16 hexadecimal digits of SHA-256 of the public key",
        ),
        sa.Column("closed_by", sa.Text(), nullable=False, comment="text"),
        _instant("closed_at", server_default=sa.text("now()")),
        sa.Column(
            "reopened_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC; null = it is closed",
        ),
        sa.Column("reopened_by", sa.Text(), nullable=True, comment="text"),
        sa.Column("reopen_reason", sa.Text(), nullable=True, comment="text"),
        sa.CheckConstraint("from_at < to_at", name=op.f("ledger_periods_span_ck")),
        sa.CheckConstraint("num_nulls(signature, key_id) IN (0, 2)", name=op.f("ledger_periods_signature_ck")),
        sa.CheckConstraint(
            "num_nulls(reopened_at, reopened_by, reopen_reason) IN (0, 3)", name=op.f("ledger_periods_reopened_ck")
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("ledger_periods_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("ledger_periods_pk")),
        sa.UniqueConstraint(
            "name", "site_id", "number", name=op.f("ledger_periods_name_site_id_number_uq"), postgresql_nulls_not_distinct=True
        ),
        comment="A month that was closed: its hours are frozen until it is reopened.",
    )  # fmt: skip
    op.execute(f"ALTER TABLE ledger_periods OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT ON ledger_periods TO {WORKER}, {API}")


def _entries() -> None:
    op.create_table(
        "period_hours",
        sa.Column("period_id", sa.Integer(), autoincrement=False, nullable=False, comment="surrogate id"),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False, comment="place in the chain, from 1"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        _instant("hour_at"),
        sa.Column(
            "run_id",
            sa.BigInteger(),
            nullable=True,
            comment="surrogate id: of corrections of this hour that the month holds; null = an hour of the month itself",
        ),
        sa.Column(
            "revision",
            sa.Integer(),
            nullable=False,
            comment="of the lines; of corrections: the revision they lead to",
        ),
        sa.Column("lines", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column("head_sha256", sa.LargeBinary(), nullable=False, comment="last link of the chain of its lines"),
        sa.Column(
            "chain_sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="SHA-256 over this entry and the link before it",
        ),
        sa.ForeignKeyConstraint(["period_id"], ["ledger_periods.id"], name=op.f("period_hours_period_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("period_hours_site_id_fk")),
        sa.ForeignKeyConstraint(["run_id"], ["ledger_runs.id"], name=op.f("period_hours_run_id_fk")),
        sa.PrimaryKeyConstraint("period_id", "ordinal", name=op.f("period_hours_pk")),
        comment="The chain of a closed month: its hours by site and time, then the corrections posted in it.",
    )
    op.create_index("period_hours_hour_ix", "period_hours", ["site_id", "hour_at"])
    op.execute(f"ALTER TABLE period_hours OWNER TO {OWNER}")
    op.execute(f"GRANT SELECT ON period_hours TO {WORKER}, {API}")


def _corrections() -> None:
    op.create_table(
        "ledger_corrections",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        _instant("hour_at", comment="instant, UTC: the frozen hour that would be different today"),
        _instant("posted_hour_at", comment="instant, UTC: the hour of the open month that counts it"),
        sa.Column(
            "from_revision",
            sa.Integer(),
            nullable=False,
            comment="posted before this; 0 = the hour had no books when its month closed",
        ),
        sa.Column("revision", sa.Integer(), nullable=False, comment="what the hour's lines would be by now"),
        sa.Column("run_id", sa.BigInteger(), nullable=False, comment="surrogate id: what computed them"),
        sa.Column("reason", sa.Text(), nullable=False, comment="text"),
        sa.Column("line_key", sa.Text(), nullable=False, comment="tenant, holder, model, category, and the run"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("job_id", sa.BigInteger(), nullable=True, comment="surrogate id"),
        sa.Column("api_key", sa.Text(), nullable=True, comment="text"),
        sa.Column("pool", sa.Text(), nullable=False, comment="as of ledger_lines"),
        sa.Column("device_model", sa.Text(), nullable=True, comment="text"),
        sa.Column("charge_category", sa.Text(), nullable=False, comment="as of ledger_lines"),
        sa.Column("quantity", sa.BigInteger(), nullable=False, comment="whole units of quantity_unit" + MORE),
        sa.Column("quantity_unit", sa.Text(), nullable=False, comment="accelerator-us, mJ, token"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules" + MORE),
        sa.Column("carbon_gco2e", sa.Numeric(38, 9), nullable=True, comment="grams of CO2 equivalent" + MORE),
        sa.Column("billed_cost", sa.Numeric(38, 9), nullable=True, comment="in currency; null = no price is known" + MORE),
        sa.Column("effective_cost", sa.Numeric(38, 9), nullable=True, comment="in currency" + MORE),
        sa.Column("currency", sa.String(3), nullable=False, comment="text"),
        sa.Column("source", sa.Text(), nullable=False, comment="measured, estimated, forecast or assumed"),
        sa.Column("coverage", postgresql.DOUBLE_PRECISION(), nullable=False, comment="0 to 1: of the line as it would be"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column("holder_key", sa.Text(), nullable=True, comment="who or what by names instead of ids; null = not said"),
        sa.Column("energy_low_mj", sa.BigInteger(), nullable=True, comment="millijoules" + MORE),
        sa.Column("energy_high_mj", sa.BigInteger(), nullable=True, comment="millijoules" + MORE),
        sa.Column("facility_mj", sa.BigInteger(), nullable=True, comment="millijoules" + MORE),
        sa.Column("facility_category", sa.SmallInteger(), nullable=True, comment="as of ledger_lines"),
        sa.Column("method", sa.Text(), nullable=True, comment="as of ledger_lines"),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="place in the chain of what its run posted, from 1"),
        sa.Column(
            "chain_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 over the correction and the one before it"
        ),
        sa.Column("api_key_seal", sa.LargeBinary(), nullable=True, comment="as of ledger_lines"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("ledger_corrections_site_id_fk")),
        sa.ForeignKeyConstraint(["run_id"], ["ledger_runs.id"], name=op.f("ledger_corrections_run_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("ledger_corrections_tenant_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("ledger_corrections_job_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("ledger_corrections_pk")),
        comment="What later changes of a frozen hour come to, line by line, counted in the open month.",
    )  # fmt: skip
    op.create_index("ledger_corrections_posted_ix", "ledger_corrections", ["posted_hour_at"])
    op.create_index("ledger_corrections_hour_ix", "ledger_corrections", ["site_id", "hour_at"])
    _confined("ledger_corrections")
    op.execute(f"GRANT SELECT, INSERT ON ledger_corrections TO {WORKER}")
    op.execute(f"GRANT SELECT ON ledger_corrections TO {API}")


def _disputes() -> None:
    op.create_table(
        "line_disputes",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        _instant("hour_at"),
        sa.Column(
            "line_sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="link of the line in the chain of its hour, which is what names it",
        ),
        sa.Column("line", sa.Text(), nullable=False, comment="the line in words, as it was when it was disputed"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("billed_cost", sa.Numeric(38, 9), nullable=True, comment="in currency: of the line; null = unpriced"),
        sa.Column("currency", sa.String(3), nullable=False, comment="text"),
        sa.Column("opened_by", sa.Text(), nullable=False, comment="text"),
        _instant("opened_at", server_default=sa.text("now()")),
        sa.Column("reason", sa.Text(), nullable=False, comment="text"),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC; null = open"),
        sa.Column("resolved_by", sa.Text(), nullable=True, comment="text"),
        sa.Column("resolution", sa.Text(), nullable=True, comment="text"),
        sa.CheckConstraint(
            "num_nulls(resolved_at, resolved_by, resolution) IN (0, 3)", name=op.f("line_disputes_resolved_ck")
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("line_disputes_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("line_disputes_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("line_disputes_pk")),
        comment="A line of a bill that somebody says is wrong.",
    )
    op.create_index("line_disputes_hour_ix", "line_disputes", ["site_id", "hour_at"])
    _confined("line_disputes")
    op.execute(f"CREATE POLICY tenant_opens ON line_disputes FOR INSERT TO {API} WITH CHECK ({BY_TENANT})")
    op.execute(f"CREATE POLICY all_resolve ON line_disputes FOR UPDATE TO {API} USING ((SELECT sees_all_tenants()))")
    op.execute(f"GRANT SELECT ON line_disputes TO {WORKER}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE (resolved_at, resolved_by, resolution) ON line_disputes TO {API}")


def _confined(table: str) -> None:
    op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON {table} TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY tenant_subtree ON {table} FOR SELECT TO {API} USING ({BY_TENANT})")


def _instant(name: str, **options: object) -> sa.Column[object]:
    options.setdefault("comment", "instant, UTC")
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, **options)  # type: ignore[arg-type]
