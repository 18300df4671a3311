"""Ingest's own metrics, for whoever scrapes it.

Labels are closed sets: no node, token or job name becomes a label. Only names of
series that have no place here do, a thousand of them at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from opentelemetry.metrics import Observation

from ingest.admission import DiskGuard
from ingest.exposition import REQUEST_SECONDS, Meters
from ingest.series.counts import SeriesCounts
from ingest.store.database_room import DatabaseRoom


class IngestMetrics:
    """The instruments of one ingest process; nothing global."""

    def __init__(
        self,
        queued_bytes: Callable[[], int],
        held_bytes: Callable[[], int],
        disk: DiskGuard,
        database: DatabaseRoom,
    ) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()
        """Bodies answered by (endpoint, outcome); the event loop's thread counts here."""
        self.meters = Meters("wattledger-ingest", REQUEST_SECONDS)
        """Open to what is mounted into the same application."""
        meter = self.meters.meter("wattledger.ingest")
        meter.create_observable_counter(
            "wattledger_ingest_bodies_total",
            [lambda _: self._bodies()],
            description="Bodies answered, by endpoint and outcome",
        )
        self.series = SeriesCounts()
        meter.create_observable_counter(
            "wattledger_ingest_series_samples_total",
            [lambda _: self._outcomes()],
            description="Samples of named series (remote write, OTLP metrics) by what became of them",
        )
        meter.create_observable_counter(
            "wattledger_ingest_series_not_stored_total",
            [lambda _: self._names()],
            description="Samples of series that have no place here, by name; of too many names, of the rest together",
        )
        self.rows = meter.create_counter("wattledger_ingest_rows_total", description="Rows by what became of them")
        self.refused = meter.create_counter(
            "wattledger_ingest_refused_rows_total",
            description="Rows refused, and values made null, by stream and reason",
        )
        self.unknown_columns = meter.create_counter(
            "wattledger_ingest_unknown_columns_total", description="Columns ignored because the wire does not know them"
        )
        self.group_duration = meter.create_histogram(
            "wattledger_ingest_group_duration_seconds", description="From a group's first body to its commit", unit="s"
        )
        meter.create_observable_gauge(
            "wattledger_ingest_queued_bytes",
            [lambda _: [Observation(queued_bytes())]],
            description="Decoded bytes waiting to be written",
        )
        meter.create_observable_gauge(
            "wattledger_ingest_bodies_bytes",
            [lambda _: [Observation(held_bytes())]],
            description="Bytes of request bodies in hand, as sent and as unpacked",
        )
        meter.create_observable_gauge(
            "wattledger_ingest_disk_guarded",
            [lambda _: [Observation(int(disk.is_watching))]],
            description="1 where data is refused before the database's disk is full; 0: nothing tells how full it is",
        )
        meter.create_observable_gauge(
            "wattledger_ingest_disk_left_bytes",
            [lambda _: _known(disk.left_bytes())],
            description="The least that is free on the file systems watched, or left of the bound on the database's size",
        )
        meter.create_observable_gauge(
            "wattledger_ingest_database_bytes",
            [lambda _: _known(database.size_bytes)],
            description="Size of the database, without its write-ahead log",
        )

    def exposition(self) -> str:
        """Return everything measured so far as Prometheus text."""
        return self.meters.exposition()

    def _bodies(self) -> list[Observation]:
        return [
            Observation(count, {"endpoint": endpoint, "outcome": outcome})
            for (endpoint, outcome), count in sorted(self.answered.items())
        ]

    def _outcomes(self) -> list[Observation]:
        return [
            Observation(count, {"protocol": protocol, "outcome": outcome})
            for (protocol, outcome), count in sorted(self.series.outcomes.copy().items())
        ]

    def _names(self) -> list[Observation]:
        return [
            Observation(count, {"series": name, "reason": reason})
            for (name, reason), count in sorted(self.series.names.copy().items())
        ]

    def close(self) -> None:
        self.meters.close()


def _known(value: int | None) -> list[Observation]:
    return [] if value is None else [Observation(value)]
