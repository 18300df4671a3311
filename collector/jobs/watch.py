"""Waits until something changes in one of a few folders: inotify where the kernel has it, else a look at their times a second.

A hook's file tells the instant itself; what a prompt waker adds is a counter reading of the same moment instead of one that is
up to five seconds younger. inotify costs nothing while nothing happens, but it is lost with the folder it watched, and a folder
may come into being only with the first job after a boot: so a look at the folders' times, 2 µs each, backs it up. It reads no
file.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED_TO: Final = 0x80
_IN_DELETE: Final = 0x200
_IN_ONLYDIR: Final = 0x0100_0000
_MASK: Final = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_DELETE | _IN_ONLYDIR
_POLL_S: Final = 1.0
_DRAIN_BYTES: Final = 65_536

_Marks = tuple[tuple[int, int] | None, ...]


class FolderWatch:
    """Wakes its one waiting thread when a folder changes; :meth:`stop` may be called from any thread."""

    def __init__(self, folders: Sequence[Path], *, inotify: bool = True) -> None:
        """Watch these folders, which need not exist yet."""
        self._folders = tuple(os.fspath(folder) for folder in folders)
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poller = select.poll()
        self._poller.register(self._wake_r, select.POLLIN)
        self._libc = ctypes.CDLL(None, use_errno=True) if inotify else None
        self._notify = -1
        self._watched: dict[str, int] = {}
        """Folder -> inode that inotify watches."""
        if self._libc is not None:
            self._notify = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._notify >= 0:
                self._poller.register(self._notify, select.POLLIN)
        self._stopped = False
        self._marks = self._look()

    @property
    def prompt(self) -> bool:
        """Whether changes wake at once (inotify) rather than within a second."""
        return self._notify >= 0

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as a folder has changed since the last call, False after ``timeout_s`` or a stop."""
        until = time.monotonic() + timeout_s
        while not self._stopped:
            marks = self._look()
            if marks != self._marks:
                self._marks = marks
                self._drain()
                return True
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            # Milliseconds, rounded up: rounded down the last one would be waited for in a busy loop.
            self._poller.poll(int(min(left_s, _POLL_S) * 1_000) + 1)
            if self._drain():
                self._marks = self._look()
                return True
        return False

    def stop(self) -> None:
        """End the wait that is going on, and all later ones."""
        self._stopped = True
        try:
            os.write(self._wake_w, b"x")
        except OSError:
            return  # closed, or already full of wakes

    def close(self) -> None:
        """Give the descriptors back; to be called by the thread that waits, or after it."""
        self._stopped = True
        for descriptor in {self._notify, self._wake_r, self._wake_w}:
            if descriptor >= 0:
                os.close(descriptor)
        self._notify = self._wake_r = self._wake_w = -1

    def _look(self) -> _Marks:
        marks: list[tuple[int, int] | None] = []
        for folder in self._folders:
            try:
                state = os.stat(folder)  # noqa: PTH116  a second's work for years: no object for it
            except OSError:
                self._watched.pop(folder, None)
                marks.append(None)
                continue
            if self._watched.get(folder) != state.st_ino and self._add(folder):
                self._watched[folder] = state.st_ino
            marks.append((state.st_ino, state.st_mtime_ns))
        return tuple(marks)

    def _add(self, folder: str) -> bool:
        if self._libc is None or self._notify < 0:
            return False
        return bool(self._libc.inotify_add_watch(self._notify, os.fsencode(folder), _MASK) >= 0)

    def _drain(self) -> bool:
        """Empty the descriptors; return whether inotify had something to say."""
        spoken = False
        for descriptor in (self._notify, self._wake_r):
            while descriptor >= 0:
                try:
                    if not os.read(descriptor, _DRAIN_BYTES):
                        break
                except OSError:
                    break
                spoken = spoken or descriptor == self._notify
        return spoken
