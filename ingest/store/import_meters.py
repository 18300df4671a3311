"""Writes energy that meters of a site showed, by period, and the meters themselves. Periods that are known never overlap.

A period that says what is known changes nothing; one that replaces whole periods supersedes them; one that cuts through a known period
is refused, since nobody can say how that one's energy lay. Only hours whose books use the meter are closed again.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names; what a file says travels by COPY and parameters

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ingest.store.imports import KNOWN_AT, Stage, at_sql, known_from_here, mark_changed
from ingest.store.tables import reference


class MeterError(ValueError):
    """What is asked of a meter cannot be: the message says what to change."""


@dataclass(frozen=True, slots=True)
class MeterFact:
    """What is said of a site's meter; None = as it is known, or for a new one the default."""

    name: str
    level: str | None = None
    parent: str | None = None
    covers: str | None = None
    gain_ppm: int | None = None


@dataclass(frozen=True, slots=True)
class WrittenPeriods:
    inserted: int
    unchanged: int
    superseded: int
    overlapping: list[tuple[int, str]]
    first_us: int | None
    last_us: int | None


def site_meters(conn: sa.Connection, site_id: int, facts: Iterable[MeterFact]) -> Mapping[str, int]:
    """Make the meters that are new, bring the others up to date, and return ids by name; raises MeterError.

    A new meter needs a level. A parent must be a meter of the site, and none may hang on itself.
    """
    meters = reference.meters
    # Two files that make one meter, or hang two on each other, must not see half of it.
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.meters', 0))"))
    wanted = list(facts)
    query = sa.select(meters.c.name, meters.c.id).where(meters.c.site_id == site_id)
    ids = {str(name): int(number) for name, number in conn.execute(query)}
    for fact in wanted:
        values = {"level": fact.level, "covers": fact.covers, "gain_ppm": fact.gain_ppm}
        said = {name: value for name, value in values.items() if value is not None}
        if fact.name not in ids:
            if fact.level is None:
                raise MeterError(f"meter {fact.name!r} is new: say its level, utility, pdu, cdu or other")
            said.setdefault("covers", "all" if fact.level == "utility" else "it")
            statement = insert(meters).values(site_id=site_id, name=fact.name, **said).returning(meters.c.id)
            ids[fact.name] = int(conn.execute(statement).scalar_one())
        elif said:
            conn.execute(sa.update(meters).where(meters.c.id == ids[fact.name]).values(**said))
    for fact in wanted:
        if fact.parent is not None:
            if fact.parent not in ids:
                raise MeterError(f"meter {fact.name!r} hangs on {fact.parent!r}, which is no meter of the site")
            hang(conn, ids[fact.name], ids[fact.parent])
    return ids


def hang(conn: sa.Connection, meter_id: int, parent_id: int) -> None:
    """Hang a meter on another; raises MeterError where that one already hangs on it."""
    meters = reference.meters
    above = conn.execute(
        sa.text(
            "WITH RECURSIVE above AS (SELECT CAST(:parent AS integer) AS id UNION SELECT parent_meter_id FROM meters "
            "JOIN above USING (id) WHERE parent_meter_id IS NOT NULL) SELECT id FROM above"
        ),
        {"parent": parent_id},
    ).scalars()
    if meter_id in set(above):
        raise MeterError("a meter cannot hang on itself, nor on one that hangs on it")
    conn.execute(sa.update(meters).where(meters.c.id == meter_id).values(parent_meter_id=parent_id))


def known_registers(conn: sa.Connection, site_id: int, meters: Iterable[str]) -> Mapping[str, list[tuple[int, int]]]:
    """Return by meter at_us and register_mj, by instant, of the readings at either end of each file; of one instant the last file's.

    Files that were imported before this was kept told of none. Call it behind :func:`site_meters`, whose lock keeps other files out.
    """
    query = sa.text(
        "SELECT told.meter, (reading ->> 0)::bigint, (reading ->> 1)::bigint FROM imports, "
        "LATERAL jsonb_each(imports.report -> 'kept') AS told (meter, readings), jsonb_array_elements(told.readings) AS reading "
        "WHERE imports.kind = 'meters' AND imports.site_id = :site_id AND told.meter = ANY (:meters) ORDER BY imports.id"
    )
    found: dict[str, dict[int, int]] = {}
    for meter, at_us, register in conn.execute(query, {"site_id": site_id, "meters": list(meters)}):
        found.setdefault(meter, {})[at_us] = register
    return {meter: sorted(readings.items()) for meter, readings in found.items()}


