"""The books: rollups, usage hours, ledger, and the rows whose compare-and-swap is the only exclusion.

Usage hours and ledger lines are append-only per revision; ``ledger_hours.revision`` says which one counts.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB

from ingest.store.tables.columns import MONEY, Xid8, column, instant, named, reference, surrogate_id
from ingest.store.tables.lines_wide import later_amounts, later_sources, later_words
from ingest.store.tables.metadata import metadata

_HOUR = DateTime(timezone=True)


def _bound(end: str, side: str) -> Column[Any]:
    return column(
        f"energy_{end}_mj",
        BigInteger,
        nullable=True,
        comment=f"millijoules, {side} end of the 90 % interval of energy_mj; null = nothing in it is estimated, or not said",
    )


minute_rollups = Table(
    "minute_rollups",
    metadata,
    column("minute_at", _HOUR, primary_key=True),
    # No foreign key: it was two thirds of what writing a row cost, and every row follows from samples of a known device.
    column("device_id", Integer, primary_key=True),
    column("energy_mj", BigInteger, nullable=True),
    column("power_max_mw", Integer, nullable=True),
    column("gpu_util_percent", SmallInteger, nullable=True),
    column("temp_c", SmallInteger, nullable=True),
    column("throttled_us", BigInteger, nullable=True),
    column("covered_us", BigInteger),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    comment="One device and minute, for dashboards; never the source of a bill.",
)

tenant_minutes = Table(
    "tenant_minutes",
    metadata,
    named("site_id", "sites"),
    column("minute_at", _HOUR),
    named("tenant_id", "tenants", nullable=True),
    column("energy_mj", BigInteger),
    # No primary key: the energy of nobody has no tenant. By time first, as dashboards ask, and nothing else asks.
    Index("tenant_minutes_minute_at_ix", "minute_at", "site_id"),
    comment="Energy of one tenant, site and minute, for dashboards; null tenant = nobody's. Never the source of a bill.",
)

ledger_runs = Table(
    "ledger_runs",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites"),
    column("hour_at", _HOUR),
    column("revision", Integer),
    column("code_version", Text),
    column("as_of_at", _HOUR, comment="instant, UTC: reference data as known then"),
    column("seen_xid", Xid8, comment="changes of transactions from this id on were not seen"),
    column("generation", Integer, server_default="0", comment="of the sealed segment read; 0 = hot rows"),
    column("inputs_sha256", LargeBinary),
    column("content_sha256", LargeBinary, comment="of the rows written: equal content is no new revision"),
    column("reason", Text, comment="first close, late data, new allocation, price change, ..."),
    column("diff", JSONB, nullable=True, comment="against the revision before"),
    column(
        "quality",
        JSONB,
        nullable=True,
        comment="by reason: devices, readings dropped, time_us without a meter; null = run before this was kept",
    ),
    instant("finished_at", server_default=func.now()),
    column(
        "kind",
        Text,
        server_default="close",
        comment="close: it wrote a revision; rate: it priced the usage of one anew; "
        "attest: it found what its revision says, from other inputs",
    ),
    column(
        "usage_revision",
        Integer,
        nullable=True,
        comment="revision of the usage hours that its lines are made of; null = its own",
    ),
    column(
        "snapshot",
        Text,
        nullable=True,
        comment="pg_snapshot in stamped transactions: what it saw; null = run before this was kept",
    ),
    column("method_version", Integer, nullable=True, comment="of the formulas; null = run before this was kept"),
    column("policy", JSONB, nullable=True, comment="the choices it computed with; null = run before this was kept"),
    column(
        "inputs",
        JSONB,
        nullable=True,
        comment="files by stream, hour, generation and SHA-256; rows and SHA-256 of the rest; versions; null = not kept",
    ),
    column(
        "usage_sha256",
        LargeBinary,
        nullable=True,
        comment="of the usage hours of its revision; null = run before this was kept",
    ),
    column("line_count", Integer, nullable=True, comment="of its revision; null = not chained"),
    column(
        "head_sha256",
        LargeBinary,
        nullable=True,
        comment="last link of the chain of its revision's lines; null = not chained",
    ),
    column(
        "after_period_id",
        Integer,
        ForeignKey("ledger_periods.id"),
        nullable=True,
        comment="surrogate id: it computed a frozen hour anew, which moved nothing there; null = any other",
    ),
    column(
        "chain_version",
        SmallInteger,
        nullable=True,
        comment="how its lines are chained; null = 1, as all were before lines said more",
    ),
    column(
        "uses",
        ARRAY(Text),
        nullable=True,
        comment="provider/model its lines hang on, as scopes of changes have them; null = not said, any price counts",
    ),
    Index("ledger_runs_hour_ix", "site_id", "hour_at"),
    # The view of current usage asks for the few hours that were rated.
    Index("ledger_runs_rated_ix", "id", postgresql_where=text("usage_revision IS NOT NULL")),
    CheckConstraint("kind IN ('close', 'rate', 'attest')", name="kind"),
    comment="What a close of one hour read and wrote, enough to recompute it bit for bit.",
)

ledger_hours = Table(
    "ledger_hours",
    metadata,
    column("site_id", Integer, ForeignKey("sites.id"), primary_key=True),
    column("hour_at", _HOUR, primary_key=True),
    column("revision", Integer, comment="the revision that counts; swapped only in the transaction that wrote it"),
    column("run_id", BigInteger, ForeignKey("ledger_runs.id")),
    column("status", Text, comment="provisional or closed"),
    column("seen_xid", Xid8, comment="changes of transactions from this id on were not seen"),
    column("content_sha256", LargeBinary),
    instant("closed_at", server_default=func.now()),
    column(
        "frozen_period_id",
        Integer,
        ForeignKey("ledger_periods.id"),
        nullable=True,
        comment="surrogate id of the closed month it is frozen in; null = open",
    ),
    column(
        "shadow_revision",
        Integer,
        nullable=True,
        comment="of a frozen hour: what it would be by now, posted as corrections; null = the same",
    ),
    column(
        "shadow_run_id",
        BigInteger,
        ForeignKey("ledger_runs.id"),
        nullable=True,
        comment="surrogate id of the run that wrote that",
    ),
    column(
        "minutes_run_id",
        BigInteger,
        nullable=True,
        comment="the run whose minutes by device and by tenant are written; another than run_id, or null = they are to be made",
    ),
    instant(
        "heard_until",
        nullable=True,
        comment="instant, UTC: what is written of boards and holdings from here on moved nothing of it; null = an hour after its end",
    ),
    instant(
        "meters_until",
        nullable=True,
        comment="instant, UTC: the same of meters of nodes; null = an hour after its end",
    ),
    column(
        "crossed_sha256",
        LargeBinary,
        nullable=True,
        comment="of the silences over its beginning that ended beyond the margin, as the hour before was told of them; null = none",
    ),
    Index("ledger_hours_minutes_ix", "hour_at", postgresql_where=text("minutes_run_id IS DISTINCT FROM run_id")),
    CheckConstraint("status IN ('provisional', 'closed')", name="status"),
    comment="Which revision of each ledger hour counts.",
)

usage_hours = Table(
    "usage_hours",
    metadata,
    named("site_id", "sites", primary_key=True),
    column("hour_at", _HOUR, primary_key=True),
    column("revision", Integer, primary_key=True),
    named("device_id", "devices", primary_key=True),
    column("holder", Text, primary_key=True, comment="job:<id>, idle, or unattributed:<reason>"),
    named("job_id", "jobs", nullable=True, wide=True),
    named("tenant_id", "tenants", nullable=True),
    column(
        "state", Text, comment="used, allocated_idle, reserved_unused, available, down: where most of the time went"
    ),
    column("energy_mj", BigInteger, nullable=True, comment="millijoules; null = no meter spans this time"),
    column("estimated_mj", BigInteger, nullable=True, comment="millijoules of energy_mj that are estimated"),
    column("held_us", BigInteger, comment="microseconds of this device"),
    column("covered_us", BigInteger, comment="microseconds of held_us with measured energy"),
    column("active_us", BigInteger, nullable=True, comment="microseconds with work on the device"),
    column("idle_us", BigInteger, nullable=True, comment="microseconds held but without work"),
    column("throttled_us", BigInteger, nullable=True, comment="microseconds slowed by power or heat"),
    column("accelerators", Integer),
    column(
        "carbon_gco2e",
        MONEY,
        nullable=True,
        comment="grams of CO2 equivalent, location-based; null = no intensity for the hour",
    ),
    named("intensity_id", "intensity", nullable=True),
    column("source", Text, comment="measured, estimated, forecast or assumed"),
    column("coverage", DOUBLE_PRECISION, comment="covered_us / held_us, 0 to 1"),
    column("feed", SmallInteger, nullable=True, comment="collector.wire.Feed; null = no samples"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    _bound("low", "lower"),
    _bound("high", "upper"),
    column(
        "reserved_us",
        BigInteger,
        nullable=True,
        comment="microseconds of held_us that were reserved and not used; null = 0",
    ),
    column("down_us", BigInteger, nullable=True, comment="microseconds of held_us out of service; null = 0"),
    column(
        "method",
        Text,
        nullable=True,
        comment="how the energy came to this holder: whole, share, slice, count, overhead, ...; null = not said",
    ),
    column("reason", Text, nullable=True, comment="why the time is nobody's, or the state what it is; null = plain"),
    Index("usage_hours_job_ix", "job_id"),
    CheckConstraint("energy_mj >= 0 AND estimated_mj BETWEEN 0 AND energy_mj", name="energy"),
    CheckConstraint("held_us >= 0 AND covered_us BETWEEN 0 AND held_us", name="time"),
    comment="The grain of the books: device x hour x job, idle or unattributed.",
)

hour_jobs = Table(
    "hour_jobs",
    metadata,
    column("site_id", Integer, ForeignKey("sites.id"), primary_key=True),
    column("hour_at", _HOUR, primary_key=True),
    column(
        "revision",
        Integer,
        primary_key=True,
        autoincrement=False,
        comment="of the lines, by a run that rated usage of an earlier one",
    ),
    column("job_id", BigInteger, ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    reference("tenant_id", "tenants", nullable=True),
    reference("binding_id", "bindings", nullable=True),
    comment="Who pays for a job in an hour whose usage was rated again; without a row here, its usage hours say.",
)

ledger_lines = Table(
    "ledger_lines",
    metadata,
    named("site_id", "sites", primary_key=True),
    column("hour_at", _HOUR, primary_key=True),
    column("revision", Integer, primary_key=True),
    column(
        "line_key",
        Text,
        primary_key=True,
        comment="tenant, holder, model, category and price: the tie-breaker of rounding",
    ),
    named("tenant_id", "tenants", nullable=True, index=True),
    named("job_id", "jobs", nullable=True, wide=True),
    column("api_key", Text, nullable=True),
    column("pool", Text, comment="job, idle, unattributed or api"),
    column("device_model", Text, nullable=True),
    column("charge_category", Text, comment="gpu_owned, electricity, api_tokens"),
    named("price_id", "prices", nullable=True),
    named("tariff_id", "tariffs", nullable=True),
    column("quantity", BigInteger, comment="whole units of quantity_unit"),
    column("quantity_unit", Text, comment="accelerator-us, mJ, token"),
    column("energy_mj", BigInteger, nullable=True, comment="IT energy behind the line, millijoules"),
    column("carbon_gco2e", MONEY, nullable=True),
    column("billed_cost", MONEY, comment="in currency; null price = see unpriced", nullable=True),
    column("effective_cost", MONEY, comment="in currency", nullable=True),
    column("currency", String(3)),
    column("status", Text, comment="provisional, closed or correction"),
    column("source", Text, comment="measured, estimated, forecast or assumed"),
    column("coverage", DOUBLE_PRECISION, comment="0 to 1"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    column("holder_key", Text, nullable=True, comment="who or what by names instead of ids; null = not said"),
    _bound("low", "lower"),
    _bound("high", "upper"),
    column(
        "facility_mj",
        BigInteger,
        nullable=True,
        comment="energy_mj with cooling and losses, millijoules; null = no facility factor is known",
    ),
    column(
        "facility_category",
        SmallInteger,
        nullable=True,
        comment="PUE measurement category 0 to 3 of that factor (ISO/IEC 30134-2)",
    ),
    column(
        "method",
        Text,
        nullable=True,
        comment="as of the usage hours: the least exact of theirs; null = of calls, or not said",
    ),
    column(
        "ordinal",
        Integer,
        nullable=True,
        comment="place of the line in the chain of its hour, from 1; null = not chained",
    ),
    column(
        "chain_sha256",
        LargeBinary,
        nullable=True,
        comment="SHA-256 over the line and the one before it; null = not chained",
    ),
    column(
        "api_key_seal",
        LargeBinary,
        nullable=True,
        comment="salt (16 bytes) and SHA-256 of salt and api_key; the hash alone once the name was replaced; null = no key, or not chained",
    ),
    *later_amounts(),
    *later_words(),
    *later_sources(),
    Index("ledger_lines_hour_ix", "hour_at"),
    # What jobs that failed cost, over a month: as many lines as there are hours of jobs, few of them.
    Index("ledger_lines_job_ix", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    comment="Usage hours and API calls aggregated to tenant x job/key/pool x model x charge category, priced.",
)

stamp_shifts = Table(
    "stamp_shifts",
    metadata,
    instant("restored_at", primary_key=True, server_default=func.now()),
    column("shift", BigInteger, comment="added to this server's transaction ids in stamps from then on"),
    comment="A restored database counts its transactions on from those of the server before; no row: never restored.",
)

watermarks = Table(
    "watermarks",
    metadata,
    column("name", Text, primary_key=True, comment="e.g. close/<site>"),
    column("value", Text),
    column("lease_epoch", BigInteger, server_default="0", comment="compare-and-swapped by whoever acts"),
    column("holder", Text, nullable=True),
    instant("updated_at", server_default=func.now()),
    comment="Where each worker loop stands. A write that does not swap the row it read writes nothing.",
)

findings = Table(
    "findings",
    metadata,
    surrogate_id(wide=True),
    column("dedupe_key", Text, unique=True, comment="kind, subject and start: a re-run updates, never repeats"),
    named("site_id", "sites"),
    column("kind", Text, comment="throttling, idle_waste, device_on_two_nodes, negative_remainder, ..."),
    named("device_id", "devices", nullable=True),
    named("job_id", "jobs", nullable=True, wide=True),
    named("tenant_id", "tenants", nullable=True),
    instant("start_at"),
    instant("end_at"),
    column("evidence", JSONB, comment="the signals, each with its instrument and values"),
    column("waste_energy_mj", BigInteger, nullable=True, comment="millijoules"),
    column("avoidable_cash", MONEY, nullable=True, comment="in currency: power, rented time, tokens"),
    column("capacity_freed_us", BigInteger, nullable=True, comment="accelerator-microseconds given back if acted on"),
    column("currency", String(3), nullable=True),
    column("confidence", DOUBLE_PRECISION, comment="0 to 1"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    instant("recorded_at", server_default=func.now()),
    column(
        "withdrawn_at",
        _HOUR,
        nullable=True,
        comment="instant, UTC: its hour was closed again without it; null = stands",
    ),
    Index("findings_time_ix", "start_at"),
    comment="A detected episode with its evidence and price.",
)
