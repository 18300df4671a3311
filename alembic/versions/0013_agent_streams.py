"""What a whole agent tells beside samples: device health, who shares a device, events of the node, and itself."""

import sqlalchemy as sa
from alembic import op

revision = "0013_agent_streams"
down_revision = "0012_findings_withdrawn"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER = "wattledger_owner", "wattledger_writer", "wattledger_worker"
NEW = ("device_health", "device_shares", "agent_health", "node_events")
KEYS = {
    "device_samples": "device_id",
    "node_samples": "meter_id",
    "fabric_samples": "port_id",
    "engine_samples": "engine_id",
}
NEW_KEYS = {"device_health": "device_id", "device_shares": "device_id", "agent_health": "epoch_id"}
CLOSE_PARTITION = """
CREATE OR REPLACE FUNCTION close_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
    key text := CASE parent {cases} END;
    wanted text := format('%s_key_ix', child);
BEGIN
    IF day >= (now() AT TIME ZONE 'UTC')::date THEN
        RAISE EXCEPTION 'partition % is still open', child USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF key IS NULL OR to_regclass(format('public.%I', child)) IS NULL OR to_regclass(format('public.%I', wanted)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE INDEX %I ON public.%I (%I, at)', wanted, child, key);
    EXECUTE format('ANALYZE public.%I', child);
    RETURN true;
END $$
"""
# Samples only. What a bill is made of besides them (api_calls, spans) is never dropped by age.
DROP_PARTITION = """
CREATE OR REPLACE FUNCTION drop_partition(parent text, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET client_min_messages = warning
AS $$
DECLARE
    child text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
BEGIN
    IF parent NOT IN ({tables}) THEN
        RAISE EXCEPTION 'partitions of % are kept for ever', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(format('public.%I', child)) IS NULL THEN RETURN false; END IF;
    EXECUTE format('DROP TABLE public.%I', child);
    RETURN true;
END $$
"""


def upgrade() -> None:
    _tables()
    for table in NEW:
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(f"GRANT INSERT ON {table} TO {WRITER}")
        op.execute(f"GRANT SELECT ON {table} TO {WORKER}")
    _partition_functions(KEYS | NEW_KEYS)


