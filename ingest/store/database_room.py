"""How large the database is, and what is left of what it may have: the only thing about a server's disk that any login is told.

It asks when it is told to and remembers the answer; whoever wants to know it asks nobody. Written-ahead log, other databases of the
server and temporary files are not in the figure: the bound has to leave room for them.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

import sqlalchemy as sa

_LOG = logging.getLogger(__name__)
_SIZE: Final = sa.text("SELECT pg_database_size(current_database())")


class DatabaseRoom:
    """The size of a database as it was last told, and the bound on it, both in bytes."""

    def __init__(self, engine: sa.Engine, max_bytes: int) -> None:
        """``max_bytes`` 0 = there is no bound."""
        self._engine = engine
        self.max_bytes = max_bytes
        self._asking = threading.Lock()
        self.size_bytes: int | None = None
        """None until the database has answered once."""

    @property
    def left_bytes(self) -> int | None:
        """Return what is left of the bound; None where there is none, or nothing was told yet."""
        return None if not self.max_bytes or self.size_bytes is None else self.max_bytes - self.size_bytes

    def ask(self) -> None:
        """Ask the database; one that does not answer leaves what it said last. One at a time: who comes meanwhile asks nothing."""
        if not self._asking.acquire(blocking=False):
            return
        try:
            with self._engine.connect() as connection:
                self.size_bytes = int(connection.execute(_SIZE).scalar_one())
        except (sa.exc.SQLAlchemyError, OSError) as error:
            _LOG.warning("the size of the database could not be asked for: %s", type(error).__name__)
        finally:
            self._asking.release()
