"""Whether anybody could be let in: a service that others can reach and nobody has a token for is a mistake, or a first start.

Every route but the public ones answers 401 then, so nothing leaks; but whoever opened a port too early, or pointed the service
at the wrong database, is told before agents are. It makes no tokens.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from ingest.store import tokens
from ingest.store.engine import Database
from wattledger.listening import Listening, ListeningError

OWN_TOKEN: Final = "this installation"  # noqa: S105 (a name)
"""Of the pages and commands of one home: nobody else holds it."""


def check(database: Database, listening: Listening, advice: str) -> None:
    """Raise ListeningError, saying ``advice``, where other machines can reach the service and nobody has a token."""
    if not listening.is_loopback and not has_tokens(database):
        raise ListeningError(
            f"{listening.host} can be reached from other machines, and nobody has a token yet; {advice}"
        )


def has_tokens(database: Database) -> bool:
    """Say whether anybody but this installation's own pages has a token that is good now."""
    engine = database.create_engine("api", pool_size=1, application="wattledger-start")
    try:
        with engine.begin() as connection:
            now = connection.execute(sa.select(sa.func.now())).scalar_one()
            return tokens.are_there_any(connection, now, besides=OWN_TOKEN)
    finally:
        engine.dispose()
