"""The worker's sealing: what is due, what a pass does, and what it leaves alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from ingest.store.catalog import ListedFile
from ingest.store.engine import Database
from ingest.store.hours import SiteHour
from ingest.store.samples import samples
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_days import Whole, drop_hot_days
from ingest.store.seal_hours import due
from ingest.store.seal_retention import Clocks, clocks
from ingest.store.segments import SegmentExpiredError, Segments
from ingest.store.segments_check import Checked, check_file
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.errors import WattledgerError
from wattledger.sealing import Pass, Sealing, SealingSettings

pytestmark = pytest.mark.db
NOW = HOUR_AT + timedelta(hours=8)
DAY_AT = HOUR_AT.replace(hour=0)
NO_TIME = timedelta(0)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    return fleet


class OneClock(Sealing):
    """Sealing with a database whose clock says what the worker's does, and agents that send until then, or as long as they did."""

    agents_send = True

    def once(self, now: datetime, is_ours: Callable[[], bool] = lambda: True) -> Pass:
        self.tell_time = lambda connection: Clocks(now, now if self.agents_send else clocks(connection).newest_at)
        return super().once(now, is_ours)


@pytest.fixture
def sealing(fleet: SmallFleet, tmp_path: Path) -> Iterator[OneClock]:
    engine = fleet.database.create_engine("worker")
    settings = SealingSettings(merge_after=NO_TIME, grace=NO_TIME)
    yield OneClock(fleet.database, Segments.at(tmp_path / "segments"), settings, "wattledger-worker/test", engine)
    engine.dispose()


def published(fleet: SmallFleet, at: datetime) -> None:
    """Have all files published, and all books closed for the first time, at this instant."""
    fleet.rows("UPDATE hour_segments SET published_at = %s RETURNING 1", at)
    fleet.rows("UPDATE ledger_runs SET finished_at = %s RETURNING 1", at)


def rest_is_sealed(fleet: SmallFleet) -> None:
    """Have all hours of the day that have no samples sealed."""
    fleet.rows(
        "INSERT INTO hour_catalog (site_id, hour_at, state, generation) SELECT %s, %s + hour * interval '1 hour', 'sealed', 1 "
        "FROM generate_series(0, 23) AS hour WHERE hour NOT BETWEEN 8 AND 11 RETURNING 1",
        fleet.site_id,
        DAY_AT,
    )


def hours(sealing: OneClock, now_hours: int) -> tuple[SiteHour, ...]:
    now = HOUR_AT + now_hours * HOUR
    return due(sealing.engine, now, seal_after=timedelta(hours=3), merge_after=NO_TIME).seal


def test_an_hour_is_due_three_hours_after_its_end_and_not_while_it_is_in_the_open_window(
    fleet: SmallFleet, sealing: OneClock
) -> None:
    eight = hour_of(fleet.site_id, HOUR_AT)
    assert eight not in hours(sealing, 4)
    assert hours(sealing, 5)[-1] == eight
    assert len(hours(sealing, 5)) == 9  # the day from midnight: an hour without rows is sealed too
    fleet.rows(
        "WITH run AS (INSERT INTO ledger_runs (site_id, hour_at, revision, code_version, as_of_at, seen_xid, inputs_sha256, "
        "content_sha256, reason) VALUES (%(site)s, %(hour)s, 0, 't', now(), '1', '', '', 't') RETURNING id) "
        "INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256) "
        "SELECT %(site)s, %(hour)s, 0, id, 'provisional', '1', '' FROM run RETURNING 1".replace(
            "%(site)s", str(fleet.site_id)
        ).replace("%(hour)s", f"'{HOUR_AT.isoformat()}'")
    )
    assert eight not in hours(sealing, 5)


