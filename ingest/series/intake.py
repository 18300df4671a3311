"""What an ingest process keeps to read series: the book, the nodes, the readers; and the way from a request to bodies.

One request at a time: it is Python's work, which several threads would only do in turns. Whose thread that is, and what may
wait for it, is the caller's.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ingest.errors import TooLargeError
from ingest.receivers import remote_write
from ingest.receivers.arrow_check import Checker
from ingest.receivers.native import Body
from ingest.receivers.otlp_metrics import MetricsReader
from ingest.receivers.otlp_metrics_json import read_json
from ingest.series.bodies import body_of
from ingest.series.book import Book
from ingest.series.memory import Memory, Spacing
from ingest.series.places import NODE_LABELS
from ingest.series.pods import KubeMemory, KubeTold, gathered
from ingest.series.rows import Tally, rows_of
from ingest.series.samples import Samples
from ingest.series.xids import Stood, XidMemory

MAX_NODES_PER_REQUEST: Final = 4_096


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request was read as."""

    bodies: list[Body]
    """Of the nodes it tells of, one each."""
    samples: int
    tally: Tally
    invalid: Counter[str]
    """Series (of OTLP: points) that no receiver may take, by reason."""
    uncounted: Counter[str]
    kube: KubeTold = field(default_factory=KubeTold)
    """What of pods and nodes of Kubernetes the store may not know."""
    stood: list[Stood] = field(default_factory=list)
    """Errors of devices that the store may not know."""


class Intake:
    """Reads requests of series; one per process."""

    def __init__(
        self,
        node_labels: tuple[str, ...] = NODE_LABELS,
        spacing: Spacing | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._book = Book(node_labels)
        self._memory = Memory(spacing)
        self.kube = KubeMemory()
        self.xids = XidMemory()
        self._checker = Checker()
        self._metrics = MetricsReader(self._book)

    def remote_write(
        self, body: bytes, site_id: int, own_node: str | None, now_us: int, cadence_us: int | None
    ) -> Taken:
        """Read a remote-write request as sent; raises BadBodyError."""
        data = remote_write.decompressed(body)
        return self._taken(lambda: remote_write.read(data, self._book), site_id, own_node, now_us, cadence_us)

    def otlp(
        self, data: bytes, site_id: int, own_node: str | None, now_us: int, cadence_us: int | None, *, is_json: bool
    ) -> Taken:
        """Read an uncompressed OTLP metrics export; raises BadBodyError."""

        def read() -> Samples:
            return read_json(data, self._book) if is_json else self._metrics.read(data)

        return self._taken(read, site_id, own_node, now_us, cadence_us)

    def _taken(
        self,
        read: Callable[[], Samples],
        site_id: int,
        own_node: str | None,
        now_us: int,
        cadence_us: int | None,
    ) -> Taken:
        with self._lock:
            self._book.tidy()
            samples = read()
            told, others = gathered(samples, self._book.entries, now_us)
            xids, others = self.xids.news(site_id, others, self._book.entries, own_node, now_us)
            found, tally = rows_of(others, self._book.entries, self._memory, site_id, own_node, now_us)
            if len(found) > MAX_NODES_PER_REQUEST:
                raise TooLargeError(
                    f"{len(found)} nodes in one request; at most {MAX_NODES_PER_REQUEST} are taken: send smaller ones"
                )
            bodies = [body_of(rows, self._checker, now_us, cadence_us) for rows in found]
            kube = self.kube.news(site_id, told, now_us)
            self._memory.tell(site_id, [(rows.node, rows.origin) for rows in found])
        tally.samples["kept"] += told.samples + xids.samples
        tally.samples["unusable"] += xids.unusable
        tally.samples.update(kube.refused)
        return Taken(bodies, len(samples), tally, samples.invalid, samples.uncounted, kube, xids.stood)
