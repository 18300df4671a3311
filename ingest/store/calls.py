"""Writes LLM calls: each once, however often and by however many sources it is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.calls import ApiCall, CallSource
from ingest.errors import BadBodyError, UnavailableError
from ingest.store.hours import DAY_US
from ingest.store.registry import Registry

_TYPES: Final = {"int": "bigint", "str": "text", "bool": "boolean"}
_COLUMNS: Final = [(entry.name, _TYPES[str(entry.type).partition(" ")[0]]) for entry in fields(ApiCall)]
_NOT_YET_KEPT: Final = ("request_id",)
_KEPT: Final = [name for name, _ in _COLUMNS if name not in ("called_at_us", "origin", *_NOT_YET_KEPT)]
# Two sources of one call time its start differently, so a known key is looked for around the time, not at it.
_INSERT: Final = (
    f"INSERT INTO api_calls (called_at, site_id, source, origin, {', '.join(_KEPT)}) "  # noqa: S608 (our own names)
    f"SELECT at, %s, %s, origin, {', '.join(_KEPT)} FROM (SELECT "
    "timestamptz '1970-01-01 00:00:00+00' + called_at_us * interval '1 microsecond' AS at, * "
    f"FROM unnest({', '.join(f'%s::{kind}[]' for _, kind in _COLUMNS)}) AS sent ({', '.join(name for name, _ in _COLUMNS)})) AS new "
    "WHERE NOT EXISTS (SELECT FROM api_calls AS known WHERE known.dedupe_key = new.dedupe_key "
    "AND known.called_at BETWEEN new.at - interval '1 day' AND new.at + interval '1 day') "
    "ORDER BY at, dedupe_key ON CONFLICT (dedupe_key, called_at) DO NOTHING RETURNING called_at"
)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of reports: they count now, a better report of their call counts, or they were known already."""

    counted: int = 0
    superseded: int = 0
    repeated: int = 0


def write_calls(
    engine: sa.Engine, registry: Registry, site_id: int, calls: Sequence[ApiCall], *, source: CallSource
) -> Written:
    """Commit the reports that are not in yet. Raises UnavailableError or BadBodyError."""
    if not calls:
        return Written()
    try:
        registry.ensure_days("api_calls", {call.called_at_us // DAY_US for call in calls})
        with engine.begin() as conn:
            driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
            assert driver is not None  # noqa: S101 - a checked-out connection has one
            # One writer of calls at a time: two reports of one call at different times would both find it missing.
            driver.execute("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.api_calls', 0))")
            arrays = [list(column) for column in zip(*(astuple(call) for call in calls), strict=True)]
            written = [at for (at,) in driver.execute(_INSERT, [site_id, source.value, *arrays])]
            if written:
                driver.execute(
                    "INSERT INTO changes (site_id, from_at, to_at, kind) SELECT DISTINCT %s::integer, hour, "
                    "hour + interval '1 hour', 'api_calls' FROM (SELECT date_trunc('hour', at, 'UTC') AS hour "
                    "FROM unnest(%s::timestamptz[]) AS at) AS hours",
                    [site_id, written],
                )
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, psycopg.OperationalError) as error:
        raise UnavailableError("database_unavailable", "the calls cannot be kept now; send them again", 2) from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        raise BadBodyError(
            "refused_by_database", f"the database refuses these spans: {type(error).__name__}"
        ) from error
    return Written(counted=len(written), repeated=len(calls) - len(written))