def downgrade() -> None:
    _partition_functions(KEYS)
    op.drop_column("node_samples", "memory_total_bytes")
    op.drop_column("fabric_samples", "pause_tx_us")
    op.drop_column("fabric_samples", "pause_rx_us")
    op.drop_column("fabric_samples", "receiver_not_ready")
    op.drop_column("fabric_samples", "ack_timeouts")
    op.drop_column("fabric_samples", "adaptive_retransmissions")
    op.drop_column("fabric_samples", "ecn_marked_packets")
    op.drop_column("fabric_samples", "remote_errors")
    op.drop_column("fabric_samples", "buffer_overruns")
    op.drop_column("fabric_samples", "integrity_errors")
    op.drop_column("fabric_samples", "link_recoveries")
    op.drop_column("engine_samples", "request_histogram")
    op.drop_column("engine_samples", "itl_histogram")
    op.drop_column("engine_samples", "ttft_histogram")
    op.drop_column("engine_samples", "preemptions")
    op.drop_column("engine_samples", "requests_finished")
    op.drop_column("engine_samples", "prefix_cache_queries")
    op.drop_index(op.f("node_events_at_ix"), table_name="node_events")
    op.drop_table("node_events")
    op.drop_index(
        "device_shares_at_brin",
        table_name="device_shares",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.drop_table("device_shares")
    op.drop_index(
        "device_health_at_brin",
        table_name="device_health",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.drop_table("device_health")
    op.drop_index(
        "agent_health_at_brin",
        table_name="agent_health",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.drop_table("agent_health")


def _partition_functions(keys: dict[str, str]) -> None:
    """Make the owner's functions that close and drop a day know these tables; owner and grants stay."""
    cases = " ".join(f"WHEN '{table}' THEN '{key}'" for table, key in keys.items())
    op.execute(CLOSE_PARTITION.replace("{cases}", cases))
    op.execute(DROP_PARTITION.replace("{tables}", ", ".join(f"'{table}'" for table in keys)))


def _tables() -> None:
    op.create_table(
        "agent_health",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("started_at_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("sample_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("samples", sa.BigInteger(), nullable=False, comment="readings taken inside the span"),
        sa.Column(
            "samples_missed",
            sa.BigInteger(),
            nullable=False,
            comment="readings that should have been taken inside the span and were not",
        ),
        sa.Column("probe_errors", sa.BigInteger(), nullable=False, comment="count or ordinal"),
        sa.Column(
            "probe_errors_by_kind", sa.Text(), nullable=True, comment="JSON object of counts since the agent started"
        ),
        sa.Column("dropped_rows", sa.BigInteger(), nullable=False, comment="count or ordinal"),
        sa.Column("clock_steps", sa.BigInteger(), nullable=False, comment="count or ordinal"),
        sa.Column("clock_step_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("spool_batches", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("spool_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("oldest_unsent_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("quarantined_batches", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("dropped_batches", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("sent_batches", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("failed_sends", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("cpu_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("rss_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("durable", sa.SmallInteger(), nullable=False, comment="0 or 1: the spool survives a reboot"),
        sa.Column("released", sa.SmallInteger(), nullable=False, comment="0 or 1: devices are let go for maintenance"),
        comment="The agent about itself; counts are cumulative since started_at_us.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "agent_health_at_brin",
        "agent_health",
        ["at"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.create_table(
        "device_health",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="devices.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column("memory_total_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("memory_reserved_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("slowdown_temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("shutdown_temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("memory_max_temp_c", sa.SmallInteger(), nullable=True, comment="degrees Celsius"),
        sa.Column("sm_clock_max_mhz", sa.SmallInteger(), nullable=True, comment="MHz"),
        sa.Column("memory_clock_max_mhz", sa.SmallInteger(), nullable=True, comment="MHz"),
        sa.Column("power_limit_min_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_limit_max_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("power_limit_default_mw", sa.Integer(), nullable=True, comment="milliwatts"),
        sa.Column("pcie_generation", sa.SmallInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("pcie_generation_max", sa.SmallInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("pcie_width", sa.SmallInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("pcie_width_max", sa.SmallInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("ecc_corrected_aggregate", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("ecc_uncorrected_aggregate", sa.BigInteger(), nullable=True, comment="count or ordinal"),
        sa.Column("remapped_rows_corrected", sa.Integer(), nullable=True, comment="count or ordinal"),
        sa.Column("remapped_rows_uncorrected", sa.Integer(), nullable=True, comment="count or ordinal"),
        sa.Column(
            "remapping_pending", sa.SmallInteger(), nullable=True, comment="0 or 1: rows are remapped at the next reset"
        ),
        sa.Column("remapping_failed", sa.SmallInteger(), nullable=True, comment="0 or 1"),
        sa.Column("retired_pages_corrected", sa.Integer(), nullable=True, comment="count or ordinal"),
        sa.Column("retired_pages_uncorrected", sa.Integer(), nullable=True, comment="count or ordinal"),
        sa.Column(
            "recovery_action",
            sa.SmallInteger(),
            nullable=True,
            comment="NVML field 230: 0 none, 1 reset the GPU, 2 reboot the node, 3 drain P2P, 4 drain and reset, ...",
        ),
        sa.Column("mig_enabled", sa.SmallInteger(), nullable=True, comment="0 or 1"),
        comment="What changes rarely about a device: limits, thresholds, memory errors, what it asks for.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "device_health_at_brin",
        "device_health",
        ["at"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.create_table(
        "device_shares",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="devices.id"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="epochs.id"),
        sa.Column("span_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        sa.Column("cluster", sa.Text(), nullable=True, comment="text"),
        sa.Column("native_job_id", sa.Text(), nullable=True, comment="surrogate id"),
        sa.Column("job_started_at_us", sa.BigInteger(), nullable=True, comment="microseconds"),
        sa.Column("namespace", sa.Text(), nullable=True, comment="text"),
        sa.Column("label", sa.Text(), nullable=True, comment="text"),
        sa.Column("processes", sa.SmallInteger(), nullable=False, comment="count or ordinal"),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column("sm_util_percent", sa.REAL(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("memory_util_percent", sa.REAL(), nullable=True, comment="percent, 0 to 100"),
        sa.Column("share_ratio", sa.REAL(), nullable=True, comment="ratio, 0 to 1"),
        sa.Column("evidence", sa.Text(), nullable=False, comment="text"),
        sa.Column("method", sa.Text(), nullable=False, comment="text"),
        comment="Who used a device over (at - span_us, at]: one row a job, native_job_id null = processes of no known job.",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(
        "device_shares_at_brin",
        "device_shares",
        ["at"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16},
    )
    op.create_table(
        "node_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC"),
        sa.Column("epoch_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("kind", sa.Text(), nullable=False, comment="text"),
        sa.Column("subject", sa.Text(), nullable=True, comment="text"),
        sa.Column("code", sa.BigInteger(), nullable=True, comment="e.g. the XID number"),
        sa.Column("detail", sa.Text(), nullable=True, comment="text"),
        sa.ForeignKeyConstraint(["epoch_id"], ["epochs.id"], name=op.f("node_events_epoch_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("node_events_pk")),
        comment="Clock steps, kernel lines, interruption notices, devices let go and opened again.",
    )
    op.create_index(op.f("node_events_at_ix"), "node_events", ["at"], unique=False)
    op.add_column(
        "engine_samples", sa.Column("prefix_cache_queries", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "engine_samples", sa.Column("requests_finished", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "engine_samples", sa.Column("preemptions", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "engine_samples",
        sa.Column(
            "ttft_histogram",
            sa.Text(),
            nullable=True,
            comment='time to first token, JSON {"le": [seconds, ...], "n": [cumulative, ...], "sum": seconds}',
        ),
    )
    op.add_column(
        "engine_samples",
        sa.Column("itl_histogram", sa.Text(), nullable=True, comment="inter-token latency, JSON as ttft_histogram"),
    )
    op.add_column(
        "engine_samples",
        sa.Column("request_histogram", sa.Text(), nullable=True, comment="end-to-end latency, JSON as ttft_histogram"),
    )
    op.add_column(
        "fabric_samples", sa.Column("link_recoveries", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "fabric_samples", sa.Column("integrity_errors", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "fabric_samples", sa.Column("buffer_overruns", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "fabric_samples", sa.Column("remote_errors", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "fabric_samples", sa.Column("ecn_marked_packets", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "fabric_samples",
        sa.Column("adaptive_retransmissions", sa.BigInteger(), nullable=True, comment="count or ordinal"),
    )
    op.add_column(
        "fabric_samples", sa.Column("ack_timeouts", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column(
        "fabric_samples", sa.Column("receiver_not_ready", sa.BigInteger(), nullable=True, comment="count or ordinal")
    )
    op.add_column("fabric_samples", sa.Column("pause_rx_us", sa.BigInteger(), nullable=True, comment="microseconds"))
    op.add_column("fabric_samples", sa.Column("pause_tx_us", sa.BigInteger(), nullable=True, comment="microseconds"))
    op.add_column("node_samples", sa.Column("memory_total_bytes", sa.BigInteger(), nullable=True, comment="bytes"))
