"""Schemas of the frames that the simulated world tells of, as ``analytics.frames`` declares them."""

from __future__ import annotations

from typing import Final

from analytics import frames

ANCHORS: Final = frames.Anchors.create_empty().schema
PLACEMENTS: Final = frames.Placements.create_empty().schema
HOLDS: Final = frames.Holds.create_empty().schema
DEVICE_SHARES: Final = frames.DeviceShares.create_empty().schema
INSTANCE_ACTIVITY: Final = frames.InstanceActivity.create_empty().schema
