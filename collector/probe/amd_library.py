"""Asks AMD devices through amdsmi, ROCm's own library, where it can be imported.

The binding prints and raises a KeyError when its library is not installed, so it is imported only where the kernel has an
AMD GPU, with its output shut off. A call a device refuses is told once and asked again each hour.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

from collector.clock import US_PER_S, Clock
from collector.probe import Row, Values
from collector.probe.amd_readings import AmdReading, device_uuid, number, scaled, step_mj, whole
from collector.wire import DeviceRef

SLOW_READ_US: Final = 5 * US_PER_S
"""What changes slowly is asked this often only: each call reads files of the driver."""
_RETRY_US: Final = 3_600 * US_PER_S
_BYTES_PER_MB: Final = 1_048_576
_MW_PER_W: Final = 1_000
_UW_PER_MW: Final = 1_000
# amdsmi.h: INVAL, NOT_SUPPORTED, NOT_YET_IMPLEMENTED, NO_PERM, NOT_FOUND, NO_DATA
_REFUSALS: Final = frozenset({1, 2, 3, 10, 31, 40})


class LibraryUnavailableError(Exception):
    """amdsmi cannot be used; says why."""


def load_library() -> Any:
    """Import amdsmi and return it. Raises LibraryUnavailableError."""
    shut_off = io.StringIO()
    try:
        with contextlib.redirect_stdout(shut_off), contextlib.redirect_stderr(shut_off):
            return importlib.import_module("amdsmi")
    except ImportError as error:
        raise LibraryUnavailableError(f"amdsmi is not installed: {error}") from error
    except (KeyError, AttributeError, OSError, RuntimeError) as error:
        raise LibraryUnavailableError(f"amdsmi finds no fitting libamd_smi.so: {error}") from error


class AmdLibrary:
    """The devices amdsmi gives, opened until :meth:`close`."""

    def __init__(self, library: Any, clock: Clock) -> None:
        """Initialise the library. Raises LibraryUnavailableError."""
        self._smi = library
        self._clock = clock
        self._slow_at_us: int | None = None
        self._health: dict[str, Row] = {}
        self._refused: dict[tuple[str, str], int] = {}
        self._newly_refused: list[tuple[str, str]] = []
        try:
            library.amdsmi_init()
            self._devices = [(handle, self._describe(handle)) for handle in library.amdsmi_get_processor_handles()]
        except library.AmdSmiException as error:
            raise LibraryUnavailableError(f"amdsmi does not start: {_code(error)}") from error

    def read(self, errors: Counter[str], now_us: int) -> list[AmdReading]:
        """Return a reading of each device that answers anything; failed calls are counted."""
        slow = self._slow_at_us is None or now_us - self._slow_at_us >= SLOW_READ_US
        if slow:
            self._slow_at_us = now_us
        calls = _CALLS if slow else _QUICK_CALLS
        read = (self._read_device(handle, ref, errors, calls, now_us) for handle, ref in self._devices)
        return [reading for reading in read if reading is not None]

    def newly_refused(self) -> list[tuple[str, str]]:
        """Return (device UUID, what) found unsupported since the last call."""
        told, self._newly_refused = self._newly_refused, []
        return told

    def close(self) -> None:
        """Shut the library down, so that the driver may be unloaded."""
        with contextlib.suppress(self._smi.AmdSmiException):
            self._smi.amdsmi_shut_down()

    def _describe(self, handle: Any) -> DeviceRef:
        smi = self._smi
        bus = serial = None
        model, memory_bytes = "unknown", None
        with contextlib.suppress(smi.AmdSmiException):
            bus = str(smi.amdsmi_get_gpu_device_bdf(handle))
        with contextlib.suppress(smi.AmdSmiException):
            asic = smi.amdsmi_get_gpu_asic_info(handle)
            serial = asic.get("asic_serial")
            model = str(asic.get("market_name") or model)
        with contextlib.suppress(smi.AmdSmiException):
            memory_bytes = whole(smi.amdsmi_get_gpu_memory_total(handle, smi.AmdSmiMemoryType.VRAM))
        uuid = device_uuid(serial, bus)
        if uuid is None:
            raise LibraryUnavailableError("a device tells neither its number nor its bus")
        return DeviceRef(uuid, model, vendor="amd", pci_bus_id=bus, memory_bytes=memory_bytes)

    def _read_device(
        self, handle: Any, ref: DeviceRef, errors: Counter[str], calls: Sequence[_Call], now_us: int
    ) -> AmdReading | None:
        values: Values = {}
        health = self._health.setdefault(ref.uuid, {"memory_total_bytes": ref.memory_bytes})
        accumulator, step, at, answered = None, step_mj(None), None, False
        for what, call, _ in calls:
            refused_at_us = self._refused.get((ref.uuid, what))
            if refused_at_us is not None and now_us - refused_at_us < _RETRY_US:
                continue
            try:
                told = call(self._smi, handle)
            except self._smi.AmdSmiException as error:
                code = _code(error)
                if code not in _REFUSALS:
                    errors[f"amd:{what}:{code}"] += 1
                    continue
                if refused_at_us is None:
                    self._newly_refused.append((ref.uuid, what))
                self._refused[ref.uuid, what] = now_us
                continue
            answered = True
            values.update(
                {name: value for name, value in told.values.items() if value is not None or name not in values}
            )
            health.update(told.health)
            if told.accumulator is not None:
                accumulator, step = told.accumulator
                at = self._clock.now()  # the counter's own instant, not that of the slowest call after it
        return AmdReading(ref, values, accumulator, step, dict(health), at) if answered else None


class _Told(NamedTuple):
    """What one call gave."""

    values: Values = {}  # noqa: RUF012  nobody changes it
    health: Row = {}  # noqa: RUF012
    accumulator: tuple[int | None, Fraction] | None = None


def _energy(smi: Any, handle: Any) -> _Told:
    energy = smi.amdsmi_get_energy_count(handle)
    # "power" was the accumulator's name before ROCm 6.
    count = whole(energy.get("energy_accumulator", energy.get("power")))
    return _Told(accumulator=(count, step_mj(energy.get("counter_resolution"))))


def _power(smi: Any, handle: Any) -> _Told:
    power = smi.amdsmi_get_power_info(handle)
    return _Told(
        {
            "power_average_mw": scaled(power.get("average_socket_power"), _MW_PER_W),
            "power_instant_mw": scaled(power.get("current_socket_power"), _MW_PER_W),
        }
    )


def _activity(smi: Any, handle: Any) -> _Told:
    activity = smi.amdsmi_get_gpu_activity(handle)
    return _Told(
        {
            "gpu_util_percent": whole(activity.get("gfx_activity")),
            "memory_util_percent": whole(activity.get("umc_activity")),
        }
    )


def _memory(smi: Any, handle: Any) -> _Told:
    return _Told({"memory_used_bytes": whole(smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM))})


def _temperature(column: str, sensor: str) -> _Ask:
    def ask(smi: Any, handle: Any) -> _Told:
        kind, metric = getattr(smi.AmdSmiTemperatureType, sensor), smi.AmdSmiTemperatureMetric.CURRENT
        return _Told({column: whole(smi.amdsmi_get_temp_metric(handle, kind, metric))})

    return ask


def _clock(column: str, most: str, kind: str) -> _Ask:
    def ask(smi: Any, handle: Any) -> _Told:
        clock = smi.amdsmi_get_clock_info(handle, getattr(smi.AmdSmiClkType, kind))
        return _Told({column: whole(clock.get("clk"))}, {most: whole(clock.get("max_clk"))})

    return ask


def _power_cap(smi: Any, handle: Any) -> _Told:
    cap = smi.amdsmi_get_power_cap_info(handle)
    return _Told(
        {"power_limit_mw": _milliwatts(cap.get("power_cap"))},
        {
            "power_limit_min_mw": _milliwatts(cap.get("min_power_cap")),
            "power_limit_max_mw": _milliwatts(cap.get("max_power_cap")),
            "power_limit_default_mw": _milliwatts(cap.get("default_power_cap")),
        },
    )


def _pcie(smi: Any, handle: Any) -> _Told:
    return _Told(
        {"pcie_replays": whole(smi.amdsmi_get_pcie_info(handle).get("pcie_metric", {}).get("pcie_replay_count"))}
    )


def _ecc(smi: Any, handle: Any) -> _Told:
    ecc = smi.amdsmi_get_gpu_total_ecc_count(handle)
    return _Told(
        {
            "ecc_corrected": whole(ecc.get("correctable_count")),
            "ecc_uncorrected": whole(ecc.get("uncorrectable_count")),
        }
    )


_Ask = Callable[[Any, Any], _Told]


class _Call(NamedTuple):
    """One call: its name in counts and events, and whether it may be asked less often."""

    what: str
    ask: _Ask
    slow: bool = False


_CALLS: Final = (
    _Call("energy_mj", _energy),
    _Call("power", _power),
    _Call("activity", _activity),
    _Call("memory_used_bytes", _memory),
    # The edge sensor is what others call the GPU's temperature; MI300 has none and gives its hotspot.
    _Call("temperature hotspot", _temperature("temp_c", "HOTSPOT")),
    _Call("temperature edge", _temperature("temp_c", "EDGE")),
    _Call("memory_temp_c", _temperature("memory_temp_c", "VRAM")),
    _Call("sm_clock_mhz", _clock("sm_clock_mhz", "sm_clock_max_mhz", "GFX")),
    _Call("memory_clock_mhz", _clock("memory_clock_mhz", "memory_clock_max_mhz", "MEM"), slow=True),
    _Call("power_limit_mw", _power_cap, slow=True),
    _Call("pcie_replays", _pcie, slow=True),
    _Call("ecc", _ecc, slow=True),
)
_QUICK_CALLS: Final = tuple(call for call in _CALLS if not call.slow)


def _milliwatts(microwatts: object) -> int | None:
    told = number(microwatts)
    return None if told is None or told <= 0 else round(told / _UW_PER_MW)


def _code(error: Exception) -> int | str:
    code = getattr(error, "err_code", None)
    return code if isinstance(code, int) else type(error).__name__
