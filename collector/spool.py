"""Keeps bodies on this node's disk until the server has them: durable, bounded in bytes, and honest about what it drops.

A SQLite file (WAL, synchronous FULL) with one row per body, oldest first. The batch id is (spool uuid, sequence): the
uuid is born with the file, the sequence is SQLite's AUTOINCREMENT, which a delete never gives back. It sends nothing,
and understands of a body only its length.

The sequence has to be inside the body, so the body is made inside the transaction that stores it: a crash in between
undoes both, and a sequence that is used again was never seen by anybody. Storing parts and stamping them at sending time
would have meant to encode each retry anew, and two sends of one batch could differ.

What is settled is never given out again, also where the disk does not let it go: a full disk stops neither the sending of the
others nor, with a little room kept for it, the deleting.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from collector import wire
from collector.errors import SpoolError, SpoolFullError
from collector.spool_file import is_damage, is_lack_of_room, open_file, survives_reboot
from collector.spool_owed import MAX_PUT_OFF, Owed
from collector.spool_reserve import Reserve

_LOG = logging.getLogger(__name__)

_QUARANTINE_SHARE: Final = 10  # refused bodies may take a tenth of the bound, the oldest go first
_FORWARDS_SHARE: Final = 4  # bodies of others a quarter: what is metered here is never dropped for them
_FREE_PAGES_KEPT: Final = 1_024  # 4 MiB
_MAX_REASON_CHARACTERS: Final = 1_000


class Lane(StrEnum):
    """The two kinds of bodies a spool holds, each with numbers of its own."""

    BATCHES = "batches"
    """Batches of the agent's own, in the wire format."""
    FORWARDS = "forwards"
    """Bodies taken in for another path of the server, unparsed."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """How a body is to be sent."""

    path: str
    content_type: str
    content_encoding: str = ""


_BATCH_ENVELOPE: Final = Envelope(wire.SAMPLES_PATH, wire.CONTENT_TYPE, wire.CONTENT_ENCODING)


@dataclass(frozen=True, slots=True)
class Batch:
    """One stored body."""

    sequence: int
    stored_at_us: int
    body: bytes
    envelope: Envelope = _BATCH_ENVELOPE
    lane: Lane = Lane.BATCHES


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
        self._damaged_taken = 0
        self._lock = threading.RLock()
        self._reserve = Reserve(path)
        self._owed = {lane: Owed() for lane in Lane}
        self._owing_told = False
        self._lost = False
        """Whether the file was damaged and no other is open yet."""
        self._aside: Path | None = None
        """Where the damaged file is to go, until it is there."""
        try:
            self._db, self.uuid = self._opened()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise SpoolError(f"cannot open the spool {path}: {error}") from error
            self._give_up_file()
            self._start_anew()
        except OSError as error:
            raise SpoolError(f"cannot open the spool {path}: {error}") from error
        self._reserve.keep()
        self.durable = survives_reboot(path)
        """Whether the file lies on a disk, as opposed to memory that a reboot clears."""

    def put(self, encode: Callable[[str, int], bytes], now_us: int) -> int:
        """Store the body that ``encode(spool uuid, sequence)`` returns; durable when this returns the sequence.

        Drops the oldest batches where the bound would be passed. Raises SpoolError where nothing was stored.
        """
        self._settle()  # what is to go makes room
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

    def put_forward(self, body: bytes, envelope: Envelope, now_us: int) -> int:
        """Store a body of another's for another path; durable when this returns its number.

        Raises SpoolError where nothing was stored, SpoolFullError where such bodies have their share of the bound already or
        the spool is full: what is metered here is never dropped for them.
        """
        with self._transaction() as db:
            (held,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM forwards").fetchone()
            share = self.max_bytes // _FORWARDS_SHARE
            if held + len(body) > share:
                raise SpoolFullError(f"{held} bytes wait to be forwarded already; the spool keeps at most {share}")
            if self._held(db) + len(body) > self.max_bytes:
                raise SpoolFullError("the spool is full of batches that wait for the server")
            cursor = db.execute(
                "INSERT INTO forwards (stored_at_us, bytes, path, content_type, content_encoding, body) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (now_us, len(body), envelope.path, envelope.content_type, envelope.content_encoding, body),
            )
            sequence = cursor.lastrowid
            if sequence is None:
                raise SpoolError("the spool gave out no number")
        return sequence

    def oldest(self, after: int = 0, lane: Lane = Lane.BATCHES) -> Batch | None:
        """Return the oldest body of a lane whose sequence is higher than ``after``."""
        with self._errors():
            owed = self._owed[lane]
            if not owed:
                return self._one(lane, "WHERE sequence > ? ORDER BY sequence LIMIT 1", after)
            query = f"SELECT sequence FROM {lane.value} WHERE sequence > ? ORDER BY sequence"  # noqa: S608  an enum's value
            with closing(self._db.execute(query, (max(after, owed.floor),))) as rows:
                first = owed.first_seen((sequence for (sequence,) in rows), after)
            return None if first is None else self._one(lane, "WHERE sequence = ?", first)

    def newest(self, lane: Lane = Lane.BATCHES, after: int = 0) -> Batch | None:
        """Return the newest body of a lane whose sequence is higher than ``after``."""
        with self._errors():
            query = f"SELECT sequence FROM {lane.value} WHERE sequence > ? ORDER BY sequence DESC"  # noqa: S608  an enum's value
            with closing(self._db.execute(query, (after,))) as rows:
                last = next((sequence for (sequence,) in rows if not self._owed[lane].hides(sequence)), None)
            return None if last is None else self._one(lane, "WHERE sequence = ?", last)

    def acknowledge(self, sequence: int, lane: Lane = Lane.BATCHES) -> None:
        """Forget a body that the server has; nothing happens where it was dropped meanwhile.

        Where the disk does not let it be deleted now it is only never given out again, and deleted later.
        """
        with self._lock:
            self._owed[lane].add(sequence)
            self._settle()

    def acknowledge_all(self, sequences: Iterable[int]) -> None:
        """Forget batches that the server has, in one transaction; like :meth:`acknowledge`."""
        with self._lock:
            for sequence in sequences:
                self._owed[Lane.BATCHES].add(sequence)
            self._settle()

    def quarantine(self, sequence: int, reason: str, now_us: int, lane: Lane = Lane.BATCHES) -> None:
        """Set a refused body aside with the reason, never to be sent again; the oldest such give way to newer ones.

        Where the disk does not let it be moved now, and not too many wait for that, it is moved later. Raises SpoolError.
        """
        with self._lock:
            put_off = self._owed[lane].put_off
            if sequence not in put_off and len(put_off) >= MAX_PUT_OFF:
                raise SpoolError(f"{len(put_off)} refused bodies wait for room on the disk already")
            put_off[sequence] = (reason[:_MAX_REASON_CHARACTERS], now_us)
            self._settle()

    def refusals(self) -> list[tuple[int, int, str]]:
        """Return sequence, instant and reason of what is in quarantine, oldest first."""
        with self._errors():
            return self._db.execute("SELECT sequence, refused_at_us, reason FROM refused ORDER BY number").fetchall()

    def state(self) -> SpoolState:
        """Return the figures the agent reports about itself; bodies of both lanes count."""
        with self._errors():
            batches, held, oldest = self._db.execute(
                "SELECT count(*), coalesce(sum(bytes), 0), min(stored_at_us) FROM "
                "(SELECT stored_at_us, bytes FROM batches WHERE sequence > ? UNION ALL "
                "SELECT stored_at_us, bytes FROM forwards WHERE sequence > ?)",
                [self._owed[lane].floor for lane in Lane],  # of what is owed above it there are few
            ).fetchone()
            (quarantined,) = self._db.execute("SELECT count(*) FROM refused").fetchone()
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

    def facts(self, prefix: str) -> dict[str, str]:
        """Return the facts whose names begin so, without that beginning."""
        with self._errors():
            found = self._db.execute(
                "SELECT name, value FROM facts WHERE name >= ? AND name < ? ORDER BY name",
                (prefix, prefix + "\U0010ffff"),
            ).fetchall()
        return {name.removeprefix(prefix): value for name, value in found}

    def forget(self, name: str) -> None:
        """Let go of a fact, durably."""
        with self._transaction() as db:
            db.execute("DELETE FROM facts WHERE name = ?", (name,))

    def take_damaged(self) -> list[Path]:
        """Return where damaged files went since the last call."""
        taken = self.damaged_files[self._damaged_taken :]
        self._damaged_taken += len(taken)
        return taken

    def close(self) -> None:
        """Close the file; the WAL is folded in by the last connection."""
        self._db.close()

    def _one(self, lane: Lane, condition: str, value: int) -> Batch | None:
        columns = "sequence, stored_at_us, body"
        if lane is Lane.FORWARDS:
            columns += ", path, content_type, content_encoding"
        query = f"SELECT {columns} FROM {lane.value} {condition}"  # noqa: S608  an enum's value and our own words
        row = self._db.execute(query, (value,)).fetchone()
        if row is None:
            return None
        sequence, stored_at_us, body, *envelope = row
        return Batch(sequence, stored_at_us, body, Envelope(*envelope) if envelope else _BATCH_ENVELOPE, lane)

    def _settle(self) -> None:
        """Delete or move away what is owed; where the disk does not let it, later. Raises SpoolError where the file is damaged."""
        with self._lock:
            if not any(self._owed.values()):
                return
            try:
                self._settle_now()
            except SpoolError as error:
                if self._lost or not any(self._owed.values()):
                    raise  # another file: nothing is owed there
                if not self._owing_told:
                    _LOG.warning("what is settled cannot be deleted now, it is only not sent again: %s", error)
                self._owing_told = True
                return
            self._owing_told = False
            for owed in self._owed.values():
                owed.deleted()
                owed.put_off.clear()
            with suppress(SpoolError):  # it can wait
                self._shrink()
            self._reserve.keep()

    def _settle_now(self) -> None:
        try:
            self._delete_owed()
        except SpoolError as error:
            if not (is_lack_of_room(error.__cause__) and self._reserve.give()):
                raise
            self._fold_log_in()
            self._delete_owed()
            self._fold_log_in()

    def _fold_log_in(self) -> None:
        """Have the log's own room written to again, whatever others do with the disk's."""
        with suppress(sqlite3.Error), self._lock:
            self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _delete_owed(self) -> None:
        with self._transaction() as db:
            for lane, owed in self._owed.items():
                for sequence, (reason, refused_at_us) in owed.put_off.items():
                    self._move_to_quarantine(db, lane, sequence, reason, refused_at_us)
                db.execute(f"DELETE FROM {lane.value} WHERE sequence <= ?", (owed.floor,))  # noqa: S608  an enum's value
                gone = [(sequence,) for sequence in (*owed.above, *owed.put_off)]
                db.executemany(f"DELETE FROM {lane.value} WHERE sequence = ?", gone)  # noqa: S608  an enum's value

    def _move_to_quarantine(self, db: sqlite3.Connection, lane: Lane, sequence: int, reason: str, at_us: int) -> None:
        moved = f"SELECT ?, sequence, ?, ?, bytes, body FROM {lane.value} WHERE sequence = ?"  # noqa: S608  an enum's value
        db.execute(
            "INSERT INTO refused (lane, sequence, refused_at_us, reason, bytes, body) " + moved,
            (lane.value, at_us, reason, sequence),
        )
        bound = self.max_bytes // _QUARANTINE_SHARE
        # Keep the newest while their running total fits; what gives way is lost, and counted like any other drop.
        given_up = db.execute(
            "DELETE FROM refused WHERE number IN (SELECT number FROM (SELECT number, "
            "sum(bytes) OVER (ORDER BY number DESC) AS kept FROM refused) WHERE kept > ?) RETURNING bytes",
            (bound,),
        ).fetchall()
        self._add(db, "dropped_batches", len(given_up))
        self._add(db, "dropped_bytes", sum(size for (size,) in given_up))

    def _shrink(self) -> None:
        """Give the disk its space back once much of it is free; a file that stays as large as its worst day is a surprise."""
        with self._errors():
            (free_pages,) = self._db.execute("PRAGMA freelist_count").fetchone()
            if free_pages > _FREE_PAGES_KEPT:
                # executescript, as execute would step this statement once and free one page.
                self._db.executescript(f"PRAGMA incremental_vacuum({free_pages})")

    def _make_room(self, db: sqlite3.Connection, needed: int) -> None:
        excess = self._held(db) + needed - self.max_bytes
        for lane in (Lane.FORWARDS, Lane.BATCHES):  # bodies of others go first
            if excess <= 0:
                return
            dropped = freed = last = 0
            ordered = f"SELECT sequence, bytes FROM {lane.value} WHERE bytes > 0 ORDER BY sequence"  # noqa: S608  an enum's value
            for sequence, size in db.execute(ordered):
                dropped, freed, last = dropped + 1, freed + size, sequence
                if freed >= excess:
                    break
            db.execute(f"DELETE FROM {lane.value} WHERE sequence <= ?", (last,))  # noqa: S608  an enum's value
            self._add(db, "dropped_batches", dropped)
            self._add(db, "dropped_bytes", freed)
            excess -= freed

    def _held(self, db: sqlite3.Connection) -> int:
        (held,) = db.execute(
            "SELECT (SELECT coalesce(sum(bytes), 0) FROM batches) + (SELECT coalesce(sum(bytes), 0) FROM forwards)"
        ).fetchone()
        return int(held)

    def _add(self, db: sqlite3.Connection, name: str, amount: int) -> None:
        db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + ?",
            (name, str(amount), amount),
        )

    def _count(self, name: str) -> int:
        return int(self.recall(name) or 0)

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
            if self._lost:
                self._start_anew()
            try:
                yield
            except sqlite3.Error as error:
                if is_damage(error):
                    self._db.close()
                    self._give_up_file()
                    self._start_anew()
                raise SpoolError(f"the spool {self.path} failed: {error}") from error

    def _give_up_file(self) -> None:
        self._lost = True
        self._aside = self.path.with_name(f"{self.path.name}.damaged-{uuid.uuid4().hex[:8]}")

    def _start_anew(self) -> None:
        """Put the damaged file aside for whoever wants to rescue it; its uuid goes with it, so no batch id is reused.

        Where that fails, on a full disk for one, each call tries again to go on where it failed. Raises SpoolError.
        """
        try:
            if self._aside is not None:
                for suffix in ("", "-wal", "-shm"):
                    beside = self.path.with_name(self.path.name + suffix)
                    if beside.exists():
                        beside.rename(self._aside.with_name(self._aside.name + suffix))
                self.damaged_files.append(self._aside)
                self._aside = None
            self._db, self.uuid = self._opened()
        except (OSError, sqlite3.Error) as error:
            if self._aside is None and isinstance(error, sqlite3.Error) and is_damage(error):
                # Begun and not finished, and nothing of ours is in it.
                for suffix in ("", "-wal", "-shm"):
                    with suppress(OSError):
                        self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            raise SpoolError(f"the spool {self.path} is damaged and could not be started anew: {error}") from error
        self._lost = False
        self._owed = {lane: Owed() for lane in Lane}

    def _opened(self) -> tuple[sqlite3.Connection, str]:
        """Open or create the file; return it with its uuid, which is in it for good: numbers of it are never another's."""
        try:
            return self._open_once()
        except sqlite3.DatabaseError as error:
            if not (is_lack_of_room(error) and self._reserve.give()):
                raise
            return self._open_once()

    def _open_once(self) -> tuple[sqlite3.Connection, str]:
        db = open_file(self.path)
        try:
            found = db.execute("SELECT value FROM facts WHERE name = 'uuid'").fetchone()
            if found is None:
                found = (str(uuid.uuid4()),)
                db.execute("INSERT INTO facts VALUES ('uuid', ?)", found)
        except BaseException:
            db.close()
            raise
        return db, str(found[0])
