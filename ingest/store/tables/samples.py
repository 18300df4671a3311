"""Measurements as they came in. Columns follow the wire contract, so a new wire column is a new column here and nowhere else.

The sample tables are range-partitioned by day. They have no unique key: a batch is counted once by its spool's sequence
range, in the same transaction (:data:`spools`). BRIN on time while a partition is open; a btree comes when it closes.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, JSONB, UUID

from collector.wire import COLUMNS, Stream
from ingest.store.tables.columns import WIRE_TYPES, Xid8, column, instant, reference, surrogate_id
from ingest.store.tables.metadata import metadata

epochs = Table(
    "epochs",
    metadata,
    surrogate_id(),
    reference("node_id", "nodes"),
    column("boot_id", Text),
    column("driver_epoch", BigInteger, comment="counts driver loads within a boot"),
    column(
        "feed",
        SmallInteger,
        comment="collector.wire.Feed: 1 native, 2 dcgm, 3 remote write, 4 import, 5 second scraper",
    ),
    column("origin", SmallInteger, comment="collector.wire.Origin: 1 live, 2 imported, 3 replayed, 4 simulated"),
    column("cadence_us", BigInteger),
    column("agent_version", Text),
    instant("first_seen_at", server_default=func.now()),
    UniqueConstraint("node_id", "boot_id", "driver_epoch", "feed", "origin", "cadence_us"),
    comment="One boot and driver load of a node as one feed saw it; counters are comparable only inside an epoch.",
)

fabric_ports = Table(
    "fabric_ports",
    metadata,
    surrogate_id(),
    reference("node_id", "nodes"),
    column("name", Text, comment="e.g. mlx5_0/1"),
    UniqueConstraint("node_id", "name"),
    comment="A fabric port of a node.",
)

engines = Table(
    "engines",
    metadata,
    surrogate_id(),
    reference("node_id", "nodes"),
    column("name", Text, comment="endpoint as configured on the node"),
    column("model", Text),
    UniqueConstraint("node_id", "name", "model"),
    comment="A serving engine (vLLM, SGLang) on a node.",
)


# What no unit suffix can say about a wire column.
_CODES = {
    "reading": "collector.wire.Reading: 0 periodic, 1 allocation start, 2 allocation end, 3 device event",
    "samples": "readings taken inside the span",
    "samples_missed": "readings that should have been taken inside the span and were not",
    "pstate": "performance state, 0 = fastest",
    "clocks_event_reasons": "NVML bits seen in any reading of the span",
    "state": "port state as the driver numbers it, 4 = active",
    "code": "e.g. the XID number",
    "recovery_action": "NVML field 230: 0 none, 1 reset the GPU, 2 reboot the node, 3 drain P2P, 4 drain and reset, ...",
    "remapping_pending": "0 or 1: rows are remapped at the next reset",
    "remapping_failed": "0 or 1",
    "mig_enabled": "0 or 1",
    "durable": "0 or 1: the spool survives a reboot",
    "released": "0 or 1: devices are let go for maintenance",
    "ttft_histogram": 'time to first token, JSON {"le": [seconds, ...], "n": [cumulative, ...], "sum": seconds}',
    "itl_histogram": "inter-token latency, JSON as ttft_histogram",
    "request_histogram": "end-to-end latency, JSON as ttft_histogram",
    "probe_errors_by_kind": "JSON object of counts since the agent started",
}


def _measurements(stream: Stream, *skip: str) -> list[Column[Any]]:
    return [
        column(
            declared.name,
            WIRE_TYPES[declared.type],
            nullable=declared.nullable,
            **({"comment": _CODES[declared.name]} if declared.name in _CODES else {}),
        )
        for declared in COLUMNS[stream]
        if declared.name not in {"at_us", *skip}
    ]


def _key(name: str, target: str) -> Column[Any]:
    # No foreign key on the hot path: the ids come from ingest's own cache of these very tables (2 % of COPY, measured).
    return column(name, Integer, comment=f"{target}.id")


def _partitioned(name: str, *columns: Column[Any], comment: str) -> Table:
    return Table(
        name,
        metadata,
        instant("at"),
        *columns,
        Index(f"{name}_at_brin", "at", postgresql_using="brin", postgresql_with={"pages_per_range": 16}),
        postgresql_partition_by="RANGE (at)",
        comment=comment,
    )


device_samples = _partitioned(
    "device_samples",
    _key("device_id", "devices"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.DEVICE, "device"),
    comment="One device over (at - span_us, at]; counters raw and cumulative, null = not supported.",
)
node_samples = _partitioned(
    "node_samples",
    _key("meter_id", "meters"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.NODE, "meter"),
    comment="One node meter or host reading.",
)
fabric_samples = _partitioned(
    "fabric_samples",
    _key("port_id", "fabric_ports"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.FABRIC, "port"),
    comment="One fabric port reading; counters raw and cumulative.",
)
engine_samples = _partitioned(
    "engine_samples",
    _key("engine_id", "engines"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.ENGINE, "engine", "model"),
    comment="One serving-engine reading; counters raw and cumulative.",
)
device_health = _partitioned(
    "device_health",
    _key("device_id", "devices"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.DEVICE_HEALTH, "device"),
    comment="What changes rarely about a device: limits, thresholds, memory errors, what it asks for.",
)
device_shares = _partitioned(
    "device_shares",
    _key("device_id", "devices"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.DEVICE_SHARE, "device"),
    comment="Who used a device over (at - span_us, at]: one row a job, native_job_id null = processes of no known job.",
)
agent_health = _partitioned(
    "agent_health",
    _key("epoch_id", "epochs"),
    *_measurements(Stream.AGENT),
    comment="The agent about itself; counts are cumulative since started_at_us.",
)
PARTITIONED = (
    device_samples,
    node_samples,
    fabric_samples,
    engine_samples,
    device_health,
    device_shares,
    agent_health,
)

late_samples = Table(
    "late_samples",
    metadata,
    instant("at"),
    _key("device_id", "devices"),
    _key("epoch_id", "epochs"),
    *_measurements(Stream.DEVICE, "device"),
    instant("received_at", server_default=func.now()),
    Index("late_samples_at_ix", "at"),
    comment="Device samples for hours already sealed or older than hot retention, until merged into the next generation.",
)


def _late(of: Table) -> Table:
    """Return the table that takes a stream's rows for hours already sealed; it has no partitions to be dropped with."""
    name = f"late_{of.name}"
    return Table(
        name,
        metadata,
        *(column(each.name, each.type, nullable=each.nullable, comment=each.comment) for each in of.columns),
        instant("received_at", server_default=func.now()),
        Index(f"{name}_at_ix", "at"),
        comment=f"Rows of {of.name} for hours already sealed or older than hot retention, until merged.",
    )


