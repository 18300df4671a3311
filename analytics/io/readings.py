"""Reads the samples of a window with what lies just around it, as the model's one readings table.

Around the window all rows within the policy's margin are read, and for devices that were silent there the nearest reading
further out, up to the reach: so energy across a long silence is known. Node meters that bill stand in as readings of the
node's device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Final

import dataframely as dy
import numpy as np
import polars as pl

from analytics.frames import DeviceReadings, Devices, Epochs
from analytics.model.overhead import AUTHORITY
from analytics.pipeline import Window
from analytics.policy import Policy
from collector.wire import Stream
from ingest.store.samples import SampleSession

_THROTTLED: Final = (
    "throttle_power_cap_ns",
    "throttle_sw_thermal_ns",
    "throttle_hw_thermal_ns",
    "throttle_power_brake_ns",
)
_COLUMNS: Final = (
    "energy_mj",
    "power_average_mw",
    "power_max_mw",
    "gpu_util_percent",
    "temp_c",
    "clocks_event_reasons",
    *_THROTTLED,
)
_NODE_COLUMNS: Final = ("energy_mj", "power_mw")
_USABLE: Final = {Stream.DEVICE: ("energy_mj", "power_average_mw"), Stream.NODE: ("energy_mj", "power_mw")}
# Of several meters of a node one bills. A node whose devices report themselves has no device of kind node.
_METERS: Final = f"""
SELECT DISTINCT ON (placed.device_id) placed.device_id, meters.id AS meter_id FROM meters
JOIN placements AS placed ON placed.node_id = meters.node_id AND placed.superseded_at IS NULL
JOIN devices ON devices.id = placed.device_id AND devices.kind = 'node'
WHERE meters.bills AND meters.name <> 'host' AND meters.covers <> 'part'
ORDER BY placed.device_id, array_position(ARRAY[{", ".join(f"'{name}'" for name in AUTHORITY)}], meters.name), meters.name, meters.id
"""  # noqa: S608 (constants)


_KEY_LIMIT: Final = 2**62
_RINGS: Final = (timedelta(hours=1), timedelta(hours=6))
"""How far around a window the end of a silence is looked for first, and then, before all of the reach is read."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A device's silence from its last reading until it spoke again, inside one epoch."""

    device_id: int
    from_at: datetime
    to_at: datetime


@dataclass(frozen=True, slots=True)
class Silences:
    """Where devices were silent around a window, as far as the reach."""

    ended: tuple[Gap, ...] = ()
    """Silences that end inside the window and began in hours before it: those hours know their energy only now."""
    before_at: datetime | None = None
    """Earliest last reading before the window of a device that was silent at its start; null = none was."""
    after_at: datetime | None = None
    """Latest first reading after the window of a device that was silent at its end; null = none was."""

    @classmethod
    def of_all(cls, parts: Iterable[Silences]) -> Silences:
        """Return those of several devices' parts."""
        listed = list(parts)
        return cls(
            tuple(sorted((gap for part in listed for gap in part.ended), key=lambda gap: gap.device_id)),
            min((part.before_at for part in listed if part.before_at is not None), default=None),
            max((part.after_at for part in listed if part.after_at is not None), default=None),
        )


def load_readings(
    session: SampleSession,
    site_id: int,
    devices: dy.DataFrame[Devices],
    epochs: dy.DataFrame[Epochs],
    window: Window,
    policy: Policy,
) -> tuple[dy.DataFrame[DeviceReadings], Silences]:
    """Return the readings the model needs for these devices, and the silences around the window.

    Readings are in order of device and time, and rows of one instant in an order of their values: the same whatever the order
    in which they were stored. ``epochs``: the site's, in the session's snapshot or a later one: each is committed before its
    first reading, so no reading comes without its epoch.
    """
    if devices.is_empty():
        return DeviceReadings.create_empty(), Silences()
    margin = timedelta(microseconds=policy.margin_us)
    reach = timedelta(microseconds=policy.gaps.reach_us)
    reader = _Reader(session, site_id)
    around = reader.between(devices, window.from_at - margin, window.to_at + margin)
    before = reader.nearest(
        # Not "at or before": a reading right on the hour ends a silence whose hours must learn of it.
        _silent(devices, around.filter(pl.col("at") < window.from_at)),
        window.from_at - reach,
        window.from_at - margin,
        latest=True,
    )
    after = reader.nearest(
        _silent(devices, around.filter(pl.col("at") >= window.to_at)),
        window.to_at + margin,
        window.to_at + reach,
        latest=False,
    )
    readings = DeviceReadings.validate(_in_order(pl.concat([before, around, after])))
    return readings, Silences(_gaps(before, around, epochs, window), _first(before), _last(after))


