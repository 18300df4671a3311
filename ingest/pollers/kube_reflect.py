"""Follows one resource of Kubernetes: lists it, watches from there, lists again when its place has expired. One thread each.

It hands on what it sees and keeps nothing. A right that is missing, an API server that is away, a version that it does not
read and whatever else goes wrong are remembered as its fault and tried again with growing, jittered pauses: its thread never
ends by itself. What is not installed is no fault.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from ingest.pollers.errors import SourceError
from ingest.pollers.kube_api import (
    AbsentError,
    BrokenWatchError,
    ExpiredError,
    KubeApi,
    Object,
    UnknownVersionError,
)

log = logging.getLogger(__name__)
LONGEST_PAUSE_S: Final = 60.0


class Reflector:
    """``replace`` gets all objects of a list, ``apply`` (type, object) of a change; both from the reflector's thread.

    ``versions``: of an API group that a cluster may not have, those that can be read, the best first; ``{version}`` in the
    path stands for it, and each list asks which are served.
    """

    def __init__(
        self,
        api: KubeApi,
        path: str,
        replace: Callable[[list[Object]], None],
        apply: Callable[[str, Object], None],
        *,
        versions: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.optional = bool(versions)
        self.fault: SourceError | None = None
        self.listed = threading.Event()
        self.lists = 0
        self.errors = 0
        """What went wrong that nobody foresaw, since the start."""
        self._api, self._replace, self._apply = api, replace, apply
        self._template, self._versions = path, versions
        self._version = ""

    def relist(self) -> None:
        """List once; raises SourceError."""
        if self._versions:
            self.path = self._located()
        try:
            found = self._api.list(self.path)
        except AbsentError as error:
            # Its group is there, so this is not the cluster that has no such thing.
            raise (SourceError(str(error)) if self._versions else error) from error
        self._replace(found.items)
        self._version = found.resource_version
        self.lists += 1
        self.fault = None
        self.listed.set()

    def _located(self) -> str:
        group = self._template.split("/")[2]
        served = self._api.versions(group)
        version = next((each for each in self._versions if each in served), None)
        if version is None:
            raise UnknownVersionError(
                f"{group} is served as {', '.join(served) or 'nothing'}, of which this version of Wattledger reads none "
                f"(it reads {', '.join(self._versions)}): what waits there is not told; update the watcher"
            )
        return self._template.replace("{version}", version)

    def is_ready(self, timeout_s: float) -> bool:
        """Wait until it was listed, or known not to be there; False once it has a fault, or time is over."""
        deadline_s = time.monotonic() + timeout_s
        while not self.listed.wait(0.1):
            if self.fault is not None or time.monotonic() >= deadline_s:
                return self.listed.is_set()
        return True

    def follow(self) -> None:
        """Watch until the server ends it; raises SourceError where it ends otherwise."""
        for kind, thing in self._api.watch(self.path, self._version):
            version = thing.get("metadata", {}).get("resourceVersion")
            if kind != "BOOKMARK":
                self._apply(kind, thing)
            self.fault = None
            if version:  # once it is handed on: a fault in between sees it again
                self._version = str(version)
        self.fault = None

    def run(self, stop: threading.Event) -> None:
        """Follow for ever."""
        failures = 0
        while not stop.is_set():
            before = self._version
            try:
                if not self._version:
                    self.relist()
                self.follow()
                failures = 0
            except ExpiredError as error:
                log.info("%s; listing again", error)
                self._version = ""
                failures = 0 if self._version != before else failures + 1
            except BrokenWatchError as error:
                log.info("%s; going on from there", error)
                # Nothing came: a connection that breaks at once is not to be hammered.
                failures = 0 if self._version != before else failures + 1
            except SourceError as error:
                failures += 1
                if isinstance(error, AbsentError):
                    self._version = ""  # its version is served no longer: where is it now
                self.note(error)
            except Exception as error:  # the outermost loop of the thread: without it nothing would be seen any more
                failures += 1
                self.errors += 1
                self._version = ""
                self.fault = SourceError(f"{self.path} cannot be followed: {type(error).__name__}: {error}")
                log.exception("%s cannot be followed; listing again", self.path)
            if failures and not stop.is_set():
                stop.wait(min(LONGEST_PAUSE_S, 0.5 * 2.0 ** min(failures, 8)) * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    def note(self, error: SourceError) -> None:
        """Remember a fault and say it once; what is not installed is none."""
        absent = self.optional and isinstance(error, AbsentError)
        if absent:
            if not self.listed.is_set():
                log.info("%s: it is not installed here", error)
            self.listed.set()
        elif self.fault is None or str(self.fault) != str(error):
            log.warning("%s", error)
        self.fault = None if absent else error
