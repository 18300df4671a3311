"""Reads AMD devices: through amdsmi where it can be imported, else from the JSON of rocm-smi, into the columns of the others.

The energy counter is taken once it was seen to move; one that stands still while the card draws power is null and told, and
the gauge remains. Devices are known by their own number, never by index.

**Where other accelerators come in.** This is the seam: a module beside this one with ``read() -> Sweep``, ``sights()`` and
``close()``, chosen by the settings. *Gaudi*: ``habana-pyhlml`` speaks NVML's language (energy in mJ since driver load, mW,
throttle reasons); bind to ``/usr/lib/habanalabs/libhlml.so`` as guarded as here. *TPU*: no power, energy or temperature exists;
duty cycle and memory come from the libtpu metrics server, in a helper process, as importing libtpu can crash: rows without
energy, whose hours are held time alone. *Trainium*: ``neuron-monitor`` writes JSON lines, a reader like the one of rocm-smi;
power is a percentage of the maximum in sysfs, a gauge to be marked estimated.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from collector.clock import US_PER_S, Clock, Instant
from collector.probe import DeviceEvent, DeviceReading, Epoch, EventKind, Row, Sight, Sweep, out_of_range, rocm_smi
from collector.probe.amd_library import AmdLibrary, LibraryUnavailableError, load_library
from collector.probe.amd_readings import Accumulator, AmdReading, without_repeats
from collector.probe.latest import Latest
from collector.source.command import CommandError, find, output_of
from collector.source.rows import fitted
from collector.wire import DeviceRef, Feed, Origin, Stream

_LOG = logging.getLogger(__name__)

HEALTH_US: Final = 60 * US_PER_S
_LOOK_AGAIN_US: Final = 60 * US_PER_S
_SWEEPS_BEFORE_LOST: Final = 3
_MOST_BYTES: Final = 4_194_304

Way = Literal["amdsmi", "rocm-smi"]


@dataclass(slots=True)
class _Slot:
    """One position of the device table."""

    ref: DeviceRef
    accumulator: Accumulator = field(default_factory=Accumulator)
    missing: int = 0
    lost: bool = False


class AmdProbe:
    """All AMD devices of this node."""

    def __init__(  # noqa: PLR0913  keyword parameters with defaults
        self,
        clock: Clock,
        *,
        boot_id: str,
        driver_epoch: int = 0,
        rocm_smi_period_s: float = 30.0,
        timeout_s: float = 20.0,
        sys_root: Path = Path("/sys"),
        load: Callable[[], Any] = load_library,
        run: Callable[[Sequence[str], float], str] | None = None,
        background: bool = True,
    ) -> None:
        """Open nothing yet. ``load`` gives the amdsmi module, ``run`` runs a command within seconds."""
        self._clock = clock
        self._boot_id = boot_id
        self._driver_epoch = driver_epoch
        self._sys = sys_root
        self._load = load
        self._run = run
        self._timeout_s = timeout_s
        self._library: AmdLibrary | None = None
        self._way: Way | None = None
        self._why: str | None = None
        self._opened_before = False
        self._look_again_us = 0
        self._health_at_us: int | None = None
        self._slots: dict[str, _Slot] = {}
        self._positions: dict[str, int] = {}
        self._events: list[DeviceEvent] = []
        self._errors: Counter[str] = Counter()
        self._command_failure: CommandError | rocm_smi.RocmSmiError | None = None
        self._latest = Latest(
            self._run_rocm_smi,
            period_s=rocm_smi_period_s,
            name="rocm-smi",
            background=background,
            monotonic=lambda: clock.now().monotonic_us / US_PER_S,
        )

    def read(self) -> Sweep:
        """Read every device that answers; nothing on a node without AMD's driver, at no cost."""
        self._events, self._errors = [], Counter()
        now_us = self._clock.now().monotonic_us
        if self._way is None and now_us >= self._look_again_us:
            self._open(now_us)
        told = self._read_library(now_us) if self._library is not None else self._take_rocm_smi()
        readings: tuple[DeviceReading, ...] = ()
        rows: dict[Stream, tuple[Row, ...]] = {}
        if told:
            told, repeats = without_repeats(told)
            if repeats:
                self._errors["amd:shared_board"] += repeats
            readings = self._readings(told)
            rows = self._health(told)
        return Sweep(
            epoch=Epoch(self._boot_id, self._driver_epoch, Feed.NATIVE, Origin.LIVE),
            devices=tuple(slot.ref for slot in self._slots.values()),
            readings=readings,
            events=tuple(self._events),
            errors=dict(self._errors),
            rows=rows,
        )

    def sights(self) -> tuple[Sight, ...]:
        """Say which way the devices are read, and what is missing for the better one."""
        subject = "AMD devices"
        if not self._has_driver():
            return (Sight(subject, seen=False, detail="the kernel has no amdgpu driver loaded"),)
        sights = [
            Sight(
                subject,
                bool(self._slots),
                f"{len(self._slots)} through {self._way}" if self._way else (self._why or "not read yet"),
                None
                if self._slots
                else "install ROCm's rocm-smi, or the amdsmi that fits it into the agent's environment",
            )
        ]
        if self._way == "rocm-smi":
            remedy = (
                "install /opt/rocm/share/amd_smi into the agent's environment: readings each second instead of seldom"
            )
            sights.append(Sight("amdsmi", seen=False, detail=self._why or "", remedy=remedy))
        frozen = [slot.ref.uuid for slot in self._slots.values() if slot.accumulator.frozen]
        if frozen:
            detail = f"the accumulator stands still on {', '.join(frozen)}; power is read instead"
            sights.append(Sight("energy counter", seen=False, detail=detail))
        return tuple(sights)

    def close(self) -> None:
        """Let go of the library, so that the driver may be unloaded; the next read opens it again."""
        self._latest.close()
        library, self._library = self._library, None
        if library is not None:
            library.close()
        self._way = None
        self._look_again_us = 0

    def _has_driver(self) -> bool:
        return (self._sys / "module" / "amdgpu").exists()

    def _open(self, now_us: int) -> None:
        self._look_again_us = now_us + _LOOK_AGAIN_US
        if not self._has_driver():
            return
        try:
            self._library = AmdLibrary(self._load(), self._clock)
            self._way = "amdsmi"
        except LibraryUnavailableError as error:
            if self._why is None:
                _LOG.warning("%s", error)
            self._why = str(error)
            if self._run is not None or find(rocm_smi.COMMAND[0]) is not None:
                self._way = "rocm-smi"
        if self._way is not None and self._opened_before:
            self._driver_epoch += 1  # the counters may have begun again meanwhile
            for slot in self._slots.values():
                slot.accumulator = Accumulator()
        self._opened_before = self._opened_before or self._way is not None

    def _read_library(self, now_us: int) -> list[AmdReading]:
        assert self._library is not None  # noqa: S101  asked for by the caller
        readings = self._library.read(self._errors, now_us)
        if not readings:
            # Nothing answers any more: the driver was unloaded or reset under us.
            self._errors["amd:no_answer"] += 1
            self.close()
            self._look_again_us = now_us + _LOOK_AGAIN_US
            return []
        self._take_slots(readings)
        for uuid, what in self._library.newly_refused():
            if uuid in self._positions:
                self._event(uuid, "not_supported", detail=what)
        return readings

    def _take_rocm_smi(self) -> list[AmdReading]:
        if self._way != "rocm-smi":
            return []
        answer = self._latest.take()
        failure, self._command_failure = self._command_failure, None
        if failure is not None:
            self._errors[f"amd:rocm_smi:{getattr(failure, 'kind', 'parse')}"] += 1
            self._why = str(failure)
        if answer is None:
            return []
        text, at = answer
        try:
            readings = [replace(reading, at=at) for reading in rocm_smi.parse(text)]
        except rocm_smi.RocmSmiError as error:
            self._errors["amd:rocm_smi:parse"] += 1
            self._why = str(error)
            return []
        self._take_slots(readings)
        return readings

    def _run_rocm_smi(self) -> tuple[str, Instant] | None:
        name = rocm_smi.COMMAND[0] if self._run is not None else find(rocm_smi.COMMAND[0])
        if name is None:
            self._command_failure = CommandError("missing", "rocm-smi is not installed any more")
            return None
        command = (name, *rocm_smi.COMMAND[1:])
        try:
            if self._run is not None:
                text = self._run(command, self._timeout_s)
            else:
                text = output_of(command, timeout_s=self._timeout_s, max_bytes=_MOST_BYTES)
        except CommandError as error:
            self._command_failure = error
            return None
        return text, self._clock.now()

    def _take_slots(self, readings: Sequence[AmdReading]) -> None:
        """Give new devices a place, and tell of those that went away."""
        seen = set()
        for reading in readings:
            seen.add(reading.ref.uuid)
            if reading.ref.uuid not in self._slots:
                self._positions[reading.ref.uuid] = len(self._slots)
                self._slots[reading.ref.uuid] = _Slot(reading.ref)
        for uuid, slot in self._slots.items():
            if uuid in seen:
                slot.missing = 0
                if slot.lost:
                    slot.lost = False
                    self._event(uuid, "recovered")
                continue
            slot.missing += 1
            if slot.missing == _SWEEPS_BEFORE_LOST:
                slot.lost = True
                self._event(uuid, "lost")

    def _readings(self, told: Sequence[AmdReading]) -> tuple[DeviceReading, ...]:
        readings = []
        for reading in told:
            at = reading.at or self._clock.now()
            slot = self._slots[reading.ref.uuid]
            values = dict(reading.values)
            power_mw = values.get("power_instant_mw") or values.get("power_average_mw")
            energy_mj, happened = slot.accumulator.take(reading.accumulator, reading.step_mj, power_mw, at.monotonic_us)
            values["energy_mj"] = energy_mj
            if happened == "frozen":
                detail = f"energy_mj: the accumulator stands at {reading.accumulator} while the device draws power"
                self._event(reading.ref.uuid, "not_supported", detail=detail)
            elif happened == "reset":
                self._event(reading.ref.uuid, "counter_reset", detail=f"to {energy_mj} mJ")
            for column in out_of_range(values):
                self._errors[f"amd:out_of_range:{column}"] += 1
                values[column] = None
            readings.append(DeviceReading(self._positions[reading.ref.uuid], at.wall_us, values))
        return tuple(readings)

    def _health(self, told: Sequence[AmdReading]) -> dict[Stream, tuple[Row, ...]]:
        now = self._clock.now()
        if self._health_at_us is not None and now.monotonic_us - self._health_at_us < HEALTH_US:
            return {}
        self._health_at_us = now.monotonic_us
        rows = []
        for reading in told:
            if any(value is not None for value in reading.health.values()):
                row: Row = reading.health | {"device_uuid": reading.ref.uuid, "at_us": now.wall_us}
                rows.append(fitted(Stream.DEVICE_HEALTH, row, self._errors, "amd"))
        return {Stream.DEVICE_HEALTH: tuple(rows)} if rows else {}

    def _event(self, uuid: str, kind: EventKind, *, detail: str | None = None) -> None:
        self._events.append(DeviceEvent(self._positions[uuid], self._clock.now().wall_us, kind, None, detail))
