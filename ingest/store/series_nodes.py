"""The spacing of nodes' series as some replica learned it last, so that a restart and a second replica begin with the same.

It decides nothing: who learned something else says so, and the latest sample that settled it counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import psycopg
import sqlalchemy as sa

from collector.wire import Origin
from ingest.errors import UnavailableError
from ingest.store.outages import OUTAGES

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Node = tuple[str, Origin]


class Spacings:
    """Asks and tells the database. ``engine``: the writer's."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def known(self, site_id: int, nodes: Collection[Node]) -> Mapping[Node, int]:
        """Return the spacing, in microseconds, of those nodes of which any is known; raises UnavailableError."""
        query = sa.text(
            "SELECT known.node, known.origin, known.cadence_us FROM series_nodes AS known "
            "JOIN unnest(CAST(:nodes AS text[]), CAST(:origins AS smallint[])) AS given (node, origin) "
            "USING (node, origin) WHERE known.site_id = :site_id"
        )
        given = {
            "nodes": [node for node, _ in nodes],
            "origins": [int(origin) for _, origin in nodes],
            "site_id": site_id,
        }
        try:
            with self._engine.connect() as conn:
                return {(node, Origin(origin)): us for node, origin, us in conn.execute(query, given)}
        except (*OUTAGES, sa.exc.DBAPIError, sa.exc.TimeoutError, psycopg.Error) as error:
            raise _unavailable() from error

    def learned(self, site_id: int, spacings: Sequence[tuple[Node, int, int]]) -> None:
        """Write (node, spacing and instant in microseconds) down; raises UnavailableError."""
        rows = [
            {
                "site_id": site_id,
                "node": node,
                "origin": int(origin),
                "cadence_us": us,
                "from_at": _EPOCH + timedelta(microseconds=at_us),
            }
            for (node, origin), us, at_us in sorted(spacings)  # in one order, or two replicas wait for each other
        ]
        statement = sa.text(
            "INSERT INTO series_nodes AS known (site_id, node, origin, cadence_us, from_at) "
            "VALUES (:site_id, :node, :origin, :cadence_us, :from_at) ON CONFLICT (site_id, node, origin) "
            "DO UPDATE SET cadence_us = excluded.cadence_us, from_at = excluded.from_at "
            "WHERE excluded.from_at > known.from_at"
        )
        try:
            with self._engine.begin() as conn:
                conn.execute(statement, rows)
        except (*OUTAGES, sa.exc.DBAPIError, sa.exc.TimeoutError, psycopg.Error) as error:
            raise _unavailable() from error


def _unavailable() -> UnavailableError:
    return UnavailableError("database_unavailable", "the spacing of series cannot be asked now; send them again", 2)
