"""What an import did, row by row where it refused one. Counts everything, keeps the first examples; prints nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

KEPT_EXAMPLES = 100
SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is: bytes of the file (rows of a Parquet file) and rows taken so far."""

    done: int
    total: int
    rows: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row that was not taken; ``line`` counts from 1 with the header (in Parquet: the row's number)."""

    line: int
    reason: str
    detail: str


@dataclass
class RowLog:
    """Counts refused rows by reason and keeps the first ones with their line."""

    total: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    examples: list[Rejection] = field(default_factory=list)

    def reject(self, line: int, reason: str, detail: str = "") -> None:
        self.total += 1
        self.by_reason[reason] += 1
        if len(self.examples) < KEPT_EXAMPLES:
            shown = detail if len(detail) <= SHOWN_CHARACTERS else detail[:SHOWN_CHARACTERS] + "…"
            self.examples.append(Rejection(line, reason, shown))

    def reject_many(self, count: int, reason: str, examples: list[tuple[int, str]]) -> None:
        """Count rows found bad by the database, of which only the first are named."""
        for line, detail in examples[:count]:
            self.reject(line, reason, detail)
        rest = count - min(len(examples), count)
        if rest:
            self.total += rest
            self.by_reason[reason] += rest


@dataclass
class ImportReport:
    """The outcome of one import. ``dry_run``: the same figures, nothing kept. ``already_imported_at``: nothing was done."""

    kind: str
    file_name: str
    sha256: str
    site: str
    scope: str = ""
    dry_run: bool = False
    already_imported_at: datetime | None = None
    import_id: int = 0
    """The store's id of this import; of one that is done again, of the first."""
    columns: dict[str, str] = field(default_factory=dict)
    rows_read: int = 0
    rejections: RowLog = field(default_factory=RowLog)
    written: Counter[str] = field(default_factory=Counter)
    unchanged: int = 0
    """Rows that were in the store already, word for word."""
    rounded: int = 0
    """Rates with more decimals than are kept."""
    first_at: datetime | None = None
    last_at: datetime | None = None
    notes: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    """What a later import of this kind goes on from."""

    @property
    def rows_written(self) -> int:
        return sum(self.written.values())

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def saw(self, first_us: int, last_us: int) -> None:
        """Widen the interval the file speaks about."""
        first, last = instant(first_us), instant(last_us)
        self.first_at = first if self.first_at is None else min(self.first_at, first)
        self.last_at = last if self.last_at is None else max(self.last_at, last)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the store and for ``--format json``."""
        moments = {"already_imported_at": self.already_imported_at, "first_at": self.first_at, "last_at": self.last_at}
        return {
            "kind": self.kind,
            "file_name": self.file_name,
            "sha256": self.sha256,
            "site": self.site,
            "scope": self.scope,
            "dry_run": self.dry_run,
            "columns": self.columns,
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "written": dict(self.written),
            "unchanged": self.unchanged,
            "rounded": self.rounded,
            "rejections": {
                "total": self.rejections.total,
                "by_reason": dict(self.rejections.by_reason),
                "examples": [asdict(each) for each in self.rejections.examples],
            },
            "notes": self.notes,
            **({"kept": self.kept} if self.kept else {}),
        } | {name: moment.isoformat() if moment else None for name, moment in moments.items()}


def instant(at_us: int) -> datetime:
    """Return the instant ``at_us`` microseconds after the Unix epoch, exactly."""
    seconds, microseconds = divmod(at_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
