"""Settings of the ingest process, frozen: defaults, then the environment (``WATTLEDGER_INGEST_…``).

Every fault is reported at once, with the variable's name. Reads no file and opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from ingest.admission import Rate
from ingest.newcomers import Quota
from ingest.series.places import NODE_LABELS
from ingest.store.engine import Database
from ingest.store.writer import Limits

PREFIX: Final = "WATTLEDGER_INGEST_"


class SettingsError(ValueError):
    """The settings cannot be used; the message lists all faults."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What ingest is told. Durations and sizes carry their unit in the name."""

    database: Database
    writers: int = field(default=2, metadata={"bounds": (1, 32)})
    """Connections that copy; two keep two cores of PostgreSQL busy."""
    group_rows: int = field(default=20_000, metadata={"bounds": (1, 1_000_000)})
    linger_ms: int = field(default=50, metadata={"bounds": (0, 1_000)})
    """How long the first body of a group waits for more, in milliseconds."""
    queue_mib: int = field(default=128, metadata={"bounds": (1, 65_536)})
    """Decoded bytes that may wait to be written, in MiB; beyond it senders are told to come again."""
    hot_retention_h: int = field(default=48, metadata={"bounds": (1, 24 * 400)})
    node_labels: str = field(default=",".join(NODE_LABELS), metadata={"text": True})
    """Which label of a series names its node, for remote write and OTLP metrics: the first of these that is there."""
    token_cache_s: int = field(default=15, metadata={"bounds": (0, 300)})
    """How long a verified token is believed without asking again, in seconds: a revoked one works that much longer."""
    node_bodies_per_s: int = field(default=50, metadata={"bounds": (0, 1_000_000)})
    """Bodies a second that a token bound to one node may send, on average; 0 = no limit."""
    node_kib_per_s: int = field(default=4_096, metadata={"bounds": (0, 64 * 1024 * 1024)})
    """KiB a second, as sent, of a token bound to one node, on average; 0 = no limit."""
    site_kib_per_s: int = field(default=0, metadata={"bounds": (0, 64 * 1024 * 1024)})
    """KiB a second, as sent, of any other token, on average; 0 = no limit."""
    node_new_per_h: int = field(default=4_096, metadata={"bounds": (0, 10_000_000)})
    """Spools, epochs and devices an hour that a token bound to one node may name for the first time; 0 = no limit."""
    site_new_per_h: int = field(default=500_000, metadata={"bounds": (0, 100_000_000)})
    """The same of any other token, and nodes; a fleet of 10,000 nodes with 8 devices each has 110,000."""
    node_jobs_per_h: int = field(default=20_000, metadata={"bounds": (0, 10_000_000)})
    """Jobs and waits an hour that a token bound to one node may tell of; 0 = no limit."""
    site_jobs_per_h: int = field(default=500_000, metadata={"bounds": (0, 100_000_000)})
    """The same of any other token; the fastest schedulers start a tenth of that."""
    lineage_per_h: int = field(default=500_000, metadata={"bounds": (0, 100_000_000)})
    """Runs, their events and datasets an hour that one token may tell of for the first time; 0 = no limit."""
    outcomes_per_h: int = field(default=5_000_000, metadata={"bounds": (0, 1_000_000_000)})
    """Outcomes an hour that one token may send, those sent again too; 0 = no limit."""
    node_letters_mib: int = field(default=64, metadata={"bounds": (0, 1024 * 1024)})
    """MiB of one node's bodies that may wait as dead letters; beyond it they are refused with 429. 0 = no limit."""
    site_letters_mib: int = field(default=4_096, metadata={"bounds": (0, 1024 * 1024)})
    """The same of all senders of a site."""
    body_s: int = field(default=60, metadata={"bounds": (1, 3_600)})
    """Seconds from the end of a request's headers to the end of its body; then it is answered 408 and hung up on."""
    trace_days: int = field(default=35, metadata={"bounds": (1, 400)})
    """Days back that spans may have begun; older ones are refused as ``too_old``. Imports take any."""
    bodies_mib: int = field(default=128, metadata={"bounds": (16, 65_536)})
    """MiB of request bodies, as sent and as unpacked, in hand at a time over all connections; beyond it 503."""
    database_silent_s: int = field(default=5, metadata={"bounds": (1, 300)})
    """Seconds for which the simplest question to the database may have no answer; then all who wait for it are told 503."""
    min_free_mib: int = field(default=1_024, metadata={"bounds": (0, 1024 * 1024 * 1024)})
    """MiB that must be free in each of ``data_paths``; below it data is refused, as a full disk stops the database. 0 = off."""
    database_max_mib: int = field(default=0, metadata={"bounds": (0, 1024 * 1024 * 1024)})
    """MiB that the database may have (``pg_database_size``); data is refused when ``min_free_mib`` of it is left. 0 = no bound."""
    disk_paths: str = field(default="", metadata={"text": True})
    """Folders on the database's file systems that this process can see, with commas between; watched beside ``data_paths``."""
    data_paths: tuple[Path, ...] = ()
    """Folders of file systems the database keeps its files in, where it runs on this machine; the embedded one's home."""

    def __post_init__(self) -> None:
        faults = []
        for entry in fields(self):
            if "bounds" in entry.metadata:
                low, high = entry.metadata["bounds"]
                value = getattr(self, entry.name)
                if not low <= value <= high:
                    faults.append(f"{PREFIX}{entry.name.upper()}: must be {low} to {high}, got {value}")
        if not all(self.series_node_labels):
            faults.append(
                f"{PREFIX}NODE_LABELS: must be names of labels with commas between, got {self.node_labels!r:.80}"
            )
        if not all(path.is_absolute() for path in self.watched_paths):
            faults.append(f"{PREFIX}DISK_PATHS: must be whole paths with commas between, got {self.disk_paths!r:.80}")
        if self.database_max_mib and self.database_max_mib <= self.min_free_mib:
            faults.append(
                f"{PREFIX}DATABASE_MAX_MIB: must be more than {PREFIX}MIN_FREE_MIB ({self.min_free_mib}), of which it always leaves so "
                f"much, got {self.database_max_mib}"
            )
        if faults:
            raise SettingsError("ingest cannot start: " + "; ".join(faults))

    @classmethod
    def from_env(cls, env: Mapping[str, str], database: Database, *, data_paths: tuple[Path, ...] = ()) -> Settings:
        """Return the settings of an environment; raises SettingsError naming everything wrong with it."""
        numbers: dict[str, Callable[[str], Any]] = {
            entry.name: int for entry in fields(cls) if "bounds" in entry.metadata
        } | {entry.name: str for entry in fields(cls) if "text" in entry.metadata}
        values: dict[str, Any] = {}
        faults: list[str] = []
        for variable in sorted(env):
            if not variable.startswith(PREFIX):
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in numbers:
                faults.append(
                    f"{variable}: no such setting; known are {', '.join(PREFIX + key.upper() for key in numbers)}"
                )
                continue
            try:
                values[name] = numbers[name](env[variable])
            except ValueError:
                faults.append(f"{variable}: must be a whole number, got {env[variable]!r:.40}")
        try:
            settings = cls(database, **values, data_paths=data_paths)
        except SettingsError as error:
            faults.append(str(error).removeprefix("ingest cannot start: "))
        if faults:
            raise SettingsError("ingest cannot start: " + "; ".join(faults))
        return settings

    @property
    def watched_paths(self) -> tuple[Path, ...]:
        """Folders whose file systems need room."""
        named = (name.strip() for name in self.disk_paths.split(","))
        return (*self.data_paths, *(Path(name) for name in named if name))

    @property
    def series_node_labels(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.node_labels.split(","))

    @property
    def limits(self) -> Limits:
        return Limits(self.group_rows, self.linger_ms / 1_000, self.queue_mib * 1024 * 1024)

    @property
    def node_rate(self) -> Rate:
        return Rate(self.node_bodies_per_s, self.node_kib_per_s * 1024)

    @property
    def site_rate(self) -> Rate:
        return Rate(bytes_per_s=self.site_kib_per_s * 1024)

    def new_per_h(self, *, bound: bool) -> int:
        """Return how many new names an hour has room for, of a token that is ``bound`` to one node or not; 0 = no limit."""
        return self.node_new_per_h if bound else self.site_new_per_h

    def jobs(self, *, bound: bool) -> Quota:
        name = "node_jobs_per_h" if bound else "site_jobs_per_h"
        return self._quota("jobs", name)

    @property
    def lineage(self) -> Quota:
        return self._quota("runs, events and datasets", "lineage_per_h")

    @property
    def outcomes(self) -> Quota:
        return self._quota("outcomes", "outcomes_per_h")

    def _quota(self, what: str, name: str) -> Quota:
        return Quota(what, getattr(self, name), PREFIX + name.upper())

    @property
    def hot_retention(self) -> timedelta:
        return timedelta(hours=self.hot_retention_h)
