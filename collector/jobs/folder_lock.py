"""Keeps a second agent of the node from taking away the hooks' files that the first is to be told by.

The lock is of a file in the folder that nobody but its owner can open: whoever can read a file, or a folder, can hold its lock. It
reads and deletes no file of the hooks.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK_NAME: Final = "agent.lock"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderLock:
    """The lock of one folder, held until :meth:`close`; not for several threads at once."""

    def __init__(self, folder: Path, trusted_uids: Collection[int]) -> None:
        """Touch nothing yet; a lock that is not of ``trusted_uids`` is replaced."""
        self._folder = folder
        self._path = folder / LOCK_NAME
        self._trusted = trusted_uids
        self._held: tuple[int, int] | None = None
        """Descriptor and inode."""
        self.unguarded = False
        """Whether the last :meth:`take` went on without a lock, as none can be had: a second agent would not be noticed."""

    def take(self) -> bool:
        """Say whether the folder is this object's, after trying to make it so.

        It is as well where this user may delete nothing in it: then there is nothing that another agent could miss.
        """
        self.unguarded = False
        if self._held is not None and self._inode() == self._held[1]:
            return True
        self.close()
        try:
            self._drop_foreign()
            descriptor = os.open(self._path, _FLAGS, 0o600)
        except OSError as error:
            if not os.access(self._folder, os.W_OK):
                return True
            # One that others may not open is somebody's; a disk without room for one more name is no reason to be blind.
            self.unguarded = not isinstance(error, PermissionError)
            return self.unguarded
        try:
            os.fchmod(descriptor, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            self.unguarded = not isinstance(error, BlockingIOError | PermissionError)
            return self.unguarded
        self._held = (descriptor, os.fstat(descriptor).st_ino)
        return True

    def close(self) -> None:
        """Let another agent have the folder."""
        if self._held is not None:
            os.close(self._held[0])
            self._held = None

    def _inode(self) -> int | None:
        try:
            return self._path.lstat().st_ino
        except OSError:
            return None

    def _drop_foreign(self) -> None:
        """Remove what somebody else put there, in a folder where everybody may make files and nobody may delete others'."""
        with suppress(FileNotFoundError):
            state = self._path.lstat()
            if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1 or state.st_uid not in self._trusted:
                self._path.unlink()
