"""What the agent knows of itself: counts since its start, as a row of the agent stream and as a line of the log.

It measures its own processor time and memory, and judges neither.
"""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from collector import wire
from collector.clock import US_PER_S, Instant
from collector.probe import Row
from collector.ship import ShipState
from collector.spool import SpoolState
from collector.writer import RecorderState

_BYTES_PER_MIB: Final = 1_048_576
_OTHERS: Final = "others"


@dataclass(slots=True)
class Health:
    """Counts since the start, and the marks of the span that is under way."""

    started: Instant
    probe_errors: Counter[str] = field(default_factory=Counter)
    """Failed calls of probes and sources, and faults of the loop, by kind."""
    clock_steps: int = 0
    span_clock_step_us: int = 0
    events: Counter[str] = field(default_factory=Counter)
    """Node events by kind."""
    _span_from_us: int = 0
    _span_cpu_s: float = 0.0

    def __post_init__(self) -> None:
        """Let the first span begin at the start."""
        self._span_from_us = self.started.monotonic_us
        self._span_cpu_s = cpu_s()

    def clock_stepped(self, step_us: int) -> None:
        """Count a step of the wall clock."""
        self.clock_steps += 1
        self.span_clock_step_us += step_us

    def row(
        self,
        now: Instant,
        recorder: RecorderState,
        held: SpoolState | None,
        ship: ShipState | None,
        *,
        sample_us: int,
        released: bool,
        durable: bool,
    ) -> Row:
        """Return the row that ends the present span, and begin the next; where ``held`` is None its columns are null."""
        span_us = max(0, now.monotonic_us - self._span_from_us)
        used_s = cpu_s()
        errors = Counter(self.probe_errors)
        errors.update({f"refused:{fault}": count for fault, count in recorder.refused_rows.items()})
        if recorder.spool_failures:
            errors["spool"] += recorder.spool_failures
        row: Row = {
            "at_us": now.wall_us,
            "span_us": span_us,
            "started_at_us": self.started.wall_us,
            "sample_us": sample_us,
            "samples": recorder.samples,
            "samples_missed": recorder.samples_missed,
            "probe_errors": self.probe_errors.total(),
            "probe_errors_by_kind": _as_json(errors),
            "dropped_rows": recorder.dropped_rows,
            "clock_steps": self.clock_steps,
            "clock_step_us": self.span_clock_step_us,
            "sent_batches": None if ship is None else ship.sent_batches,
            "failed_sends": None if ship is None else ship.failed_attempts,
            "cpu_ratio": (used_s - self._span_cpu_s) * US_PER_S / span_us if span_us else None,
            "rss_bytes": rss_bytes(),
            "durable": int(durable),
            "released": int(released),
        }
        if held is not None:
            row |= {
                "spool_batches": held.batches,
                "spool_bytes": held.bytes,
                "oldest_unsent_us": None if held.oldest_at_us is None else max(0, now.wall_us - held.oldest_at_us),
                "quarantined_batches": held.quarantined,
                "dropped_batches": held.dropped_batches,
            }
        self._span_from_us, self._span_cpu_s, self.span_clock_step_us = now.monotonic_us, used_s, 0
        return row

    def line(self, row: Row) -> str:
        """Return the figures of a row as one line for the log."""
        shown = {name: value for name, value in row.items() if name not in _NOT_IN_THE_LINE}
        shown["rss_mib"] = f"{float(row['rss_bytes'] or 0) / _BYTES_PER_MIB:.1f}"
        shown["cpu_percent"] = None if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.2%}".rstrip("%")
        told = " ".join(f"{name}={value}" for name, value in shown.items() if value is not None)
        events = ",".join(f"{kind}*{count}" for kind, count in sorted(self.events.items()))
        errors = ",".join(f"{kind}*{count}" for kind, count in sorted(self.probe_errors.items()))
        return f"health {told} events={events or 'none'} probe_errors={errors or 'none'}"


_NOT_IN_THE_LINE: Final = frozenset(
    {"at_us", "started_at_us", "rss_bytes", "cpu_ratio", "probe_errors", "probe_errors_by_kind"}
)


def cpu_s() -> float:
    """Return the processor time this process and the children it waited for have used, in seconds."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def rss_bytes() -> int:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _as_json(errors: Mapping[str, int]) -> str | None:
    """Write counts as a JSON object that fits a text of the wire: the most frequent by name, the rest as one."""
    if not errors:
        return None
    ranked = sorted(errors.items(), key=lambda entry: (-entry[1], entry[0]))
    for kept in range(len(ranked), -1, -1):
        told = dict(ranked[:kept])
        if kept < len(ranked):
            told[_OTHERS] = sum(count for _, count in ranked[kept:])
        text = json.dumps(told, separators=(",", ":"))
        if len(text) <= wire.MAX_STRING_BYTES:
            return text
    return None
