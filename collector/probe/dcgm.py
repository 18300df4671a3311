"""Reads NVIDIA devices through dcgm-exporter, for nodes where the agent cannot talk to NVML itself.

Never beside :class:`~collector.probe.nvml.NvmlProbe` for a gain: readings are of feed DCGM, and where a device has both feeds in
an hour the server takes NVML's only. The exporter renders its own cache (every 30 s by default) however often it is asked,
so a text seen before is no new reading: it is left out, and a new one is dated by the exporter's own instants where it gives
any, else by when it came, at most ``period_s`` late. It fetches in a thread of its own, as no web server may delay a sample.

Power, energy, clocks and temperatures told for a MIG instance are the board's, repeated for each; they go to the board, once. It
attributes nothing to jobs: what the exporter's labels say of them it has from places that ``collector.jobs`` reads itself.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from collector.clock import US_PER_S, Clock, Instant
from collector.probe import DeviceEvent, DeviceReading, Epoch, EventKind, Row, Sight, Sweep, Values, out_of_range
from collector.probe.dcgm_devices import Device, devices_of
from collector.probe.dcgm_fields import HEALTH_MEANINGS, MEANINGS, ViolationUnit, is_blank, scaled
from collector.probe.latest import Latest
from collector.probe.prometheus_text import MAX_TEXT_BYTES, parse
from collector.source.fetch import Fetcher, FetchError
from collector.source.rows import fitted
from collector.wire import DeviceRef, Feed, Origin, Stream

if TYPE_CHECKING:
    from collector.http import httpx

_LOG = logging.getLogger(__name__)

DEFAULT_URL: Final = "http://127.0.0.1:9400/metrics"
SAME_AGAIN_US: Final = 30 * US_PER_S
"""A text without an energy counter may be new and the same: after the exporter's default interval it counts as a reading."""
HEALTH_US: Final = 60 * US_PER_S
OLDEST_US: Final = 300 * US_PER_S
"""An exporter whose own instants are older than this hangs on old values: they are not presented."""
_SCRAPES_BEFORE_LOST: Final = 3
_US_PER_MS: Final = 1_000
_HEADERS: Final = {"Accept": "text/plain;version=0.0.4"}
_WANTED: Final = MEANINGS.keys() | HEALTH_MEANINGS.keys()
_JOULES: Final = "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL"
_THROTTLE_BITS: Final = {
    "DCGM_FI_DEV_POWER_VIOLATION": 0x4,
    "DCGM_FI_DEV_THERMAL_VIOLATION": 0x20 | 0x40,
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION": 0x10,
}

Violations = Literal["auto", "ns", "us"]


class _Fetched(NamedTuple):
    text: str
    at: Instant


@dataclass(slots=True)
class _Slot:
    """One device of the table and what was read of it before."""

    ref: DeviceRef
    missing: int = 0
    lost: bool = False
    at_us: int = 0
    energy_mj: int | None = None
    in_mj: bool = False
    """Its millijoule counter was seen: the coarser one in joules must never stand in for it, it would run backwards."""
    xid: int | None = None
    reasons: int | None = None
    violations: dict[str, int] = field(default_factory=dict)


