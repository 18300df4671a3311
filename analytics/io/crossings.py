"""Finds silences over the edges of hours among readings: those whose end lies beyond the margin after an edge.

All that an hour knows beyond that margin is the one reading by which such a silence ends. It reads nothing and decides nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import polars as pl

from analytics.inputs import Window
from analytics.policy import Policy
from analytics.units import US_PER_HOUR, to_us

_TOLD: Final = ["device_id", "feed", "origin"]
_USES: Final = pl.col("energy_mj").is_not_null() | pl.col("power_mw").is_not_null()


class Crossing(NamedTuple):
    """A device's silence over an edge of hours, told by one feed where several tell of the device."""

    device_id: int
    feed: int | None
    """As ``origin`` null = everybody who tells of the device."""
    origin: int | None
    from_us: int
    """Its last reading before."""
    to_us: int
    """The first one after."""
    heard_us: int
    """A margin before that: edges up to here lie in the silence with the margin after them."""
    energy_mj: int | None
    power_mw: int | None
    """What the first one after says."""

    def is_over(self, edge_us: int) -> bool:
        """Say whether an edge of hours lies in it, with the margin after it."""
        return self.from_us < edge_us <= self.heard_us


def crossings(
    readings: pl.DataFrame, epochs: pl.DataFrame, told: pl.DataFrame, window: Window, policy: Policy
) -> tuple[Crossing, ...]:
    """Return the silences over edges of hours in the window, its own two among them, that are over; sorted.

    ``readings``: of the window and around it, by device and time. ``told``: device_id, feed, origin of devices that several feeds tell
    of: each feed's silence is its own.
    """
    nobody = pl.lit(None, dtype=pl.Int16)
    alone = _silent(readings, ["device_id"], window, policy).with_columns(feed=nobody, origin=nobody)
    found = [alone]
    if not told.is_empty():
        several = readings.join(told.select("device_id").unique(), on="device_id", how="semi")
        by_feed = several.join(epochs.select("epoch_id", *_TOLD[1:]), on="epoch_id")
        found = [
            alone.join(told, on="device_id", how="anti"),
            _silent(by_feed.sort(*_TOLD, "at", maintain_order=True), _TOLD, window, policy),
        ]
    return tuple(sorted(Crossing(*row) for part in found for row in part.select(Crossing._fields).iter_rows()))


def _silent(rows: pl.DataFrame, who: list[str], window: Window, policy: Policy) -> pl.DataFrame:
    """Return ``who`` and what else a :class:`Crossing` has; rows are in order of ``who`` and time."""
    if not rows.select(_USES.all()).item():
        rows = rows.filter(_USES)
    # Of all rows only their instants are looked at: in an open hour this is done every few seconds.
    after = np.flatnonzero(np.diff(rows["at"].to_physical().to_numpy()) > policy.margin_us) + 1
    at_us = pl.col("at").to_physical()
    before = rows[after - 1].select(pl.col(who).name.suffix("_before"), from_us=at_us)
    found = rows[after].select(*who, "energy_mj", "power_mw", to_us=at_us, heard_us=at_us - policy.margin_us)
    begins_us, ends_us = to_us(window.from_at), to_us(window.to_at)
    last_edge = pl.min_horizontal("heard_us", pl.lit(ends_us)) // US_PER_HOUR * US_PER_HOUR
    return found.hstack(before).filter(
        *(pl.col(name) == pl.col(f"{name}_before") for name in who),
        pl.col("to_us") - pl.col("from_us") <= policy.gaps.reach_us,
        last_edge >= begins_us,
        last_edge > pl.col("from_us"),
    )
