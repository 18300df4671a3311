"""Says what a run of the books read: the files of sealed hours by their bytes, everything else by rows and SHA-256.

Kept with the run, it tells whether a later computation stands on the same ground, and if not, on which part. Readings from segments
are not hashed again: the file's SHA-256 is in the catalog. It reads nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl

from analytics.inputs import HourInputs, References, UsageInputs
from analytics.pipeline import RatingInputs, content_hash
from ingest.store.samples import FileRead

_READ_APART: Final = frozenset({"window", "readings", "device_shares", "instance_activity"})
"""Fields of what books are made of that are read of some devices at a time: readings are told by their files, the others hashed by device."""
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "placements": ("device_id", "valid_from"),
    "earlier_placements": ("device_id", "valid_from"),
    "holds": ("allocation_id",),
    "capacity_holds": ("hold_id",),
    "assets": ("asset", "device_id", "node_id", "capitalized_at"),
    "anchors": ("device_id", "at", "energy_mj"),
    "devices": ("device_id",),
    "epochs": ("epoch_id",),
    "jobs": ("job_id",),
    "bindings": ("binding_id",),
    "tenants": ("tenant_id",),
    "tenant_moves": ("move_id",),
    "idle_policies": ("policy_id",),
    "prices": ("price_id",),
    "aliases": ("alias_id",),
    "price_policies": ("policy_id",),
    "tariffs": ("tariff_id",),
    "intensity": ("intensity_id",),
    "facility_factors": ("factor_id",),
    "api_calls": ("called_at", "dedupe_key"),
    "usage_hours": ("hour_at", "device_id", "holder"),
    "findings": ("dedupe_key",),
}

_LATER: Final[dict[str, tuple[str, ...]]] = {
    "api_calls": (
        *("audio_input_tokens", "audio_output_tokens", "cache_write_1h_tokens", "service_tier", "is_batch"),
        *("tool_calls", "images", "media_ms", "characters", "pages", "deployment"),
    ),
    "prices": (
        *("site_id", "region", "purchase", "service_tier", "above_tokens", "cache_ttl_s"),
        *("time_zone", "from_local", "to_local", "weekdays"),
    ),
}
"""Columns a frame was given after runs had put it on record: where nothing is in one, it is not part of the record."""
_LATER_FRAMES: Final = frozenset(("aliases", "price_policies"))
"""Frames that came later: where one is empty, it is not on record."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was read for a window of hours."""

    window: tuple[str, str]
    """Its begin and end: hours that were computed together were computed from one reading."""
    files: tuple[FileRead, ...]
    outside: tuple[int, str] | None
    """Rows that were read outside of segments, and the SHA-256 of all readings then; null = none were."""
    frames: dict[str, tuple[int, str]]
    """Rows and SHA-256 by name, in the order of their keys."""
    currency: str

    def as_json(self) -> dict[str, Any]:
        """Return it as it is kept, with the versions of what computed."""
        return {
            "window": list(self.window),
            "segments": [[f.stream, f.hour_at.isoformat(), f.generation, f.sha256] for f in self.files],
            "outside": None if self.outside is None else list(self.outside),
            "frames": {name: list(counted) for name, counted in self.frames.items()},
            "currency": self.currency,
            "versions": {"polars": pl.__version__, "python": platform.python_version()},
        }

    def sha256(self) -> bytes:
        """Return the SHA-256 of its canonical JSON: two runs of one code version with equal ones must write equal books."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()


def manifest(
    inputs: HourInputs,
    files: Iterable[FileRead],
    rows_outside: int,
    readings_sha256: str | None,
    seen: Mapping[str, RowsDigest],
) -> Manifest:
    """Return what these inputs are made of; ``files`` were read for their readings, and so many rows outside of them.

    ``readings_sha256``: of all readings; null only where no row was outside. Those of ``inputs`` are not looked at.
    ``seen``: the frames that were read of some devices at a time.
    """
    window, references = inputs.usage.window, inputs.references
    frames: dict[str, pl.DataFrame] = {
        **_frames_of(inputs.usage),
        **_frames_of(references),
        "api_calls": inputs.api_calls,
    }
    return Manifest(
        window=(window.from_at.isoformat(), window.to_at.isoformat()),
        files=tuple(sorted(files)),
        outside=(rows_outside, readings_sha256) if readings_sha256 is not None else None,
        frames=_told(frames) | {name: (digest.rows, digest.sha256()) for name, digest in seen.items()},
        currency=references.currency,
    )


def rating_manifest(inputs: RatingInputs) -> Manifest:
    """Return what a rating read: no sample, usage hours instead, which an earlier run tells the origin of."""
    window = inputs.window
    frames = _frames_of(inputs.references) | {
        "api_calls": inputs.api_calls,
        "usage_hours": inputs.usage,
        "findings": inputs.findings.select("dedupe_key", "waste_energy_mj"),
    }
    return Manifest(
        (window.from_at.isoformat(), window.to_at.isoformat()), (), None, _told(frames), inputs.references.currency
    )


def _frames_of(inputs: UsageInputs | References) -> dict[str, pl.DataFrame]:
    """Return every frame of these inputs by its field, so that none is forgotten that is added one day."""
    found = {field.name: getattr(inputs, field.name) for field in fields(inputs) if field.name not in _READ_APART}
    return {name: value for name, value in found.items() if isinstance(value, pl.DataFrame)}


def _told(frames: dict[str, pl.DataFrame]) -> dict[str, tuple[int, str]]:
    told = {}
    for name, whole in frames.items():
        if name in _LATER_FRAMES and whole.is_empty():
            continue
        frame = without_later(name, whole)
        key = _KEYS.get(name, tuple(frame.columns))
        told[name] = (frame.height, content_hash(frame.sort(*key)).hex())
    return told


def without_later(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame less the columns it was given later that say nothing in it: what was read before is hashed as it was."""
    return frame.drop(column for column in _LATER.get(name, ()) if frame[column].null_count() == frame.height)


