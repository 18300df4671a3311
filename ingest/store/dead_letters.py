"""Keeps bodies that could not be taken as they are, with the reason, so that they can be replayed and none is lost.

What waits is bounded for each node and site: beyond it a sender is refused and keeps its data itself, and a finding says so.
Replicas look at what waits every few seconds, so together they may keep that much more.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import insert

from collector.wire import Origin, cleaned
from ingest.errors import TooManyError, UnavailableError
from ingest.store.tables import books, samples

CONTESTED: Final = "device_on_two_nodes"
"""Reason of a body whose other rows are taken: only those of the devices it names wait."""
DEVICES: Final = "wattledger-refused-devices"
"""What these devices are kept under, beside the headers: UUIDs with blanks between."""
FULL: Final = "dead_letters_full"
_LOOK_AGAIN_S: Final = 10.0
_FULL_RETRY_S: Final = 300

_KEPT_HEADERS: Final = frozenset(
    {"content-type", "content-encoding", "content-length", "user-agent", "wattledger-sent-at"}
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A body that waits for an operator. ``headers`` may hold credentials: only harmless ones are kept."""

    site_id: int
    node_id: int | None
    reason: str
    detail: str
    body: bytes
    headers: Mapping[str, str]
    skew_us: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How many bytes of bodies may wait to be replayed; 0 = no limit."""

    node_bytes: int = 0
    site_bytes: int = 0


class LetterBox:
    """Says whether there is room for one more letter, and keeps it. For several threads."""

    def __init__(self, engine: sa.Engine, room: Room) -> None:
        self._engine = engine
        self._room = room
        self._lock = threading.Lock()
        self._looked_s: float | None = None
        self._nodes: Counter[int] = Counter()
        self._sites: Counter[int] = Counter()

    def take(self, site_id: int, node_id: int | None, size_bytes: int) -> None:
        """Count a letter that is about to be kept; raises TooManyError, counting nothing, where there is no room."""
        with self._lock:
            self._look()
            of_node = 0 if node_id is None else self._nodes[node_id]
            for what, waiting, most in (
                ("node", of_node, self._room.node_bytes),
                ("site", self._sites[site_id], self._room.site_bytes),
            ):
                if most and waiting + size_bytes > most:
                    self._tell(what, site_id, node_id, waiting)
                    raise TooManyError(
                        FULL,
                        f"{waiting} bytes of this {what}'s bodies wait as dead letters, and no more than {most} may; "
                        "correct what they wait for, then `wattledger deadletter replay` or drop them",
                        _FULL_RETRY_S,
                    )
            self._sites[site_id] += size_bytes
            if node_id is not None:
                self._nodes[node_id] += size_bytes

    def bury(self, letter: DeadLetter) -> None:
        """Commit a dead letter; raises UnavailableError when it cannot be kept, TooManyError where there is no room."""
        try:
            self.take(letter.site_id, letter.node_id, len(letter.body))
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            raise UnavailableError("database_unavailable", "the batch cannot be kept now; send it again", 2) from error
        bury(self._engine, letter)

    def _look(self) -> None:
        now_s = time.monotonic()
        if self._looked_s is not None and now_s - self._looked_s < _LOOK_AGAIN_S:
            return
        letters = samples.dead_letters.c
        size = sa.func.sum(sa.func.octet_length(letters.body))
        query = sa.select(letters.site_id, letters.node_id, size).where(letters.replayed_at.is_(None))
        with self._engine.begin() as conn:
            rows = conn.execute(query.group_by(letters.site_id, letters.node_id)).all()
        self._nodes, self._sites, self._looked_s = Counter(), Counter(), now_s
        for site_id, node_id, size_bytes in rows:
            if site_id is not None:
                self._sites[site_id] += int(size_bytes)
            if node_id is not None:
                self._nodes[node_id] += int(size_bytes)

    def _tell(self, what: str, site_id: int, node_id: int | None, waiting: int) -> None:
        at = datetime.now(UTC)
        evidence = {"of": what, "node_id": node_id, "waiting_bytes": waiting}
        row = {
            "dedupe_key": f"{FULL}/{what}/{node_id if what == 'node' else site_id}/{at:%Y-%m-%d}",
            "site_id": site_id,
            "kind": FULL,
            "start_at": at,
            "end_at": at,
            "evidence": evidence,
            "confidence": 1.0,
            "origin": int(Origin.LIVE),
        }
        with self._engine.begin() as conn:
            conn.execute(insert(books.findings).values(**row).on_conflict_do_nothing(index_elements=["dedupe_key"]))


def bury_within(conn: psycopg.Connection[Any], letter: DeadLetter) -> None:
    """Keep a dead letter in the transaction that the caller commits."""
    conn.execute(
        "INSERT INTO dead_letters (site_id, node_id, reason, detail, headers, body) VALUES (%s, %s, %s, %s, %s, %s)",
        [letter.site_id, letter.node_id, letter.reason, letter.detail, Jsonb(dict(letter.headers)), letter.body],
    )


def bury(engine: sa.Engine, letter: DeadLetter) -> None:
    """Commit a dead letter, however many wait; raises UnavailableError when it cannot be kept."""
    values = {
        "site_id": letter.site_id,
        "node_id": letter.node_id,
        "reason": letter.reason,
        "detail": letter.detail,
        "skew_us": letter.skew_us,
        # Cleaned: a header that jsonb refuses must not keep its body from being kept.
        "headers": {name: cleaned(value) for name, value in letter.headers.items() if name in _KEPT_HEADERS},
        "body": letter.body,
    }
    try:
        with engine.begin() as conn:
            conn.execute(sa.insert(samples.dead_letters).values(**values))
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise UnavailableError("database_unavailable", "the batch cannot be kept now; send it again", 2) from error
