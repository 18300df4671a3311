"""Gathers what a request's series of kube-state-metrics say by pod, and leaves out what the store was told before.

A steady cluster says the same at each scrape: only what is new goes on, and every five minutes that a pod is still there. What
is left out here is known to be committed; a process that was started anew tells all of it once more, which changes nothing.
Bounded; beyond the bound all is told again. Used by one thread at a time, but for :meth:`KubeMemory.kept`.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from collector.wire import MAX_CLOCK_SKEW_US, Origin
from ingest.accept import EARLIEST_AT_US
from ingest.series.kube import ASK, OVER, NodePiece, PodPiece
from ingest.series.places import Entry
from ingest.series.samples import Samples

NOTE_EVERY_US: Final = 300_000_000
"""So often the store is told that a pod is there; :mod:`ingest.store.kube_pods` waits for longer than this."""
HEARD_EVERY_US: Final = 60_000_000
SWEEP_EVERY_US: Final = 60_000_000
MAX_PODS: Final = 200_000
MAX_NODES: Final = 50_000
MAX_NEW_AN_HOUR: Final = 200_000
"""Pods of one site that this process had not heard of: a row each."""
MAX_FIELDS: Final = 64
"""Of one pod; the largest have some dozen containers."""
_MOST_ACCELERATORS: Final = 1_000
_HOUR_US: Final = 3_600_000_000
Words = dict[str, list[Any]]
"""Field -> [told at, microseconds since 1970, value]."""


@dataclass(slots=True)
class PodTold:
    """What a request says of one pod. ``seen_us``: it was there then; ``gone_us``: a scrape in which a series was missing; 0 = not said."""

    exporter: str
    origin: Origin
    facts: Words = field(default_factory=dict)
    seen_us: int = 0
    gone_us: int = 0


@dataclass(slots=True)
class KubeTold:
    """What a request says of pods and nodes, and of whom it is to be asked whether they are still there."""

    pods: dict[tuple[str, str], PodTold] = field(default_factory=dict)
    """By cluster and UID."""
    nodes: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = field(default_factory=dict)
    """Instant and labels by node; the latest of each."""
    heard: dict[tuple[str, str], int] = field(default_factory=dict)
    """The latest instant told of, by cluster and exporter."""
    sweep: frozenset[str] = frozenset()
    """Clusters whose pods are to be looked through for those that are gone."""
    refused: Counter[str] = field(default_factory=Counter)
    """Samples by reason."""
    samples: int = 0

    @property
    def is_empty(self) -> bool:
        """Claim that there is nothing for the store."""
        return not (self.pods or self.nodes or self.heard or self.sweep)


def gathered(samples: Samples, entries: Sequence[Entry], now_us: int) -> tuple[KubeTold, Samples]:
    """Return what is said of pods and nodes, and the samples that say other things."""
    told = KubeTold()
    numbers = np.unique(samples.series)
    ours = [number for number in numbers.tolist() if isinstance(entries[number], PodPiece | NodePiece)]
    if not ours:
        return told, samples
    is_ours = np.isin(samples.series, ours)
    mine = samples.only(is_ours)
    cells = zip(mine.series.tolist(), mine.at_us.tolist(), mine.values.tolist(), strict=True)
    for number, at_us, value in cells:
        entry = entries[number]
        if at_us > now_us + MAX_CLOCK_SKEW_US or at_us < EARLIEST_AT_US:
            told.refused["from_the_future" if at_us > now_us else "before_2000"] += 1
            continue
        told.samples += 1
        if isinstance(entry, PodPiece):
            _take(told, entry, at_us, value, now_us)
        elif isinstance(entry, NodePiece) and not math.isnan(value) and at_us > told.nodes.get(entry.node, (0, ()))[0]:
            told.nodes[entry.node] = (at_us, entry.labels)
    return told, samples.only(~is_ours)


def _take(told: KubeTold, piece: PodPiece, at_us: int, value: float, now_us: int) -> None:
    key = (piece.cluster, piece.uid)
    pod = told.pods.get(key)
    if pod is None:
        pod = told.pods[key] = PodTold(piece.exporter, piece.origin)
    if math.isnan(value):  # NaN: Prometheus says that the series ended
        pod.gone_us = max(pod.gone_us, at_us)
        return
    if at_us > pod.seen_us:
        pod.seen_us, pod.exporter = at_us, piece.exporter
    teller = (piece.cluster, piece.exporter)
    told.heard[teller] = max(told.heard.get(teller, 0), at_us)
    if not piece.is_flag or value == 1:
        for name, text in piece.says:
            _say(pod, name, at_us, text)
    if piece.number.startswith(ASK):
        if 0 < value <= _MOST_ACCELERATORS:
            _say(pod, piece.number, at_us, int(value))
    elif piece.number and EARLIEST_AT_US <= value * 1e6 <= now_us + MAX_CLOCK_SKEW_US:
        _say(pod, piece.number, at_us, round(value * 1e6))


def _say(pod: PodTold, name: str, at_us: int, value: Any) -> None:
    before = pod.facts.get(name)
    if before is None and len(pod.facts) >= MAX_FIELDS:
        return
    word = [at_us, value]
    # A pod is over from when that was told first; of all else the latest word counts.
    if before is None or (word < before if name == OVER else weight(word) > weight(before)):
        pod.facts[name] = word


def weight(word: list[Any]) -> tuple[int, str]:
    """Return what decides between two words: the later one, and of two of one instant always the same."""
    return word[0], json.dumps(word[1])


@dataclass(slots=True)
class _Pod:
    values: dict[str, Any] = field(default_factory=dict)
    seen_us: int = 0
    noted_us: int = 0
    gone_us: int = 0
    asks: bool = False
    """It was told to ask for accelerators: of others nobody needs to know whether they are still there."""


class KubeMemory:
    """What the store is known to know."""

    def __init__(self, *, max_pods: int = MAX_PODS, max_new_an_hour: int = MAX_NEW_AN_HOUR) -> None:
        self._max_pods, self._max_new = max_pods, max_new_an_hour
        self._lock = threading.Lock()
        self._pods: dict[tuple[int, str, str], _Pod] = {}
        self._nodes: dict[tuple[int, str], tuple[tuple[str, str], ...]] = {}
        self._heard: dict[tuple[int, str, str], int] = {}
        self._swept_us: dict[tuple[int, str], int] = {}
        self._hour = 0
        self._new: Counter[int] = Counter()

    def news(self, site_id: int, told: KubeTold, now_us: int) -> KubeTold:
        """Return what of it the store may not know."""
        with self._lock:
            if len(self._pods) > self._max_pods or len(self._nodes) > MAX_NODES or len(self._heard) > MAX_NODES:
                self._pods, self._nodes, self._heard, self._swept_us = {}, {}, {}, {}
            new = KubeTold(refused=told.refused, samples=told.samples)
            for (cluster, uid), pod in told.pods.items():
                found = self._pod_news((site_id, cluster, uid), pod, now_us, new.refused)
                if found is not None:
                    new.pods[cluster, uid] = found
            new.nodes = {node: word for node, word in told.nodes.items() if self._nodes.get((site_id, node)) != word[1]}
            new.heard = {
                teller: at_us
                for teller, at_us in told.heard.items()
                if at_us - self._heard.get((site_id, *teller), 0) >= HEARD_EVERY_US
            }
            clusters = {cluster for cluster, _ in told.heard}
            due = {one for one in clusters if now_us - self._swept_us.get((site_id, one), 0) >= SWEEP_EVERY_US}
            new.sweep = frozenset(due)
            return new

    def _pod_news(self, key: tuple[int, str, str], told: PodTold, now_us: int, refused: Counter[str]) -> PodTold | None:
        known = self._pods.get(key)
        if known is None:
            if not self._admits(key[0], now_us):
                refused["too_many_new"] += 1
                return None
            known = self._pods[key] = _Pod()
        known.seen_us = max(known.seen_us, told.seen_us)
        facts = {name: word for name, word in told.facts.items() if known.values.get(name) != word[1]}
        is_back = known.gone_us > known.noted_us and known.seen_us > known.gone_us
        known.asks = known.asks or any(name.startswith(ASK) for name in told.facts)
        is_due = known.asks and known.seen_us - known.noted_us >= NOTE_EVERY_US
        if not (facts or is_back or is_due or told.gone_us > known.gone_us):
            return None
        return PodTold(told.exporter, told.origin, facts, known.seen_us, told.gone_us)

    def _admits(self, site_id: int, now_us: int) -> bool:
        hour = now_us // _HOUR_US
        if hour != self._hour:
            self._hour, self._new = hour, Counter()
        self._new[site_id] += 1
        return self._new[site_id] <= self._max_new

    def kept(self, site_id: int, told: KubeTold, now_us: int) -> None:
        """Note that all of this is committed."""
        with self._lock:
            for key, pod in told.pods.items():
                known = self._pods.setdefault((site_id, *key), _Pod())
                known.values.update((name, word[1]) for name, word in pod.facts.items())
                known.noted_us, known.gone_us = max(known.noted_us, pod.seen_us), max(known.gone_us, pod.gone_us)
            self._nodes.update(((site_id, node), word[1]) for node, word in told.nodes.items())
            self._heard.update(((site_id, *teller), at_us) for teller, at_us in told.heard.items())
            self._swept_us.update(((site_id, cluster), now_us) for cluster in told.sweep)
