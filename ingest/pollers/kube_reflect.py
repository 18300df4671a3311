"""Follows one resource of Kubernetes: lists it, watches from there, lists again when its place has expired. One thread each.

It hands on what it sees and keeps nothing. A right that is missing, an API server that is away and a resource that is not
installed are remembered as its fault and tried again with growing, jittered pauses.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Final

from ingest.pollers.errors import SourceError
from ingest.pollers.kube_api import AbsentError, BrokenWatchError, ExpiredError, KubeApi, Object

log = logging.getLogger(__name__)
LONGEST_PAUSE_S: Final = 60.0


class Reflector:
    """``replace`` gets all objects of a list, ``apply`` (type, object) of a change; both from the reflector's thread."""

    def __init__(
        self,
        api: KubeApi,
        path: str,
        replace: Callable[[list[Object]], None],
        apply: Callable[[str, Object], None],
        *,
        optional: bool = False,
    ) -> None:
        self.path = path
        self.optional = optional
        self.fault: SourceError | None = None
        self.listed = threading.Event()
        self.lists = 0
        self._api, self._replace, self._apply = api, replace, apply
        self._version = ""

    def relist(self) -> None:
        """List once; raises SourceError."""
        found = self._api.list(self.path)
        self._replace(found.items)
        self._version = found.resource_version
        self.lists += 1
        self.fault = None
        self.listed.set()

    def follow(self) -> None:
        """Watch until the server ends it; raises SourceError where it ends otherwise."""
        for kind, thing in self._api.watch(self.path, self._version):
            version = thing.get("metadata", {}).get("resourceVersion")
            if kind != "BOOKMARK":
                self._apply(kind, thing)
            if version:  # once it is handed on: a fault in between sees it again
                self._version = str(version)

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
                self._note(error)
            if failures and not stop.is_set():
                stop.wait(min(LONGEST_PAUSE_S, 0.5 * 2.0 ** min(failures, 8)) * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    def _note(self, error: SourceError) -> None:
        absent = self.optional and isinstance(error, AbsentError)
        if absent:
            self.listed.set()
        if self.fault is None or str(self.fault) != str(error):
            log.log(logging.INFO if absent else logging.WARNING, "%s", error)
        self.fault = None if absent else error
