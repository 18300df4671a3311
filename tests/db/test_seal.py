"""Sealing an hour, merging what comes late, and reading each row from the one place where it is."""

from __future__ import annotations

import shutil
import time
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from collector.wire import Stream
from ingest.store.engine import Database
from ingest.store.samples import samples
from ingest.store.seal import HourBusyError, LostRowsError, Sealer, hour_of
from ingest.store.segment_place import claim
from ingest.store.segments import MARKER, SegmentError, Segments, SegmentUnreachableError
from ingest.store.segments_format import read_meta
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
COLUMNS = ("energy_mj", "power_average_mw", "gpu_util_percent", "reading", "temp_c")


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    return Segments.at(tmp_path / "segments")


def read(fleet: SmallFleet, segments: Segments | None, hours: int = 3) -> pl.DataFrame:
    return samples(fleet.database, HOUR_AT, HOUR_AT + hours * HOUR, COLUMNS, segments=segments).collect()


def late(fleet: SmallFleet, seconds: int, energy_mj: int, *, table: str = "late_samples") -> None:
    with fleet.admin() as connection:
        connection.execute(
            f"INSERT INTO {table} (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0, %s)",
            (HOUR_AT + timedelta(seconds=seconds), fleet.device_id, fleet.epoch_id, energy_mj),
        )


def test_a_sealed_hour_reads_as_it_did_from_the_hot_table(fleet: SmallFleet, segments: Segments) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    before = read(fleet, None)

    done = Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + HOUR))

    assert (done.generation, done.rows) == (1, 360)
    fleet.rows("DELETE FROM device_samples WHERE at >= %s AND at < %s RETURNING 1", HOUR_AT + HOUR, HOUR_AT + 2 * HOUR)
    assert_frame_equal(read(fleet, segments), before)
    with pytest.raises(SegmentError, match="1 hours from 2026-11-01 09:00"):
        read(fleet, None)


def test_a_segment_says_itself_what_is_in_it(fleet: SmallFleet, segments: Segments, tmp_path: Path) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))

    (path,) = (tmp_path / "segments").rglob("*.parquet")

    assert path.relative_to(tmp_path / "segments").parts[:3] == ("site=s1", "date=2026-11-01", "hour=08")
    meta = read_meta(path)
    assert (meta.site, meta.hour, meta.stream) == ("s1", "2026-11-01T08:00:00+00:00", "device_samples")
    assert (meta.generation, meta.rows) == (1, 360)
    assert meta.keys["uuid"] == ["GPU-1"]
    assert meta.keys["node"] == ["n1"]
    assert (meta.epochs["boot_id"], meta.epochs["feed"]) == (["b1"], [1])


def test_late_rows_are_read_at_once_and_merged_into_the_next_generation(fleet: SmallFleet, segments: Segments) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=30))
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    assert sealer.seal(hour).rows == 181
    late(fleet, 2_400, 7)
    late(fleet, 15, 9)
    before = read(fleet, segments)
    assert before.height == 183

    merged = sealer.merge(hour)

    assert (merged.generation, merged.rows) == (2, 183)
    assert fleet.rows("SELECT count(*) FROM late_samples") == [(0,)]
    assert_frame_equal(read(fleet, segments), before)
    assert sealer.merge(hour).generation == 2  # nothing is late: nothing changes
    assert fleet.rows("SELECT generation, retired_at IS NULL FROM hour_segments ORDER BY 1") == [(1, False), (2, True)]


