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
    instances: pl.DataFrame
    anchors: pl.DataFrame
    holds: pl.DataFrame
    allocations: Rows
    """The holds with good evidence, resolved to boards as today's loader does it."""
    shares: pl.DataFrame
    activity: pl.DataFrame
    native_ids: dict[int, str]

    def of(self, boards: Collection[int]) -> Observed:
        """Return what is seen of some boards alone: a shard."""
        mine = pl.col("device_id").is_in(list(boards))
        return replace(
            self,
            readings=DeviceReadings.validate(self.readings.filter(mine)),
            devices=[row for row in self.devices if row["device_id"] in boards],
            allocations=[row for row in self.allocations if row["device_id"] in boards],
        )

    def site(self, **more: Any) -> Site:
        """Return the site a close reads today, of whole boards; placements, anchors and activity have no place in it yet."""
        jobs = sorted({row["job_id"]: row["start_at"] for row in self.allocations}.items())
        return Site(
            readings=self.readings.to_dicts(),
            devices=self.devices,
            epochs=self.epochs,
            allocations=self.allocations,
            jobs=[
                {
                    "job_id": number,
                    "cluster": "sim",
                    "native_id": self.native_ids[number],
                    "origin": int(Origin.SIMULATED),
                }
                for number, _ in jobs
            ],
            hours=self.hours,
            **more,
        )