LATE_OF = {
    device_samples.name: late_samples,
    **{table.name: _late(table) for table in PARTITIONED if table is not device_samples},
}
"""By partitioned table the one that takes its late rows."""

device_events = Table(
    "device_events",
    metadata,
    surrogate_id(wide=True),
    instant("at", index=True),
    column("device_id", Integer, ForeignKey("devices.id")),
    column("epoch_id", Integer, ForeignKey("epochs.id")),
    *_measurements(Stream.DEVICE_EVENT, "device"),
    comment="XID, lost, recovered, driver reload.",
)

node_events = Table(
    "node_events",
    metadata,
    surrogate_id(wide=True),
    instant("at", index=True),
    column("epoch_id", Integer, ForeignKey("epochs.id")),
    *_measurements(Stream.NODE_EVENT),
    comment="Clock steps, kernel lines, interruption notices, devices let go and opened again.",
)

spools = Table(
    "spools",
    metadata,
    column("spool", UUID(as_uuid=True), primary_key=True, comment="made by the agent when it creates its spool"),
    reference("node_id", "nodes"),
    column("received", INT8MULTIRANGE, comment="batch sequences committed; ranges compact themselves, never expire"),
    instant("last_seen_at", server_default=func.now()),
    postgresql_with={"fillfactor": 50},
    comment="Which batches of an agent's spool are in: what makes sending twice a no-op.",
)

