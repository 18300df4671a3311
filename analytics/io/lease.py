"""One worker at a time does the work: a row with an epoch, swapped by whoever takes or renews it.

The lease only saves work. What keeps the books right is that every write swaps the row it was computed against; a worker
whose lease ran out while it stood still loses nothing but its round. But it may have stood still inside a transaction, and
then its sessions hold rows that nobody can wait for (the server does not time out a COPY whose client is silent): whoever
takes over ends them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg

log = logging.getLogger(__name__)
NAME: Final = "worker/lease"
SESSION_PREFIX: Final = "wattledger-worker/"
_SEEN: Final = "SELECT holder FROM watermarks WHERE name = %s"
_TAKE: Final = """
INSERT INTO watermarks AS mark (name, value, lease_epoch, holder) VALUES (%(name)s, '', 1, %(holder)s)
ON CONFLICT (name) DO UPDATE SET lease_epoch = mark.lease_epoch + 1, holder = excluded.holder, updated_at = now()
WHERE mark.holder = excluded.holder OR mark.holder IS NULL OR mark.updated_at < now() - %(expires)s
RETURNING lease_epoch
"""
_RENEW: Final = "UPDATE watermarks SET updated_at = now() WHERE name = %s AND holder = %s"
_FENCE: Final = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE usename = session_user AND application_name = %s AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """The claim of one worker process; ``holder`` is unique to it."""

    holder: str
    expires: timedelta = timedelta(seconds=30)

    @property
    def session(self) -> str:
        """The application name of every session this worker writes in; PostgreSQL keeps 63 bytes of it."""
        return _session(self.holder)

    def take(self, connection: psycopg.Connection[Any]) -> bool:
        """Take or renew the lease; False while another worker holds it and is alive.

        Who takes it from a silent worker ends that one's sessions, whatever they are in the middle of.
        """
        seen = connection.execute(_SEEN, (NAME,)).fetchone()
        row = connection.execute(_TAKE, {"name": NAME, "holder": self.holder, "expires": self.expires}).fetchone()
        if row is None:
            return False
        if seen is not None and seen[0] not in (None, self.holder):
            ended = _fence(connection, seen[0])
            log.warning("took over from %s, which was silent; %s of its sessions ended", seen[0], ended)
        return True

    def renew(self, connection: psycopg.Connection[Any]) -> None:
        """Say that this worker is alive, should the lease still be its own."""
        connection.execute(_RENEW, (NAME, self.holder))

    def release(self, connection: psycopg.Connection[Any]) -> None:
        """Give the lease back, so that the next worker need not wait for it to run out."""
        connection.execute(
            "UPDATE watermarks SET holder = NULL, updated_at = now() WHERE name = %s AND holder = %s",
            (NAME, self.holder),
        )


def _fence(connection: psycopg.Connection[Any], holder: str) -> int:
    """End a worker's sessions, as the login they all have: where roles are switched to, a role sees and ends nobody's but its own."""
    with connection.transaction():
        connection.execute("SET LOCAL ROLE NONE")
        row = connection.execute(_FENCE, (_session(holder),)).fetchone()
    return 0 if row is None else int(row[0])


def _session(holder: str) -> str:
    return SESSION_PREFIX + holder.rpartition("/")[2]
