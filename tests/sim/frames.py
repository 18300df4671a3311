"""Schemas of the frames that the simulated world tells of, as ``analytics.frames`` declares them.

Read off the declarations: an empty frame would have polars compute at import, after which a process cannot be forked.
"""

from __future__ import annotations

from typing import Final

import dataframely as dy
import polars as pl

from analytics import frames


def _schema(of: type[dy.Schema]) -> pl.Schema:
    return pl.Schema({name: column.dtype for name, column in of.columns().items()})


ANCHORS: Final = _schema(frames.Anchors)
PLACEMENTS: Final = _schema(frames.Placements)
HOLDS: Final = _schema(frames.Holds)
DEVICE_SHARES: Final = _schema(frames.DeviceShares)
INSTANCE_ACTIVITY: Final = _schema(frames.InstanceActivity)