def is_open(conn: sa.Connection, meter_id: int, from_us: int, to_us: int) -> bool:
    """Return whether nothing is known of a meter between two instants, or no more than what spans all of the time between."""
    query = sa.text(
        f"SELECT count(*) = 0 FROM meter_readings, (SELECT {at_sql(':from_us')} AS f, {at_sql(':to_us')} AS u) AS asked "
        "WHERE superseded_at IS NULL AND meter_id = :meter_id AND from_at < u AND to_at > f AND NOT (from_at <= f AND to_at >= u)"
    )
    return bool(conn.execute(query, {"meter_id": meter_id, "from_us": from_us, "to_us": to_us}).scalar_one())


class Periods:
    """Periods of one file on their way into ``meter_readings``."""

    def __init__(self, conn: sa.Connection) -> None:
        self._conn = conn
        self._stage = Stage(
            conn,
            "import_periods",
            {"line": "bigint", "meter_id": "integer", "from_us": "bigint", "to_us": "bigint", "energy_mj": "bigint"},
        )

    def add(self, rows: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Stage (line, meter_id, from_us, to_us, energy_mj)."""
        self._stage.copy(rows)

    def store(self, source: str, import_id: int, site_id: int) -> WrittenPeriods:
        conn = self._conn
        self._stage.ready()
        first_us, last_us = conn.exec_driver_sql("SELECT min(from_us), max(to_us) FROM import_periods").one()
        overlapping = self._dropped(
            "SELECT ctid AS place, from_us, max(to_us) OVER (PARTITION BY meter_id ORDER BY from_us, line "
            "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) > from_us AS bad FROM import_periods"
        )
        conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.meter_readings', 0))"))
        known_from_here(conn)
        conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE import_new ON COMMIT DROP AS SELECT line, meter_id, energy_mj, "
            f"{at_sql('from_us')} AS from_at, {at_sql('to_us')} AS to_at FROM import_periods"
        )
        unchanged = conn.exec_driver_sql(
            "DELETE FROM import_new AS n USING meter_readings AS t WHERE t.superseded_at IS NULL AND t.meter_id = n.meter_id "
            "AND t.from_at = n.from_at AND t.to_at = n.to_at AND t.energy_mj = n.energy_mj"
        ).rowcount
        cutting = conn.exec_driver_sql(
            # Of several periods of the file that fill a known one exactly, none cuts through it.
            "WITH touched AS (SELECT t.id, t.from_at, t.to_at, n.line, n.from_at AS f, n.to_at AS u FROM meter_readings AS t "
            "JOIN import_new AS n ON n.meter_id = t.meter_id AND n.from_at < t.to_at AND n.to_at > t.from_at "
            "WHERE t.superseded_at IS NULL), filled AS (SELECT id FROM touched GROUP BY id, from_at, to_at "
            "HAVING range_agg(tstzrange(f, u)) @> tstzrange(from_at, to_at)) "
            "DELETE FROM import_new AS n USING touched WHERE n.line = touched.line AND touched.id NOT IN (SELECT id FROM filled) "
            "RETURNING n.line, n.from_at::text"
        ).all()
        superseded = conn.exec_driver_sql(
            f"UPDATE meter_readings AS t SET superseded_at = {KNOWN_AT} FROM import_new AS n WHERE t.superseded_at IS NULL "
            "AND t.meter_id = n.meter_id AND n.from_at < t.to_at AND n.to_at > t.from_at"
        ).rowcount
        inserted = conn.execute(
            sa.text(
                "INSERT INTO meter_readings (meter_id, from_at, to_at, energy_mj, source, import_id, recorded_at) "
                f"SELECT meter_id, from_at, to_at, energy_mj, :source, :import_id, {KNOWN_AT} FROM import_new"
            ),
            {"source": source, "import_id": import_id},
        ).rowcount
        mark_changed(
            conn,
            site_id,
            "meter_readings",
            "SELECT tstzrange(from_at, to_at) FROM import_new WHERE meter_id IN "
            "(SELECT meter_id FROM shared_it WHERE superseded_at IS NULL)",
        )
        refused = sorted({*overlapping, *((int(line), str(at)) for line, at in cutting)})
        return WrittenPeriods(inserted, unchanged, superseded, refused, first_us, last_us)

    def _dropped(self, judged: str) -> list[tuple[int, str]]:
        rows: Any = self._conn.exec_driver_sql(
            f"DELETE FROM import_periods AS p USING ({judged}) AS j WHERE p.ctid = j.place AND j.bad "
            f"RETURNING p.line, {at_sql('p.from_us')}::text"
        )
        return [(int(line), str(at)) for line, at in rows]