def test_a_pass_seals_merges_drops_and_tidies_up(fleet: SmallFleet, sealing: OneClock, tmp_path: Path) -> None:
    first = sealing.once(NOW)
    assert (first.sealed, first.rows) == (12, 1081)  # a reading every 10 s, both ends included
    assert (first.merged, first.dropped_partitions) == (0, 0)
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, received_at) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0, %s)",
            (HOUR_AT + timedelta(seconds=5), fleet.device_id, fleet.epoch_id, NOW - HOUR),
        )
    left = tmp_path / "segments" / "site=s1" / "date=2026-11-01" / "hour=08" / "device_samples.g0009.lost.parquet"
    left.write_bytes(b"of a process that was killed")

    second = sealing.once(NOW)

    assert (second.sealed, second.merged, second.rows) == (0, 1, 361)
    assert (second.deleted_files, second.unknown_files, second.damaged_files) == (1, 1, 0)
    assert not left.exists()
    rest = sealing.once(DAY_AT + timedelta(days=4))
    assert (rest.sealed, rest.dropped_partitions) == (12, 7)  # the rest of that day; one of each stream's table
    assert fleet.rows("SELECT count(*) FROM device_samples") == [(0,)]
    assert not sealing.once(DAY_AT + timedelta(days=4)).is_anything


def test_a_day_stays_hot_while_any_site_has_an_unsealed_hour_of_it(fleet: SmallFleet, sealing: OneClock) -> None:
    sealer, after = Sealer(fleet.database, sealing.segments), (DAY_AT + timedelta(days=1)).date()
    rest_is_sealed(fleet)
    for number in range(4):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    ((site,),) = fleet.rows("INSERT INTO sites (name) VALUES ('new') RETURNING id")
    fleet.rows(
        "INSERT INTO hour_catalog (site_id, hour_at, state) SELECT %s, %s + hour * interval '1 hour', 'sealed' "
        "FROM generate_series(0, 22) AS hour RETURNING 1",
        site,
        DAY_AT,
    )
    assert drop_hot_days(sealing.engine, sealing.segments, after).partitions == []
    sealer.seal(hour_of(site, DAY_AT + 23 * HOUR))
    dropped = drop_hot_days(sealing.engine, sealing.segments, after).partitions
    assert {partition.day for partition in dropped} == {DAY_AT.date()}


DAMAGED = "SELECT start_at, evidence ->> 'stream', withdrawn_at IS NULL FROM findings WHERE kind = 'segment_damaged'"


