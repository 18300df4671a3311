"""The one contract of what travels between an agent and ingest: streams, columns, metadata, and its version.

Pure declarations and validation of metadata; it encodes nothing (``collector.arrow`` does) and opens nothing. Ingest
imports this module and no other part of the agent. A body is a zstd frame holding Arrow IPC streams back to back, each
ended by its own end-of-stream marker, all of one batch. Every stream's schema metadata names the stream; the first
stream's also carries :class:`BatchMeta` as JSON under :data:`META_KEY`.

Column types are the store's own (int16/32/64, float32, utf8), so that nothing is cast between the agent and COPY.
Counters are raw and cumulative: rates and differences are the server's business. Null means "not supported or not
read", never zero. A text is UTF-8 of at most :data:`MAX_STRING_BYTES` without control characters (:func:`cleaned` makes
one of any text). A receiver ignores and counts a column it does not know, refuses a known name of another type, and
refuses another :data:`WIRE_VERSION`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, Literal

WIRE_VERSION: Final = 1
SAMPLES_PATH: Final = "/v1/samples"
ENROLL_PATH: Final = "/v1/enroll"
"""POST {"node": …, "agent_version": …} with a join token as the bearer; the answer {"node": …, "token": …} is given once."""
COMMANDS_PATH: Final = "/v1/agent/commands"
"""GET with the node's own token: a JSON list of :class:`Command` as objects."""
CONTENT_TYPE: Final = "application/vnd.apache.arrow.stream"
CONTENT_ENCODING: Final = "zstd"
ZSTD_LEVEL: Final = 3
META_KEY: Final = "wattledger.batch"
STREAM_KEY: Final = "wattledger.stream"
SENT_AT_HEADER: Final = "Wattledger-Sent-At"
"""Microseconds since the Unix epoch by the sender's wall clock when this attempt left. Not in the body: a body may have
waited in the spool for days, and skew is measured at the door."""
MAX_CLOCK_SKEW_US: Final = 300_000_000
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_DECODED_BYTES: Final = 64 * 1024 * 1024
MAX_ROWS_PER_STREAM: Final = 200_000
MAX_DEVICES_PER_BATCH: Final = 4_096
MAX_STRING_BYTES: Final = 1_024
MAX_META_CHARACTERS: Final = 255
MAX_CADENCE_US: Final = 3_600_000_000
"""An agent's longest row, of which one ends on each full hour. Readings up to three cadences apart have no gap between them: by one of
ten hours a silent day would count as measured."""
CONTROL_BYTES: Final = bytes((*range(0x20), 0x7F))
"""No text of a column may hold one of these: NUL is none of PostgreSQL's, and the others forge lines of logs and tables.
In UTF-8 they occur only as themselves, so a receiver may look for them in a whole buffer at once."""

ColumnType = Literal["i16", "i32", "i64", "f32", "utf8"]


class Stream(StrEnum):
    """The kinds of rows one batch may carry."""

    DEVICE = "device_samples"
    NODE = "node_samples"
    FABRIC = "fabric_samples"
    ENGINE = "engine_samples"
    ALLOCATION = "allocation_events"
    DEVICE_EVENT = "device_events"
    DEVICE_HEALTH = "device_health"
    DEVICE_SHARE = "device_shares"
    NODE_EVENT = "node_events"
    AGENT = "agent_health"


class Feed(IntEnum):
    """Who measured. For one device and interval the lowest number that spans it is authoritative (DESIGN §5)."""

    NATIVE = 1
    DCGM = 2
    REMOTE_WRITE = 3
    IMPORT = 4
    SECOND_SCRAPER = 5
    """Remote write of a device that another node has by remote write: nothing an agent sends."""


class Origin(IntEnum):
    """Where the data was born; simulated data is marked wherever it shows and never arms a switch."""

    LIVE = 1
    IMPORTED = 2
    REPLAYED = 3
    SIMULATED = 4


