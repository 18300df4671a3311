"""The files of sealed hours as other readers of Parquet see them, and damage as we see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from ingest.store import segments_format
from ingest.store.segments_format import (
    SegmentFormatError,
    SegmentMeta,
    SegmentWriter,
    check_pages,
    read_meta,
    scan,
)

pytestmark = pytest.mark.contract
SCHEMA: dict[str, Any] = {
    "device_id": pl.Int32,
    "at": pl.Datetime("us", "UTC"),
    "energy_mj": pl.Int64,
    "temp_c": pl.Int16,
    "sm_active_ratio": pl.Float32,
    "processes": pl.Int16,
}
META = SegmentMeta("s1", "2026-11-01T08:00:00+00:00", "device_samples", 1, {"id": [1], "uuid": ["GPU-1"]})
STATISTICS = ("device_id", "at")


def rows(devices: int = 4, count: int = 50) -> pl.DataFrame:
    """Rows by device and time, the ratio null in every third row, processes never told."""
    start = datetime(2026, 11, 1, 8, tzinfo=UTC)
    made = [
        (
            device,
            start + timedelta(seconds=10 * n),
            10**9 + n * 3_000 + device,
            40 + n % 3,
            None if n % 3 else n / 64,
            None,
        )
        for device in range(1, devices + 1)
        for n in range(count)
    ]
    return pl.DataFrame(made, schema=SCHEMA, orient="row")


def write(path: Path, frames: list[pl.DataFrame]) -> Path:
    writer = SegmentWriter(path, SCHEMA, statistics=STATISTICS)
    for frame in frames:
        writer.write(frame)
    writer.close(META)
    return path


def test_any_reader_of_parquet_reads_a_segment(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [rows()])
    told = rows().drop("processes")  # nobody ever told it: the file has no such column
    assert_frame_equal(pl.read_parquet(path), told)
    assert_frame_equal(pl.DataFrame(pq.read_table(path)), told)
    assert_frame_equal(scan([path], SCHEMA).collect(), rows())
    meta = read_meta(path)
    assert (meta.rows, meta.keys["uuid"], list(meta.null_columns)) == (200, ["GPU-1"], ["processes"])


def test_frames_of_any_cut_make_row_groups_that_are_skipped_by_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments_format, "ROW_GROUP_ROWS", 64)
    path = write(tmp_path / "a.parquet", [rows()[:7], rows()[7:150], rows()[150:]])
    assert_frame_equal(scan([path], SCHEMA).collect(), rows())
    footer = pq.read_metadata(path)
    assert [footer.row_group(number).num_rows for number in range(footer.num_row_groups)] == [64, 64, 64, 8]
    last = footer.row_group(3).column(0).statistics
    assert (last.min, last.max) == (4, 4)
    assert check_pages(path) == 200


def test_a_changed_byte_is_found_by_its_page_and_a_foreign_file_by_its_footer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [rows()])
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(2)
    inside = column.data_page_offset + column.total_compressed_size - 3
    path.write_bytes(whole[:inside] + bytes([whole[inside] ^ 0xFF]) + whole[inside + 1 :])
    with pytest.raises(SegmentFormatError, match="damaged"):
        check_pages(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(SegmentFormatError, match="not a readable Parquet file"):
        read_meta(path)
    rows().write_parquet(path)
    with pytest.raises(SegmentFormatError, match="not one of Wattledger's segments"):
        read_meta(path)