def test_a_day_that_somebody_reads_is_dropped_later_and_its_files_are_read_once(
    fleet: SmallFleet, sealing: OneClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(segments: Segments, listed: ListedFile, *, thoroughly: bool) -> Checked:
        read.append(listed.file.path)
        return check_file(segments, listed, thoroughly=thoroughly)

    monkeypatch.setattr("ingest.store.seal_days.check_file", noted)
    rest_is_sealed(fleet)
    sealing.once(NOW)
    known: dict[date, Whole] = {}
    after = (DAY_AT + timedelta(days=1)).date()
    with fleet.admin() as connection:
        connection.execute("ALTER FUNCTION drop_partition(text, date) SET lock_timeout = '10ms'")
    with fleet.admin() as reader, reader.transaction():
        reader.execute("SELECT 1 FROM device_samples LIMIT 1")
        for _ in range(2):
            assert drop_hot_days(sealing.engine, sealing.segments, after, known=known).partitions == []
    assert len(read) == 4
    assert len(drop_hot_days(sealing.engine, sealing.segments, after, known=known).partitions) == 7
    assert (len(read), known) == (4, {})


def test_a_damaged_and_a_missing_file_are_findings_and_made_anew_while_their_rows_are_hot(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path
) -> None:
    rest_is_sealed(fleet)
    sealing.once(NOW)
    for fault in ("cut short", "missing", "unreadable"):
        path = max((tmp_path / "segments").rglob("hour=08/*.parquet"))
        path.write_bytes(path.read_bytes()[:-1])
        if fault != "cut short":
            path.unlink()
        if fault == "unreadable":
            path.mkdir()
        done = sealing.once(NOW)
        assert (done.damaged_files, done.rebuilt) == (1, 1)
    assert fleet.rows(DAMAGED) == [(HOUR_AT, "device_samples", False)] * 3
    assert sealing.once(NOW).damaged_files == 0
    assert (
        samples(fleet.database, HOUR_AT, HOUR_AT + HOUR, ["energy_mj"], segments=sealing.segments).collect().height
        == 360
    )


def test_a_day_stays_hot_while_a_file_of_it_is_damaged_and_cannot_be_made_anew(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattledger.sealing._CHECKED_HOURS", 0)
    rest_is_sealed(fleet)
    sealing.once(NOW)
    published(fleet, HOUR_AT)  # nobody looks at these files by chance, or because they are new
    path = min((tmp_path / "segments").rglob("hour=08/*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    fleet.rows("DELETE FROM device_samples WHERE at = %s RETURNING 1", HOUR_AT)  # it was in the file alone
    left = fleet.rows("SELECT count(*) FROM device_samples")

    first = sealing.once(DAY_AT + timedelta(days=4))
    assert (first.dropped_partitions, first.damaged_files) == (0, 1)  # found because it was to be dropped
    second = sealing.once(DAY_AT + timedelta(days=4))
    assert (second.dropped_partitions, second.failed, second.rebuilt) == (0, 1, 0)
    assert fleet.rows("SELECT count(*) FROM device_samples") == left
    assert fleet.rows(DAMAGED) == [(HOUR_AT, "device_samples", True)]

    path.write_bytes(whole)  # from a backup
    assert sealing.once(DAY_AT + timedelta(days=4)).dropped_partitions == 7
    assert fleet.rows(DAMAGED) == [(HOUR_AT, "device_samples", False)]


def test_a_day_whose_file_was_lost_is_dropped_once_it_was_made_anew(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattledger.sealing._CHECKED_HOURS", 0)
    rest_is_sealed(fleet)
    sealing.once(NOW)
    published(fleet, HOUR_AT)
    min((tmp_path / "segments").rglob("hour=08/*.parquet")).unlink()
    assert sealing.once(DAY_AT + timedelta(days=4)).dropped_partitions == 0
    last = sealing.once(DAY_AT + timedelta(days=4))
    assert (last.rebuilt, last.dropped_partitions) == (1, 7)
    read = samples(fleet.database, HOUR_AT, HOUR_AT + 3 * HOUR, ["energy_mj"], segments=sealing.segments)
    assert read.collect().height == 1080


def test_without_the_disk_of_the_segments_nothing_is_damaged_and_nothing_deleted(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path
) -> None:
    rest_is_sealed(fleet)
    sealing.once(NOW)
    root = tmp_path / "segments"
    root.rename(tmp_path / "disk")
    root.mkdir()  # its mount point
    later = DAY_AT + timedelta(days=4)
    for _ in range(2):
        assert sealing.once(later) == Pass(refused=1)
    assert (list(root.iterdir()), fleet.rows("SELECT count(*) FROM device_samples")) == ([], [(1081,)])
    found = "SELECT kind, withdrawn_at IS NULL FROM findings"
    assert fleet.rows(found) == [("segments_unreachable", True)]
    root.rmdir()
    (tmp_path / "disk").rename(root)
    assert sealing.once(later).dropped_partitions == 7
    assert fleet.rows(found) == [("segments_unreachable", False)]


def test_one_hour_that_fails_for_whatever_reason_holds_up_no_other(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path
) -> None:
    folder = tmp_path / "segments" / "site=s1" / "date=2026-11-01" / "hour=08"
    folder.parent.mkdir(parents=True)
    folder.write_text("where the folder of its files should be")
    first = sealing.once(NOW)
    assert (first.sealed, first.failed) == (11, 1)
    again = sealing.once(NOW)
    assert (again.sealed, again.failed) == (0, 0)  # it waits, longer each time
    folder.unlink()
    sealing._apart.clear()
    assert sealing.once(NOW).sealed == 1


def test_hours_that_fail_do_not_come_first_for_ever(fleet: SmallFleet, sealing: OneClock) -> None:
    at = [HOUR_AT + number * HOUR for number in range(241)]
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, received_at) "
            "SELECT at, %s, %s, 0, 0, 1, 0, %s FROM unnest(%s::timestamptz[]) AS at",
            (fleet.device_id, fleet.epoch_id, HOUR_AT, at),
        )
        connection.execute(
            "INSERT INTO hour_catalog (site_id, hour_at, state, generation) SELECT %s, at, 'sealed', 1 FROM unnest(%s::timestamptz[]) AS at",
            (fleet.site_id, at),
        )
    found, apart = set[SiteHour](), [hour_of(fleet.site_id, each) for each in at[:240]]
    for without in ([], apart):
        found = set(
            due(
                sealing.engine,
                HOUR_AT + timedelta(days=60),
                seal_after=3 * HOUR,
                merge_after=HOUR,
                apart=without,
            ).merge
        )
        assert (hour_of(fleet.site_id, at[240]) in found) == bool(without)
    assert found == {hour_of(fleet.site_id, at[240])}


def test_nothing_is_deleted_while_the_clocks_of_worker_and_database_disagree(fleet: SmallFleet, tmp_path: Path) -> None:
    engine = fleet.database.create_engine("worker")
    settings = SealingSettings(merge_after=NO_TIME, grace=NO_TIME)
    sealing = Sealing(fleet.database, Segments.at(tmp_path / "segments"), settings, "wattledger-worker/test", engine)
    sealing.tell_time = lambda _: Clocks(NOW, NOW)
    HourCloser(fleet.database, WorkerSettings(code_version="test"), sealing.segments).run(NOW)
    rest_is_sealed(fleet)
    sealing.once(NOW)
    published(fleet, HOUR_AT)
    files = len(list((tmp_path / "segments").rglob("*.parquet")))

    ahead = sealing.once(NOW + timedelta(days=401))  # E.g. a worker without NTP.

    assert ahead == Pass(refused=1)
    assert (
        len(list((tmp_path / "segments").rglob("*.parquet"))),
        fleet.rows("SELECT count(*) FROM device_samples"),
    ) == (
        files,
        [(1081,)],
    )
    found = "SELECT evidence ->> 'worker_minus_database_s', withdrawn_at IS NULL FROM findings WHERE kind = 'clocks_disagree'"
    assert fleet.rows(found) == [("34646400.0", True)]
    assert sealing.once(NOW + timedelta(seconds=59)).refused == 0
    assert fleet.rows(found) == [("34646400.0", False)]
    engine.dispose()


def test_segments_do_not_expire_by_clocks_that_agree_but_run_ahead_of_all_samples(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path
) -> None:
    HourCloser(fleet.database, WorkerSettings(code_version="test"), sealing.segments).run(NOW)
    rest_is_sealed(fleet)
    sealing.once(NOW)
    published(fleet, HOUR_AT)
    sealing.agents_send = False
    done = sealing.once(NOW + timedelta(days=401))
    assert (done.expired_hours, done.deleted_files) == (0, 0)
    found = (
        "SELECT evidence ->> 'newest_sealed_at', withdrawn_at IS NULL FROM findings WHERE kind = 'retention_held_back'"
    )
    assert fleet.rows(found) == [((HOUR_AT + 4 * HOUR).isoformat(), True)]
    sealing.agents_send = True
    assert sealing.once(NOW + timedelta(days=401)).expired_hours == 4
    assert fleet.rows(found) == [((HOUR_AT + 4 * HOUR).isoformat(), False)]


def test_what_was_left_behind_is_found_on_a_server_of_any_zone(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path
) -> None:
    with fleet.admin() as connection:
        connection.execute(f"ALTER DATABASE {fleet.database.name} SET timezone = 'Asia/Kolkata'".encode())
    sealing.engine.dispose()
    sealing.settings = replace(sealing.settings, grace=HOUR)
    left = tmp_path / "segments" / "site=s1" / "date=2026-11-01" / "hour=08" / "device_samples.g0009.lost.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a process that was killed")
    os.utime(left, (1, 1))
    assert sealing.once(NOW).unknown_files == 1
    assert not left.exists()


def test_segments_past_retention_go_once_their_books_are_closed_and_are_not_closed_again(
    fleet: SmallFleet, sealing: OneClock, tmp_path: Path
) -> None:
    sealing.settings = replace(sealing.settings, segment_retention=timedelta(days=8))
    rest_is_sealed(fleet)
    sealing.once(NOW)
    much_later = DAY_AT + timedelta(days=30)

    def files() -> int:
        return len(list((tmp_path / "segments").rglob("*.parquet")))

    # The rest of the day is sealed, and nothing goes: no hour has books yet.
    assert (sealing.once(much_later).expired_hours, files()) == (0, 4)
    closer = HourCloser(fleet.database, WorkerSettings(code_version="test"), sealing.segments)
    closer.run(much_later)
    MinutesMaker(fleet.database, WorkerSettings(code_version="test"), sealing.segments).step(much_later, within_s=60.0)
    published(fleet, much_later - timedelta(days=7))
    assert sealing.once(much_later).expired_hours == 0  # they came, and were closed, a week ago
    published(fleet, HOUR_AT)
    books = fleet.rows("SELECT hour_at, revision, content_sha256 FROM ledger_hours ORDER BY 1")

    assert sealing.once(DAY_AT + timedelta(days=8)).expired_hours == 0
    assert sealing.once(much_later).expired_hours == 4
    assert (sealing.once(much_later).expired_hours, files()) == (0, 0)

    with pytest.raises(SegmentExpiredError, match="4 hours from 2026-11-01 08:00 UTC on are past retention"):
        samples(fleet.database, HOUR_AT, HOUR_AT + 4 * HOUR, ["energy_mj"], segments=sealing.segments)
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0)",
            (HOUR_AT + timedelta(seconds=5), fleet.device_id, fleet.epoch_id),
        )
        connection.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'device_samples')",
            (fleet.site_id, HOUR_AT, HOUR_AT + timedelta(minutes=1)),
        )
    assert closer.run(much_later).refused > 0
    assert closer.run(much_later).refused == 0  # a finding says so; it is not tried for ever
    assert sealing.once(much_later).too_late_rows == 1
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed) "
            "SELECT %s, %s, %s, 0, 0, 1, 0 FROM generate_series(1, 3)",
            (HOUR_AT + timedelta(seconds=6), fleet.device_id, fleet.epoch_id),
        )
    assert sealing.once(much_later).too_late_rows == 3
    told = "SELECT evidence ->> 'rows' FROM findings WHERE kind = 'samples_after_retention'"
    assert fleet.rows(told) == [("4",)]
    assert fleet.rows("SELECT hour_at, revision, content_sha256 FROM ledger_hours ORDER BY 1") == books
    found = "SELECT DISTINCT kind FROM findings WHERE start_at = %s AND kind IN ('recompute_refused', 'samples_after_retention')"
    assert len(fleet.rows(found, HOUR_AT)) == 2
    assert fleet.rows("SELECT count(*) > 0 FROM tenant_minutes WHERE minute_at >= %s", HOUR_AT) == [(True,)]