class Reading(IntEnum):
    """Why a device row exists: the periodic row, or an exact reading taken at an event."""

    PERIODIC = 0
    ALLOCATION_START = 1
    ALLOCATION_END = 2
    DEVICE_EVENT = 3


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a stream: its name (unit included), wire type, and whether null is allowed."""

    name: str
    type: ColumnType
    nullable: bool = True


def _columns(**types: str) -> tuple[Column, ...]:
    """Declare columns as ``name="i32"``; a trailing ``!`` forbids null."""
    return tuple(Column(name, kind.rstrip("!"), not kind.endswith("!")) for name, kind in types.items())  # type: ignore[arg-type]


COLUMNS: Final[dict[Stream, tuple[Column, ...]]] = {
    # One row: one device over (at_us - span_us, at_us]; gauges are the last reading unless the name says otherwise.
    Stream.DEVICE: _columns(
        at_us="i64!",
        device="i32!",  # index into BatchMeta.devices
        reading="i16!",  # Reading
        span_us="i64!",  # 0 for an event reading
        samples="i16!",  # readings taken inside the span
        samples_missed="i16!",
        energy_mj="i64",  # raw counter since driver load (NVML field 83)
        power_average_mw="i32",  # mean over the span of NVML field 185 (1 s average)
        power_min_mw="i32",
        power_max_mw="i32",
        power_instant_mw="i32",  # NVML field 186
        power_limit_mw="i32",  # enforced
        gpu_util_percent="i16",  # mean over the span
        memory_util_percent="i16",
        encoder_util_percent="i16",
        decoder_util_percent="i16",
        sm_active_ratio="f32",  # GPM: true utilization, mean over the span
        tensor_active_ratio="f32",
        dram_active_ratio="f32",
        memory_used_bytes="i64",
        temp_c="i16",
        memory_temp_c="i16",
        sm_clock_mhz="i16",
        memory_clock_mhz="i16",
        pstate="i16",
        clocks_event_reasons="i64",  # bits seen in any reading of the span
        throttle_power_cap_ns="i64",  # raw cumulative (NVML fields 74, 269, 270, 271, 76)
        throttle_sw_thermal_ns="i64",
        throttle_hw_thermal_ns="i64",
        throttle_power_brake_ns="i64",
        throttle_sync_boost_ns="i64",
        pcie_tx_bytes="i64",
        pcie_rx_bytes="i64",
        pcie_replays="i64",
        nvlink_tx_kib="i64",
        nvlink_rx_kib="i64",
        nvlink_errors="i64",
        ecc_corrected="i64",  # volatile, since driver load
        ecc_uncorrected="i64",
        processes="i16",
    ),
    Stream.NODE: _columns(
        at_us="i64!",
        meter="utf8!",  # e.g. redfish, rapl, ac, dc; "host" rows carry no power
        span_us="i64!",
        energy_mj="i64",
        power_mw="i64",
        cpu_util_ratio="f32",
        memory_used_bytes="i64",
        disk_read_bytes="i64",
        disk_write_bytes="i64",
        network_rx_bytes="i64",
        network_tx_bytes="i64",
        memory_total_bytes="i64",
    ),
    # A port of the network, or one NVLink of one device.
    Stream.FABRIC: _columns(
        at_us="i64!",
        port="utf8!",  # e.g. mlx5_0/1, or nvlink/GPU-…/3
        span_us="i64!",
        state="i16",
        rate_mbps="i64",
        tx_bytes="i64",
        rx_bytes="i64",
        tx_wait_ticks="i64",
        symbol_errors="i64",
        link_downed="i64",
        receive_errors="i64",
        discards="i64",
        congestion_notifications="i64",
        out_of_sequence="i64",
        retransmissions="i64",
        link_recoveries="i64",
        integrity_errors="i64",  # local link integrity, CRC
        buffer_overruns="i64",
        remote_errors="i64",
        ecn_marked_packets="i64",
        adaptive_retransmissions="i64",
        ack_timeouts="i64",
        receiver_not_ready="i64",
        pause_rx_us="i64",  # the network held us back
        pause_tx_us="i64",  # we held the network back
    ),
    Stream.ENGINE: _columns(
        at_us="i64!",
        engine="utf8!",  # endpoint as configured
        model="utf8!",
        span_us="i64!",
        requests_running="i32",
        requests_waiting="i32",
        prompt_tokens="i64",
        generation_tokens="i64",
        prefix_cache_hits="i64",
        kv_cache_usage_ratio="f32",
        prefix_cache_queries="i64",
        requests_finished="i64",
        preemptions="i64",
        # Histograms as the engine keeps them, JSON {"le": [seconds, …], "n": [cumulative, …, all], "sum": seconds}.
        ttft_histogram="utf8",  # time to first token
        itl_histogram="utf8",  # inter-token latency
        request_histogram="utf8",  # end to end
    ),
    # The counter reading is taken at the instant of the event, which is what makes the split between jobs exact.
    Stream.ALLOCATION: _columns(
        at_us="i64!",
        device="i32!",
        action="i16!",  # 1 = start, 2 = end
        energy_mj="i64",
        share_ratio="f32",  # null = the whole device
        cluster="utf8!",
        native_job_id="utf8!",
        job_started_at_us="i64!",
        account="utf8",
        user="utf8",
        partition="utf8",
        qos="utf8",
        namespace="utf8",
        label="utf8",
        job_name="utf8",
        workload_kind="utf8",
        evidence="utf8!",  # cgroup, slurmstepd, slurmctld, pod-resources, job-mapping, hook, environ, simulated
    ),
    Stream.DEVICE_EVENT: _columns(
        at_us="i64!",
        device="i32!",
        kind="utf8!",  # xid, lost, recovered, driver_reload, counter_reset, not_supported, ...
        code="i64",
        energy_mj="i64",
        detail="utf8",
    ),
    # What changes rarely: read at the start, every minute or so, and after an event.
    Stream.DEVICE_HEALTH: _columns(
        at_us="i64!",
        device="i32!",
        memory_total_bytes="i64",
        memory_reserved_bytes="i64",
        slowdown_temp_c="i16",
        shutdown_temp_c="i16",
        memory_max_temp_c="i16",
        sm_clock_max_mhz="i16",
        memory_clock_max_mhz="i16",
        power_limit_min_mw="i32",
        power_limit_max_mw="i32",
        power_limit_default_mw="i32",
        pcie_generation="i16",
        pcie_generation_max="i16",
        pcie_width="i16",
        pcie_width_max="i16",
        ecc_corrected_aggregate="i64",
        ecc_uncorrected_aggregate="i64",
        remapped_rows_corrected="i32",
        remapped_rows_uncorrected="i32",
        remapping_pending="i16",  # 0 or 1
        remapping_failed="i16",
        retired_pages_corrected="i32",
        retired_pages_uncorrected="i32",
        recovery_action="i16",  # NVML field 230: 0 none, 1 reset the GPU, 2 reboot the node, ...
        mig_enabled="i16",
    ),
    # Who used a device over (at_us - span_us, at_us], one row a holder: a job, or (native_job_id null) processes of none.
    Stream.DEVICE_SHARE: _columns(
        at_us="i64!",
        device="i32!",
        span_us="i64!",
        cluster="utf8",
        native_job_id="utf8",
        job_started_at_us="i64",
        namespace="utf8",
        label="utf8",
        processes="i16!",
        memory_used_bytes="i64",
        sm_util_percent="f32",
        memory_util_percent="f32",
        share_ratio="f32",  # of what the allocation grants, where the manager says (shards, MPS thread share)
        evidence="utf8!",
        method="utf8!",  # measured, or how it was apportioned: process_utilization, mps_threads, shards, equal
    ),
    Stream.NODE_EVENT: _columns(
        at_us="i64!",
        kind="utf8!",  # clock_step, kernel_xid, interruption, released, reopened, spool_damaged, ...
        subject="utf8",  # what it happened to: a PCI address, a port, a probe
        code="i64",
        detail="utf8",
    ),
    # The agent about itself; counts are cumulative since it started.
    Stream.AGENT: _columns(
        at_us="i64!",
        span_us="i64!",
        started_at_us="i64!",
        sample_us="i64!",  # the cadence now: longer than configured where the CPU cap lowered it
        samples="i64!",
        samples_missed="i64!",
        probe_errors="i64!",
        probe_errors_by_kind="utf8",  # JSON object
        dropped_rows="i64!",
        clock_steps="i64!",
        clock_step_us="i64",  # the sum of the steps of this span
        spool_batches="i64",
        spool_bytes="i64",
        oldest_unsent_us="i64",  # its age; null while nothing waits
        quarantined_batches="i64",
        dropped_batches="i64",
        sent_batches="i64",
        failed_sends="i64",
        cpu_ratio="f32",  # of one core, over the span
        rss_bytes="i64",
        durable="i16!",  # 0 or 1: the spool survives a reboot
        released="i16!",  # 0 or 1: devices are let go for maintenance
    ),
}

DEVICE_STREAMS: Final = frozenset(
    stream for stream, columns in COLUMNS.items() if any(c.name == "device" for c in columns)
)
"""Streams whose rows belong to an entry of the batch's device table; rows of the others belong to the node."""


