"""A folder of this machine with copies of a bucket's files that are in use, shared by all processes of a home.

A copy is whole or not there; it is never the file itself, so whoever wants to know how the bucket is asks the bucket. What was
used within the last hour stays, however much that is: a reader scans its files long after it asked for them. It fetches nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CACHE_BYTES: Final = 4 << 30
"""A day of 10,000 GPUs is about 3 GB."""
IN_USE_S: Final = 3_600.0
"""How long a reader may hold what it asked for: as long as replaced segments stay (docs/storage.md)."""
LEAST_FREE_BYTES: Final = 1 << 30
"""Left to whatever else is on the disk, as the database often is."""


class CacheFullError(OSError):
    """The disk of the copies has no room for one more, though nothing is kept that was not used within the hour."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Copies of files by name. For several threads and processes."""

    folder: Path
    most_bytes: int = CACHE_BYTES
    in_use_s: float = IN_USE_S
    least_free_bytes: int = LEAST_FREE_BYTES

    @property
    def unfinished(self) -> Path:
        """Where copies are made; what is old there was left behind."""
        return self.folder / ".unfinished"

    def find(self, name: str) -> Path | None:
        """Return a copy, which then stays for the hour; null = there is none."""
        kept = self.folder / name
        if not kept.exists():
            return None
        with self._alone():
            try:
                # The time of change stays as it is: by it a checked copy is known.
                os.utime(kept, ns=(time.time_ns(), kept.stat().st_mtime_ns))
            except FileNotFoundError:
                return None
        return kept

    @contextmanager
    def made(self, name: str, size_bytes: int, pieces: Iterable[bytes]) -> Iterator[Path]:
        """Write a copy aside, synced, for the block; it is gone afterwards unless :meth:`keep` took it. Raises CacheFullError."""
        self.unfinished.mkdir(parents=True, exist_ok=True)
        self._make_room(size_bytes)
        partial = self.unfinished / f"{name}.{os.getpid()}.{threading.get_ident()}.{time.monotonic_ns():x}"
        try:
            with partial.open("xb") as target:
                for piece in pieces:
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def keep(self, partial: Path, name: str) -> Path:
        """Have a copy that was made stay under its name, in place of one before; return where it is."""
        kept = self.folder / name
        with self._alone():
            partial.replace(kept)
        return kept

    def drop(self, name: str) -> bool:
        """Delete a copy; say whether there was one."""
        with self._alone():
            there = (self.folder / name).exists()
            (self.folder / name).unlink(missing_ok=True)
        return there

    def _make_room(self, size_bytes: int) -> None:
        """Let go of the copies that were used longest ago, but of none that a reader may yet open."""
        with self._alone():
            stats = sorted((path.stat().st_atime, path.stat().st_size, path) for path in self.folder.glob("*.parquet"))
            excess = sum(size for _, size, _ in stats) + size_bytes - self.most_bytes
            lacking = size_bytes + self.least_free_bytes - _free_bytes(self.folder)
            for used_at, size, path in stats:
                if max(excess, lacking) <= 0 or used_at > time.time() - self.in_use_s:
                    break
                path.unlink(missing_ok=True)
                excess, lacking = excess - size, lacking - size
        if lacking > 0:
            raise CacheFullError(
                f"{self.folder} has no room for a copy of {size_bytes} bytes: it lacks {lacking}, and {self.least_free_bytes} stay "
                "free for others; give it more, or ask for a shorter interval"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes from finding a copy that is just being let go of."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
