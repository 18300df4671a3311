"""Reads NVIDIA devices by running ``nvidia-smi``, where the NVML binding cannot be used: a fallback, and a poorer one.

It has no energy counter: the energy of these hours is estimated from the gauge. It starts a process for each reading, so it
reads seldom and beside the sampling loop. A gauge that stands still while the load moves is a stuck sensor: null, and told. Of the
feed NATIVE, as it is NVML that answers: never run it beside :class:`~collector.probe.nvml.NvmlProbe`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from collector.clock import US_PER_S, Clock, Instant
from collector.probe import DeviceEvent, DeviceReading, Epoch, EventKind, Row, Sight, Sweep, Values, out_of_range
from collector.probe.latest import Latest
from collector.probe.nvidia_smi_text import QUERY, SmiDevice, SmiTextError, parse_csv, parse_xml
from collector.source.command import CommandError, find, output_of
from collector.source.rows import fitted
from collector.wire import DeviceRef, Feed, Origin, Stream

_LOG = logging.getLogger(__name__)

HEALTH_US: Final = 60 * US_PER_S
STUCK_AFTER_US: Final = 120 * US_PER_S
STUCK_UTIL_PERCENT: Final = 30
"""A gauge that gives the same milliwatts for two minutes, while the utilization moved by this much, does not measure."""
_PROGRAM: Final = "nvidia-smi"
_CSV: Final = (f"--query-gpu={','.join(QUERY)}", "--format=csv")
_XML: Final = ("-q", "-x")
_MOST_BYTES: Final = 16 * 1024 * 1024
_READINGS_BEFORE_LOST: Final = 3


@dataclass(slots=True)
class _Gauge:
    """Watches one gauge for standing still."""

    value: float | None = None
    since_us: int = 0
    lowest_util: float | None = None
    highest_util: float | None = None
    stuck: bool = False

    def watch(self, value: float | None, util: float | None, now_us: int) -> bool:
        """Take one reading in; say whether the gauge just turned out to be stuck."""
        if value is None or value != self.value:
            self.value, self.since_us, self.stuck = value, now_us, False
            self.lowest_util = self.highest_util = util
            return False
        if util is not None:
            self.lowest_util = util if self.lowest_util is None else min(self.lowest_util, util)
            self.highest_util = util if self.highest_util is None else max(self.highest_util, util)
        moved = (self.highest_util or 0) - (self.lowest_util or 0) >= STUCK_UTIL_PERCENT
        if not self.stuck and moved and now_us - self.since_us >= STUCK_AFTER_US:
            self.stuck = True
            return True
        return False


@dataclass(slots=True)
class _Slot:
    """One position of the device table."""

    ref: DeviceRef
    gauges: dict[str, _Gauge] = field(
        default_factory=lambda: {"power_average_mw": _Gauge(), "power_instant_mw": _Gauge()}
    )
    missing: int = 0
    lost: bool = False


class NvidiaSmiProbe:
    """All boards that nvidia-smi lists."""

    def __init__(
        self,
        clock: Clock,
        *,
        boot_id: str,
        driver_epoch: int = 0,
        period_s: float = 15.0,
        timeout_s: float = 10.0,
        run: Callable[[Sequence[str], float], str] | None = None,
        background: bool = True,
    ) -> None:
        """Start nothing yet. ``run`` runs a command within seconds and returns its output (default: a real one)."""
        self._clock = clock
        self._epoch = Epoch(boot_id, driver_epoch, Feed.NATIVE, Origin.LIVE)
        self._timeout_s = timeout_s
        self._run = run
        self._asks_xml = False
        self._slots: dict[str, _Slot] = {}
        self._positions: dict[str, int] = {}
        self._events: list[DeviceEvent] = []
        self._errors: Counter[str] = Counter()
        self._failure: str | None = None
        self._failed_kind: str | None = None
        self._health_at_us: int | None = None
        self._latest = Latest(
            self._ask,
            period_s=period_s,
            name="nvidia-smi",
            background=background,
            monotonic=lambda: clock.now().monotonic_us / US_PER_S,
        )

    def read(self) -> Sweep:
        """Return what the last run printed, once; no readings in between, and none where it is not installed."""
        self._events, self._errors = [], Counter()
        answer = self._latest.take()
        kind, self._failed_kind = self._failed_kind, None
        if kind is not None:
            self._errors[f"nvidia_smi:{kind}"] += 1
        readings: tuple[DeviceReading, ...] = ()
        rows: dict[Stream, tuple[Row, ...]] = {}
        if answer is not None:
            devices, at = answer
            self._take_slots(devices)
            readings, rows = self._readings(devices, at), self._health(devices)
        return Sweep(
            epoch=self._epoch,
            devices=tuple(slot.ref for slot in self._slots.values()),
            readings=readings,
            events=tuple(self._events),
            errors=dict(self._errors),
            rows=rows,
        )

    def sights(self) -> tuple[Sight, ...]:
        """Say whether the tool lists devices, and what reading through it lacks."""
        subject = "NVIDIA devices through nvidia-smi"
        if not self._slots:
            remedy = "install the driver with its tools, or give the container the NVIDIA runtime with the utility capability"
            return (Sight(subject, seen=False, detail=self._failure or "not read yet", remedy=remedy),)
        remedy = "let the agent load libnvidia-ml.so.1"
        return (
            Sight(subject, seen=True, detail=f"{len(self._slots)} boards"),
            Sight(
                "energy counter, MIG instances, processes", seen=False, detail="not through this tool", remedy=remedy
            ),
        )

    def close(self) -> None:
        """Run it no more; the next read begins again."""
        self._latest.close()

    def _ask(self) -> tuple[list[SmiDevice], Instant] | None:
        program = _PROGRAM if self._run is not None else find(_PROGRAM)
        if program is None:
            self._failure = "nvidia-smi is not installed"
            return None  # nothing to count: this node may have no NVIDIA device at all
        try:
            if not self._asks_xml:
                try:
                    devices = parse_csv(self._output((program, *_CSV)))
                except CommandError as error:
                    if not error.kind.startswith("exit_"):
                        raise
                    # Drivers refuse the question as a whole for one field they do not know.
                    devices = parse_xml(self._output((program, *_XML)))
                    self._asks_xml = True
            else:
                devices = parse_xml(self._output((program, *_XML)))
        except (CommandError, SmiTextError) as error:
            self._failed_kind = error.kind if isinstance(error, CommandError) else "unreadable"
            if self._failure is None:
                _LOG.warning("nvidia-smi: %s", error)
            self._failure = str(error)
            return None
        self._failure = None
        return devices, self._clock.now()

    def _output(self, command: Sequence[str]) -> str:
        if self._run is not None:
            return self._run(command, self._timeout_s)
        return output_of(command, timeout_s=self._timeout_s, max_bytes=_MOST_BYTES)

    def _take_slots(self, devices: Sequence[SmiDevice]) -> None:
        seen = {device.ref.uuid for device in devices}
        for device in devices:
            if device.ref.uuid not in self._slots:
                self._positions[device.ref.uuid] = len(self._slots)
                self._slots[device.ref.uuid] = _Slot(device.ref)
        for uuid, slot in self._slots.items():
            if uuid in seen:
                slot.missing = 0
                if slot.lost:
                    slot.lost = False
                    self._event(uuid, "recovered")
                continue
            slot.missing += 1
            if slot.missing == _READINGS_BEFORE_LOST:
                slot.lost = True
                self._event(uuid, "lost")

    def _readings(self, devices: Sequence[SmiDevice], at: Instant) -> tuple[DeviceReading, ...]:
        readings: dict[str, DeviceReading] = {}
        for device in devices:
            uuid = device.ref.uuid
            if uuid in readings:
                self._errors["nvidia_smi:repeated_uuid"] += 1
                continue
            values: Values = dict(device.values)
            for name, gauge in self._slots[uuid].gauges.items():
                if gauge.watch(values.get(name), values.get("gpu_util_percent"), at.monotonic_us):
                    detail = f"{name}: the sensor stands at {values[name]} mW whatever the load"
                    self._event(uuid, "not_supported", detail=detail)
                if gauge.stuck:
                    values[name] = None
            for column in out_of_range(values):
                self._errors[f"nvidia_smi:out_of_range:{column}"] += 1
                values[column] = None
            readings[uuid] = DeviceReading(self._positions[uuid], at.wall_us, values)
        return tuple(readings.values())

    def _health(self, devices: Sequence[SmiDevice]) -> dict[Stream, tuple[Row, ...]]:
        now = self._clock.now()
        if self._health_at_us is not None and now.monotonic_us - self._health_at_us < HEALTH_US:
            return {}
        self._health_at_us = now.monotonic_us
        rows = []
        for device in devices:
            row: Row = device.health | {"device_uuid": device.ref.uuid, "at_us": now.wall_us}
            rows.append(fitted(Stream.DEVICE_HEALTH, row, self._errors, "nvidia_smi"))
        return {Stream.DEVICE_HEALTH: tuple(rows)} if rows else {}

    def _event(self, uuid: str, kind: EventKind, *, detail: str | None = None) -> None:
        self._events.append(DeviceEvent(self._positions[uuid], self._clock.now().wall_us, kind, None, detail))
