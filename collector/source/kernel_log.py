"""Finds the GPU driver's XID lines in the kernel log: events of the node, with the PCI address they name.

They back up NVML's own events, which see nothing while NVML is shut, and nothing of a GPU that fell off the bus. Each record
of the kernel has a number; the last one reported is kept, so no line is reported twice, whatever restarts. Only what the
kernel itself wrote is read: a process that may write to /dev/kmsg is marked as such there and proves nothing. It keeps no
other line.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from collector.errors import SpoolError
from collector.probe import Observation, Row, Sight
from collector.source.rows import fitted
from collector.wire import Stream

KIND: Final = "kernel_xid"
FALLEN_OFF_THE_BUS: Final = 79
_RECORD_BYTES: Final = 8_192  # the kernel's longest; with less a read fails
_MAX_RECORDS: Final = 20_000
_MAX_ROWS: Final = 256
_KEY: Final = "kernel_log_sequence"
_KERNEL_FACILITY: Final = 0
_SAME_FALL_US: Final = 30_000_000
_NS_PER_US: Final = 1_000

_XID: Final = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)(?: GPU-I:\d+)?\)[^:]*: (\d{1,6}),")
_FALL: Final = re.compile(
    r"NVRM: .*?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})\b.*fallen off the bus", re.IGNORECASE
)


class Xid(NamedTuple):
    """What one line says."""

    pci_address: str
    """domain:bus:device in lower case, e.g. 0000:9b:00."""
    code: int


def find_xid(line: str) -> Xid | None:
    """Return the XID a line of the kernel log tells, if it does; a GPU that fell off the bus is 79 with or without that number."""
    match = _XID.search(line)
    if match is not None:
        return Xid(_address(match[1]), int(match[2]))
    match = _FALL.search(line)
    return None if match is None else Xid(_address(match[1]), FALLEN_OFF_THE_BUS)


class KernelLogSource:
    """XIDs of this node's kernel, from its ring buffer."""

    def __init__(
        self,
        *,
        path: Path = Path("/dev/kmsg"),
        period_s: float = 5.0,
        boot_id: str = "",
        recall: Callable[[str], str | None] | None = None,
        remember: Callable[[str, str], None] | None = None,
        now_us: Callable[[], tuple[int, int]] | None = None,
        open_log: Callable[[], int] | None = None,
    ) -> None:
        """Open nothing yet.

        ``recall`` and ``remember`` keep a text by key over restarts (the spool's); without them a restart begins with what is
        logged from then on. ``now_us``: wall and monotonic microseconds. ``open_log``: a descriptor that gives one record a read.
        """
        self.name = "kernel_log"
        self.period_s = period_s
        self._path = path
        self._boot_id = boot_id
        self._recall = recall
        self._remember = remember
        self._now_us = now_us or (lambda: (time.time_ns() // _NS_PER_US, time.monotonic_ns() // _NS_PER_US))
        self._open_log = open_log or self._open
        self._descriptor: int | None = None
        self._refused: int | None = None
        self._sequence: int | None = None
        self._skip_to_end = False
        self._falls: dict[str, int] = {}

    def read(self) -> Observation:
        """Return one row for each XID line not reported before, dated as the kernel dated it."""
        errors: Counter[str] = Counter()
        if self._descriptor is None and not self._begin(errors):
            return Observation({}, dict(errors))
        rows: list[Row] = []
        last = self._sequence
        for record in self._records(errors):
            parsed = _parsed(record)
            if parsed is None:
                continue
            sequence, logged_us, facility, text = parsed
            if last is not None and sequence <= last:
                continue
            last = sequence
            found = find_xid(text) if facility == _KERNEL_FACILITY and not self._skip_to_end else None
            if found is None or self._is_same_fall(found, logged_us):
                continue
            if len(rows) >= _MAX_ROWS:
                errors[f"{self.name}:flood"] += 1
                continue
            wall_us, monotonic_us = self._now_us()
            row: Row = {
                "at_us": wall_us - max(0, monotonic_us - logged_us),
                "kind": KIND,
                "subject": found.pci_address,
                "code": found.code,
                "detail": text,
            }
            rows.append(fitted(Stream.NODE_EVENT, row, errors, self.name))
        self._skip_to_end = False
        if last != self._sequence:
            self._sequence = last
            # Only after something was found: other lines may well be read again.
            if rows and self._remember is not None:
                try:
                    self._remember(_KEY, f"{self._boot_id} {last}")
                except SpoolError:  # a restart would tell these lines again: better than to hold them back
                    errors[f"{self.name}:not_remembered"] += 1
        return Observation({Stream.NODE_EVENT: tuple(rows)} if rows else {}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say whether the kernel log can be read."""
        subject = "XID lines of the kernel log"
        if self._descriptor is None:
            self._begin(Counter())
        if self._descriptor is not None:
            return (Sight(subject, seen=True, detail=f"{self._path} is open"),)
        if self._refused in (errno.EACCES, errno.EPERM):
            remedy = "run the agent with CAP_SYSLOG and let its group read /dev/kmsg, or as root"
            return (Sight(subject, seen=False, detail=f"{self._path} may not be read", remedy=remedy),)
        remedy = "give the container the device /dev/kmsg"
        return (Sight(subject, seen=False, detail=f"there is no {self._path}", remedy=remedy),)

    def close(self) -> None:
        """Let go of the log; what was reported stays known."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _begin(self, errors: Counter[str]) -> bool:
        try:
            self._descriptor = self._open_log()
        except OSError as error:
            self._refused = error.errno
            if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT):
                errors[f"{self.name}:open"] += 1
            return False
        if self._sequence is None:
            boot_id, _, sequence = ((self._recall(_KEY) if self._recall is not None else None) or "").rpartition(" ")
            if boot_id == self._boot_id and sequence.isdecimal():
                self._sequence = int(sequence)
            # With nobody to remember, lines from before this start may have been reported by an earlier one.
            self._skip_to_end = self._recall is None
        return True

    def _open(self) -> int:
        return os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _records(self, errors: Counter[str]) -> list[str]:
        """Return what waits, without waiting for more."""
        records: list[str] = []
        assert self._descriptor is not None  # noqa: S101  opened by the caller
        while len(records) < _MAX_RECORDS:
            try:
                record = os.read(self._descriptor, _RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if (
                    error.errno == errno.EPIPE
                ):  # the kernel overwrote what we had not read; the next read goes on after it
                    errors[f"{self.name}:overwritten"] += 1
                    continue
                errors[f"{self.name}:read"] += 1
                self.close()
                break
            if not record:
                break
            records.append(record.decode("utf-8", "replace"))
        return records

    def _is_same_fall(self, found: Xid, logged_us: int) -> bool:
        """Say whether this GPU's fall was told already: the driver logs it in two or three wordings."""
        if found.code != FALLEN_OFF_THE_BUS:
            return False
        before_us = self._falls.get(found.pci_address)
        self._falls[found.pci_address] = logged_us
        return before_us is not None and 0 <= logged_us - before_us <= _SAME_FALL_US


def _parsed(record: str) -> tuple[int, int, int, str] | None:
    """Return sequence, microseconds since boot, facility and text of a record of /dev/kmsg; None where it is none."""
    head, separator, rest = record.partition(";")
    cells = head.split(",")
    if not separator or len(cells) < 3 or not all(cell.isdecimal() for cell in cells[:3]):
        return None
    # Lines after the first are key=value pairs of the device.
    return int(cells[1]), int(cells[2]), int(cells[0]) >> 3, rest.split("\n", 1)[0]


def _address(written: str) -> str:
    return written.lower().partition(".")[0].strip(":")
