"""Watches Kubernetes from inside the cluster: pods, suspended Jobs, Workloads of Kueue and nodes, told to ingest.

It calls out only: to the API server it runs under, and to ingest. What is seen waits here, newest word on each subject, until
ingest has committed it; what ended while nobody watched is found missing from the next list and ends when it was seen last.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from ingest.pollers.deliver import Event
from ingest.pollers.errors import SourceError
from ingest.pollers.kube_api import AbsentError, KubeApi, Object, UnknownVersionError
from ingest.pollers.kube_objects import job_events, node_events, pod_events, workload_events
from ingest.pollers.kube_reflect import Reflector
from ingest.pollers.memory import Memory
from ingest.pollers.rounds import Teller, Word

log = logging.getLogger(__name__)
SOURCE: Final = "kubernetes"
SYNC_S: Final = 60.0
FORGET_AFTER: Final = timedelta(days=14)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Reader = Callable[..., Iterator[tuple[str, Event, bool]]]
# Group and version, resource, reader; of what a cluster may not have the versions that are read, the best first.
_RESOURCES: Final[tuple[tuple[str, str, Reader, tuple[str, ...]], ...]] = (
    ("/api/v1", "pods", pod_events, ()),
    ("/apis/batch/v1", "jobs", job_events, ()),
    ("/apis/kueue.x-k8s.io/{version}", "workloads", workload_events, ("v1beta2", "v1beta1")),
    ("/api/v1", "nodes", node_events, ()),
)
_SUBJECTS: Final = ("run", "wait", "suspended")
"""What an object may be the subject of, with its UID."""


class KubernetesWatch:
    """One cluster, or one namespace of it. ``clock``: UTC now."""

    def __init__(
        self,
        api: KubeApi,
        teller: Teller,
        memory: Memory,
        cluster: str,
        clock: Callable[[], datetime],
        *,
        namespace: str | None = None,
    ) -> None:
        self._teller, self._memory, self._cluster, self._clock = teller, memory, cluster, clock
        self._lock = threading.Lock()
        self._pending: dict[str, Word] = {}
        self._live: dict[str, dict[str, set[str]]] = {}
        """By resource and UID: the subjects of the objects that are there."""
        self._unreadable: dict[str, set[str]] = {}
        """By resource: the UIDs of objects that nothing could be made of. What was known of them stays open."""
        self._relisted = False
        self._errors = 0
        self._reflectors: list[Reflector] = []
        for base, name, read, versions in _RESOURCES:
            if namespace is not None and name == "nodes":
                continue  # not a namespace's
            place = f"{base}/namespaces/{namespace}/{name}" if namespace is not None else f"{base}/{name}"
            self._reflectors.append(
                Reflector(api, place, self._replacer(name, read), self._applier(name, read), versions=versions)
            )

    def start(self, stop: threading.Event) -> list[threading.Thread]:
        """Follow every resource in a thread of its own, until stopped: a watch under way ends with its connection."""
        threads = [
            threading.Thread(target=reflector.run, args=(stop,), name=reflector.path, daemon=True)
            for reflector in self._reflectors
        ]
        for thread in threads:
            thread.start()
        return threads

    def look(self) -> None:
        """List everything once, for a single round. Raises SourceError."""
        for reflector in self._reflectors:
            try:
                reflector.relist()
            except (AbsentError, UnknownVersionError) as error:
                if not reflector.optional:
                    raise
                reflector.note(error)

    def round(self) -> Counter[str]:
        """Tell what was seen since the last round; raises WatchError, nothing being forgotten."""
        blind = [reflector for reflector in self._reflectors if not reflector.is_ready(SYNC_S)]
        for reflector in blind:
            if not reflector.optional:
                raise reflector.fault or SourceError(f"{reflector.path} was not listed within {SYNC_S:.0f} s")
        now = self._clock()
        with self._lock:
            # While something was never seen, nobody knows what is missing.
            relisted, self._relisted = self._relisted and not blind, self._relisted and bool(blind)
            words = dict(self._pending)
            live = {subject for objects in self._live.values() for of in objects.values() for subject in of}
        try:
            gone = [*self._gone(live | words.keys(), now)] if relisted else []
            empty = self._never_waited(words)
            told = [word for key, word in words.items() if key not in empty]
            counts = Counter(live=len(live)) + self._teller.tell([*told, *gone], _us(now))
        except BaseException:
            with self._lock:
                self._relisted = self._relisted or relisted
            raise
        with self._lock:
            for key, word in words.items():
                if self._pending.get(key) is word:
                    del self._pending[key]
        self._memory.set_mark("seen_us", str(_us(now)))
        if relisted:
            self._memory.forget(_us(now - FORGET_AFTER))
        errors = sum(reflector.errors for reflector in self._reflectors)
        with self._lock:
            unreadable = sum(len(uids) for uids in self._unreadable.values())
        faults = {
            "faults": sum(reflector.fault is not None for reflector in self._reflectors),
            "unexpected": errors - self._errors,
            "unreadable": unreadable,
        }
        self._errors = errors
        return counts + Counter(faults)

    def _never_waited(self, words: dict[str, Word]) -> set[str]:
        """Return the ends of waits that nobody was told of: every Job that was never suspended has one."""
        prefix = f"suspended/{self._cluster}/"
        waits = self._memory.notes(prefix)
        return {
            key for key, (_, _, note) in words.items() if note is None and key.startswith(prefix) and key not in waits
        }

    def _gone(self, present: set[str], now: datetime) -> Iterator[Word]:
        """Yield the ends of what was open and is no longer there: seen last when everything was told last."""
        mark = self._memory.mark("seen_us")
        seen_at = now if mark is None else min(now, _EPOCH + timedelta(microseconds=int(mark)))
        for key, note in self._memory.notes("").items():
            if key in present:
                continue
            open_ = json.loads(note)
            event: Event = {"kind": open_["kind"], "at": now.isoformat(), "job": open_["job"]}
            if open_["kind"] == "job":
                ended_at = max(seen_at.isoformat(), open_["job"]["start"])
                event |= {"ended_at": ended_at, "state": "unknown", "reason": "deleted while nobody watched"}
            else:
                event |= {"left_at": seen_at.isoformat(), "outcome": "gone"}
            yield key, event, None

    def _replacer(self, name: str, read: Reader) -> Callable[[list[Object]], None]:
        def replace(items: list[Object]) -> None:
            now = self._clock()
            found = {str(thing["metadata"]["uid"]): self._read(name, read, thing, now) for thing in items}
            with self._lock:
                self._live[name] = {uid: self._subjects(uid, words) for uid, words in found.items()}
                for words in found.values():
                    self._pending.update((word[0], word) for word in words or ())
                self._unreadable[name] = {uid for uid, words in found.items() if words is None}
                self._relisted = True

        return replace

    def _applier(self, name: str, read: Reader) -> Callable[[str, Object], None]:
        def apply(kind: str, thing: Object) -> None:
            deleted = kind == "DELETED"
            uid = str(thing["metadata"]["uid"])
            words = self._read(name, read, thing, self._clock(), deleted=deleted)
            with self._lock:
                live, unreadable = self._live.setdefault(name, {}), self._unreadable.setdefault(name, set())
                unreadable.discard(uid)
                if deleted:
                    live.pop(uid, None)
                    self._relisted = self._relisted or words is None  # it ends as what is missing does
                else:
                    live[uid] = self._subjects(uid, words)
                    if words is None:
                        unreadable.add(uid)
                self._pending.update((word[0], word) for word in words or ())

        return apply

    def _subjects(self, uid: str, words: list[Word] | None) -> set[str]:
        if words is None:
            return {f"{subject}/{self._cluster}/{uid}" for subject in _SUBJECTS}
        return {word[0] for word in words}

    def _read(
        self, name: str, read: Reader, thing: Object, now: datetime, *, deleted: bool = False
    ) -> list[Word] | None:
        """Return what an object says; None where it is not of the shape that its kind has: the others are told."""
        try:
            return [*self._words(read, thing, now, deleted=deleted)]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
            log.warning("%s %s cannot be read: %s", name, thing["metadata"].get("name"), fault)
            return None

    def _words(self, read: Reader, thing: Object, now: datetime, *, deleted: bool = False) -> Iterator[Word]:
        for key, event, goes_on in read(thing, self._cluster, now, deleted=deleted):
            note = json.dumps({"kind": event["kind"], "job": event["job"]}) if goes_on else None
            yield key, event, note


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
