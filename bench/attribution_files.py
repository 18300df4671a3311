"""The sealed files of a simulated fleet, made once and kept: ``build/attribution-<digest of the spec>``, in the product's own format."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from bench.attribution_fleet import HOUR_US, MARGIN_HOURS, Fleet
from collector.wire import Stream
from ingest.store.merge import order
from ingest.store.sample_tables import TARGETS
from ingest.store.seal import folder_of
from ingest.store.segments import digest
from ingest.store.segments_format import SegmentMeta, SegmentWriter

SITE: Final = "bench"
_LISTED: Final = "files.json"
STREAMS: Final = (Stream.DEVICE, Stream.NODE, Stream.DEVICE_SHARE)


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One stream of one hour; ``path`` is below the root of the segments."""

    hour: str
    stream: str
    path: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SealedFleet:
    """Where the files of a fleet lie, and which they are."""

    root: Path
    files: tuple[SealedFile, ...]
    made_in_s: float

    def paths(self, stream: Stream) -> dict[str, Path]:
        """Return the files of a stream by hour."""
        return {file.hour: self.root / file.path for file in self.files if file.stream == stream.value}


def hours_of(fleet: Fleet) -> list[datetime]:
    """Return the hours that are sealed: those to be closed and the margins."""
    hours = range(-MARGIN_HOURS, fleet.spec.hours + MARGIN_HOURS)
    return [fleet.spec.start_at + timedelta(hours=number) for number in hours]


def sealed(fleet: Fleet, folder: Path = Path("build")) -> SealedFleet:
    """Return the files of a fleet; makes what is not there. A process that ended in between goes on where it was."""
    root = folder / f"attribution-{fleet.spec.digest}"
    listed = root / _LISTED
    if not listed.exists():
        began_s = time.perf_counter()
        (root / ".unfinished").mkdir(parents=True, exist_ok=True)
        files = [file for hour_at in hours_of(fleet) for file in _hour(fleet, root, hour_at)]
        told = {
            "files": [[getattr(f, n) for n in SealedFile.__slots__] for f in files],
            "s": time.perf_counter() - began_s,
        }
        scratch = root / f"{_LISTED}.{os.getpid()}"
        scratch.write_text(json.dumps(told))
        scratch.replace(listed)
    known = json.loads(listed.read_text())
    return SealedFleet(root, tuple(SealedFile(*file) for file in known["files"]), known["s"])


def _hour(fleet: Fleet, root: Path, hour_at: datetime) -> Iterator[SealedFile]:
    began_s = time.perf_counter()
    hour_us = int(hour_at.timestamp()) * 1_000_000
    for stream in STREAMS:
        path = f"{folder_of(SITE, hour_at)}/{stream.value}.g0001.parquet"
        target = root / path
        rows = _rows(fleet, stream, hour_us) if not target.exists() else None
        if rows is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = root / ".unfinished" / f"{hour_at:%d%H}.{stream.value}"
            writer = SegmentWriter(scratch, TARGETS[stream].schema, statistics=order(stream))
            writer.write(rows)
            writer.close(SegmentMeta(SITE, hour_at.isoformat(), stream.value, 1))
            scratch.replace(target)
        count = pl.scan_parquet(target).select(pl.len()).collect().item() if rows is None else rows.height
        yield SealedFile(hour_at.isoformat(), stream.value, path, count, target.stat().st_size, digest(target).hex())
    if time.perf_counter() - began_s > 1:
        sys.stderr.write(f"sealed {hour_at:%Y-%m-%d %H:%M} in {time.perf_counter() - began_s:.0f} s\n")


def _rows(fleet: Fleet, stream: Stream, hour_us: int) -> pl.DataFrame:
    if hour_us % HOUR_US:
        raise ValueError(f"{hour_us} does not begin an hour")
    if stream is Stream.DEVICE:
        return fleet.device_rows(hour_us)
    return fleet.node_rows(hour_us) if stream is Stream.NODE else fleet.share_rows(hour_us)