def test_late_rows_that_were_merged_are_in_a_file_made_anew(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    late(fleet, 11, 5)  # before the hour is sealed, as after hot retention
    sealer.seal(hour)
    late(fleet, 15, 9)
    sealer.merge(hour)
    before = read(fleet, segments)
    for path in (tmp_path / "segments").rglob("*.parquet"):
        path.unlink()

    rebuilt = sealer.rebuild(hour, [Stream.DEVICE])

    assert (rebuilt.generation, rebuilt.rows) == (3, 362)
    assert_frame_equal(read(fleet, segments), before)


def test_late_rows_of_a_day_that_is_hot_no_more_are_merged_without_it(fleet: SmallFleet, segments: Segments) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    for number in range(-8, 16):  # the whole day
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    fleet.rows("SELECT drop_partition('device_samples', %s)", HOUR_AT.date())
    late(fleet, 15, 9)

    assert sealer.merge(hour).rows == 361

    assert fleet.rows("SELECT count(*) FROM device_samples WHERE at < %s", HOUR_AT + HOUR) == [(0,)]
    with pytest.raises(LostRowsError, match="0 of the 361 rows"):
        sealer.rebuild(hour, [Stream.DEVICE])


def test_rows_sent_twice_are_in_the_file_once(fleet: SmallFleet, segments: Segments) -> None:
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    fleet.rows("SELECT ensure_partitions(%s, %s, NULL)", HOUR_AT.date(), (HOUR_AT + 24 * HOUR).date())
    late(fleet, 15, 9, table="device_samples")
    late(fleet, 15, 9, table="device_samples")
    assert sealer.seal(hour).rows == 1
    for energy_mj in (9, 10, 9):  # 10: another reading of that instant, and no repeat
        late(fleet, 15, energy_mj)

    assert sealer.merge(hour).rows == 2

    assert sorted(read(fleet, segments)["energy_mj"]) == [9, 10]
    assert sealer.rebuild(hour, [Stream.DEVICE]).rows == 2


def test_late_rows_that_say_nothing_new_make_no_generation(fleet: SmallFleet, segments: Segments) -> None:
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    fleet.rows("SELECT ensure_partitions(%s, %s, NULL)", HOUR_AT.date(), (HOUR_AT + 24 * HOUR).date())
    late(fleet, 15, 9, table="device_samples")
    sealer.seal(hour)
    before = read(fleet, segments)
    late(fleet, 15, 9)

    assert sealer.merge(hour).generation == 1

    assert fleet.rows("SELECT count(*) FROM late_samples") == [(0,)]
    assert_frame_equal(read(fleet, segments), before)


def test_an_open_connection_reads_the_same_and_is_left_idle(fleet: SmallFleet, segments: Segments) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    sealer = Sealer(fleet.database, segments)
    for number in range(2):  # one hour of three stays hot
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    late(fleet, 15, 9)
    to_at = HOUR_AT + 4 * HOUR
    with fleet.database.connect("worker") as connection:
        for _ in range(2):
            found = samples(fleet.database, HOUR_AT, to_at, COLUMNS, segments=segments, connection=connection).collect()
            assert_frame_equal(found, read(fleet, segments, 4))
        connection.execute("SELECT 1")
        with pytest.raises(ValueError, match="inside a transaction"):
            samples(fleet.database, HOUR_AT, to_at, COLUMNS, segments=segments, connection=connection)


def test_an_hour_without_rows_is_sealed_without_files(fleet: SmallFleet, segments: Segments) -> None:
    done = Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))
    assert (done.generation, done.rows, done.size_bytes) == (1, 0, 0)
    assert read(fleet, None).is_empty()


def test_a_sealed_hour_is_not_sealed_again(fleet: SmallFleet, segments: Segments) -> None:
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    sealer.seal(hour)
    with pytest.raises(HourBusyError, match="not sealing any more"):
        sealer.seal(hour)


def test_a_writer_in_the_middle_of_a_transaction_holds_the_sealer_up(fleet: SmallFleet, segments: Segments) -> None:
    hour = hour_of(fleet.site_id, HOUR_AT)
    with fleet.database.connect("writer") as writer:
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s)", [hour.lock_key])
        with pytest.raises(HourBusyError, match="being written to"):
            Sealer(fleet.database, segments).seal(hour)
    assert fleet.rows("SELECT count(*) FROM hour_catalog") == [(0,)]


