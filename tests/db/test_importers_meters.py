"""What meters above the nodes showed, from files: periods, registers, the tree, corrections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.importers.columns import Source
from ingest.importers.errors import OptionError
from ingest.importers.meter_readings import MeterOptions, import_meters
from ingest.store.engine import Database

pytestmark = pytest.mark.db
Write = Callable[[str], Source]
KWH_MJ = 3_600_000_000
CURRENT = (
    "SELECT name, from_at::time::text, to_at::time::text, energy_mj FROM meter_readings JOIN meters ON meters.id = meter_id "
    "WHERE superseded_at IS NULL ORDER BY 1, 2"
)


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.connect() as connection:
        connection.execute(sa.text("SET TIME ZONE 'UTC'"))
        connection.commit()
        yield connection
    engine.dispose()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(text: str) -> Source:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        path.write_text(text, encoding="utf-8")
        return Source(path)

    return made


def rows(conn: sa.Connection, query: str) -> list[tuple[object, ...]]:
    with conn.begin():
        return [tuple(row) for row in conn.execute(sa.text(query))]


def test_quarters_of_several_meters_make_the_tree(conn: sa.Connection, write: Write) -> None:
    text = (
        "meter,level,parent,start,energy_kwh\n"
        "grid,utility,,2026-11-01T08:00Z,25\n"
        "pdu-a,pdu,grid,2026-11-01T08:00Z,12.5\n"
        "pdu-a,pdu,grid,2026-11-01T08:15Z,-1\n"
        "pdu-a,pdu,grid,2026-11-01T08:20Z,1\n"
    )
    report = import_meters(conn, write(text), MeterOptions("lab", gain_ppm=5_000))
    assert report.rejections.by_reason == {"energy negative": 1, "not on the step": 1}
    assert rows(conn, CURRENT) == [
        ("grid", "08:00:00", "08:15:00", 25 * KWH_MJ),
        ("pdu-a", "08:00:00", "08:15:00", 25 * KWH_MJ // 2),
    ]
    tree = "SELECT m.name, m.level, m.covers, m.gain_ppm, p.name FROM meters AS m LEFT JOIN meters AS p ON p.id = m.parent_meter_id ORDER BY 1"
    assert rows(conn, tree) == [("grid", "utility", "all", 5000, None), ("pdu-a", "pdu", "it", 5000, "grid")]
    # Nothing in the books is made of them: no hour is closed again.
    assert rows(conn, "SELECT count(*) FROM changes WHERE kind = 'meter_readings'") == [(0,)]


def test_a_register_gives_the_periods_between_its_readings_and_may_begin_anew(
    conn: sa.Connection, write: Write
) -> None:
    text = "at,total\n2026-11-01T08:00Z,990\n2026-11-01T10:00Z,10\n2026-11-01T09:00Z,999.5\n"
    options = MeterOptions("lab", meter="pdu-b", level="pdu", wrap_mj=1000 * KWH_MJ)
    source = write(text)
    named = Source(source.path, {"register": "total"}, {"register": "kWh"})
    import_meters(conn, named, options)
    # 999.5 to 10 over 1,000 is 10.5.
    assert [row[1:] for row in rows(conn, CURRENT)] == [
        ("08:00:00", "09:00:00", 19 * KWH_MJ // 2),
        ("09:00:00", "10:00:00", 21 * KWH_MJ // 2),
    ]


def test_a_register_that_falls_is_refused_where_nobody_said_it_begins_anew(conn: sa.Connection, write: Write) -> None:
    text = "at,register_kwh\n2026-11-01T08:00Z,990\n2026-11-01T09:00Z,10\n"
    report = import_meters(conn, write(text), MeterOptions("lab", meter="pdu-b", level="pdu"))
    assert report.rejections.by_reason == {"register fell": 1}


def test_a_meter_that_was_swapped_has_not_gone_on_over_its_limit(conn: sa.Connection, write: Write) -> None:
    """10 kWh an hour; the new meter begins at 5: 600 kWh in that hour are sixty times as much, and nothing is known of it."""
    text = "at,register_kwh\n2026-11-01T08:00Z,395\n2026-11-01T09:00Z,405\n2026-11-01T10:00Z,5\n2026-11-01T11:00Z,15\n"
    options = MeterOptions("lab", meter="pdu-b", level="pdu", wrap_mj=1000 * KWH_MJ)
    report = import_meters(conn, write(text), options)
    assert report.rejections.by_reason == {"register fell": 1}
    assert [row[1:] for row in rows(conn, CURRENT)] == [
        ("08:00:00", "09:00:00", 10 * KWH_MJ),
        ("10:00:00", "11:00:00", 10 * KWH_MJ),
    ]


def test_of_an_instant_that_is_told_twice_the_first_line_goes_on(conn: sa.Connection, write: Write) -> None:
    text = (
        "at,register_kwh\n2026-11-01T08:00Z,100\n2026-11-01T09:00Z,110\n2026-11-01T09:00Z,119\n2026-11-01T10:00Z,120\n"
    )
    report = import_meters(conn, write(text), MeterOptions("lab", meter="pdu-b", level="pdu"))
    assert report.rejections.by_reason == {"repeated timestamp": 1}
    assert [row[3] for row in rows(conn, CURRENT)] == [10 * KWH_MJ, 10 * KWH_MJ]


REGISTER = MeterOptions("lab", meter="pdu-b", level="pdu", wrap_mj=1000 * KWH_MJ)


def told(*readings: tuple[int, float]) -> str:
    return "at,register_kwh\n" + "".join(f"2026-11-01T{hour:02}:00Z,{kwh}\n" for hour, kwh in readings)


def hours(conn: sa.Connection) -> list[tuple[int, int, float]]:
    return [
        (int(str(begin)[:2]), int(str(end)[:2]), int(str(mj)) / KWH_MJ) for _, begin, end, mj in rows(conn, CURRENT)
    ]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_files_of_one_register_join_in_whatever_order_they_come(
    conn: sa.Connection, write: Write, order: tuple[int, ...]
) -> None:
    """One of them has a single reading, as somebody writes it down once a month; behind it the register begins anew."""
    files = [told((8, 970), (9, 980)), told((10, 990)), told((11, 3), (12, 14))]
    reports = [import_meters(conn, write(files[place]), REGISTER) for place in order]
    assert [report.rejections.total for report in reports] == [0, 0, 0]
    assert hours(conn) == [(8, 9, 10), (9, 10, 10), (10, 11, 13), (11, 12, 11)]


def test_files_that_overlap_by_a_reading_are_what_they_were(conn: sa.Connection, write: Write) -> None:
    import_meters(conn, write(told((8, 100), (9, 110))), REGISTER)
    report = import_meters(conn, write(told((9, 110), (10, 125))), REGISTER)
    assert (report.rejections.total, report.unchanged) == (0, 0)
    # What is read between fills a known period with what goes on from the register at its start.
    half = write("at,register_kwh\n2026-11-01T09:30Z,117\n2026-11-01T11:00Z,140\n")
    assert import_meters(conn, half, REGISTER).rejections.total == 0
    assert [(row[1], row[3]) for row in rows(conn, CURRENT)] == [
        ("08:00:00", 10 * KWH_MJ),
        ("09:00:00", 7 * KWH_MJ),
        ("09:30:00", 23 * KWH_MJ),
    ]


def test_a_meter_that_was_swapped_between_two_files_is_not_joined(conn: sa.Connection, write: Write) -> None:
    import_meters(conn, write(told((8, 395), (9, 405))), REGISTER)
    report = import_meters(conn, write(told((10, 5), (11, 15))), REGISTER)
    assert report.rejections.by_reason == {"register fell": 1}
    assert hours(conn) == [(8, 9, 10), (10, 11, 10)]


def test_a_register_joins_nothing_over_what_another_file_told_of(conn: sa.Connection, write: Write) -> None:
    import_meters(conn, write(told((8, 100), (9, 110))), REGISTER)
    import_meters(conn, write("start,to,energy_kwh\n2026-11-01T10:00Z,2026-11-01T11:00Z,7\n"), REGISTER)
    assert import_meters(conn, write(told((12, 140), (13, 150))), REGISTER).rejections.total == 0
    assert hours(conn) == [(8, 9, 10), (10, 11, 7), (12, 13, 10)]


def test_what_a_dry_run_showed_is_not_gone_on_from(conn: sa.Connection, write: Write) -> None:
    import_meters(conn, write(told((8, 100), (9, 110))), REGISTER, dry_run=True)
    import_meters(conn, write(told((10, 120), (11, 130))), REGISTER)
    assert hours(conn) == [(10, 11, 10)]


def test_a_correction_takes_the_place_of_whole_periods_and_cuts_through_none(conn: sa.Connection, write: Write) -> None:
    options = MeterOptions("lab", meter="grid", level="utility", step=timedelta(hours=1))
    header = "start,to,energy_kwh\n"
    import_meters(conn, write(header + "2026-11-01T08:00Z,,100\n2026-11-01T09:00Z,,90\n"), options)
    report = import_meters(
        conn,
        write(
            header
            + "2026-11-01T08:00Z,2026-11-01T08:30Z,40\n2026-11-01T08:30Z,2026-11-01T09:00Z,41\n"
            + "2026-11-01T09:30Z,2026-11-01T10:30Z,7\n2026-11-01T11:00Z,,5\n"
        ),
        options,
    )
    assert report.rejections.by_reason == {"overlaps another period of its meter": 1}
    assert [row[1:] for row in rows(conn, CURRENT)] == [
        ("08:00:00", "08:30:00", 40 * KWH_MJ),
        ("08:30:00", "09:00:00", 41 * KWH_MJ),
        ("09:00:00", "10:00:00", 90 * KWH_MJ),
        ("11:00:00", "12:00:00", 5 * KWH_MJ),
    ]
    kept = "SELECT energy_mj FROM meter_readings WHERE superseded_at IS NOT NULL AND superseded_xid IS NOT NULL"
    assert rows(conn, kept) == [(100 * KWH_MJ,)]
    again = import_meters(conn, write(header + "2026-11-01T09:00Z,2026-11-01T10:00Z,90\n"), options)
    assert (again.rows_written, again.unchanged) == (0, 1)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("start,energy_kwh\n2026-11-01T08:00Z,1\n", {"level": "pdu"}, "--meter"),
        ("start,energy_kwh\n2026-11-01T08:00Z,1\n", {"meter": "m"}, "say its level"),
        (
            "start,energy_kwh\n2026-11-01T08:00Z,1\n",
            {"meter": "m", "level": "pdu", "parent": "x"},
            "no meter of the site",
        ),
        ("start,energy_kwh\n2026-11-01T08:00Z,1\n", {"meter": "m", "level": "pdu", "parent": "m"}, "hang on itself"),
        ("start,meter\n2026-11-01T08:00Z,m\n", {"level": "pdu"}, "energy of periods, or a register"),
    ],
)
def test_what_the_file_leaves_open_is_asked_for(
    conn: sa.Connection, write: Write, text: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        import_meters(conn, write(text), MeterOptions("lab", **options))  # type: ignore[arg-type]
