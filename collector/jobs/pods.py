"""Finds the UID of a pod from its namespace and name, and back, by the names of the folders the kubelet keeps pods' logs in.

``/var/log/pods/<namespace>_<name>_<uid>`` is made by the kubelet as root, and lists the pods of this node without asking the API
server. It opens no log.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/var/log/pods")
_MAX_PODS: Final = 4_096
_NAME: Final = re.compile(r"([a-z0-9.-]{1,253})_([a-z0-9.-]{1,253})_([0-9a-f-]{32,36})")


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

    def name_of(self, uid: str) -> tuple[str, str] | None:
        """Return namespace and name of a pod."""
        return self._by_uid.get(uid)
