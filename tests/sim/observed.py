"""What is seen of a simulated world, as the frames the model reads. It knows no truth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import dataframely as dy
import polars as pl

from analytics.frames import DeviceReadings
from collector.wire import Origin
from tests.fakes.site import Rows, Site


@dataclass(frozen=True)
class Observed:
    """All of it is of origin ``simulated``."""

    hours: int
    readings: dy.DataFrame[DeviceReadings]
    epochs: Rows
    devices: Rows
    placements: pl.DataFrame
    anchors: pl.DataFrame
    holds: pl.DataFrame
    shares: pl.DataFrame
    activity: pl.DataFrame
    native_ids: dict[int, str]

    def of(self, boards: Collection[int]) -> Observed:
        """Return what is seen of some boards alone, with their instances: a shard."""
        mine = [row for row in self.devices if (row.get("parent_device_id") or row["device_id"]) in boards]
        theirs = pl.col("device_id").is_in([row["device_id"] for row in mine])
        return replace(
            self,
            readings=DeviceReadings.validate(self.readings.filter(theirs)),
            devices=mine,
            placements=self.placements.filter(theirs),
            holds=self.holds.filter(theirs),
            shares=self.shares.filter(theirs),
            activity=self.activity.filter(theirs),
        )

    def site(self, *, activity: bool = True, **more: Any) -> Site:
        """Return the site a close reads; without ``activity`` nobody saw who worked on shared boards. Anchors are the caller's to name."""
        return Site(
            readings=self.readings.to_dicts(),
            devices=self.devices,
            placements=self.placements.to_dicts(),
            epochs=self.epochs,
            allocations=self.holds.to_dicts(),
            shares=self.shares.to_dicts() if activity else (),
            activity=self.activity.to_dicts() if activity else (),
            jobs=[
                {
                    "job_id": number,
                    "cluster": "sim",
                    "native_id": self.native_ids[number],
                    "origin": int(Origin.SIMULATED),
                }
                for number in self.holds["job_id"].unique().sort().to_list()
            ],
            hours=self.hours,
            **more,
        )
