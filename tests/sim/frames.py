"""Schemas of the frames that the simulated world tells of, as ``analytics.frames`` declares them."""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics import frames

ANCHORS: Final = frames.Anchors.create_empty().schema
PLACEMENTS: Final = frames.Placements.create_empty().schema
HOLDS: Final = frames.Holds.create_empty().schema
DEVICE_SHARES: Final = frames.DeviceShares.create_empty().schema
INSTANCE_ACTIVITY: Final = frames.InstanceActivity.create_empty().schema
INSTANCES: Final = {"device_id": pl.Int32, "parent_device_id": pl.Int32, "slice_ppm": pl.Int32}
"""What ``Devices`` says of a MIG instance, and nothing else of it."""
