"""Schemas of frames that the model will read and ``analytics.frames`` does not declare yet, in one place until it does."""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import INSTANT

Schema = dict[str, type[pl.DataType] | pl.DataType]

ANCHORS: Final[Schema] = {"device_id": pl.Int32, "at": INSTANT, "energy_mj": pl.Int64}
"""A counter value that a hook read where a hold begins or ends."""
PLACEMENTS: Final[Schema] = {
    "device_id": pl.Int32,
    "node_id": pl.Int32,
    "in_service": pl.Boolean,
    "asset": pl.String,
    "valid_from": INSTANT,
    "valid_to": INSTANT,
}
HOLDS: Final[Schema] = {
    "allocation_id": pl.Int64,
    "job_id": pl.Int64,
    "job_key": pl.String,
    "device_id": pl.Int32,
    "node_id": pl.Int32,
    "accelerators": pl.Int32,
    "share_ppm": pl.Int32,
    "evidence": pl.String,
    "start_at": INSTANT,
    "end_at": INSTANT,
    "job_ended_at": INSTANT,
}
INSTANCES: Final[Schema] = {"device_id": pl.Int32, "parent_device_id": pl.Int32, "slice_ppm": pl.Int32}
"""What ``Devices`` will say of a MIG instance."""
DEVICE_SHARES: Final[Schema] = {
    "device_id": pl.Int32,
    "at": INSTANT,
    "span_us": pl.Int64,
    "job_id": pl.Int64,
    "sm_util_ppm": pl.Int32,
    "memory_used_bytes": pl.Int64,
    "share_ppm": pl.Int32,
    "method": pl.String,
}
INSTANCE_ACTIVITY: Final[Schema] = {
    "device_id": pl.Int32,
    "instance_id": pl.Int32,
    "at": INSTANT,
    "span_us": pl.Int64,
    "sm_active_ppm": pl.Int32,
}
