"""What a poller has told already, on disk: the instant up to which it asked, and a digest of the last word on each subject.

SQLite, one transaction a delivered body: after a crash a poller asks again from the same instant and tells only what is not
known to be kept. Losing the file costs nothing but telling again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ingest.pollers.errors import WatchError

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS told (key TEXT PRIMARY KEY, digest BLOB NOT NULL, at_us INTEGER NOT NULL, note TEXT);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Memory:
    """One file; ``path`` None keeps nothing beyond the process (dry runs)."""

    def __init__(self, path: Path | None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise WatchError(
                f"{path} cannot keep what was told: {error}; give a folder that can be written with --state, or remove the file"
            ) from error

    def is_told(self, key: str, digest: bytes) -> bool:
        row = self._db.execute("SELECT digest FROM told WHERE key = ?", [key]).fetchone()
        return row is not None and row[0] == digest

    def tell(self, entries: Iterable[tuple[str, bytes, str | None]], at_us: int) -> None:
        """Note words (key, digest, note) as kept by ingest."""
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO told (key, digest, at_us, note) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET digest = excluded.digest, at_us = excluded.at_us, note = excluded.note",
                [(key, digest, at_us, note) for key, digest, note in entries],
            )

    def notes(self, prefix: str) -> dict[str, str]:
        """Return the notes of what is still open, by key."""
        # A range, not LIKE: a key may hold % and _.
        rows = self._db.execute(
            "SELECT key, note FROM told WHERE key >= ? AND key < ? AND note IS NOT NULL",
            [prefix, prefix + "\U0010ffff"],
        )
        return dict(rows.fetchall())

    def forget(self, before_us: int) -> int:
        """Forget words older than that which nothing is open of; return how many."""
        with self._db:
            return self._db.execute("DELETE FROM told WHERE at_us < ? AND note IS NULL", [before_us]).rowcount

    def mark(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM marks WHERE name = ?", [name]).fetchone()
        return None if row is None else str(row[0])

    def set_mark(self, name: str, value: str) -> None:
        with self._db:
            self._db.execute(
                "INSERT INTO marks VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", [name, value]
            )

    def close(self) -> None:
        self._db.close()


def digest(event: Mapping[str, Any]) -> bytes:
    """Return what tells two words on a subject apart: all of the event but when it was said."""
    said = {name: value for name, value in event.items() if name != "at"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()[:16]
