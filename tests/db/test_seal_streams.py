"""Late rows of every stream, rows that come in parts, several sites, and buckets: where each row is and how it is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest
from obstore.store import MemoryStore

from collector.wire import Feed, Stream
from ingest.settings import Settings
from ingest.store.catalog import listed_files
from ingest.store.engine import Database
from ingest.store.hours import HOUR_US
from ingest.store.samples import sample_session, samples
from ingest.store.seal import Sealer, hour_of
from ingest.store.segment_cache import Cache
from ingest.store.segments import Bucket, SegmentError, Segments
from ingest.store.segments_check import check_file
from tests.db.ingest_harness import Site, batch_meta, body_of, device_row, make_site, now_us, rows, run, send
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def of_feed(fleet: SmallFleet, feed: Feed) -> int:
    ((epoch,),) = fleet.rows(
        "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
        "VALUES (%s, 'b1', 0, %s, 1, 10000000, 'test') RETURNING id",
        fleet.node_id,
        int(feed),
    )
    return int(epoch)


def part(fleet: SmallFleet, epoch: int, table: str, second: int, **values: int) -> None:
    names = "".join(f", {name}" for name in values)
    fleet.rows(
        f"INSERT INTO {table} (at, device_id, epoch_id, reading, span_us, samples, samples_missed{names}) "
        f"VALUES (%s, %s, %s, 0, 0, 1, 0{', %s' * len(values)}) RETURNING 1",
        HOUR_AT + timedelta(seconds=second),
        fleet.device_id,
        epoch,
        *values.values(),
    )


def test_parts_of_a_row_are_one_row_hot_late_sealed_and_merged(fleet: SmallFleet, tmp_path: Path) -> None:
    segments, columns = Segments.at(tmp_path), ["energy_mj", "temp_c", "power_average_mw"]
    epoch = of_feed(fleet, Feed.REMOTE_WRITE)
    fleet.rows("SELECT ensure_partitions(%s, %s, NULL)", HOUR_AT.date(), (HOUR_AT + timedelta(days=1)).date())
    part(fleet, epoch, "device_samples", 10, energy_mj=1_000)
    part(fleet, epoch, "device_samples", 10, temp_c=40)
    part(fleet, epoch, "device_samples", 10, energy_mj=1_000)  # the first request, sent again
    part(fleet, epoch, "device_samples", 20, energy_mj=2_000)
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)

    def read() -> list[tuple[object, ...]]:
        found = samples(fleet.database, HOUR_AT, HOUR_AT + HOUR, columns, segments=segments).collect()
        return found.select(columns).rows()

    assert read() == [(1_000, 40, None), (2_000, None, None)]
    assert sealer.seal(hour).rows == 2
    assert read() == [(1_000, 40, None), (2_000, None, None)]
    part(fleet, epoch, "late_samples", 20, temp_c=41)
    part(fleet, epoch, "late_samples", 10, power_average_mw=7)
    whole = [(1_000, 40, 7), (2_000, 41, None)]
    assert read() == whole
    assert sealer.merge(hour).rows == 2
    assert read() == whole


def sent(db: Database, site: Site, body: bytes) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, body, site.node_tokens["node-1"])
        assert answer.status_code == 200, answer.text

    run(Settings(db), scenario)


def test_late_rows_of_every_stream_wait_beside_the_segments_and_are_merged(db: Database, tmp_path: Path) -> None:
    site = make_site(db)
    hour_us = now_us() // HOUR_US * HOUR_US - 4 * HOUR_US
    hour_at = datetime.fromtimestamp(hour_us / 1e6, UTC)
    meta = batch_meta()

    def body(sequence: int, offset_us: int) -> bytes:
        at = hour_us + offset_us
        health = {"at_us": at, "device": 0, "memory_total_bytes": 80}
        share = {"at_us": at, "device": 0, "span_us": 0, "processes": 1, "evidence": "cgroup", "method": "equal"}
        return body_of(
            batch_meta(spool=meta.spool, sequence=sequence),
            device_row(at),
            node=rows(Stream.NODE, {"at_us": at, "meter": "redfish", "span_us": 0, "power_mw": 5}),
            fabric=rows(Stream.FABRIC, {"at_us": at, "port": "mlx5_0/1", "span_us": 0, "tx_bytes": 5}),
            engine=rows(Stream.ENGINE, {"at_us": at, "engine": "e", "model": "m", "span_us": 0, "prompt_tokens": 5}),
            device_health=rows(Stream.DEVICE_HEALTH, health),
            device_share=rows(Stream.DEVICE_SHARE, share),
        )

    sent(db, site, body(1, 1))
    segments = Segments.at(tmp_path)
    sealer, hour = Sealer(db, segments), hour_of(site.site_id, hour_at)
    assert sealer.seal(hour).rows == 6
    sent(db, site, body(2, 2))
    with db.connect("admin") as connection:
        for table in ("samples", "node_samples", "fabric_samples", "engine_samples", "device_health", "device_shares"):
            assert connection.execute(f"SELECT count(*) FROM late_{table}".encode()).fetchone() == (1,), table
    with db.connect("admin", autocommit=True) as connection:
        connection.execute("UPDATE late_device_shares SET label = 'owner=ada'")
    assert sealer.merge(hour).rows == 12
    shares = [pl.read_parquet(path).columns for path in tmp_path.rglob("device_shares*.parquet")]
    assert ["evidence" in columns for columns in shares] == [True, True]
    assert ["label" in columns for columns in shares] == [False, False]  # words of people that nothing reads there
    with sample_session(db, segments) as session:
        for stream in (Stream.NODE, Stream.FABRIC, Stream.ENGINE, Stream.DEVICE_HEALTH, Stream.DEVICE_SHARE):
            found = session.rows(stream, [], hour_at, hour_at + HOUR).collect()
            assert found.height == 2, stream


def test_each_site_is_read_from_where_it_is(fleet: SmallFleet, tmp_path: Path) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=1))
    ((site,),) = fleet.rows("INSERT INTO sites (name) VALUES ('s2') RETURNING id")
    ((node,),) = fleet.rows("INSERT INTO nodes (site_id, name) VALUES (%s, 'n1') RETURNING id", site)
    ((epoch,),) = fleet.rows(
        "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
        "VALUES (%s, 'b', 0, 1, 1, 10000000, 'test') RETURNING id",
        node,
    )
    part(fleet, epoch, "device_samples", 5, energy_mj=5)  # the same device, seen by a node of the other site
    segments = Segments.at(tmp_path)
    assert Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT)).rows == 7

    def count(site_id: int | None) -> int:
        found = samples(
            fleet.database, HOUR_AT, HOUR_AT + HOUR, ["energy_mj"], segments=segments, site_id=site_id
        ).collect()
        return found.height

    assert (count(None), count(fleet.site_id), count(site)) == (8, 7, 1)
    assert Sealer(fleet.database, segments).seal(hour_of(site, HOUR_AT)).rows == 1
    assert (count(None), count(fleet.site_id), count(site)) == (8, 7, 1)


def test_a_bucket_holds_segments_as_a_folder_does(fleet: SmallFleet, tmp_path: Path) -> None:
    store, cache = MemoryStore(), tmp_path / "cache"
    cache.mkdir()
    segments = Segments(Bucket(store, Cache(cache)), cache / ".unfinished", "memory://")
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    assert sealer.seal(hour).rows == 360

    def read(of: Segments) -> int:
        return samples(fleet.database, HOUR_AT, HOUR_AT + HOUR, ["energy_mj"], segments=of).collect().height

    assert read(segments) == 360
    (path, _) = next(segments.listed("site=s1"))
    assert path.startswith("site=s1/date=2026-11-01/hour=08/device_samples.g0001.")
    other = Segments(Bucket(store, Cache(tmp_path / "other")), tmp_path / "other" / ".unfinished", "memory://")
    (tmp_path / "other").mkdir()
    assert read(other) == 360  # fetched, checked and kept
    segments.delete(path)
    segments.delete(path)  # what is gone is gone
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SegmentError, match="is missing"):
        read(Segments(Bucket(store, Cache(empty)), empty / ".unfinished", "memory://"))


def test_an_interval_of_a_bucket_may_be_larger_than_what_is_kept_of_it(fleet: SmallFleet, tmp_path: Path) -> None:
    store = MemoryStore()
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    sealer = Sealer(fleet.database, Segments(Bucket(store, Cache(tmp_path / "a")), tmp_path / "a", "memory://"))
    for number in range(3):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    small = Segments(Bucket(store, Cache(tmp_path / "b", most_bytes=1)), tmp_path / "b", "memory://")
    found = samples(fleet.database, HOUR_AT, HOUR_AT + 3 * HOUR, ["energy_mj"], segments=small).collect()
    assert found.height == 3 * 360


def test_a_file_that_is_gone_from_a_bucket_is_found_missing_whatever_is_kept_of_it(
    fleet: SmallFleet, tmp_path: Path
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    segments = Segments(Bucket(MemoryStore(), Cache(tmp_path)), tmp_path / ".unfinished", "memory://")
    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))
    with fleet.database.connect("worker") as connection:
        (listed,) = listed_files(connection, None, HOUR_AT, HOUR_AT + HOUR)
    assert check_file(segments, listed, thoroughly=True).fault is None
    segments.delete(listed.file.path)
    assert "is missing" in str(check_file(segments, listed, thoroughly=False).fault)