JOBS_BEGUN_ANEW: Final = "jobs_begun_anew"
"""A node event: the agent began at its instant without knowing what was told before. What it found held then it tells as a start at that
very instant, beside the start it knows; what it does not tell so was over, and ends with the last reading before it."""
UNKNOWN_MODEL: Final = "unknown"
"""The model of a device that is known by its UUID alone; whoever reads it describes it, and that description stays."""


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """One entry of a batch's device table; rows refer to it by position."""

    uuid: str
    model: str
    vendor: str = "nvidia"
    kind: Literal["gpu", "mig", "node"] = "gpu"
    parent_uuid: str | None = None
    mig_profile: str | None = None
    slice_ratio: float = 1.0
    """Share of the parent board; 1.0 for a whole board."""
    accelerators: int = 1
    """Physical accelerators the row stands for: more than one only for ``kind="node"``, a node metered as a whole."""
    memory_bytes: int | None = None
    pci_bus_id: str | None = None


@dataclass(frozen=True, slots=True)
class BatchMeta:
    """What is true of a whole batch. A batch never spans an epoch, a node, a feed or an origin.

    ``spool`` and ``sequence`` are the batch id: given by the agent's spool when the batch is stored, so a batch sent
    twice is recognised however often it is sent. All instants are microseconds since the Unix epoch, UTC.
    """

    spool: str
    sequence: int
    node: str
    boot_id: str
    driver_epoch: int
    feed: Feed
    origin: Origin
    cadence_us: int
    agent_version: str
    created_at_us: int
    monotonic_us: int
    clock_offset_us: int | None
    """The node's wall clock minus the server's, as the agent measured it last: positive = the node is ahead. Null = not measured.

    Within a second: measured against the ``Date`` of the server's answers. To inform only: no instant of the batch was moved by
    it, and how far a sender's clock is off the server judges by ``SENT_AT_HEADER`` of each request.
    """
    devices: tuple[DeviceRef, ...] = ()
    durable: bool = True
    labels: dict[str, str] = field(default_factory=dict)
    wire_version: int = WIRE_VERSION

    def to_json(self) -> str:
        """Return the compact JSON that travels in the schema metadata."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, recall: DeviceRecall | None = None) -> BatchMeta:
        """Parse and check; raise :class:`WireError` on anything but a well-formed batch of this version.

        A receiver that gives the same ``recall`` each time has the device table of a steady sender checked once.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WireError(f"batch metadata is not JSON: {error}") from error
        return cls.from_object(raw, recall)

    @classmethod
    def from_object(cls, raw: object, recall: DeviceRecall | None = None) -> BatchMeta:
        """Check what a JSON parser made of the text; for a receiver with a faster parser than the standard library's."""
        if not isinstance(raw, dict):
            raise WireError("batch metadata is not a JSON object")
        version = raw.get("wire_version")
        if version != WIRE_VERSION:
            raise UnknownWireVersionError(f"wire version {version!r} is not supported; this side speaks {WIRE_VERSION}")
        return _checked_meta(raw, {} if recall is None else recall)