def test_a_damaged_and_a_missing_segment_are_named_and_made_anew_while_hot(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    sealer.seal(hour)
    before = read(fleet, segments)
    (path,) = (tmp_path / "segments").rglob("*.parquet")
    healthy = path.read_bytes()
    path.write_bytes(healthy[:200] + bytes([healthy[200] ^ 1]) + healthy[201:])
    with pytest.raises(SegmentError, match=rf"{path.name}.* another SHA-256"):
        read(fleet, segments)
    path.unlink()
    with pytest.raises(SegmentError, match=rf"{path.name}.* is missing"):
        read(fleet, segments)

    rebuilt = sealer.rebuild(hour, [Stream.DEVICE])

    assert (rebuilt.generation, rebuilt.rows) == (2, 360)
    assert_frame_equal(read(fleet, segments), before)
    fleet.rows("DELETE FROM device_samples WHERE at = %s RETURNING 1", HOUR_AT)
    with pytest.raises(LostRowsError, match="359 of the 360 rows"):
        sealer.rebuild(hour, [Stream.DEVICE])
    assert_frame_equal(read(fleet, segments), before)


def test_sites_of_any_name_are_sealed_and_those_of_long_names_apart(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    sealer = Sealer(fleet.database, segments)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    long = "Центр обработки данных Новосибирск-Академгородок"  # 48 letters, 278 bytes when quoted
    for number, name in enumerate((long, f"{long} 2", "../..", "it's 東京/1", "a\nb%25", ".", "x" * 300)):
        fleet.rows("UPDATE sites SET name = %s RETURNING 1", name)
        for _ in range(2):  # the file, and one made anew beside it
            fleet.rows("DELETE FROM hour_segments RETURNING 1")
            fleet.rows("DELETE FROM hour_catalog RETURNING 1")
            sealer.seal(hour_of(fleet.site_id, HOUR_AT))
        assert read(fleet, segments, 1).height == 360
        assert len({path.parts[-4] for path in (tmp_path / "segments").rglob("*.parquet")}) == number + 1


def test_timeouts_of_the_server_do_not_end_a_sealer(fleet: SmallFleet, segments: Segments) -> None:
    with fleet.admin() as connection:
        name = fleet.database.name
        connection.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '100ms'".encode())
        connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '5s'".encode())
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)

    def slow(step: str) -> None:
        time.sleep(0.3 if step.startswith("publish") else 0)

    assert Sealer(fleet.database, segments, step=slow).seal(hour_of(fleet.site_id, HOUR_AT)).rows == 360


def test_nothing_is_published_into_a_folder_whose_disk_is_away_and_nothing_there_is_damaged(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    sealer, eight, nine = (
        Sealer(fleet.database, segments),
        hour_of(fleet.site_id, HOUR_AT),
        hour_of(fleet.site_id, HOUR_AT + HOUR),
    )
    sealer.seal(eight)
    before = read(fleet, segments)
    root = tmp_path / "segments"
    root.rename(tmp_path / "disk")
    root.mkdir()  # its mount point
    for who in (sealer, Sealer(fleet.database, Segments.at(root))):
        with pytest.raises(SegmentUnreachableError, match="no file 'wattledger-segments'"):
            who.seal(nine)
        with pytest.raises(SegmentUnreachableError, match="no file 'wattledger-segments'"):
            read(fleet, Segments.at(root))
    assert list(root.rglob("*.parquet")) == []
    root.rmdir()
    (tmp_path / "disk").rename(root)
    assert sealer.seal(nine).rows == 360
    assert_frame_equal(read(fleet, segments), before)


def test_a_disk_that_goes_while_an_hour_is_written_takes_no_file(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)

    def goes(step: str) -> None:
        if step == "publish device_samples":
            (tmp_path / "segments" / "wattledger-segments").unlink()

    hour = hour_of(fleet.site_id, HOUR_AT)
    with pytest.raises(SegmentUnreachableError, match="is its disk mounted"):
        Sealer(fleet.database, segments, step=goes).seal(hour)
    assert list((tmp_path / "segments").rglob("*.parquet")) == []
    assert Sealer(fleet.database, segments).seal(hour).rows == 360  # the catalog knows no file yet: a folder never used


def test_a_folder_with_the_files_of_the_catalog_is_marked_and_one_of_another_database_refused(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    hour = hour_of(fleet.site_id, HOUR_AT)
    Sealer(fleet.database, segments).seal(hour)
    shutil.copytree(tmp_path / "segments", tmp_path / "restored", ignore=shutil.ignore_patterns(MARKER))
    restored = Segments.at(tmp_path / "restored")
    Sealer(fleet.database, restored).merge(hour)
    assert restored.mark() == segments.mark()
    restored.set_mark("of another")
    with pytest.raises(SegmentUnreachableError, match="of another database: its 'wattledger-segments' says of another"):
        Sealer(fleet.database, restored).merge(hour)
    with fleet.database.connect("worker") as connection:
        claim(connection, restored)
    Sealer(fleet.database, restored).merge(hour)