def test_nothing_is_sealed_by_a_worker_without_the_lease(sealing: OneClock) -> None:
    assert sealing.once(NOW, lambda: False) == Pass()
    stop = threading.Event()
    thread = threading.Thread(target=sealing.run, args=(stop, lambda: False, lambda: NOW))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    with closing(sealing.engine.raw_connection()) as connection:
        assert connection.cursor().execute("SELECT count(*) FROM hour_catalog").fetchone() == (0,)


@pytest.mark.parametrize("text", ["0", "-1", "three", "1.5", "99999"])
def test_settings_that_make_no_sense_name_their_variable(text: str) -> None:
    with pytest.raises(WattledgerError, match="WATTLEDGER_SEAL_AFTER_H must be whole hours"):
        SealingSettings.from_env({"WATTLEDGER_SEAL_AFTER_H": text})


def test_what_is_due_is_found_without_reading_all_late_rows(fleet: SmallFleet, sealing: OneClock) -> None:
    # Four hours of 5,000 late rows each; the third has none.
    late = (
        "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
        "SELECT %(from)s::timestamptz + n * interval '0.5 s', %(device)s, %(epoch)s, 0, 0, 1, 0, n FROM generate_series(1, 5000) AS n"
    )
    hours_late = [HOUR_AT + back * HOUR for back in (-40, -39, -37, -36)]
    with fleet.admin() as connection:
        for hour_at in hours_late:
            connection.execute(late, {"from": hour_at, "device": fleet.device_id, "epoch": fleet.epoch_id})
        connection.execute("ANALYZE late_samples")
    read = "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'late_samples'"
    ((before,),) = fleet.rows(read)
    found = due(sealing.engine, NOW, seal_after=timedelta(hours=3), merge_after=NO_TIME)
    sealing.engine.dispose()  # a server process tells what it read when it ends
    deadline = time.monotonic() + 10
    while (after := fleet.rows(read)[0][0]) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [hour for hour in found.seal if hour in {hour_of(fleet.site_id, at) for at in hours_late}] == [
        hour_of(fleet.site_id, at) for at in hours_late
    ]
    assert 0 < after - before < 100
