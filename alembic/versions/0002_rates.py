"""What things cost and emit: prices, tariffs, intensity, facility factors, exchange rates; dated twice."""

import sqlalchemy as sa
from alembic import op

revision = "0002_rates"
down_revision = "0001_identities"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column(
            "provider",
            sa.Text(),
            nullable=False,
            comment="owned for our own accelerators, else the API or cloud provider",
        ),
        sa.Column("model", sa.Text(), nullable=False, comment="device model or API model"),
        sa.Column(
            "meter",
            sa.Text(),
            nullable=False,
            comment="accelerator_hour, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, ...",
        ),
        sa.Column(
            "amount", sa.Numeric(precision=38, scale=18), nullable=False, comment="price of one unit, in currency"
        ),
        sa.Column("unit", sa.Text(), nullable=False, comment="what one amount buys: hour, token, request"),
        sa.Column("currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("source", sa.Text(), nullable=False, comment="where the price comes from"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("prices_pk")),
        comment="Dated price book: one row is one price id of the books.",
    )
    op.create_index("prices_lookup_ix", "prices", ["provider", "model", "meter"])
    op.create_table(
        "tariffs",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "metering_point", sa.Text(), nullable=False, comment="it, facility or included: what the price applies to"
        ),
        sa.Column(
            "amount_per_kwh",
            sa.Numeric(precision=38, scale=18),
            nullable=False,
            comment="currency per kWh; may be negative",
        ),
        sa.Column("currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("source", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.CheckConstraint("metering_point IN ('it', 'facility', 'included')", name=op.f("tariffs_metering_point_ck")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("tariffs_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("tariffs_pk")),
        comment="Electricity price of a site over time.",
    )
    op.create_index("tariffs_lookup_ix", "tariffs", ["site_id", "valid_from"])
    op.create_table(
        "intensity",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("grid_zone", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "basis",
            sa.Text(),
            nullable=False,
            comment="location, market or marginal; marginal never enters the inventory",
        ),
        sa.Column(
            "gco2e_per_kwh",
            sa.Numeric(precision=38, scale=18),
            nullable=False,
            comment="grams of CO2 equivalent per kWh",
        ),
        sa.Column("life_cycle", sa.Boolean(), nullable=False, comment="true: upstream emissions included"),
        sa.Column("estimated", sa.Boolean(), server_default="false", nullable=False, comment="true or false"),
        sa.Column("source", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.CheckConstraint("basis IN ('location', 'market', 'marginal')", name=op.f("intensity_basis_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("intensity_pk")),
        comment="Carbon intensity of a grid zone over time. A missing hour is a missing row, never smoothed.",
    )
    op.create_index("intensity_lookup_ix", "intensity", ["grid_zone", "basis", "valid_from"])
    op.create_table(
        "facility_factors",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "factor",
            sa.Numeric(precision=38, scale=18),
            nullable=False,
            comment="facility energy / IT energy (interim PUE), at least 1",
        ),
        sa.Column(
            "category", sa.SmallInteger(), nullable=False, comment="PUE measurement category 0 to 3 (ISO/IEC 30134-2)"
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.CheckConstraint("factor >= 1", name=op.f("facility_factors_factor_ck")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("facility_factors_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("facility_factors_pk")),
        comment="Facility factor of a site over time; none = IT energy only, and said so.",
    )
    op.create_table(
        "fx_rates",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("base_currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("quote_currency", sa.String(length=3), nullable=False, comment="text"),
        sa.Column("rate", sa.Numeric(precision=38, scale=18), nullable=False, comment="quote units per base unit"),
        sa.Column("source", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("fx_rates_pk")),
        comment="Exchange rates, dated.",
    )


def downgrade() -> None:
    op.drop_table("fx_rates")
    op.drop_table("facility_factors")
    op.drop_table("intensity")
    op.drop_table("tariffs")
    op.drop_table("prices")