class _Reader:
    """Reads one site's readings: rows of devices, and of the meters of nodes that have no devices of their own."""

    def __init__(self, session: SampleSession, site_id: int) -> None:
        self._session = session
        self._site_id = site_id

    @cached_property
    def _meters(self) -> pl.DataFrame:
        return self._session.fetch(_METERS).select(pl.col("device_id", "meter_id").cast(pl.Int32))

    def between(
        self,
        devices: pl.DataFrame,
        from_at: datetime,
        to_at: datetime,
        instants: Collection[datetime] | None = None,
    ) -> pl.DataFrame:
        found = [_typed(pl.DataFrame(schema=DeviceReadings.create_empty().schema))]
        for stream, columns, keys in self._of_streams(devices):
            rows = self._session.rows(
                stream, columns, from_at, to_at, keys=keys, site_id=self._site_id, instants=instants
            )
            found.append(_typed((_of_devices(rows) if stream is Stream.DEVICE else self._of_nodes(rows)).collect()))
        return pl.concat(found)

    def nearest(self, devices: pl.DataFrame, from_at: datetime, to_at: datetime, *, latest: bool) -> pl.DataFrame:
        """Return each device's latest (or earliest) reading of the range that has a counter or a gauge.

        Looked for near the window first: most silences are short, and two days of a fleet are many rows.
        """
        found = [_typed(pl.DataFrame(schema=DeviceReadings.create_empty().schema))]
        for start_at, end_at in _rings(from_at, to_at, latest=latest):
            if devices.is_empty():
                break
            found.append(self._nearest_of(devices, start_at, end_at, latest=latest))
            devices = devices.join(found[-1], on="device_id", how="anti")
        return pl.concat(found)

    def _nearest_of(self, devices: pl.DataFrame, from_at: datetime, to_at: datetime, *, latest: bool) -> pl.DataFrame:
        # Instants first, rows after: to sort all rows of silent devices took six times as long as to find their ends.
        ends = self._ends(devices, from_at, to_at, latest=latest)
        if ends.is_empty():
            return _typed(pl.DataFrame(schema=DeviceReadings.create_empty().schema))
        first, last = ends.select(pl.col("at").min(), pl.col("at").max().alias("last")).row(0)
        rows = self.between(devices, first, last + timedelta(microseconds=1), ends["at"].unique().to_list())
        usable = rows.filter(pl.col("energy_mj").is_not_null() | pl.col("power_mw").is_not_null())
        mine = usable.join(ends, on=["device_id", "at"], how="semi")
        return _in_order(mine).unique("device_id", keep="first", maintain_order=True)

    def _ends(self, devices: pl.DataFrame, from_at: datetime, to_at: datetime, *, latest: bool) -> pl.DataFrame:
        found = []
        for stream, _, keys in self._of_streams(devices):
            ends = self._session.ends(
                stream, from_at, to_at, keys=keys, usable=_USABLE[stream], latest=latest, site_id=self._site_id
            )
            if stream is Stream.NODE:
                ends = ends.join(self._meters, on="meter_id").select("device_id", "at")
            found.append(ends)
        at = pl.col("at").max() if latest else pl.col("at").min()
        return pl.concat(found).group_by("device_id").agg(at)

    def _of_streams(self, devices: pl.DataFrame) -> Iterator[tuple[Stream, tuple[str, ...], list[int]]]:
        fleet, nodes = devices.filter(pl.col("kind") != "node"), devices.filter(pl.col("kind") == "node")
        if not fleet.is_empty():
            yield Stream.DEVICE, _COLUMNS, fleet["device_id"].unique().sort().to_list()
        if not nodes.is_empty():
            meters = self._meters.join(nodes, on="device_id", how="semi")
            yield Stream.NODE, _NODE_COLUMNS, meters["meter_id"].unique().sort().to_list()

    def _of_nodes(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        absent = ("power_max_mw", "gpu_util_percent", "temp_c", "clocks_event_reasons", "throttled_ns")
        return rows.join(self._meters.lazy(), on="meter_id").with_columns(pl.lit(None).alias(name) for name in absent)


def _of_devices(rows: pl.LazyFrame) -> pl.LazyFrame:
    throttled = pl.when(pl.any_horizontal(pl.col(_THROTTLED).is_not_null())).then(pl.sum_horizontal(_THROTTLED))
    return rows.with_columns(throttled.alias("throttled_ns"), pl.col("power_average_mw").alias("power_mw"))


def _rings(from_at: datetime, to_at: datetime, *, latest: bool) -> list[tuple[datetime, datetime]]:
    """Cut the range into growing pieces, the one next to the window first."""
    edges = [timedelta(0), *(width for width in _RINGS if width < to_at - from_at), max(to_at - from_at, timedelta(0))]
    if latest:
        return [(to_at - far, to_at - near) for near, far in pairwise(edges)]
    return [(from_at + near, from_at + far) for near, far in pairwise(edges)]


def _silent(devices: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    usable = rows.filter(pl.col("energy_mj").is_not_null() | pl.col("power_mw").is_not_null())
    return devices.join(usable.select("device_id").unique(), on="device_id", how="anti")


def _gaps(before: pl.DataFrame, around: pl.DataFrame, epochs: pl.DataFrame, window: Window) -> tuple[Gap, ...]:
    segment = epochs.select("epoch_id", pl.struct("node_id", "boot_id", "driver_epoch").alias("segment"))
    silent = before.filter(pl.col("energy_mj").is_not_null())
    if silent.is_empty():
        return ()
    first = (
        around.filter(
            pl.col("device_id").is_in(silent["device_id"].implode())
            & pl.col("at").is_between(window.from_at, window.to_at)
            & pl.col("energy_mj").is_not_null()
        )
        .sort("device_id", "at")
        .unique("device_id", keep="first", maintain_order=True)
    )
    spoke = first.join(silent, on="device_id", suffix="_before")
    known = spoke.join(segment, on="epoch_id").join(
        segment, left_on="epoch_id_before", right_on="epoch_id", suffix="_before"
    )
    same = known.filter(
        (pl.col("segment") == pl.col("segment_before")) & (pl.col("energy_mj") >= pl.col("energy_mj_before"))
    )
    return tuple(
        Gap(device_id, from_at, window.from_at)
        for device_id, from_at in same.sort("device_id").select("device_id", "at_before").iter_rows()
    )


def _first(rows: pl.DataFrame) -> datetime | None:
    return rows.sort("at")["at"].item(0) if rows.height else None


def _last(rows: pl.DataFrame) -> datetime | None:
    return rows.sort("at")["at"].item(-1) if rows.height else None


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort by device and time. Sealed hours come sorted one after the other: a stable sort of one key merges them."""
    if rows.is_empty():
        return rows
    at_us = pl.col("at").dt.epoch("us")
    first_us, last_us = rows.select(at_us.min(), at_us.max().alias("last")).row(0)
    devices, span_us = rows["device_id"], last_us - first_us + 1
    if int(devices.min() or 0) < 0 or (int(devices.max() or 0) + 1) * span_us >= _KEY_LIMIT:  # type: ignore[arg-type]
        ordered = rows.sort("device_id", "at")
        again = (pl.col("device_id") == pl.col("device_id").shift()) & (pl.col("at") == pl.col("at").shift())
        repeated = bool(ordered.select(again.any()).item())
    else:
        key = rows.select(pl.col("device_id").cast(pl.Int64) * span_us + (at_us - first_us)).to_series().to_numpy()
        steps = np.diff(key)
        ordered = rows
        if (steps < 0).any():
            order = np.argsort(key, kind="stable")
            # In one piece and by 32 bits: rows taken out of many chunks by 64 took nine times as long.
            ordered, steps = rows.rechunk()[pl.Series(order, dtype=pl.UInt32)], np.diff(key[order])
        repeated = bool((steps == 0).any())
    if not repeated:
        return ordered
    values = [name for name in rows.columns if name not in {"device_id", "at", "epoch_id"}]
    return ordered.sort("device_id", "at", *values, "epoch_id", nulls_last=True)


def _typed(rows: pl.DataFrame) -> pl.DataFrame:
    schema = DeviceReadings.create_empty().schema
    return rows.select(pl.col(name).cast(kind) for name, kind in schema.items())
