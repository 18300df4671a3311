"""Reads the energy of the processors and their memory from RAPL, as one meter ``rapl`` (and ``rapl/psys`` where there is one).

The hardware counters wrap after 262 kJ, some twelve minutes at 350 W, so this source adds up their differences itself: its
counter starts at 0 with the agent and only grows, and starts over (which the server sees, and bridges nothing) where a wrap
may have gone unseen. Sub-zones inside a package (core, uncore) and the second way to the same registers (mmio) are left out:
their energy is in the package already. Since CVE-2020-8694 only root may read.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.source.files import names_in, read_small
from collector.source.rows import fitted
from collector.wire import Stream

MOST_W: Final = 1_000
"""No package draws more: what would be more is no wrap but a counter that was reset, and the time it takes to wrap at this
power is how long a reading may be late."""
MOST_PSYS_W: Final = 5_000
"""The same for psys, which is the platform with all its packages."""
_UJ_PER_J: Final = 1_000_000
_UJ_PER_MJ: Final = 1_000
_LOOK_AGAIN_S: Final = 60.0
_METER: Final = "rapl"
_PSYS: Final = "rapl/psys"


@dataclass(slots=True)
class _Zone:
    """One counter: where it is, when it wraps, and what it said last."""

    folder: Path
    meter: str
    range_uj: int
    most_w: int
    last_uj: int | None = None


@dataclass(slots=True)
class _Meter:
    """What was added up since the first reading."""

    total_uj: int = 0
    read_at_s: float | None = None


class RaplSource:
    """The processors of this node."""

    def __init__(
        self,
        *,
        sys_root: Path = Path("/sys"),
        period_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at nothing yet; ``period_s`` must stay well below the four minutes in which a counter can wrap."""
        self.name = "rapl"
        self.period_s = period_s
        self._root = sys_root / "class" / "powercap"
        self._monotonic = monotonic
        self._zones: list[_Zone] = []
        self._meters: dict[str, _Meter] = {}
        self._looked_at_s: float | None = None
        self._refused = False

    def read(self) -> Observation:
        """Return a row a meter; nothing where there is no RAPL or it may not be read."""
        errors: Counter[str] = Counter()
        now_s = self._monotonic()
        if not self._zones and (self._looked_at_s is None or now_s - self._looked_at_s >= _LOOK_AGAIN_S):
            self._looked_at_s = now_s
            self._zones = self._find()
        rows: list[Row] = []
        for name in dict.fromkeys(zone.meter for zone in self._zones):
            row = self._read_meter(name, now_s, errors)
            if row is not None:
                rows.append(fitted(Stream.NODE, row, errors, self.name))
        return Observation({Stream.NODE: tuple(rows)} if rows else {}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say whether the processors' energy can be read, and what is missing."""
        subject = "processor energy (RAPL)"
        zones = self._find()
        if self._refused:
            return (
                Sight(
                    subject,
                    seen=False,
                    detail=f"{self._root} is there, but only root may read it",
                    remedy="run the agent as root or with CAP_DAC_READ_SEARCH, or let a udev rule open energy_uj to its group",
                ),
            )
        if not zones:
            return (
                Sight(
                    subject,
                    seen=False,
                    detail=f"no zone in {self._root}",
                    remedy="load intel_rapl_msr (AMD too, from Linux 5.8); most virtual machines have none",
                ),
            )
        return (Sight(subject, seen=True, detail=", ".join(_name(zone.folder) or "?" for zone in zones)),)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _find(self) -> list[_Zone]:
        """Return packages, memory beside them, and psys; of one package seen twice the first."""
        self._refused = False
        zones: list[_Zone] = []
        seen: set[tuple[str | None, ...]] = set()
        # "intel-rapl:0" sorts after "intel-rapl-mmio:0", but its registers are the ones that count everything.
        for entry in sorted(names_in(self._root), key=lambda name: ("mmio" in name, name)):
            folder = self._root / entry
            name = _name(folder)
            top, *below = entry.partition(":")[2].split(":")
            if name is None or not top or len(below) > 1:
                continue
            parent = _name(self._root / entry.rpartition(":")[0]) if below else None
            wanted = name == "dram" if below else name.startswith("package-") or name in ("psys", "dram")
            if not wanted or (parent, name) in seen:
                continue
            try:
                range_uj = int(read_small(folder / "max_energy_range_uj"))
                int(read_small(folder / "energy_uj"))
            except OSError as error:
                self._refused = self._refused or error.errno in (errno.EACCES, errno.EPERM)
                continue
            except ValueError:
                continue
            if range_uj > 0:
                seen.add((parent, name))
                platform = name == "psys"
                meter, most_w = (_PSYS, MOST_PSYS_W) if platform else (_METER, MOST_W)
                zones.append(_Zone(folder, meter, range_uj, most_w))
        return zones

    def _read_meter(self, name: str, now_s: float, errors: Counter[str]) -> Row | None:
        meter = self._meters.setdefault(name, _Meter())
        zones = [zone for zone in self._zones if zone.meter == name]
        elapsed_s = None if meter.read_at_s is None else now_s - meter.read_at_s
        grown_uj: int | None = 0
        for zone in zones:
            try:
                value_uj = int(read_small(zone.folder / "energy_uj"))
            except (OSError, ValueError):
                # Without one zone the sum would be too small for good: start over when all can be read again.
                errors[f"{self.name}:unreadable"] += 1
                self._forget(meter, zones)
                self._zones = [left for left in self._zones if left.meter != name]
                return None
            part_uj = None if elapsed_s is None else _grown(zone, value_uj, elapsed_s)
            zone.last_uj = value_uj
            grown_uj = None if part_uj is None or grown_uj is None else grown_uj + part_uj
        if grown_uj is None:
            if elapsed_s is not None:
                errors[f"{self.name}:counter_restarted"] += 1
            meter.total_uj = 0
            span_s = 0.0
        else:
            meter.total_uj += grown_uj
            span_s = elapsed_s or 0.0
        meter.read_at_s = now_s
        return {"meter": name, "span_us": round(span_s * US_PER_S), "energy_mj": meter.total_uj // _UJ_PER_MJ}

    def _forget(self, meter: _Meter, zones: list[_Zone]) -> None:
        meter.total_uj, meter.read_at_s = 0, None
        for zone in zones:
            zone.last_uj = None


def _grown(zone: _Zone, value_uj: int, elapsed_s: float) -> int | None:
    """Return how much the zone used since it was read last; None where that cannot be told."""
    most_uj = elapsed_s * zone.most_w * _UJ_PER_J
    if zone.last_uj is None or most_uj >= zone.range_uj:
        return None
    grown_uj = value_uj - zone.last_uj
    if grown_uj < 0:
        grown_uj += zone.range_uj
    # Half a second of leave, as the counter and our clock are not read at the same instant.
    return grown_uj if 0 <= grown_uj <= most_uj + zone.most_w * _UJ_PER_J // 2 else None


def _name(folder: Path) -> str | None:
    try:
        return read_small(folder / "name").strip() or None
    except OSError:
        return None