def cleaned(text: str) -> str:
    """Return a text as a column takes it: each control character and lone surrogate becomes U+FFFD, and it is cut to fit.

    For what a sender did not write itself (a job's name, a driver's message): whoever chose it must not be able to have
    the batch refused.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join("\ufffd" if ord(c) < 0x20 or c == "\x7f" or "\ud800" <= c <= "\udfff" else c for c in text)
    encoded = text.encode()
    return text if len(encoded) <= MAX_STRING_BYTES else encoded[:MAX_STRING_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Command:
    """An order to one node's agent, signed by whoever holds that node's key; the server only carries it."""

    id: int
    """Of the carrier; not signed."""
    node: str
    verb: str
    args: dict[str, int | str]
    nonce: str
    issued_at_us: int
    expires_at_us: int
    signature: str = ""

    def signed_text(self) -> bytes:
        """Return what the signature covers: everything but the carrier's id and the signature itself."""
        covered = {key: value for key, value in asdict(self).items() if key not in ("id", "signature")}
        return json.dumps(covered, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode()

    def sign(self, key: bytes) -> str:
        """Return the signature: HMAC-SHA256 under the node's key, in hex."""
        return hmac.new(key, self.signed_text(), hashlib.sha256).hexdigest()


DeviceRecall = dict[str, tuple[list[Any], tuple[DeviceRef, ...]]]
"""By spool: the device table as it came last, and as checked. Eight devices cost 60 µs to check and 3 µs to compare."""
_RECALLED_SPOOLS: Final = 8_192


class WireError(ValueError):
    """The bytes are not a batch of this contract: the sender must not retry them unchanged."""


class UnknownWireVersionError(WireError):
    """A well-formed batch of a version this side does not speak."""


class CadenceError(WireError):
    """A batch whose readings lie further apart, by its own word, than the books know what to make of."""


_TEXT_KEYS: Final = ("spool", "node", "boot_id", "agent_version")
_INT_KEYS: Final = ("sequence", "driver_epoch", "cadence_us", "created_at_us", "monotonic_us")
_INT64_MAX: Final = 2**63 - 1
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _checked_meta(raw: dict[str, Any], recall: DeviceRecall) -> BatchMeta:
    for key in _TEXT_KEYS:
        value = raw.get(key)
        if not value or not _is_label(value):
            raise WireError(
                f"batch metadata: {key} must be 1 to {MAX_META_CHARACTERS} printable characters, got {value!r:.80}"
            )
    if not _UUID.fullmatch(raw["spool"]):
        raise WireError(f"batch metadata: spool must be a UUID in lower case, got {raw['spool']!r:.80}")
    for key in _INT_KEYS:
        value = raw.get(key)
        # Below the last one: the store keeps sequences as half-open ranges.
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _INT64_MAX:
            raise WireError(f"batch metadata: {key} must be a whole number >= 0, got {value!r:.80}")
    if raw["cadence_us"] > MAX_CADENCE_US:
        raise CadenceError(
            f"batch metadata: cadence_us must be at most {MAX_CADENCE_US}, an hour; got {raw['cadence_us']}"
        )
    offset = raw.get("clock_offset_us")
    if offset is not None and (not isinstance(offset, int) or isinstance(offset, bool) or abs(offset) > _INT64_MAX):
        raise WireError(f"batch metadata: clock_offset_us must be a whole number or null, got {offset!r:.80}")
    labels = raw.get("labels") or {}
    if not isinstance(labels, dict) or len(labels) > 64:
        raise WireError("batch metadata: labels must be an object of at most 64 entries")
    if not all(_is_label(text) for pair in labels.items() for text in pair):
        raise WireError(f"batch metadata: labels must be texts of at most {MAX_META_CHARACTERS} printable characters")
    devices = raw.get("devices") or []
    if not isinstance(devices, list) or len(devices) > MAX_DEVICES_PER_BATCH:
        raise WireError(f"batch metadata: devices must be a list of at most {MAX_DEVICES_PER_BATCH} entries")
    try:
        feed, origin = Feed(raw.get("feed", 0)), Origin(raw.get("origin", 0))
    except ValueError as error:
        raise WireError(f"batch metadata: {error}") from error
    return BatchMeta(
        **{key: raw[key] for key in (*_TEXT_KEYS, *_INT_KEYS)},
        feed=feed,
        origin=origin,
        clock_offset_us=offset,
        durable=raw.get("durable") is not False,
        labels=labels,
        devices=_checked_devices(raw["spool"], devices, recall),
    )


def _is_label(value: object) -> bool:
    """Say whether a value is text that may be kept and shown: control characters and lone surrogates are not printable."""
    return isinstance(value, str) and len(value) <= MAX_META_CHARACTERS and value.isprintable()


def _checked_devices(spool: str, raw: list[Any], recall: DeviceRecall) -> tuple[DeviceRef, ...]:
    known = recall.get(spool)
    # True == 1 == 1.0 in Python: what compares equal may differ in type, which the checks below accept alike.
    if known is not None and known[0] == raw:
        return known[1]
    devices = tuple(_checked_device(position, entry) for position, entry in enumerate(raw))
    if len(recall) >= _RECALLED_SPOOLS:
        recall.clear()
    recall[spool] = (raw, devices)
    return devices


def _checked_device(position: int, raw: object) -> DeviceRef:
    if not isinstance(raw, dict):
        raise WireError(f"device {position} of the batch is not an object")
    unknown = set(raw) - set(DeviceRef.__slots__)
    known = {key: value for key, value in raw.items() if key not in unknown}
    texts = ("uuid", "model", "vendor", "kind")
    try:
        device: Any = DeviceRef(**known)  # Any: what came from outside has not earned its types yet
    except TypeError as error:
        raise WireError(f"device {position} of the batch: {error}") from error
    for key in texts:
        value = getattr(device, key)
        if not value or not _is_label(value):
            raise WireError(
                f"device {position} of the batch: {key} must be 1 to {MAX_META_CHARACTERS} printable characters"
            )
    if device.kind not in ("gpu", "mig", "node"):
        raise WireError(f"device {position} of the batch: unknown kind {device.kind!r:.40}")
    for key in ("parent_uuid", "mig_profile", "pci_bus_id"):
        value = getattr(device, key)
        if value is not None and not _is_label(value):
            raise WireError(
                f"device {position} of the batch: {key} must be at most {MAX_META_CHARACTERS} printable characters or null"
            )
    if not isinstance(device.slice_ratio, int | float) or not 0 < device.slice_ratio <= 1:
        raise WireError(f"device {position} of the batch: slice_ratio must lie in (0, 1]")
    if not isinstance(device.accelerators, int) or not 1 <= device.accelerators <= 1_024:
        raise WireError(f"device {position} of the batch: accelerators must be 1 to 1024")
    if device.memory_bytes is not None and (
        not isinstance(device.memory_bytes, int) or not 0 <= device.memory_bytes <= _INT64_MAX
    ):
        raise WireError(f"device {position} of the batch: memory_bytes must be a whole number >= 0 or null")
    checked: DeviceRef = device
    return checked
