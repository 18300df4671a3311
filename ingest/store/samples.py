"""Reads device samples of an interval, wherever they are, with what their epoch says of them.

Each hour is read from one place, the catalog's: hot rows (and late ones not merged yet) from PostgreSQL. Sealed hours are
refused until there are segments to read them from, rather than answered without the rows that left the hot tables. Of
several feeds that report one device in one hour the most direct is authoritative and the others are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import polars as pl

from collector.wire import Stream
from ingest.store.arrow import Fetch, arrow_session
from ingest.store.engine import Database, Role
from ingest.store.sample_tables import TARGETS

_KEYS: Final = ("at", "device_id", "epoch_id")
COLUMNS: Final = tuple(name for name in TARGETS[Stream.DEVICE].schema if name not in _KEYS)
"""What :func:`samples` can be asked for."""
_EPOCHS: Final = """
SELECT epochs.id AS epoch_id, feed, origin, cadence_us, nodes.site_id FROM epochs JOIN nodes ON nodes.id = epochs.node_id
"""


class SealedHoursError(RuntimeError):
    """The interval holds hours whose samples have left the hot tables."""


def samples(
    database: Database,
    from_at: datetime,
    to_at: datetime,
    columns: Sequence[str],
    *,
    devices: Collection[int] | None = None,
    site_id: int | None = None,
    role: Role = "worker",
) -> pl.DataFrame:
    """Return samples of [from_at, to_at): at, device_id, epoch_id, feed, origin, cadence_us and ``columns``.

    Sorted by device and time. ``devices`` and ``site_id`` narrow it; None = all. Raises SealedHoursError, and ValueError for
    a column there is not or an instant without a time zone.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"device samples have no column {', '.join(unknown)}")
    if from_at.tzinfo is None or to_at.tzinfo is None:
        raise ValueError("an interval needs UTC-aware instants")
    where = f"at >= '{from_at.isoformat()}' AND at < '{to_at.isoformat()}'"
    if devices is not None:
        where += f" AND device_id = ANY ('{{{','.join(str(int(device)) for device in sorted(devices))}}}'::integer[])"
    if site_id is not None:
        # By epoch: it belongs to a node and so to a site, for good, while devices move.
        of_site = f"SELECT epochs.id FROM epochs JOIN nodes ON nodes.id = node_id WHERE site_id = {int(site_id)}"  # noqa: S608
        where += f" AND epoch_id IN ({of_site})"
    names = ", ".join((*_KEYS, *columns))
    hot, late = (f"SELECT {names} FROM {table} WHERE {where}" for table in ("device_samples", "late_samples"))  # noqa: S608
    with arrow_session(database, role) as fetch:
        refuse_sealed(fetch, from_at, to_at, site_id)
        rows = fetch(f"{hot} UNION ALL {late}")
        epochs = fetch(_EPOCHS).drop("site_id")
    rows = rows.join(epochs, on="epoch_id", how="inner").sort("device_id", "at")
    best = pl.col("feed").min().over("device_id", pl.col("at").dt.truncate("1h"))
    return rows.filter(pl.col("feed") == best).select(*_KEYS, "feed", "origin", "cadence_us", *columns)


def refuse_sealed(fetch: Fetch, from_at: datetime, to_at: datetime, site_id: int | None) -> None:
    """Raise SealedHoursError if the catalog says that some hour of the interval is not in the hot tables."""
    query = (
        "SELECT count(*) AS hours, min(hour_at) AS first FROM hour_catalog WHERE state <> 'open' "  # noqa: S608 (instants)
        f"AND hour_at > timestamptz '{from_at.isoformat()}' - interval '1 hour' AND hour_at < '{to_at.isoformat()}'"
    )
    if site_id is not None:
        query += f" AND site_id = {int(site_id)}"
    ((hours, first),) = fetch(query).iter_rows()
    if hours:
        raise SealedHoursError(
            f"{hours} hours from {first:%Y-%m-%d %H:%M} UTC on are sealed; this version reads open hours only"
        )
