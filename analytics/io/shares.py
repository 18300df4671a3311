"""Reads who was seen working on shared boards: processes by job (``device_shares``) and SM activity of MIG instances.

Of boards that somebody holds a part of, and no others: most boards are held whole and cost nothing here. Floats become parts per million
at this door; what no measurement can be is not known, as if it had not been told: one such value must not keep a site without books. A process is its job's by cluster, native id and start, as ingest found the job's row.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

import dataframely as dy
import polars as pl

from analytics.frames import DeviceShares, InstanceActivity
from analytics.inputs import Window
from analytics.model.activity import LONGEST_US
from analytics.units import PPM
from collector.wire import Stream
from ingest.accept import MOST_PERCENT, MOST_RATIO
from ingest.store.job_runs import SAME_START_US, is_unique
from ingest.store.samples import SampleSession

_RUN: Final = ["cluster", "native_job_id", "job_started_at_us"]
_MARGIN: Final = timedelta(microseconds=2 * LONGEST_US)
"""Around the window: a look speaks of the time before it, and on for as long."""
_SHARES: Final = (
    "span_us",
    "cluster",
    "native_job_id",
    "job_started_at_us",
    "memory_used_bytes",
    "sm_util_percent",
    "share_ratio",
    "method",
)
_PERCENT: Final = 100
_BOARD_HOURS_AHEAD: Final = 1_000
"""Looks at so many boards x hours are read together, of boards that are asked for later too: 60 MiB of boards with three holders each,
looked at every ten seconds. Shards have few shared boards each, and a row group many."""
_JOBS: Final = """
SELECT id AS job_id, cluster, native_id AS native_job_id, (extract(epoch FROM started_at) * 1000000)::bigint AS started_us FROM jobs
WHERE id = ANY ('{{{ids}}}'::bigint[])
"""


def shared_boards(holds: pl.DataFrame, devices: pl.DataFrame, placements: pl.DataFrame) -> list[int]:
    """Return the boards that somebody may hold a part of, ascending. ``Holds``, ``Devices`` with instances, ``Placements``."""
    boards = devices.select("device_id", pl.coalesce("parent_device_id", "device_id").alias("board_id"))
    parts = holds.filter(pl.col("share_ppm").is_not_null()).select("device_id").drop_nulls()
    cut_up = devices.filter(pl.col("parent_device_id").is_not_null()).select("device_id")
    named = holds.join(cut_up, on="device_id", how="semi").select("device_id")
    counted = placements.join(
        holds.filter(pl.col("device_id").is_null()).select("node_id").drop_nulls().unique(), on="node_id", how="semi"
    ).select("device_id")
    mine = pl.concat([parts, named, counted]).unique()
    return boards.join(mine, on="device_id", how="semi")["board_id"].unique().sort().to_list()


@dataclass
class Looks:
    """What was seen of the shared boards of a site in a window; read of some devices at a time, as memory allows."""

    session: SampleSession
    site_id: int
    window: Window
    boards: Collection[int]
    devices: pl.DataFrame
    """With instances."""
    job_ids: Collection[int]
    """Of everybody who holds something at the site: a job that is not among them is nobody."""

    _left: set[int] = field(default_factory=set)
    """Boards that somebody else reads, unless they are asked for here after all."""
    _told: set[int] = field(default_factory=set)
    """Boards whose looks were read: given away, or kept in the next two."""
    _shares: dy.DataFrame[DeviceShares] = field(default_factory=DeviceShares.create_empty)
    _activity: dy.DataFrame[InstanceActivity] = field(default_factory=InstanceActivity.create_empty)

    def of(self, devices: pl.Series) -> tuple[dy.DataFrame[DeviceShares], dy.DataFrame[InstanceActivity]]:
        """Return the looks at those of these devices that are shared boards; each of them is asked for once."""
        boards = sorted(set(self.boards) & set(devices))
        if not self._told.issuperset(boards):
            self._read_ahead(boards)
        mine = pl.col("device_id").is_in(boards)
        shares, activity = self._shares.filter(mine), self._activity.filter(mine)
        self._shares = DeviceShares.cast(self._shares.filter(~mine))
        self._activity = InstanceActivity.cast(self._activity.filter(~mine))
        return DeviceShares.cast(shares), InstanceActivity.cast(activity)

    def leave(self, devices: pl.Series) -> tuple[int, ...]:
        """Return those of these devices that are shared boards; their looks are read only if they are asked for."""
        boards = sorted(set(self.boards) & set(devices))
        self._left.update(boards)
        return tuple(boards)

    def _read_ahead(self, boards: list[int]) -> None:
        """Read looks at these boards, and at as many that follow them as may be in memory."""
        wanted = sorted(set(boards) - self._told)
        later = sorted(board for board in set(self.boards) - self._told - self._left if board > wanted[-1])
        hours = max(1, -(-(self.window.to_at - self.window.from_at) // timedelta(hours=1)))
        wanted += later[: max(0, _BOARD_HOURS_AHEAD // hours - len(wanted))]
        shares = load_shares(self.session, self.site_id, wanted, self._jobs, self.window)
        activity = load_activity(self.session, self.site_id, self.devices, wanted, self.window)
        # What was read before is of other boards.
        self._shares = DeviceShares.cast(pl.concat([self._shares, shares]))
        self._activity = InstanceActivity.cast(pl.concat([self._activity, activity]))
        self._told.update(wanted)

    @cached_property
    def _jobs(self) -> pl.DataFrame:
        """Return all of them: of two runs of a name the nearer one counts, whichever boards are asked for."""
        ids = ",".join(str(int(job_id)) for job_id in sorted(self.job_ids))
        jobs = self.session.fetch(_JOBS.format(ids=ids)) if ids else pl.DataFrame(schema=_JOB_TYPES)
        return jobs.select(pl.col(name).cast(kind) for name, kind in _JOB_TYPES.items())


def load_shares(
    session: SampleSession, site_id: int, boards: Collection[int], jobs: pl.DataFrame, window: Window
) -> dy.DataFrame[DeviceShares]:
    """Return what processes of these boards did, by device, job and time; who is none of ``jobs`` holds nothing and is nobody."""
    if not boards:
        return DeviceShares.create_empty()
    from_at, to_at = _around(window)
    rows = session.rows(Stream.DEVICE_SHARE, _SHARES, from_at, to_at, keys=boards, site_id=site_id).collect()
    if rows.is_empty():
        return DeviceShares.create_empty()
    known = rows.join(_job_of(rows, jobs), on=_RUN, how="left", nulls_equal=True)
    typed = known.select(
        "device_id",
        "at",
        "span_us",
        "job_id",
        _ppm("sm_util_percent", PPM // _PERCENT, MOST_PERCENT).alias("sm_util_ppm"),
        pl.when(pl.col("memory_used_bytes") >= 0).then("memory_used_bytes").alias("memory_used_bytes"),
        _ppm("share_ratio", PPM, MOST_RATIO).clip(upper_bound=PPM).alias("share_ppm"),
        "method",
    )
    # The first look of an agent speaks of no time.
    return DeviceShares.validate(_in_order(typed.filter(pl.col("span_us") > 0), DeviceShares))


def load_activity(
    session: SampleSession, site_id: int, devices: pl.DataFrame, boards: Collection[int], window: Window
) -> dy.DataFrame[InstanceActivity]:
    """Return the SM activity of the MIG instances of these boards, where they report it, by board, instance and time."""
    parts = devices.filter(pl.col("parent_device_id").is_in(list(boards)))
    if parts.is_empty():
        return InstanceActivity.create_empty()
    from_at, to_at = _around(window)
    rows = session.rows(
        Stream.DEVICE,
        ("span_us", "sm_active_ratio"),
        from_at,
        to_at,
        keys=parts["device_id"].to_list(),
        site_id=site_id,
    )
    seen = rows.filter(pl.col("sm_active_ratio").is_not_null() & (pl.col("span_us") > 0)).collect()
    typed = seen.join(parts.select("device_id", "parent_device_id"), on="device_id", how="inner").select(
        pl.col("parent_device_id").alias("device_id"),
        pl.col("device_id").alias("instance_id"),
        "at",
        "span_us",
        _ppm("sm_active_ratio", PPM, MOST_RATIO).clip(upper_bound=PPM).alias("sm_active_ppm"),
    )
    typed = typed.drop_nulls("sm_active_ppm")
    return InstanceActivity.validate(_in_order(typed, InstanceActivity))


def _job_of(rows: pl.DataFrame, jobs: pl.DataFrame) -> pl.DataFrame:
    """Return the job of each run that processes were told of: the one of that name whose start is nearest, as ingest matches runs."""
    runs = rows.select(_RUN).unique().drop_nulls()
    unique = pl.Series([is_unique(name) for name in runs["native_job_id"]], dtype=pl.Boolean)
    apart = (pl.col("started_us") - pl.col("job_started_at_us")).abs()
    return (
        runs.with_columns(unique.alias("unique"))
        .join(jobs, on=["cluster", "native_job_id"], how="inner")
        .filter(pl.col("unique") | (apart <= SAME_START_US))
        .sort(*_RUN, apart, "job_id")
        .unique(_RUN, keep="first", maintain_order=True)
        .select(*_RUN, "job_id")
    )


_JOB_TYPES: Final = {"job_id": pl.Int64, "cluster": pl.String, "native_job_id": pl.String, "started_us": pl.Int64}


def _around(window: Window) -> tuple[datetime, datetime]:
    return window.from_at - _MARGIN, window.to_at + _MARGIN


def _ppm(name: str, times: int, most: int) -> pl.Expr:
    """Return a float from 0 to ``most`` as parts per million, null for any other."""
    known = pl.col(name).cast(pl.Float64)
    return (pl.when(known.is_between(0, most)).then(known) * times).round().cast(pl.Int64)


def _in_order(rows: pl.DataFrame, schema: type[dy.Schema]) -> pl.DataFrame:
    kinds = schema.create_empty().schema
    return rows.select(pl.col(name).cast(kind) for name, kind in kinds.items()).sort(*kinds, nulls_last=True)
