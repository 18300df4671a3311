"""The spool's file: how it is opened, which tables it has, how an older one is brought up to date, when it counts as damaged.

What the rows mean is :mod:`collector.spool`'s business.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from collector.errors import SpoolError

SCHEMA_VERSION: Final = 2
_BUSY_TIMEOUT_S: Final = 10.0
_TMPFS_TYPES: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_VERSION_1: Final = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS batches (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, stored_at_us INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS quarantine (
  sequence INTEGER PRIMARY KEY, refused_at_us INTEGER NOT NULL, reason TEXT NOT NULL, bytes INTEGER NOT NULL,
  body BLOB NOT NULL)""",
)
# Bodies of others have numbers of their own: the server keeps the sequences of batches as ranges, and each number that
# went to another path would be a hole for ever.
_VERSION_2: Final = (
    """CREATE TABLE forwards (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, stored_at_us INTEGER NOT NULL, bytes INTEGER NOT NULL, path TEXT NOT NULL,
  content_type TEXT NOT NULL, content_encoding TEXT NOT NULL, body BLOB NOT NULL)""",
    """CREATE TABLE refused (
  number INTEGER PRIMARY KEY AUTOINCREMENT, lane TEXT NOT NULL, sequence INTEGER NOT NULL, refused_at_us INTEGER NOT NULL,
  reason TEXT NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL)""",
    """INSERT INTO refused (lane, sequence, refused_at_us, reason, bytes, body)
  SELECT 'batches', sequence, refused_at_us, reason, bytes, body FROM quarantine ORDER BY sequence""",
    "DROP TABLE quarantine",
    # What is asked each minute must not read half a gigabyte of bodies after an outage.
    "CREATE INDEX batches_size ON batches (stored_at_us, bytes)",
    "CREATE INDEX forwards_size ON forwards (stored_at_us, bytes)",
)
_STEPS: Final = (_VERSION_1, _VERSION_2)


def open_file(path: Path) -> sqlite3.Connection:
    """Open or create the file. Raises sqlite3.DatabaseError where it is damaged, SpoolError where it is of a later version."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only takes effect before the first table
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits in a power cut
        db.execute("PRAGMA cache_size = -256")
        db.execute("PRAGMA journal_size_limit = 4194304")
        # A mebibyte: as much as the reserve, so that the log can be folded in on a full disk.
        db.execute("PRAGMA wal_autocheckpoint = 256")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise SpoolError(f"the spool {path} is of version {version}; this agent knows {SCHEMA_VERSION}")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"malformed: {verdict}")
    if version == SCHEMA_VERSION:
        return
    # One transaction: a kill in between leaves the version before, whole.
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in (statement for step in _STEPS[version:] for statement in step):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        db.rollback()
        raise
    db.commit()


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a damaged file from a full disk, a missing right, a lock or a bug, which a rename would only make worse."""
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_lack_of_room(error: BaseException | None) -> bool:
    """Tell whether more room on the disk might help: quotas and the shared memory of the log are reported as faults of the disk."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


def survives_reboot(path: Path) -> bool:
    """Say whether the file lies on a disk, as opposed to memory that a reboot clears; as the kernel's mount table tells."""
    try:
        table = Path("/proc/self/mounts").read_text(encoding="utf-8")
    except OSError:
        return True
    place = path.resolve()
    best: tuple[int, str] | None = None
    for line in table.splitlines():
        _, mounted_at, kind, *_ = line.split(" ")
        mount = Path(mounted_at.replace("\\040", " "))
        if place.is_relative_to(mount) and (best is None or len(mount.parts) >= best[0]):
            best = (len(mount.parts), kind)
    return best is None or best[1] not in _TMPFS_TYPES
