"""One worker at a time does the work: a row with an epoch, swapped by whoever takes or renews it.

The lease only saves work. What keeps the books right is that every write swaps the row it was computed against; a worker
whose lease ran out while it stood still loses nothing but its round.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg

NAME: Final = "worker/lease"
_TAKE: Final = """
INSERT INTO watermarks AS mark (name, value, lease_epoch, holder) VALUES (%(name)s, '', 1, %(holder)s)
ON CONFLICT (name) DO UPDATE SET lease_epoch = mark.lease_epoch + 1, holder = excluded.holder, updated_at = now()
WHERE mark.holder = excluded.holder OR mark.holder IS NULL OR mark.updated_at < now() - %(expires)s
RETURNING lease_epoch
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """The claim of one worker process; ``holder`` is unique to it."""

    holder: str
    expires: timedelta = timedelta(seconds=30)

    def take(self, connection: psycopg.Connection[Any]) -> bool:
        """Take or renew the lease; False while another worker holds it and is alive."""
        row = connection.execute(_TAKE, {"name": NAME, "holder": self.holder, "expires": self.expires}).fetchone()
        return row is not None

    def release(self, connection: psycopg.Connection[Any]) -> None:
        """Give the lease back, so that the next worker need not wait for it to run out."""
        connection.execute(
            "UPDATE watermarks SET holder = NULL, updated_at = now() WHERE name = %s AND holder = %s",
            (NAME, self.holder),
        )
