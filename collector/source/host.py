"""Reads what the node's processors, memory, disks and network do, from /proc, as the row of the meter ``host``.

Counters are raw and cumulative, over devices that are hardware: partitions, loops, logical volumes, bridges and virtual
functions would count the same bytes again. It measures no power.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.source.files import names_in, read_whole
from collector.source.rows import fitted
from collector.wire import Stream

_METER: Final = "host"
_SECTOR_BYTES: Final = 512
"""What /proc/diskstats counts, whatever the sectors of the disk."""
_BYTES_PER_KIB: Final = 1_024
_MAX_BYTES: Final = 1_048_576
_STACKED: Final = re.compile(r"loop\d|ram\d|zram\d|dm-\d|md\d|sr\d|fd\d|nbd\d|nvme\d+c\d+n\d+")
_IDLE: Final = (3, 4)  # idle and iowait: nobody computes in either
_LOOK_AGAIN_S: Final = 60.0


class HostSource:
    """The node itself."""

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        sys_root: Path = Path("/sys"),
        period_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet."""
        self.name = "host"
        self.period_s = period_s
        self._proc = proc_root
        self._sys = sys_root
        self._monotonic = monotonic
        self._jiffies: tuple[int, int] | None = None
        self._read_at_s: float | None = None
        self._disks: frozenset[str] = frozenset()
        self._interfaces: frozenset[str] = frozenset()
        self._looked_at_s: float | None = None

    def read(self) -> Observation:
        """Return one row; the share of busy processors is over the time since the reading before."""
        errors: Counter[str] = Counter()
        now_s = self._monotonic()
        if self._looked_at_s is None or now_s - self._looked_at_s >= _LOOK_AGAIN_S:
            self._looked_at_s = now_s
            self._find_hardware()
        span_s = 0.0 if self._read_at_s is None else now_s - self._read_at_s
        self._read_at_s = now_s
        row: Row = {"meter": _METER, "span_us": round(span_s * US_PER_S)}
        for part, read in (
            ("stat", self._processors),
            ("meminfo", self._memory),
            ("diskstats", self._disk_bytes),
            ("net/dev", self._network_bytes),
        ):
            try:
                row |= read(read_whole(self._proc / part, _MAX_BYTES))
            except (OSError, ValueError, IndexError, KeyError):
                errors[f"{self.name}:{part}"] += 1
        return Observation({Stream.NODE: (fitted(Stream.NODE, row, errors, self.name),)}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say what of the node is seen from where the agent runs."""
        self._find_hardware()
        rows = self.read().rows[Stream.NODE][0]
        seen = rows.get("memory_total_bytes") is not None
        sights = [
            Sight(
                "processors and memory of the node",
                seen,
                f"{self._proc} {'answers' if seen else 'does not answer'}",
                None if seen else "mount the host's /proc",
            )
        ]
        for subject, names, remedy in (
            ("disk traffic", self._disks, "mount the host's /sys"),
            ("network traffic", self._interfaces, "run the agent in the host's network namespace (hostNetwork: true)"),
        ):
            detail = ", ".join(sorted(names)) if names else "no hardware of that kind in sight"
            sights.append(Sight(subject, bool(names), detail, None if names else remedy))
        return tuple(sights)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _find_hardware(self) -> None:
        self._disks = frozenset(name for name in names_in(self._sys / "block") if not _STACKED.match(name))
        network = self._sys / "class" / "net"
        self._interfaces = frozenset(
            name
            for name in names_in(network)
            if (network / name / "device").exists() and not (network / name / "device" / "physfn").exists()
        )

    def _processors(self, text: str) -> Row:
        first = text.split("\n", 1)[0].split()
        if first[0] != "cpu":
            raise ValueError("the first line of /proc/stat is not the sum of the processors")
        # Guest time is in user time already: only the first eight numbers are disjoint.
        jiffies = [int(number) for number in first[1:9]]
        total, idle = sum(jiffies), sum(jiffies[position] for position in _IDLE)
        before, self._jiffies = self._jiffies, (total, idle)
        if before is None or total <= before[0]:
            return {"cpu_util_ratio": None}
        idle_ratio = (idle - before[1]) / (total - before[0])
        return {"cpu_util_ratio": min(1.0, max(0.0, 1.0 - idle_ratio))}  # idle time may run back by a tick

    def _memory(self, text: str) -> Row:
        known = {}
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                known[name] = int(rest.split()[0]) * _BYTES_PER_KIB
        return {
            "memory_total_bytes": known["MemTotal"],
            "memory_used_bytes": known["MemTotal"] - known["MemAvailable"],
        }

    def _disk_bytes(self, text: str) -> Row:
        if not self._disks:
            return {}
        read = written = 0
        for line in text.splitlines():
            cells = line.split()
            if len(cells) >= 10 and cells[2] in self._disks:
                read += int(cells[5]) * _SECTOR_BYTES
                written += int(cells[9]) * _SECTOR_BYTES
        return {"disk_read_bytes": read, "disk_write_bytes": written}

    def _network_bytes(self, text: str) -> Row:
        if not self._interfaces:
            return {}
        received = sent = 0
        for line in text.splitlines()[2:]:
            name, _, rest = line.partition(":")
            if name.strip() in self._interfaces:
                cells = rest.split()
                received += int(cells[0])
                sent += int(cells[8])
        return {"network_rx_bytes": received, "network_tx_bytes": sent}
