"""Epochs, sample tables partitioned by day, and what keeps count of what came in."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from ingest.store.tables.columns import Xid8

revision = "0003_samples"
down_revision = "0002_rates"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "epochs",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("boot_id", sa.Text(), nullable=False, comment="surrogate id"),
        sa.Column("driver_epoch", sa.BigInteger(), nullable=False, comment="counts driver loads within a boot"),
        sa.Column(
            "feed",
            sa.SmallInteger(),
            nullable=False,
            comment="collector.wire.Feed: 1 native, 2 dcgm, 3 remote write, 4 import",
        ),
        sa.Column(
            "origin",
            sa.SmallInteger(),
            nullable=False,
            comment="collector.wire.Origin: 1 live, 2 imported, 3 replayed, 4 simulated",
        ),
        sa.Column("cadence_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("agent_version", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "first_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("epochs_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("epochs_pk")),
        sa.UniqueConstraint(
            "node_id",
            "boot_id",
            "driver_epoch",
            "feed",
            "origin",
            "cadence_us",
            name=op.f("epochs_node_id_boot_id_driver_epoch_feed_origin_cadence_us_uq"),
        ),
        comment="One boot and driver load of a node as one feed saw it; counters are comparable only inside an epoch.",
    )
    op.create_table(
        "fabric_ports",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="e.g. mlx5_0/1"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fabric_ports_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("fabric_ports_pk")),
        sa.UniqueConstraint("node_id", "name", name=op.f("fabric_ports_node_id_name_uq")),
        comment="A fabric port of a node.",
    )
    op.create_table(
        "engines",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="endpoint as configured on the node"),
        sa.Column("model", sa.Text(), nullable=False, comment="text"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("engines_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("engines_pk")),
        sa.UniqueConstraint("node_id", "name", "model", name=op.f("engines_node_id_name_model_uq")),
        comment="A serving engine (vLLM, SGLang) on a node.",
    )
    op.create_table(
        "device_samples",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="devices.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column(
            "reading",
            sa.SmallInteger(),
            nullable=False,
            comment="collector.wire.Reading: 0 periodic, 1 allocation start, 2 allocation end, 3 device event",
        ),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("samples", sa.SmallInteger(), nullable=False, comment="readings taken inside the span"),
        sa.Column(
            "samples_missed",
            sa.SmallInteger(),
            nullable=False,
            comment="readings that should have been taken inside the span and were not",
        ),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("power_average_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_min_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_max_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_instant_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_limit_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("gpu_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("memory_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("encoder_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("decoder_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("sm_active_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("tensor_active_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("dram_active_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("memory_temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("sm_clock_mhz", sa.SmallInteger(), nullable=True, comment="MHz"),
        sa.Column("memory_clock_mhz", sa.SmallInteger(), nullable=True, comment="MHz"),
        sa.Column("pstate", sa.SmallInteger(), nullable=True, comment="performance state, 0 = fastest"),
        sa.Column(
            "clocks_event_reasons", sa.BigInteger(), nullable=True, comment="NVML bits seen in any reading of the span"
        ),
        sa.Column("throttle_power_cap_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_sw_thermal_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_hw_thermal_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_power_brake_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_sync_boost_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("pcie_tx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("pcie_rx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("pcie_replays", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("nvlink_tx_kib", sa.BigInteger(), nullable=True, comment="KiB"),
        sa.Column("nvlink_rx_kib", sa.BigInteger(), nullable=True, comment="KiB"),
        sa.Column("nvlink_errors", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("ecc_corrected", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("ecc_uncorrected", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("processes", sa.SmallInteger(), nullable=True, comment="count or ordinal"),
        comment="One device over (at - span_us, at]; counters raw and cumulative, null = not supported.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "device_samples_at_brin",
        "device_samples",
        ["at"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.create_table(
        "node_samples",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("meter_id", sa.Integer(), nullable=False, comment="meters.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("power_mw", sa.BigInteger(), nullable=True, comment="milliwatts"),
        sa.Column("cpu_util_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("disk_read_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("disk_write_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("network_rx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("network_tx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        comment="One node meter or host reading.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "node_samples_at_brin", "node_samples", ["at"], postgresql_using="brin", postgresql_with={"pages_per_range": 16}
    )
    op.create_table(
        "fabric_samples",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("port_id", sa.Integer(), nullable=False, comment="fabric_ports.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("state", sa.SmallInteger(), nullable=True, comment="port state as the driver numbers it, 4 = active"),
        sa.Column("rate_mbps", sa.BigInteger(), nullable=True, comment="Mbit/s"),
        sa.Column("tx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("rx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("tx_wait_ticks", sa.BigInteger(), nullable=True, comment="device-specific ticks"),
        sa.Column("symbol_errors", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("link_downed", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("receive_errors", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("discards", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("congestion_notifications", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("out_of_sequence", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("retransmissions", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        comment="One fabric port reading; counters raw and cumulative.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "fabric_samples_at_brin",
        "fabric_samples",
        ["at"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.create_table(
        "engine_samples",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("engine_id", sa.Integer(), nullable=False, comment="engines.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("requests_running", sa.Integer(), nullable=True, comment="count or ordinal"),
        sa.Column("requests_waiting", sa.Integer(), nullable=True, comment="count or ordinal"),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("generation_tokens", sa.BigInteger(), nullable=True, comment="tokens"),
        sa.Column("prefix_cache_hits", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("kv_cache_usage_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        comment="One serving-engine reading; counters raw and cumulative.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "engine_samples_at_brin",
        "engine_samples",
        ["at"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.create_table(
        "late_samples",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="devices.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column(
            "reading",
            sa.SmallInteger(),
            nullable=False,
            comment="collector.wire.Reading: 0 periodic, 1 allocation start, 2 allocation end, 3 device event",
        ),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("samples", sa.SmallInteger(), nullable=False, comment="readings taken inside the span"),
        sa.Column(
            "samples_missed",
            sa.SmallInteger(),
            nullable=False,
            comment="readings that should have been taken inside the span and were not",
        ),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("power_average_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_min_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_max_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_instant_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_limit_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("gpu_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("memory_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("encoder_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("decoder_util_percent", sa.SmallInteger(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("sm_active_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("tensor_active_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("dram_active_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("memory_temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("sm_clock_mhz", sa.SmallInteger(), nullable=True, comment="MHz"),
        sa.Column("memory_clock_mhz", sa.SmallInteger(), nullable=True, comment="MHz"),
        sa.Column("pstate", sa.SmallInteger(), nullable=True, comment="performance state, 0 = fastest"),
        sa.Column(
            "clocks_event_reasons", sa.BigInteger(), nullable=True, comment="NVML bits seen in any reading of the span"
        ),
        sa.Column("throttle_power_cap_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_sw_thermal_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_hw_thermal_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_power_brake_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("throttle_sync_boost_ns", sa.BigInteger(), nullable=True, comment="nanoseconds"),
        sa.Column("pcie_tx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("pcie_rx_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("pcie_replays", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("nvlink_tx_kib", sa.BigInteger(), nullable=True, comment="KiB"),
        sa.Column("nvlink_rx_kib", sa.BigInteger(), nullable=True, comment="KiB"),
        sa.Column("nvlink_errors", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("ecc_corrected", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("ecc_uncorrected", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("processes", sa.SmallInteger(), nullable=True, comment="count or ordinal"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        comment="Device samples for hours already sealed or older than hot retention, until merged into the next generation.",
    )
    op.create_index("late_samples_at_ix", "late_samples", ["at"])
    op.create_table(
        "device_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("kind", sa.Text(), nullable=False, comment="text"),
        sa.Column("code", sa.BigInteger(), nullable=True, comment="e.g. the XID number"),
        sa.Column("energy_mj", sa.BigInteger(), nullable=True, comment="millijoules"),
        sa.Column("detail", sa.Text(), nullable=True, comment="text"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("device_events_device_id_fk")),
        sa.ForeignKeyConstraint(["epoch_id"], ["epochs.id"], name=op.f("device_events_epoch_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("device_events_pk")),
        comment="XID, lost, recovered, driver reload.",
    )
    op.create_index(op.f("device_events_at_ix"), "device_events", ["at"])
    op.create_table(
        "spools",
        sa.Column("spool", sa.UUID(), nullable=False, comment="made by the agent when it creates its spool"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "received",
            postgresql.INT8MULTIRANGE(),
            nullable=False,
            comment="batch sequences committed; ranges compact themselves, never expire",
        ),
        sa.Column(
            "last_seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("spools_node_id_fk")),
        sa.PrimaryKeyConstraint("spool", name=op.f("spools_pk")),
        comment="Which batches of an agent's spool are in: what makes sending twice a no-op.",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            comment="node-power, jobs, sacct, llm-log, tariffs, intensity, prices, facility-factors",
        ),
        sa.Column("sha256", sa.LargeBinary(), nullable=False, comment="of the file as it lay on disk"),
        sa.Column(
            "scope",
            sa.Text(),
            nullable=False,
            comment="which part of the file was taken, e.g. zone=FR; empty = all of it",
        ),
        sa.Column("file_name", sa.Text(), nullable=False, comment="name without folder"),
        sa.Column("rows_read", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("rows_written", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("rows_rejected", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column(
            "report", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="the report as it was shown"
        ),
        sa.Column(
            "imported_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("imports_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("imports_pk")),
        sa.UniqueConstraint("kind", "sha256", "site_id", "scope", name=op.f("imports_kind_sha256_site_id_scope_uq")),
        comment="Files taken in: written in the transaction that writes their rows, so that a file is imported once.",
    )
    op.create_table(
        "hour_catalog",
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("hour_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "state",
            sa.Text(),
            server_default="open",
            nullable=False,
            comment="open, sealing or sealed: where a reader takes this hour from",
        ),
        sa.Column(
            "generation",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="of the sealed segment; 0 = none yet",
        ),
        sa.Column("segment", sa.Text(), nullable=True, comment="URI of the sealed segment"),
        sa.Column("rows", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("sha256", sa.LargeBinary(), nullable=True, comment="SHA-256 digest, 32 bytes"),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("hour_catalog_site_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "hour_at", name=op.f("hour_catalog_pk")),
        comment="Physical state of each hour's samples.",
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("from_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("to_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            comment="what changed: device_samples, allocations, bindings, prices, ...",
        ),
        sa.Column(
            "written_xid",
            Xid8(),
            server_default=sa.text("pg_current_xact_id()"),
            nullable=False,
            comment="transaction that made the change",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("changes_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("changes_pk")),
        comment="Which hours a committed transaction touched; a closed ledger hour that did not see it is closed again.",
    )
    op.create_index("changes_written_xid_ix", "changes", ["written_xid"])
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.Column("site_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("reason", sa.Text(), nullable=False, comment="text"),
        sa.Column("detail", sa.Text(), nullable=False, comment="text"),
        sa.Column("skew_us", sa.BigInteger(), nullable=True, comment="sender clock minus ours, microseconds"),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="without credentials"),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="bytes"),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True, comment="instant, UTC"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("dead_letters_node_id_fk")),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("dead_letters_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letters_pk")),
        comment="Bodies that could not be taken as they are; kept for replay, never discarded silently.",
    )
    op.create_table(
        "rejections",
        sa.Column("day_at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: start of the day"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("stream", sa.Text(), nullable=False, comment="text"),
        sa.Column("reason", sa.Text(), nullable=False, comment="text"),
        sa.Column("rows", sa.BigInteger(), nullable=False, comment="rows refused or repaired for this reason"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("rejections_node_id_fk")),
        sa.PrimaryKeyConstraint("day_at", "node_id", "stream", "reason", name=op.f("rejections_pk")),
        comment="Every row that was not taken as sent, counted by reason.",
    )


def downgrade() -> None:
    op.drop_table("rejections")
    op.drop_table("dead_letters")
    op.drop_table("changes")
    op.drop_table("hour_catalog")
    op.drop_table("imports")
    op.drop_table("spools")
    op.drop_table("device_events")
    op.drop_table("late_samples")
    op.drop_table("engine_samples")
    op.drop_table("fabric_samples")
    op.drop_table("node_samples")
    op.drop_table("device_samples")
    op.drop_table("engines")
    op.drop_table("fabric_ports")
    op.drop_table("epochs")