imports = Table(
    "imports",
    metadata,
    surrogate_id(),
    reference("site_id", "sites"),
    column("kind", Text, comment="node-power, jobs, sacct, llm-log, tariffs, intensity, prices, facility-factors"),
    column("sha256", LargeBinary, comment="of the file as it lay on disk"),
    column("scope", Text, comment="which part of the file was taken, e.g. zone=FR; empty = all of it"),
    column("file_name", Text, comment="name without folder"),
    column("rows_read", BigInteger, nullable=True),
    column("rows_written", BigInteger, nullable=True),
    column("rows_rejected", BigInteger, nullable=True),
    column("report", JSONB, nullable=True, comment="the report as it was shown"),
    instant("imported_at", server_default=func.now()),
    UniqueConstraint("kind", "sha256", "site_id", "scope"),
    comment="Files taken in: written in the transaction that writes their rows, so that a file is imported once.",
)

hour_catalog = Table(
    "hour_catalog",
    metadata,
    column("site_id", Integer, ForeignKey("sites.id"), primary_key=True),
    instant("hour_at", primary_key=True),
    column(
        "state", Text, server_default="open", comment="open, sealing or sealed: where a reader takes this hour from"
    ),
    column("generation", Integer, server_default="0", comment="of the sealed segment; 0 = none yet"),
    column("segment", Text, nullable=True, comment="folder of the sealed segments, below the segments' root"),
    column("rows", BigInteger, nullable=True),
    column("sha256", LargeBinary, nullable=True),
    instant("updated_at", server_default=func.now()),
    instant(
        "expired_at",
        nullable=True,
        comment="instant, UTC: its segments were past retention and went; null = they are there",
    ),
    comment="Physical state of each hour's samples.",
)

hour_segments = Table(
    "hour_segments",
    metadata,
    column("site_id", Integer, ForeignKey("sites.id"), primary_key=True),
    instant("hour_at", primary_key=True),
    column("stream", Text, primary_key=True, comment="collector.wire.Stream"),
    column("generation", Integer, primary_key=True, comment="of the hour, in which this file was made"),
    column("path", Text, comment="below the segments' root"),
    column("rows", BigInteger),
    column("size_bytes", BigInteger),
    column("sha256", LargeBinary, comment="SHA-256 digest of the file, 32 bytes"),
    column("feeds", ARRAY(SmallInteger), comment="collector.wire.Feed of its rows, each once, in order"),
    instant("published_at", server_default=func.now()),
    instant(
        "retired_at", nullable=True, comment="instant, UTC: a later generation took its place; null = read from here"
    ),
    column(
        "pinned",
        Boolean,
        server_default="false",
        comment="true: a run of the books names it, and it stays when a later generation takes its place",
    ),
    comment="Files of sealed hours, one a stream; of a stream and hour the one that is not retired is read.",
)

changes = Table(
    "changes",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites", nullable=True),
    instant("from_at"),
    instant("to_at"),
    column("kind", Text, comment="what changed: device_samples, allocations, bindings, prices, ..."),
    column("note", Text, nullable=True, comment="why, where somebody asked for it; null = it happened"),
    column("written_xid", Xid8, server_default=func.pg_current_xact_id(), comment="transaction that made the change"),
    column(
        "scope",
        JSONB,
        nullable=True,
        comment="which of the hours it touches: those with calls of {provider, models}; null = all of them",
    ),
    Index("changes_written_xid_ix", "written_xid"),
    comment="Which hours a committed transaction touched; a closed ledger hour that did not see it is closed again.",
)

dead_letters = Table(
    "dead_letters",
    metadata,
    surrogate_id(wide=True),
    instant("received_at", server_default=func.now()),
    reference("site_id", "sites", nullable=True),
    reference("node_id", "nodes", nullable=True),
    column("reason", Text),
    column("detail", Text),
    column("skew_us", BigInteger, nullable=True, comment="sender clock minus ours, microseconds"),
    column("headers", JSONB, comment="without credentials"),
    column("body", LargeBinary),
    instant("replayed_at", nullable=True),
    comment="Bodies that could not be taken as they are; kept for replay, never discarded silently.",
)

rejections = Table(
    "rejections",
    metadata,
    column("day_at", instant("day_at").type, primary_key=True, comment="instant, UTC: start of the day"),
    column("node_id", Integer, ForeignKey("nodes.id"), primary_key=True),
    column("stream", Text, primary_key=True),
    column("reason", Text, primary_key=True),
    column("rows", BigInteger, comment="rows refused or repaired for this reason"),
    comment="Every row that was not taken as sent, counted by reason.",
)
