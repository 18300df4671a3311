from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from collector.wire import Stream
from ingest.importers.columns import Source
from ingest.importers.errors import ImportFileError
from ingest.importers.node_power import NodePowerOptions, import_node_power
from ingest.store.engine import Database
from ingest.store.samples import sample_session
from ingest.store.seal import Sealer, hour_of, instant_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR

pytestmark = pytest.mark.db
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOG_AT = datetime(2024, 5, 11, tzinfo=UTC)
"""A day after the log's: its day is hot still."""
OPTIONS = NodePowerOptions(site="lab", accelerators=8, model="H100")
LOG = "node,ts_ms,watts\nn1,1715341080000,2000\nn1,1715341082000,2100\nn1,1715341084000,-43\nn1,1715341082000,2200\n"


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Source]:
    def made(name: str, text: str) -> Source:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return Source(path)

    return made


def rows(conn: sa.Connection, query: str) -> list[tuple[object, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


Write = Callable[[str, str], Source]


def test_good_readings_are_stored_and_bad_ones_counted(conn: sa.Connection, write: Write) -> None:
    report = import_node_power(conn, write("a.csv", LOG), OPTIONS, now=NOW)
    assert report.written == {"node_samples": 2}
    assert report.rejections.by_reason == {"power not positive": 1, "repeated timestamp": 1}
    assert [(each.line, each.reason) for each in report.rejections.examples] == [
        (4, "power not positive"),
        (5, "repeated timestamp"),
    ]
    assert rows(conn, "SELECT at::text, power_mw, span_us FROM late_node_samples ORDER BY at") == [
        ("2024-05-10 11:38:00+00", 2_000_000, 0),
        ("2024-05-10 11:38:02+00", 2_100_000, 0),
    ]
    assert rows(conn, "SELECT reason, rows FROM rejections ORDER BY 1") == [
        ("power not positive", 1),
        ("repeated timestamp", 1),
    ]
    assert rows(conn, "SELECT uuid, kind, accelerators FROM devices") == [("node:lab/n1", "node", 8)]
    assert rows(conn, "SELECT valid_from::text, valid_to::text FROM placements") == [
        ("2024-05-10 11:00:00+00", "2024-05-10 12:00:00+00")
    ]
    assert rows(conn, "SELECT kind, from_at::text, to_at::text FROM changes") == [
        ("node_samples", "2024-05-10 11:00:00+00", "2024-05-10 12:00:00+00")
    ]
    assert rows(conn, "SELECT feed, origin, cadence_us FROM epochs") == [(4, 2, 2_000_000)]


def test_the_same_file_twice_writes_nothing_and_says_so(conn: sa.Connection, write: Write) -> None:
    source = write("a.csv", LOG)
    import_node_power(conn, source, OPTIONS, now=NOW)
    again = import_node_power(conn, source, OPTIONS, now=NOW)
    assert again.already_imported_at is not None
    assert again.rows_written == 0
    assert rows(conn, "SELECT count(*) FROM late_node_samples") == [(2,)]
    assert rows(conn, "SELECT count(*) FROM changes") == [(1,)]


def test_readings_of_a_sealed_hour_come_beside_its_segment(conn: sa.Connection, write: Write) -> None:
    import_node_power(conn, write("a.csv", LOG), OPTIONS, now=LOG_AT)
    with conn.begin():
        conn.execute(
            sa.text(
                "INSERT INTO hour_catalog (site_id, hour_at, state) SELECT id, '2024-05-10 11:00Z', 'sealed' FROM sites"
            )
        )
    # 11:38:06 and 12:00:00.
    more = "node,ts_ms,watts\nn1,1715341086000,2300\nn1,1715342400000,2400\n"
    assert import_node_power(conn, write("b.csv", more), OPTIONS, now=LOG_AT).written == {"node_samples": 2}
    assert rows(conn, "SELECT power_mw FROM late_node_samples") == [(2_300_000,)]
    assert rows(conn, "SELECT power_mw FROM node_samples ORDER BY at DESC LIMIT 1") == [(2_400_000,)]


def test_a_dry_run_reports_the_same_and_keeps_nothing(conn: sa.Connection, write: Write) -> None:
    source = write("a.csv", LOG)
    dry = import_node_power(conn, source, OPTIONS, now=NOW, dry_run=True)
    assert rows(conn, "SELECT count(*) FROM sites") == [(0,)]
    real = import_node_power(conn, source, OPTIONS, now=NOW)
    assert dry.written == real.written
    assert dry.rejections == real.rejections


def test_overlapping_exports_count_each_reading_once_and_extend_the_placement(
    conn: sa.Connection, write: Write
) -> None:
    import_node_power(conn, write("a.csv", LOG), OPTIONS, now=NOW)
    # 11:38:02 is known; 12:30:00 is new.
    later = write("b.csv", "node,ts_ms,watts\nn1,1715341082000,2100\nn1,1715344200000,1900\n")
    report = import_node_power(conn, later, OPTIONS, now=NOW)
    assert (report.written["node_samples"], report.unchanged) == (1, 1)
    assert rows(conn, "SELECT valid_from::text, valid_to::text FROM placements WHERE superseded_at IS NULL") == [
        ("2024-05-10 11:00:00+00", "2024-05-10 13:00:00+00")
    ]


@pytest.mark.parametrize("now", [LOG_AT, NOW], ids=["hot day", "history"])
def test_a_reading_that_is_in_a_segment_is_known(
    conn: sa.Connection, db: Database, write: Write, tmp_path: Path, now: datetime
) -> None:
    """The hour is sealed, its day was dropped, and a file brings 11:38:02 with 1000 W instead of 2100 W, and one more instant."""
    segments = Segments.at(tmp_path / "segments")
    import_node_power(conn, write("a.csv", LOG), OPTIONS, now=now, segments=segments)
    ((site_id,),) = rows(conn, "SELECT id FROM sites")
    hour = hour_of(int(str(site_id)), datetime(2024, 5, 10, 11, tzinfo=UTC))
    assert Sealer(db, segments).seal(hour).rows == 2
    with conn.begin():
        conn.execute(sa.text("DELETE FROM node_samples"))
    other = write("b.csv", "node,ts_ms,watts\nn1,1715341082000,1000\nn1,1715341086000,1000\n")

    with pytest.raises(ImportFileError, match="1 hours of the file are sealed already; name the segments' folder"):
        import_node_power(conn, other, OPTIONS, now=now)
    report = import_node_power(conn, other, OPTIONS, now=now, segments=segments)

    assert (report.written["node_samples"], report.unchanged) == (1, 1)
    assert Sealer(db, segments).merge(hour).rows == 3
    with sample_session(db, segments) as session:
        found = session.rows(Stream.NODE, ["power_mw"], instant_of(hour), instant_of(hour) + HOUR).collect()
    assert sorted(found["power_mw"]) == [1_000_000, 2_000_000, 2_100_000]


def test_a_server_of_another_zone_takes_the_same_and_tells_instants_in_utc(
    conn: sa.Connection, db: Database, write: Write, tmp_path: Path
) -> None:
    """In Kolkata hours begin at half past."""
    with conn.begin():
        conn.execute(sa.text("SET TIME ZONE 'Asia/Kolkata'"))
    segments = Segments.at(tmp_path / "segments")
    report = import_node_power(conn, write("a.csv", LOG), OPTIONS, now=LOG_AT, segments=segments)
    assert [each.detail for each in report.rejections.examples] == ["-43000 mW", "2024-05-10 11:38:02+00"]
    with conn.begin():
        conn.execute(sa.text("SET TIME ZONE 'UTC'"))
    assert rows(conn, "SELECT from_at::text, to_at::text FROM changes") == [
        ("2024-05-10 11:00:00+00", "2024-05-10 12:00:00+00")
    ]
    ((site_id,),) = rows(conn, "SELECT id FROM sites")
    Sealer(db, segments).seal(hour_of(int(str(site_id)), datetime(2024, 5, 10, 11, tzinfo=UTC)))
    with conn.begin():
        conn.execute(sa.text("DELETE FROM node_samples"))
        conn.execute(sa.text("SET TIME ZONE 'Asia/Kolkata'"))
    again = import_node_power(conn, write("b.csv", LOG + "\n"), OPTIONS, now=NOW, segments=segments)
    assert (again.written["node_samples"], again.unchanged) == (0, 2)


def test_years_of_one_site_need_no_lock_an_hour_and_no_partition_a_day(conn: sa.Connection, write: Write) -> None:
    """Ten years, one reading a day at noon: 3,650 partitions and their indexes would be more than a server locks at once."""
    days = "".join(f"n1,{1420113600 + day * 86_400},2000\n" for day in range(3_650))
    report = import_node_power(conn, write("years.csv", "node,ts_s,watts\n" + days), OPTIONS, now=NOW)
    assert report.written == {"node_samples": 3_650}
    assert rows(conn, "SELECT count(*) FROM late_node_samples") == [(3_650,)]
    assert rows(conn, "SELECT count(*) FROM stored_days() WHERE parent = 'node_samples' AND day < '2026-01-01'") == [
        (0,)
    ]


@pytest.mark.real
def test_the_mlperf_node_log_comes_in_whole_but_for_its_bad_readings(conn: sa.Connection, shared: Path) -> None:
    path = shared / "data/gpu-power/mlperf_train_h100_node_power_2s.parquet"
    options = NodePowerOptions(site="smc", bills="ac", node_name="{run}/{node}", accelerators=8, model="H100")
    report = import_node_power(conn, Source(path), options, now=NOW)
    # 366,361 rows; 25 readings at or below zero (the truth file's sum) and 32 repeats, per data/README.md.
    assert report.rows_read == 366_361
    assert report.rejections.by_reason == {"power not positive": 25, "repeated timestamp": 32}
    assert report.written["node_samples"] == 366_304
    assert rows(conn, "SELECT name, bills, count(*) FROM meters GROUP BY 1, 2 ORDER BY 1") == [
        ("ac", True, 755),
        ("dc", False, 755),
    ]
