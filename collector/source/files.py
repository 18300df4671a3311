"""Reads the small files of /sys and /proc: one open, one bounded read, one close.

No buffering layers, as some sources read hundreds of these every few seconds.
"""

from __future__ import annotations

import errno
import os
from typing import Final

MAX_SMALL_BYTES: Final = 4_096
NOT_SUPPORTED: Final = frozenset(
    {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT, errno.ENODATA, errno.ENODEV, errno.ENXIO}
)
"""What drivers answer where a value does not exist on this hardware: null, not a fault."""


def read_small(path: str | os.PathLike[str], limit: int = MAX_SMALL_BYTES) -> str:
    """Return at most ``limit`` bytes of the file as text without the newline at its end. Raises OSError."""
    # Never wait: a named pipe in the place of a file must not hold the thread.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, limit).decode("utf-8", "replace").rstrip("\n\x00")
    finally:
        os.close(descriptor)


def read_whole(path: str | os.PathLike[str], limit: int) -> str:
    """Return the file as text, ``limit`` bytes at most; /proc gives long files in pieces. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pieces: list[bytes] = []
        left = limit
        while left > 0 and (piece := os.read(descriptor, min(left, 65_536))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  names are all it takes
    except OSError:
        return []
