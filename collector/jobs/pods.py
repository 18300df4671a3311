"""Finds the UID of a pod from its namespace and name, and back, by the names of the folders the kubelet keeps pods' logs in.

``/var/log/pods/<namespace>_<name>_<uid>`` is made by the kubelet as root, and lists the pods of this node without asking the API
server. A folder's birth is the pod's begin on this node: the same after any restart of the agent. It opens no log.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/var/log/pods")
_MAX_PODS: Final = 4_096
_NAME: Final = re.compile(r"([a-z0-9.-]{1,253})_([a-z0-9.-]{1,253})_([0-9a-f-]{32,36})")


_AT_FDCWD: Final = -100
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_BTIME: Final = struct.Struct("<qI")
_BTIME_AT: Final = 80
_US_PER_S: Final = 1_000_000
_NS_PER_US: Final = 1_000


class PodNames:
    """The pods of this node, as of the last look."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Look into ``folder`` when asked to."""
        self.folder = folder
        self._mark: tuple[int, int] | None = None
        self._by_uid: dict[str, tuple[str, str]] = {}
        self._by_name: dict[tuple[str, str], str] = {}

    def look(self) -> bool:
        """Read the folder again if it has changed; return whether it can be read at all."""
        try:
            state = self.folder.stat()
            mark = (state.st_ino, state.st_mtime_ns)
            if mark == self._mark:
                return True
            names = os.listdir(self.folder)  # noqa: PTH208  names are all that is wanted
        except OSError:
            self._mark, self._by_uid, self._by_name = None, {}, {}
            return False
        self._mark = mark
        found = [match for name in names[:_MAX_PODS] if (match := _NAME.fullmatch(name)) is not None]
        self._by_uid = {match[3]: (match[1], match[2]) for match in found}
        # A pod that was replaced by one of the same name leaves its folder for a while: then the name alone tells nothing.
        counts: dict[tuple[str, str], int] = {}
        for name in self._by_uid.values():
            counts[name] = counts.get(name, 0) + 1
        self._by_name = {name: uid for uid, name in self._by_uid.items() if counts[name] == 1}
        return True

    def uid_of(self, namespace: str, name: str) -> str | None:
        """Return the UID of a pod; None where it is unknown or not the only one of that name."""
        return self._by_name.get((namespace, name))

    def born_us(self, uid: str) -> int | None:
        """Return when the pod's folder was made; None where the pod or its filesystem does not tell."""
        name = self._by_uid.get(uid)
        return None if name is None else _born_us(str(self.folder / f"{name[0]}_{name[1]}_{uid}"))

    def name_of(self, uid: str) -> tuple[str, str] | None:
        """Return namespace and name of a pod."""
        return self._by_uid.get(uid)


@cache
def _statx() -> ctypes._NamedFuncPointer | None:
    """Return the C library's statx (glibc 2.28, musl 1.2), which Python 3.11 does not offer."""
    return getattr(ctypes.CDLL(None, use_errno=True), "statx", None)


def _born_us(path: str) -> int | None:
    statx = _statx()
    if statx is None:
        return None
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, answer) != 0:
        return None
    (known,) = struct.unpack_from("<I", answer, 0)
    seconds, nanoseconds = _BTIME.unpack_from(answer, _BTIME_AT)
    return seconds * _US_PER_S + nanoseconds // _NS_PER_US if known & _STATX_BTIME else None