class DcgmProbe:
    """All devices that one dcgm-exporter tells of."""

    def __init__(  # noqa: PLR0913  keyword parameters with defaults
        self,
        url: str,
        clock: Clock,
        *,
        boot_id: str,
        driver_epoch: int = 0,
        period_s: float = 5.0,
        timeout_s: float = 2.0,
        hostname: str | None = None,
        instances: bool = True,
        violation_unit: Violations = "auto",
        background: bool = True,
        transport: httpx.BaseTransport | None = None,
        proc_root: Path = Path("/proc"),
    ) -> None:
        """Open nothing yet.

        ``hostname``: take only series of this host, for an exporter that tells of several. ``instances=False``: boards only,
        for a node whose MIG instances NVML reads: DCGM does not tell their UUIDs, so the server could not see that they are the
        same. ``background=False`` fetches
        inside :meth:`read`, for one look at it.
        """
        self._clock = clock
        self._url = url
        self._epoch = Epoch(boot_id, driver_epoch, Feed.DCGM, Origin.LIVE)
        self._hostname = hostname
        self._instances = instances
        self._fetcher = Fetcher(timeout_s=timeout_s, max_bytes=MAX_TEXT_BYTES, transport=transport)
        self._proc_root = proc_root
        self._unit = ViolationUnit(violation_unit)
        self._slots: dict[str, _Slot] = {}
        self._positions: dict[str, int] = {}
        self._names: frozenset[str] = frozenset()
        self._values: list[tuple[str, str, int | None]] = []
        self._values_at_us = 0
        self._health_at_us: int | None = None
        self._events: list[DeviceEvent] = []
        self._errors: Counter[str] = Counter()
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        self._latest = Latest(
            self._fetch,
            period_s=period_s,
            name="dcgm",
            background=background,
            finish=self._fetcher.close,
            monotonic=lambda: clock.now().monotonic_us / US_PER_S,
        )

    def read(self) -> Sweep:
        """Return what the exporter told since the last call; no readings where it told nothing new."""
        self._events, self._errors = [], Counter()
        fetched = self._latest.take()
        with self._lock:
            self._errors += self._failures
            self._failures.clear()
        readings: list[DeviceReading] = []
        rows: dict[Stream, tuple[Row, ...]] = {}
        if fetched is not None:
            readings, rows = self._take(fetched)
        return Sweep(
            epoch=self._epoch,
            devices=tuple(slot.ref for slot in self._slots.values()),
            readings=tuple(readings),
            events=tuple(self._events),
            errors=dict(self._errors),
            rows=rows,
        )

    def sights(self) -> tuple[Sight, ...]:
        """Say whether the exporter answers, and which columns it would need another collector file for."""
        subject = f"DCGM exporter at {self._url}"
        if not self._slots:
            return (
                Sight(
                    subject,
                    seen=False,
                    detail=self._failure or "it has not answered yet",
                    remedy="start dcgm-exporter on this node, or set the url it listens at",
                ),
            )
        sights = [Sight(subject, seen=True, detail=f"{len(self._slots)} devices, {len(self._names)} known metrics")]
        columns = {MEANINGS[name].column for name in self._names if name in MEANINGS}
        for column, names in (
            ("energy_mj", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"),
            ("sm_active_ratio", "DCGM_FI_PROF_SM_ACTIVE"),
            ("throttle_power_cap_ns", "DCGM_FI_DEV_CLOCKS_EVENT_REASON_*_NS"),
            ("clocks_event_reasons", "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"),
        ):
            if column not in columns:
                remedy = f"add {names} to the exporter's collectors file"
                sights.append(Sight(f"{column} through DCGM", seen=False, detail="not exported", remedy=remedy))
        return tuple(sights)

    def close(self) -> None:
        """Stop fetching; the next read begins again."""
        self._latest.close()

    def _fetch(self) -> _Fetched | None:
        try:
            body = self._fetcher.get(self._url, _HEADERS).body
        except FetchError as error:
            if self._failure is None:
                _LOG.warning("dcgm-exporter: %s", error)
            self._failure = str(error)
            with self._lock:
                self._failures[f"dcgm:{error.kind}"] += 1
            return None
        if self._failure is not None:
            _LOG.info("dcgm-exporter answers again")
        self._failure = None
        return _Fetched(body.decode("utf-8", "replace"), self._clock.now())

    def _take(self, fetched: _Fetched) -> tuple[list[DeviceReading], dict[Stream, tuple[Row, ...]]]:
        scrape = parse(fetched.text, _WANTED)
        if scrape.malformed:
            self._errors["dcgm:malformed_lines"] += scrape.malformed
        if scrape.truncated:
            self._errors["dcgm:too_many_lines"] += 1
        devices = devices_of(scrape.samples, self._errors, self._hostname)
        if not self._instances:
            devices = {uuid: device for uuid, device in devices.items() if device.ref.kind != "mig"}
        self._names = frozenset(sample.name for sample in scrape.samples)
        # Without labels: a pod that came or went does not make cached values new.
        values = [(sample.name, sample.text, sample.at_ms) for sample in scrape.samples]
        if values == self._values and self._is_repeat(fetched.at):
            self._errors["dcgm:same_again"] += 1
            return [], {}
        self._values, self._values_at_us = values, fetched.at.monotonic_us
        for uuid, device in devices.items():
            if uuid not in self._slots:
                self._positions[uuid] = len(self._slots)
                self._slots[uuid] = _Slot(device.ref)
        self._find_lost(devices, fetched.at)
        readings = [
            reading
            for uuid, device in devices.items()
            if (reading := self._reading(self._slots[uuid], device, fetched.at)) is not None
        ]
        return readings, self._health(devices, fetched.at)

    def _is_repeat(self, at: Instant) -> bool:
        counted = any(slot.energy_mj is not None for slot in self._slots.values())
        return counted or at.monotonic_us - self._values_at_us < SAME_AGAIN_US

    def _reading(self, slot: _Slot, device: Device, at: Instant) -> DeviceReading | None:
        at_us = self._instant(device, at)
        if at_us is None or at_us == slot.at_us:
            self._errors["dcgm:stale" if at_us is None else "dcgm:same_again"] += 1
            return None
        values: Values = {}
        told_mj = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION" in device.samples
        for name, meaning in MEANINGS.items():
            sample = device.samples.get(name)
            if sample is None or (not meaning.summed and values.get(meaning.column) is not None):
                continue
            if name == _JOULES and (slot.in_mj or told_mj):
                continue
            if is_blank(sample, meaning.unit):
                self._errors["dcgm:blank"] += 1
                values.setdefault(meaning.column, None)
                continue
            value = scaled(sample, meaning.unit)
            if value is None:
                self._errors[f"dcgm:unusable:{name}"] += 1
            elif meaning.unit == "violation":
                value = self._violation(slot, name, int(value), at_us, values.get("clocks_event_reasons"))
            earlier = values.get(meaning.column)
            values[meaning.column] = value if earlier is None or value is None else earlier + value
        self._own_columns(slot, values, at_us)
        slot.in_mj = slot.in_mj or (told_mj and values.get("energy_mj") is not None)
        slot.at_us = at_us
        for column in out_of_range(values):
            self._errors[f"dcgm:out_of_range:{column}"] += 1
            values[column] = None
        return DeviceReading(self._positions[slot.ref.uuid], at_us, values)

    def _instant(self, device: Device, at: Instant) -> int | None:
        """Return when the values were taken; None where the exporter says that was long ago."""
        dated_ms = [sample.at_ms for sample in device.samples.values() if sample.at_ms is not None]
        if not dated_ms:
            return at.wall_us
        at_us = max(dated_ms) * _US_PER_MS
        if at_us > at.wall_us:  # its clock is ours; where it is not, our own is the one that dates
            return at.wall_us
        return at_us if at.wall_us - at_us <= OLDEST_US else None

    def _own_columns(self, slot: _Slot, values: Values, at_us: int) -> None:
        """Turn what has no column of its own into events, and tell a counter that went back."""
        busy = values.pop("engine_active_ratio", None)
        if slot.ref.kind == "mig" and busy is not None and values.get("gpu_util_percent") is None:
            values["gpu_util_percent"] = round(100 * busy)
        xid = values.pop("xid", None)
        if xid is not None:
            if slot.xid is not None and xid not in (0, slot.xid):
                self._event(slot, "xid", at_us, code=int(xid))
            slot.xid = int(xid)
        energy_mj = values.get("energy_mj")
        if energy_mj == 0 and not slot.energy_mj:
            # Where a counter is missing some exporters say 0; one that is there is 0 for an instant after the driver loads.
            values["energy_mj"] = energy_mj = None
        if energy_mj is not None:
            if slot.energy_mj is not None and energy_mj < slot.energy_mj:
                self._event(slot, "counter_reset", at_us, detail=f"from {slot.energy_mj} mJ")
            slot.energy_mj = int(energy_mj)
        reasons = values.get("clocks_event_reasons")
        slot.reasons = None if reasons is None else int(reasons)

    def _violation(self, slot: _Slot, name: str, value: int, at_us: int, reasons: float | None) -> int | None:
        earlier = slot.violations.get(name)
        slot.violations[name] = value
        self._unit.learn(
            value,
            uptime_us=self._uptime_us(),
            grown=None if earlier is None else value - earlier,
            elapsed_us=at_us - slot.at_us,
            throttled=bool((slot.reasons or 0) & int(reasons or 0) & _THROTTLE_BITS[name]),
        )
        return self._unit.to_ns(value)

    def _uptime_us(self) -> int | None:
        if self._unit.per_count_ns is not None:
            return None
        try:
            text = (self._proc_root / "uptime").read_text(encoding="ascii")
            return round(float(text.split()[0]) * US_PER_S)
        except (OSError, ValueError, IndexError):
            return None

    def _find_lost(self, devices: dict[str, Device], at: Instant) -> None:
        for uuid, slot in self._slots.items():
            if uuid in devices:
                slot.missing = 0
                if slot.lost:
                    slot.lost = False
                    self._event(slot, "recovered", at.wall_us)
                continue
            slot.missing += 1
            if slot.missing == _SCRAPES_BEFORE_LOST:
                # An instance may have been taken down on purpose; a board that is no longer told of is lost to us.
                slot.lost = True
                self._event(slot, "removed" if slot.ref.kind == "mig" else "lost", at.wall_us)

    def _health(self, devices: dict[str, Device], at: Instant) -> dict[Stream, tuple[Row, ...]]:
        if self._health_at_us is not None and at.monotonic_us - self._health_at_us < HEALTH_US:
            return {}
        rows: list[Row] = []
        for uuid, device in devices.items():
            row: Row = {}
            for name, meaning in HEALTH_MEANINGS.items():
                sample = device.samples.get(name)
                if sample is not None and row.get(meaning.column) is None:
                    row[meaning.column] = None if is_blank(sample, meaning.unit) else scaled(sample, meaning.unit)
            if any(value is not None for value in row.values()):
                row |= {"device_uuid": uuid, "at_us": at.wall_us}
                rows.append(fitted(Stream.DEVICE_HEALTH, row, self._errors, "dcgm"))
        self._health_at_us = at.monotonic_us
        return {Stream.DEVICE_HEALTH: tuple(rows)} if rows else {}

    def _event(
        self, slot: _Slot, kind: EventKind, at_us: int, *, code: int | None = None, detail: str | None = None
    ) -> None:
        self._events.append(DeviceEvent(self._positions[slot.ref.uuid], at_us, kind, code, detail))
