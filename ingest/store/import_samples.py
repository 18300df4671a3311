"""Writes imported node meter readings: nodes, meters, epochs, a device where the node has only a meter, and the samples.

A reading that repeats an instant of its meter, in the file or in the store, segments included, is counted and left out.
Readings of days that are hot no more wait with the late rows for their hour to be sealed: years of them need neither a
partition a day nor a lock an hour, of which a server has some ten thousand.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names; what a file says travels by COPY and parameters

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
import sqlalchemy as sa

from collector.wire import DeviceRef, Feed, Origin, Stream
from ingest.store import catalog, identities
from ingest.store.arrow import driver_fetch
from ingest.store.hours import SiteHour, array, hold_open
from ingest.store.identities import EpochKey, NodeKey, OnNode
from ingest.store.imports import (
    KNOWN_AT,
    Stage,
    at_sql,
    check_days,
    known_from_here,
    make_days,
    mark_changed,
    refresh_statistics,
)
from ingest.store.sample_tables import TARGETS
from ingest.store.segments import SegmentError, Segments
from ingest.store.segments_format import scan

BOOT_ID: Final = "import"
"""One for all files of a node, so that consecutive files continue each other; a counter that falls starts anew anyway."""
AGENT_VERSION: Final = "import"
HOT: Final = timedelta(hours=48)
"""Days that ended before wait as late rows, as what agents send so late does; a longer retention of hot rows changes nothing."""
_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtextextended('wattledger.import_readings/' || %s, 0))"


@dataclass(frozen=True, slots=True)
class NodeDevice:
    """What a node without device meters is booked as."""

    model: str
    accelerators: int


@dataclass(frozen=True, slots=True)
class WrittenReadings:
    inserted: int
    already_stored: int
    repeated: int
    repeated_lines: list[tuple[int, str]]
    cadence_us: int
    first_us: int | None
    last_us: int | None
    nodes: int
    meters: int
    devices: int


class Readings:
    """Readings of one file on their way into ``node_samples`` and ``late_node_samples``."""

    def __init__(
        self, conn: sa.Connection, site: str, site_id: int, *, now: datetime, segments: Segments | None = None
    ) -> None:
        """``segments``: where sealed hours lie; without them a reading of one that has rows is refused with SegmentError."""
        self._conn, self._site, self._site_id, self._segments = conn, site, site_id, segments
        self._hot_from = (now.astimezone(UTC) - HOT).replace(hour=0, minute=0, second=0, microsecond=0)
        self._stage = Stage(
            conn,
            "import_readings",
            {"line": "bigint", "key": "integer", "at_us": "bigint", "power_mw": "bigint", "energy_mj": "bigint"},
        )

    def add(self, rows: Iterable[tuple[int, int, int, int | None, int | None]]) -> None:
        """Stage (line, key, at_us, power_mw, energy_mj); ``key`` numbers the (node, meter) pairs."""
        self._stage.copy(rows)

    def store(
        self,
        meters: Sequence[tuple[str, str]],
        bills: Mapping[str, bool],
        device: NodeDevice | None,
        refused: Mapping[tuple[int, int, str], int],
        kept_examples: int,
    ) -> WrittenReadings:
        """Write what was staged; ``meters`` are (node, meter) by key, ``refused`` counts by (day_us, key, reason)."""
        conn, stage = self._conn, self._stage
        # Two files of one meter that come at the same time would not see each other's readings.
        conn.exec_driver_sql(_ONE_AT_A_TIME, (str(self._site_id),))
        stage.ready()
        node_ids = identities.node_ids(conn, [NodeKey(self._site_id, node) for node, _ in meters])
        by_key = [node_ids[NodeKey(self._site_id, node)] for node, _ in meters]
        meter_ids = self._meter_ids(meters, by_key, bills)
        keys = Stage(conn, "import_keys", {"key": "integer", "node_id": "integer", "meter_id": "integer"})
        keys.copy((key, node_id, meter_ids[key]) for key, node_id in enumerate(by_key))
        keys.ready()
        self._refused(refused)
        cadence_us = self._cadence_us()
        first_us, last_us = conn.exec_driver_sql("SELECT min(at_us), max(at_us) FROM import_readings").one()
        if first_us is None:
            return WrittenReadings(0, 0, 0, [], 0, None, None, len(node_ids), len(meter_ids), 0)
        repeated, examples = self._repeated(kept_examples)
        self._make_hot_days()
        staged = conn.exec_driver_sql("SELECT count(*) FROM import_readings").scalar_one()
        inserted = self._insert(by_key, cadence_us, first_us, last_us)
        devices = self._devices(meters, by_key, device) if device else 0
        days = conn.exec_driver_sql(
            "SELECT DISTINCT (at AT TIME ZONE 'UTC')::date FROM import_new WHERE at >= %s ORDER BY 1", (self._hot_from,)
        ).scalars()
        touched = ("nodes", "meters", "devices", "placements", "epochs", "late_node_samples")
        refresh_statistics(conn, *touched, partitioned="node_samples", days=days.all())
        return WrittenReadings(
            inserted,
            staged - inserted,
            repeated,
            examples,
            cadence_us,
            first_us,
            last_us,
            len(node_ids),
            len(meter_ids),
            devices,
        )

    def _meter_ids(
        self, meters: Sequence[tuple[str, str]], node_ids: Sequence[int], bills: Mapping[str, bool]
    ) -> list[int]:
        found: dict[OnNode, int] = {}
        wanted = [OnNode(node_id, name) for node_id, (_, name) in zip(node_ids, meters, strict=True)]
        for role in (True, False):
            chosen = [meter for meter in wanted if bills[meter.name] is role]
            found |= identities.meter_ids(self._conn, chosen, bills=role)
        return [found[meter] for meter in wanted]

    def _make_hot_days(self) -> None:
        found = self._conn.exec_driver_sql(
            f"SELECT DISTINCT ({at_sql('at_us')} AT TIME ZONE 'UTC')::date FROM import_readings"
        )
        days = check_days(found.scalars().all())
        if hot := [day for day in days if day >= self._hot_from.date()]:
            make_days(self._conn, "node_samples", hot)

    def _refused(self, refused: Mapping[tuple[int, int, str], int]) -> None:
        if refused:
            rows = Stage(
                self._conn, "import_refused", {"day_us": "bigint", "key": "integer", "reason": "text", "rows": "bigint"}
            )
            rows.copy((*place, count) for place, count in refused.items())
            self._count_rejections("import_refused")

    def _count_rejections(self, stage: str) -> None:
        self._conn.exec_driver_sql(
            "INSERT INTO rejections (day_at, node_id, stream, reason, rows) "
            f"SELECT {at_sql('day_us')}, node_id, 'node_samples', reason, sum(rows) FROM {stage} JOIN import_keys USING (key) "
            "GROUP BY 1, 2, 4 ON CONFLICT (day_at, node_id, stream, reason) "
            "DO UPDATE SET rows = rejections.rows + excluded.rows"
        )

    def _cadence_us(self) -> int:
        # The median step; whole seconds where it is at least one, or two exports of one logger would differ by jitter.
        step = self._conn.exec_driver_sql(
            "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY step) FROM "
            "(SELECT at_us - lag(at_us) OVER (PARTITION BY key ORDER BY at_us) AS step FROM import_readings) AS steps "
            "WHERE step > 0"
        ).scalar_one()
        if step is None:
            return 0
        return max(1, round(step / 1_000_000)) * 1_000_000 if step >= 500_000 else int(step)

    def _repeated(self, kept_examples: int) -> tuple[int, list[tuple[int, str]]]:
        # Which of two rows with one instant is right nobody can say; the first of the file stays.
        self._conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE import_repeated ON COMMIT DROP AS SELECT line, key, at_us FROM "
            "(SELECT line, key, at_us, row_number() OVER (PARTITION BY key, at_us ORDER BY line) AS place FROM import_readings) "
            "AS numbered WHERE place > 1"
        )
        self._conn.exec_driver_sql(
            "DELETE FROM import_readings AS r USING import_repeated AS x WHERE r.line = x.line AND r.key = x.key"
        )
        self._conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE import_repeated_days ON COMMIT DROP AS "
            "SELECT at_us - mod(at_us, 86400000000) AS day_us, key, 'repeated timestamp' AS reason, count(*) AS rows "
            "FROM import_repeated GROUP BY 1, 2"
        )
        self._count_rejections("import_repeated_days")
        total = self._conn.exec_driver_sql("SELECT count(*) FROM import_repeated").scalar_one()
        lines = self._conn.exec_driver_sql(
            f"SELECT line, ({at_sql('at_us')} AT TIME ZONE 'UTC')::text || '+00' FROM import_repeated ORDER BY line LIMIT {int(kept_examples)}"
        )
        return total, [(row[0], row[1]) for row in lines]

    def _insert(self, node_ids: Sequence[int], cadence_us: int, first_us: int, last_us: int) -> int:
        conn = self._conn
        epochs = {
            EpochKey(node_id, BOOT_ID, 0, int(Feed.IMPORT), int(Origin.IMPORTED), cadence_us): AGENT_VERSION
            for node_id in set(node_ids)
        }
        by_node = Stage(conn, "import_epochs", {"node_id": "integer", "epoch_id": "integer"})
        by_node.copy((key.node_id, epoch_id) for key, epoch_id in identities.epoch_ids(conn, epochs).items())
        within = f"known.at BETWEEN {at_sql(str(first_us))} AND {at_sql(str(last_us))}"
        # The bounds are literals so that only the partitions of the file's own days are searched for what is known.
        # span_us 0: a reading of a gauge or counter at an instant speaks about no span before it.
        conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE import_new ON COMMIT DROP AS "
            f"SELECT {at_sql('at_us')} AS at, meter_id, epoch_id, energy_mj, power_mw FROM import_readings "
            "JOIN import_keys USING (key) JOIN import_epochs USING (node_id) WHERE NOT EXISTS "
            "(SELECT FROM node_samples AS known WHERE known.meter_id = import_keys.meter_id "
            f"AND known.at = {at_sql('at_us')} AND {within}) "
            "AND NOT EXISTS (SELECT FROM late_node_samples AS known WHERE known.meter_id = import_keys.meter_id "
            f"AND known.at = {at_sql('at_us')} AND {within})"
        )
        # After that statement: a row that is merged meanwhile was late for it, or is in a segment now.
        self._leave_out_sealed()
        inserted = self._spread()
        mark_changed(
            conn,
            self._site_id,
            "node_samples",
            "SELECT DISTINCT tstzrange(date_trunc('hour', at, 'UTC'), date_trunc('hour', at, 'UTC') + interval '1 hour') "
            "FROM import_new",
        )
        return inserted

    def _leave_out_sealed(self) -> None:
        """Leave out readings whose instant their meter has in a segment; of each only the file's own meters are read."""
        conn = self._conn
        hours = set(conn.exec_driver_sql("SELECT DISTINCT date_trunc('hour', at, 'UTC') FROM import_new").scalars())
        if not hours:
            return
        fetch = driver_fetch(self._driver())
        sealed = catalog.sealed_hours(fetch, Stream.NODE, min(hours), max(hours) + catalog.HOUR, self._site_id)
        files = [hour.file for hour in sealed if hour.file is not None and hour.hour_at in hours]
        if not files:
            return
        if self._segments is None:
            raise SegmentError(f"{len(files)} hours of the file are sealed already; name the segments' folder")
        meters = list(conn.exec_driver_sql("SELECT DISTINCT meter_id FROM import_new ORDER BY 1").scalars())
        known = Stage(conn, "import_sealed", {"meter_id": "integer", "at_us": "bigint"})
        for file in files:
            rows = scan([self._segments.checked(file)], TARGETS[Stream.NODE].schema)
            chosen = rows.filter(pl.col("meter_id").is_in(meters)).select("meter_id", pl.col("at").dt.epoch("us"))
            known.copy(chosen.collect().iter_rows())
        known.ready()
        conn.exec_driver_sql(
            f"DELETE FROM import_new AS new USING import_sealed AS known WHERE new.meter_id = known.meter_id AND new.at = {at_sql('at_us')}"
        )

    def _driver(self) -> psycopg.Connection[Any]:
        driver: psycopg.Connection[Any] = self._conn.connection.driver_connection  # type: ignore[assignment]
        return driver

    def _spread(self) -> int:
        """Put the new rows where they belong: in the hot table, or with the late ones if their hour is sealed or hot no more."""
        conn = self._conn
        hours = conn.exec_driver_sql(
            "SELECT DISTINCT floor(extract(epoch FROM at) / 3600)::integer FROM import_new WHERE at >= %s",
            (self._hot_from,),
        ).scalars()
        sealed = hold_open(self._driver(), [SiteHour(self._site_id, hour) for hour in hours])
        numbers = array(sorted(hour.hour for hour in sealed))
        is_late = f"(at < '{self._hot_from.isoformat()}' OR floor(extract(epoch FROM at) / 3600)::bigint = ANY ('{numbers}'::bigint[]))"
        return sum(
            conn.exec_driver_sql(
                f"INSERT INTO {table} (at, meter_id, epoch_id, span_us, energy_mj, power_mw) "
                f"SELECT at, meter_id, epoch_id, 0, energy_mj, power_mw FROM import_new WHERE {chosen} ORDER BY at, meter_id"
            ).rowcount
            for table, chosen in (("node_samples", f"NOT {is_late}"), ("late_node_samples", is_late))
        )

    def _devices(self, meters: Sequence[tuple[str, str]], node_ids: Sequence[int], device: NodeDevice) -> int:
        names = {node_id: node for node_id, (node, _) in zip(node_ids, meters, strict=True)}
        uuids = {node_id: node_device_uuid(self._site, name) for node_id, name in names.items()}
        references = [
            DeviceRef(uuid=uuid, model=device.model, vendor="unknown", kind="node", accelerators=device.accelerators)
            for uuid in uuids.values()
        ]
        ids = identities.device_ids(self._conn, references)
        spans = Stage(self._conn, "import_placed", {"device_id": "integer", "node_id": "integer"})
        spans.copy((ids[uuid], node_id) for node_id, uuid in uuids.items())
        extend_placements(
            self._conn,
            "SELECT device_id, node_id, tstzrange(date_trunc('hour', min(at), 'UTC'), "
            "date_trunc('hour', max(at), 'UTC') + interval '1 hour') AS span "
            "FROM import_placed JOIN import_keys USING (node_id) JOIN import_new USING (meter_id) GROUP BY 1, 2",
        )
        return len(ids)


