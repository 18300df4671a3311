"""Rollups, usage hours, ledger, watermarks and findings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from ingest.store.tables.columns import Xid8

revision = "0005_books"
down_revision = "0004_work"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "minute_rollups",
        sa.Column("minute_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("power_max_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("gpu_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("throttled_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("covered_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("minute_rollups_device_id_fk")),
        sa.PrimaryKeyConstraint("minute_at", "device_id", name=op.f("minute_rollups_pk")),
        comment="One device and minute, for dashboards; never the source of a bill.",
    )
    op.create_table(
        "ledger_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("revision", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column("code_version", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "as_of_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: reference data as known then"
        ),
        sa.Column("seen_xid", Xid8(), nullable=False, comment="changes of transactions from this id on were not seen"),
        sa.Column(
            "generation",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="of the sealed segment read; 0 = hot rows",
        ),
        sa.Column("inputs_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 digest, 32 bytes"),
        sa.Column(
            "content_sha256",
            sa.LargeBinary(),
            nullable=False,
            comment="of the rows written: equal content is no new revision",
        ),
        sa.Column(
            "reason", sa.Text(), nullable=False, comment="first close, late data, new allocation, price change, ..."
        ),
        sa.Column(
            "diff", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="against the revision before"
        ),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("ledger_runs_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("ledger_runs_pk")),
        comment="What a close of one hour read and wrote, enough to recompute it bit for bit.",
    )
    op.create_index("ledger_runs_hour_ix", "ledger_runs", ["site_id", "hour_at"])
    op.create_table(
        "ledger_hours",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "revision",
            sa.Integer(),
            nullable=False,
            comment="the revision that counts; swapped only in the transaction that wrote it",
        ),
        sa.Column("run_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        sa.Column("status", sa.Text(), nullable=False, comment="provisional or closed"),
        sa.Column("seen_xid", Xid8(), nullable=False, comment="changes of transactions from this id on were not seen"),
        sa.Column("content_sha256", sa.LargeBinary(), nullable=False, comment="SHA-256 digest, 32 bytes"),
        sa.Column(
            "closed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("status IN ('provisional', 'closed')", name=op.f("ledger_hours_status_ck")),
        sa.ForeignKeyConstraint(["run_id"], ["ledger_runs.id"], name=op.f("ledger_hours_run_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("ledger_hours_site_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "hour_at", name=op.f("ledger_hours_pk")),
        comment="Which revision of each ledger hour counts.",
    )
    op.create_table(
        "usage_hours",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("revision", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("holder", sa.Text(), nullable=False, comment="job:<id>, idle, or unattributed:<reason>"),
        sa.Column("job_id", sa.BigInteger(), nullable=True, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column(
            "state",
            sa.Text(),
            nullable=False,
            comment="used, allocated_idle, reserved_unused, available, down: where most of the time went",
        ),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules; null = no meter spans this time"),
        sa.Column(
            "estimated_mj", sa.BigInteger(), nullable=True, comment="millijoules of energy_mj that are estimated"
        ),
        sa.Column("held_us", sa.BigInteger(), nullable=False, comment="microseconds of this device"),
        sa.Column(
            "covered_us", sa.BigInteger(), nullable=False, comment="microseconds of held_us with measured energy"
        ),
        sa.Column("active_us", sa.BigInteger(), nullable=True, comment="microseconds with work on the device"),
        sa.Column("idle_us", sa.BigInteger(), nullable=True, comment="microseconds held but without work"),
        sa.Column("throttled_us", sa.BigInteger(), nullable=True, comment="microseconds slowed by power or heat"),
        sa.Column("accelerators", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column(
            "carbon_gco2e",
            sa.Numeric(precision=38, scale=9),
            nullable=True,
            comment="grams of CO2 equivalent, location-based; null = no intensity for the hour",
        ),
        sa.Column("intensity_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("source", sa.Text(), nullable=False, comment="measured, estimated, forecast or assumed"),
        sa.Column("coverage", sa.DOUBLE_PRECISION(), nullable=False, comment="covered_us / held_us, 0 to 1"),
        sa.Column("feed", sa.SmallInteger(), nullable=True, comment="collector.wire.Feed; null = no samples"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.CheckConstraint(
            "energy_mj >= 0 AND estimated_mj BETWEEN 0 AND energy_mj", name=op.f("usage_hours_energy_ck")
        ),
        sa.CheckConstraint("held_us >= 0 AND covered_us BETWEEN 0 AND held_us", name=op.f("usage_hours_time_ck")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("usage_hours_device_id_fk")),
        sa.ForeignKeyConstraint(["intensity_id"], ["intensity.id"], name=op.f("usage_hours_intensity_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("usage_hours_job_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("usage_hours_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("usage_hours_tenant_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "hour_at", "revision", "device_id", "holder", name=op.f("usage_hours_pk")),
        comment="The grain of the books: device x hour x job, idle or unattributed.",
    )
    op.create_index("usage_hours_job_ix", "usage_hours", ["job_id"])
    op.create_table(
        "ledger_lines",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("revision", sa.Integer(), nullable=False, comment="count or ordinal"),
        sa.Column(
            "line_key",
            sa.Text(),
            nullable=False,
            comment="tenant, holder, model, category and price: the tie-breaker of rounding",
        ),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("job_id", sa.BigInteger(), nullable=True, comment="surrogate id"),
        sa.Column("api_key", sa.Text(), nullable=True, comment="text"),
        sa.Column("pool", sa.Text(), nullable=False, comment="job, idle, unattributed or api"),
        sa.Column("device_model", sa.Text(), nullable=True, comment="text"),
        sa.Column("charge_category", sa.Text(), nullable=False, comment="gpu_owned, electricity, api_tokens"),
        sa.Column("price_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("tariff_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("quantity", sa.BigInteger(), nullable=False, comment="whole units of quantity_unit"),
        sa.Column("quantity_unit", sa.Text(), nullable=False, comment="accelerator-us, mJ, token"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="IT energy behind the line, millijoules"),
        sa.Column("carbon_gco2e", sa.Numeric(precision=38, scale=9), nullable=True, comment="grams of CO2 equivalent"),
        sa.Column(
            "billed_cost",
            sa.Numeric(precision=38, scale=9),
            nullable=True,
            comment="in currency; null price = see unpriced",
        ),
        sa.Column("effective_cost", sa.Numeric(precision=38, scale=9), nullable=True, comment="in currency"),
        sa.Column("currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("status", sa.Text(), nullable=False, comment="provisional, closed or correction"),
        sa.Column("source", sa.Text(), nullable=False, comment="measured, estimated, forecast or assumed"),
        sa.Column("coverage", sa.DOUBLE_PRECISION(), nullable=False, comment="0 to 1"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("ledger_lines_job_id_fk")),
        sa.ForeignKeyConstraint(["price_id"], ["prices.id"], name=op.f("ledger_lines_price_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("ledger_lines_site_id_fk")),
        sa.ForeignKeyConstraint(["tariff_id"], ["tariffs.id"], name=op.f("ledger_lines_tariff_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("ledger_lines_tenant_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "hour_at", "revision", "line_key", name=op.f("ledger_lines_pk")),
        comment="Usage hours and API calls aggregated to tenant x job/key/pool x model x charge category, priced.",
    )
    op.create_index("ledger_lines_hour_ix", "ledger_lines", ["hour_at"])
    op.create_index(op.f("ledger_lines_tenant_id_ix"), "ledger_lines", ["tenant_id"])
    op.create_table(
        "watermarks",
        sa.Column("name", sa.Text(), nullable=False, comment="e.g. close/<site>"),
        sa.Column("value", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "lease_epoch",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="compare-and-swapped by whoever acts",
        ),
        sa.Column("holder", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("watermarks_pk")),
        comment="Where each worker loop stands. A write that does not swap the row it read writes nothing.",
    )
    op.create_table(
        "findings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column(
            "dedupe_key", sa.Text(), nullable=False, comment="kind, subject and start: a re-run updates, never repeats"
        ),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            comment="throttling, idle_waste, device_on_two_nodes, negative_remainder, ...",
        ),
        sa.Column("device_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("job_id", sa.BigInteger(), nullable=True, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("end_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "evidence",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="the signals, each with its instrument and values",
        ),
        sa.Column("waste_energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column(
            "avoidable_cash",
            sa.Numeric(precision=38, scale=9),
            nullable=True,
            comment="in currency: power, rented time, tokens",
        ),
        sa.Column(
            "capacity_freed_us",
            sa.BigInteger(),
            nullable=True,
            comment="accelerator-microseconds given back if acted on",
        ),
        sa.Column("currency", sa.String(length=3), nullable=True, comment="text"),
        sa.Column("confidence", sa.DOUBLE_PRECISION(), nullable=False, comment="0 to 1"),
        sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin"),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("findings_device_id_fk")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("findings_job_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("findings_site_id_fk")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("findings_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("findings_pk")),
        sa.UniqueConstraint("dedupe_key", name=op.f("findings_dedupe_key_uq")),
        comment="A detected episode with its evidence and price.",
    )
    op.create_index("findings_time_ix", "findings", ["start_at"])


def downgrade() -> None:
    op.drop_table("findings")
    op.drop_table("watermarks")
    op.drop_table("ledger_lines")
    op.drop_table("usage_hours")
    op.drop_table("ledger_hours")
    op.drop_table("ledger_runs")
    op.drop_table("minute_rollups")
