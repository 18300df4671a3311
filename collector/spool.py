"""Keeps batches on this node's disk until ingest has them: durable, bounded in bytes, and honest about what it drops.

A SQLite file (WAL, synchronous FULL) with one row per batch, oldest first. The batch id is (spool uuid, sequence): the
uuid is born with the file, the sequence is SQLite's AUTOINCREMENT, which a delete never gives back. It sends nothing,
and understands of a body only its length.

The sequence has to be inside the body, so the body is made inside the transaction that stores it: a crash in between
undoes both, and a sequence that is used again was never seen by anybody. Storing parts and stamping them at sending time
would have meant to encode each retry anew, and two sends of one batch could differ.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.errors import SpoolError

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, stored_at_us INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS quarantine (
  sequence INTEGER PRIMARY KEY, refused_at_us INTEGER NOT NULL, reason TEXT NOT NULL, bytes INTEGER NOT NULL,
  body BLOB NOT NULL);
"""
_SCHEMA_VERSION: Final = 1
_QUARANTINE_SHARE: Final = 10  # refused batches may take a tenth of the bound, the oldest go first
_FREE_PAGES_KEPT: Final = 1_024  # 4 MiB
_MAX_REASON_CHARACTERS: Final = 1_000
_BUSY_TIMEOUT_S: Final = 10.0
_TMPFS_TYPES: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(frozen=True, slots=True)
class Batch:
    """One stored batch."""

    sequence: int
    stored_at_us: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What the spool holds and what it had to give up since the file was made."""

    batches: int
    bytes: int
    oldest_at_us: int | None
    quarantined: int
    dropped_batches: int
    dropped_bytes: int


class Spool:
    """One spool file; its methods may be called from several threads."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Open or create the file; a damaged one is renamed, kept, and started anew. Raises SpoolError."""
        self.path = path
        self.max_bytes = max_bytes
        self.damaged_files: list[Path] = []
        """Where damaged files went since this object was made; their batches are not sent."""
        self._lock = threading.RLock()
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise SpoolError(f"cannot open the spool {path}: {error}") from error
            self._start_anew()
        except OSError as error:
            raise SpoolError(f"cannot open the spool {path}: {error}") from error
        self.uuid = self._uuid()
        self.durable = _filesystem_type(path) not in _TMPFS_TYPES
        """Whether the file lies on a disk, as opposed to memory that a reboot clears."""

    def put(self, encode: Callable[[str, int], bytes], now_us: int) -> int:
        """Store the body that ``encode(spool uuid, sequence)`` returns; durable when this returns the sequence.

        Drops the oldest batches where the bound would be passed. Raises SpoolError where nothing was stored.
        """
        with self._transaction() as db:
            cursor = db.execute("INSERT INTO batches (stored_at_us, bytes, body) VALUES (?, 0, x'')", (now_us,))
            sequence = cursor.lastrowid
            if sequence is None:
                raise SpoolError("the spool gave out no sequence")
            body = encode(self.uuid, sequence)
            if len(body) > self.max_bytes:
                raise SpoolError(f"a batch of {len(body)} bytes is larger than the whole spool of {self.max_bytes}")
            self._make_room(db, len(body))
            db.execute("UPDATE batches SET bytes = ?, body = ? WHERE sequence = ?", (len(body), body, sequence))
        return sequence

    def oldest(self, after: int = 0) -> Batch | None:
        """Return the oldest batch whose sequence is higher than ``after``."""
        with self._errors():
            row = self._db.execute(
                "SELECT sequence, stored_at_us, body FROM batches WHERE sequence > ? ORDER BY sequence LIMIT 1",
                (after,),
            ).fetchone()
        return None if row is None else Batch(*row)

    def acknowledge(self, sequence: int) -> None:
        """Forget a batch that ingest has; nothing happens where it was dropped meanwhile."""
        with self._transaction() as db:
            db.execute("DELETE FROM batches WHERE sequence = ?", (sequence,))
        self._shrink()

    def quarantine(self, sequence: int, reason: str, now_us: int) -> None:
        """Set a refused batch aside with the reason, never to be sent again; the oldest such give way to newer ones."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO quarantine SELECT sequence, ?, ?, bytes, body FROM batches WHERE sequence = ?",
                (now_us, reason[:_MAX_REASON_CHARACTERS], sequence),
            )
            db.execute("DELETE FROM batches WHERE sequence = ?", (sequence,))
            bound = self.max_bytes // _QUARANTINE_SHARE
            # Keep the newest while their running total fits; what gives way is lost, and counted like any other drop.
            given_up = db.execute(
                "DELETE FROM quarantine WHERE sequence IN (SELECT sequence FROM (SELECT sequence, "
                "sum(bytes) OVER (ORDER BY sequence DESC) AS kept FROM quarantine) WHERE kept > ?) RETURNING bytes",
                (bound,),
            ).fetchall()
            self._add(db, "dropped_batches", len(given_up))
            self._add(db, "dropped_bytes", sum(size for (size,) in given_up))

    def refusals(self) -> list[tuple[int, int, str]]:
        """Return sequence, instant and reason of what is in quarantine, oldest first."""
        with self._errors():
            return self._db.execute(
                "SELECT sequence, refused_at_us, reason FROM quarantine ORDER BY sequence"
            ).fetchall()

    def state(self) -> SpoolState:
        """Return the figures the agent reports about itself."""
        with self._errors():
            batches, held, oldest = self._db.execute(
                "SELECT count(*), coalesce(sum(bytes), 0), min(stored_at_us) FROM batches"
            ).fetchone()
            (quarantined,) = self._db.execute("SELECT count(*) FROM quarantine").fetchone()
        return SpoolState(
            batches, held, oldest, quarantined, self._count("dropped_batches"), self._count("dropped_bytes")
        )

    def recall(self, name: str) -> str | None:
        """Return a fact that outlives the process, such as the number of the driver epoch."""
        with self._errors():
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str) -> None:
        """Keep a fact, durably."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Close the file; the WAL is folded in by the last connection."""
        self._db.close()

    def _shrink(self) -> None:
        """Give the disk its space back once much of it is free; a file that stays as large as its worst day is a surprise."""
        with self._errors():
            (free_pages,) = self._db.execute("PRAGMA freelist_count").fetchone()
            if free_pages > _FREE_PAGES_KEPT:
                # executescript, as execute would step this statement once and free one page.
                self._db.executescript(f"PRAGMA incremental_vacuum({free_pages})")

    def _make_room(self, db: sqlite3.Connection, needed: int) -> None:
        (held,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM batches").fetchone()
        excess = held + needed - self.max_bytes
        if excess <= 0:
            return
        dropped = freed = last = 0
        for sequence, size in db.execute("SELECT sequence, bytes FROM batches WHERE bytes > 0 ORDER BY sequence"):
            dropped, freed, last = dropped + 1, freed + size, sequence
            if freed >= excess:
                break
        db.execute("DELETE FROM batches WHERE sequence <= ?", (last,))
        self._add(db, "dropped_batches", dropped)
        self._add(db, "dropped_bytes", freed)

    def _add(self, db: sqlite3.Connection, name: str, amount: int) -> None:
        db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + ?",
            (name, str(amount), amount),
        )

    def _count(self, name: str) -> int:
        return int(self.recall(name) or 0)

    def _uuid(self) -> str:
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO facts VALUES ('uuid', ?)", (str(uuid.uuid4()),))
        found = self.recall("uuid")
        if found is None:
            raise SpoolError(f"the spool {self.path} has no identity")
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                with suppress(sqlite3.Error):  # what went wrong first is the error to report
                    self._db.rollback()
                raise
            self._db.commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                if isinstance(error, sqlite3.DatabaseError) and _is_damage(error):
                    self._db.close()
                    self._start_anew()
                    self.uuid = self._uuid()
                raise SpoolError(f"the spool {self.path} failed: {error}") from error

    def _start_anew(self) -> None:
        """Put the damaged file aside for whoever wants to rescue it; its uuid goes with it, so no batch id is reused."""
        target = self.path.with_name(f"{self.path.name}.damaged-{uuid.uuid4().hex[:8]}")
        try:
            self.path.rename(target)
            for suffix in ("-wal", "-shm"):
                beside = self.path.with_name(self.path.name + suffix)
                if beside.exists():
                    beside.rename(target.with_name(target.name + suffix))
            self.damaged_files.append(target)
            self._db = _open(self.path)
        except (OSError, sqlite3.Error) as error:
            raise SpoolError(f"the spool {self.path} is damaged and could not be started anew: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only takes effect before the first table
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits in a power cut
        db.execute("PRAGMA cache_size = -256")
        db.execute("PRAGMA journal_size_limit = 4194304")
        _check(db, path)
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, _SCHEMA_VERSION):
        raise SpoolError(f"the spool {path} is of version {version}; this agent knows {_SCHEMA_VERSION}")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"malformed: {verdict}")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Tell a damaged file from a full disk, a missing right or a lock, which a rename would only make worse."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _filesystem_type(path: Path) -> str | None:
    """Return the type of the filesystem that holds the path, as the kernel's mount table says."""
    try:
        table = Path("/proc/self/mounts").read_text(encoding="utf-8")
    except OSError:
        return None
    place = path.resolve()
    best: tuple[int, str] | None = None
    for line in table.splitlines():
        _, mounted_at, kind, *_ = line.split(" ")
        mount = Path(mounted_at.replace("\\040", " "))
        if place.is_relative_to(mount) and (best is None or len(mount.parts) >= best[0]):
            best = (len(mount.parts), kind)
    return None if best is None else best[1]
