"""Keeps bodies that could not be taken as they are, with the reason, so that they can be replayed and none is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from collector.wire import cleaned
from ingest.errors import UnavailableError
from ingest.store.tables import samples

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


def bury(engine: sa.Engine, letter: DeadLetter) -> None:
    """Commit a dead letter; raises UnavailableError when it cannot be kept."""
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
