"""Room kept on the spool's disk for the day somebody else has filled it: SQLite needs some even to delete, and to open a file.

A file beside the spool that holds nothing. It is given up when it is needed and made again when there is room.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SUFFIX: Final = ".reserve"
SIZES_BYTES: Final = (4 << 20, 1 << 20, 1 << 18)
"""What folding a full write-ahead log in may take, or, on a disk that small, some deletions."""
_SHARE: Final = 4  # of what is free it takes a quarter at most


class Reserve:
    """The reserve of one spool."""

    def __init__(self, spool: Path) -> None:
        """Keep it beside that file; nothing is allocated yet."""
        self._path = spool.with_name(spool.name + SUFFIX)

    def keep(self) -> None:
        """See to it that it is there, where the disk has the room."""
        if self._path.exists():
            return
        for size in SIZES_BYTES:
            with suppress(OSError):
                disk = os.statvfs(self._path.parent)
                if size * _SHARE > disk.f_bavail * disk.f_frsize:
                    continue
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, size)
                except OSError:
                    self.give()
                    continue
                finally:
                    os.close(descriptor)
            return

    def give(self) -> bool:
        """Free the room; say whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