def node_device_uuid(site: str, node: str) -> str:
    """Return the identity of a node booked as one device."""
    return f"node:{site}/{node}"


def extend_placements(conn: sa.Connection, spans_sql: str) -> None:
    """Let devices be in their nodes for further spans; what is known grows by a new row, never in place.

    ``spans_sql`` selects (device_id, node_id, span). An import proves that a node was there for the hours it speaks of and
    nothing beyond, so these placements have an end.
    """
    conn.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.placements', 0))")
    known_from_here(conn)
    conn.exec_driver_sql(
        "WITH spans AS (" + spans_sql + "), "
        "known AS (SELECT p.device_id, p.node_id, range_agg(tstzrange(p.valid_from, p.valid_to)) AS held "
        "  FROM placements AS p JOIN spans USING (device_id) WHERE p.superseded_at IS NULL GROUP BY 1, 2), "
        "grown AS (SELECT s.device_id, s.node_id, coalesce(k.held, '{}') + tstzmultirange(s.span) AS held "
        "  FROM spans AS s LEFT JOIN known AS k USING (device_id, node_id) "
        "  WHERE NOT coalesce(k.held @> s.span, false)), "
        "closed AS (UPDATE placements AS p SET superseded_at = " + KNOWN_AT + " FROM grown AS g "
        "  WHERE p.device_id = g.device_id AND p.node_id = g.node_id AND p.superseded_at IS NULL) "
        "INSERT INTO placements (device_id, node_id, valid_from, valid_to, recorded_at) "
        "SELECT device_id, node_id, lower(part), upper(part), " + KNOWN_AT + " FROM grown, unnest(held) AS part"
    )


def node_names(conn: sa.Connection, site_id: int) -> dict[str, int]:
    """Return the nodes of a site by name."""
    rows: Any = conn.execute(sa.text("SELECT name, id FROM nodes WHERE site_id = :site_id"), {"site_id": site_id}).all()
    return dict(rows)