class RowsDigest:
    """Hashes readings, or looks, of some devices after the other: the same whichever are added together, and in which order."""

    def __init__(self) -> None:
        self.rows = 0
        self._of_device: dict[int, bytes] = {}

    def add(self, readings: pl.DataFrame) -> None:
        """Take in all rows of some devices, in order of device, time and values; each device once."""
        if readings.is_empty():
            return
        self.rows += readings.height
        devices = readings["device_id"].to_numpy()
        edges = [0, *(np.flatnonzero(devices[1:] != devices[:-1]) + 1).tolist(), len(devices)]
        columns = []
        for name in readings.columns:
            column = _as_numbers(readings[name])
            columns.append(column.to_physical().fill_null(0).rechunk().to_numpy())
            if column.null_count():
                columns.append(column.is_null().cast(pl.UInt8).rechunk().to_numpy())
            else:  # a shard of other devices may have some
                columns.append(np.zeros(len(devices), dtype=np.uint8))
        for first, after in pairwise(edges):
            digest = hashlib.sha256()
            for values in columns:
                digest.update(values[first:after].data)
            self._of_device[int(devices[first])] = digest.digest()

    def take(self, other: RowsDigest) -> None:
        """Take in what another has of other devices."""
        self.rows += other.rows
        self._of_device |= other._of_device

    def sha256(self) -> str:
        """Return the SHA-256 of what was added, as hexadecimal."""
        whole = hashlib.sha256()
        for device_id in sorted(self._of_device):
            whole.update(self._of_device[device_id])
        return whole.hexdigest()


def _as_numbers(column: pl.Series) -> pl.Series:
    """Return a column of a few words as the beginnings of their hashes, any other as it is."""
    if column.dtype != pl.String:
        return column
    words = column.unique().drop_nulls().to_list()
    codes = {word: int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], signed=True) for word in words}
    return column.replace_strict(codes, default=None, return_dtype=pl.Int64)


def readings_sha256(inputs: HourInputs) -> str:
    """Return the SHA-256 of the readings: equal from wherever they were read."""
    digest = RowsDigest()
    digest.add(inputs.usage.readings)
    return digest.sha256()
