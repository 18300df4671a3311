"""Daily partitions: made ahead or for old imports, indexed when closed, dropped by age; never by a role that owns nothing.

On TimescaleDB the same of chunks: what differs is said where it does.
"""

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from ingest.store import partitions
from ingest.store.engine import Database
from ingest.store.layout import Layout, recorded
from ingest.store.partitions import Partition

pytestmark = pytest.mark.db

DAY = date(2026, 3, 1)


@pytest.fixture(autouse=True)
def site(db: Database) -> None:
    """API calls and spans belong to a site; a chunk of theirs is made ahead only where there is one."""
    with db.connect("owner") as owner:
        owner.execute("INSERT INTO sites (name) VALUES ('lab')")


@pytest.fixture
def writer(db: Database) -> Iterator[sa.Engine]:
    engine = db.create_engine("writer", pool_size=8)
    yield engine
    engine.dispose()


@pytest.fixture
def layout(writer: sa.Engine) -> Layout:
    with writer.begin() as conn:
        return recorded(conn).layout


@pytest.fixture
def worker(db: Database) -> Iterator[sa.Engine]:
    engine = db.create_engine("worker")
    yield engine
    engine.dispose()


def test_each_day_of_each_table_gets_a_partition_once(writer: sa.Engine) -> None:
    with writer.begin() as conn:
        # Two days of seven kinds of samples, api calls and spans.
        assert partitions.ensure(conn, DAY, date(2026, 3, 3)) == 18
        assert partitions.ensure(conn, DAY, date(2026, 3, 3)) == 0
        assert partitions.ensure(conn, DAY, date(2026, 3, 4)) == 9
        names = [partition.name for partition in partitions.partitions(conn)]
    assert names[:3] == ["agent_health_p20260301", "agent_health_p20260302", "agent_health_p20260303"]
    assert len(names) == 27


def test_a_partition_holds_its_utc_day_whatever_the_session_calls_a_day(db: Database, writer: sa.Engine) -> None:
    with writer.begin() as conn:
        conn.execute(sa.text("SET LOCAL TIME ZONE 'Australia/Sydney'"))
        partitions.ensure(conn, DAY, date(2026, 3, 3), tables=("node_samples",))
    with db.connect("admin") as admin:
        places = admin.execute(
            "INSERT INTO node_samples (at, meter_id, epoch_id, span_us) SELECT at, 1, 1, 0 FROM unnest(ARRAY["
            "timestamptz '2026-03-01 00:00+00', '2026-03-01 23:59:59.999999+00', '2026-03-02 00:00+00']) AS at "
            "RETURNING tableoid"
        ).fetchall()
    assert places[0] == places[1] != places[2]


def test_a_writer_that_meets_a_missing_day_makes_it_and_goes_on(writer: sa.Engine, layout: Layout) -> None:
    row = sa.text("INSERT INTO node_samples (at, meter_id, epoch_id, span_us) VALUES ('2023-07-04 12:00+00', 1, 1, 0)")
    day = date(2023, 7, 4)
    if layout is Layout.HYPERTABLES:  # a chunk is made when its first row comes
        with writer.begin() as conn:
            assert partitions.missing(conn, "node_samples", [day]) == ()
            conn.execute(row)
        with writer.begin() as conn:
            assert partitions.ensure_days(conn, "node_samples", [day]) == 0
        return
    with pytest.raises(sa.exc.IntegrityError) as caught, writer.begin() as conn:
        conn.execute(row)
    assert partitions.is_missing_partition(caught.value)
    with writer.begin() as conn:
        assert partitions.missing(conn, "node_samples", [day]) == (day,)
        assert partitions.ensure_days(conn, "node_samples", [day]) == 1
        assert partitions.missing(conn, "node_samples", [day]) == ()
    with writer.begin() as conn:
        conn.execute(row)


def test_a_day_made_ahead_holds_no_row(db: Database, writer: sa.Engine) -> None:
    with writer.begin() as conn:
        partitions.ensure(conn, DAY, date(2026, 3, 2))
    with db.connect("owner") as owner:
        for table in partitions.PARTITIONED:
            assert owner.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,)


def test_a_broken_rule_is_not_taken_for_a_missing_day(writer: sa.Engine) -> None:
    with pytest.raises(sa.exc.IntegrityError) as caught, writer.begin() as conn:
        conn.execute(sa.text("INSERT INTO devices (uuid, vendor, model, kind) VALUES ('u', 'v', 'm', 'toaster')"))
    assert not partitions.is_missing_partition(caught.value)


def test_only_the_days_of_old_data_are_made_not_the_years_between(writer: sa.Engine) -> None:
    days = [date(2026, 3, 1), date(2023, 7, 5), date(2023, 7, 4), date(2023, 7, 4)]
    with writer.begin() as conn:
        assert partitions.ensure_days(conn, "node_samples", days) == 3
        assert partitions.partitions(conn) == tuple(Partition("node_samples", day) for day in sorted(set(days)))


def test_eight_writers_at_once_make_each_partition_once(writer: sa.Engine) -> None:
    made: list[int] = []
    start = threading.Barrier(8)

    def run() -> None:
        with writer.begin() as conn:
            start.wait()
            made.append(partitions.ensure(conn, DAY, date(2026, 3, 3)))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert sum(made) == 18


def test_readers_and_writers_of_other_days_are_not_locked_out(writer: sa.Engine) -> None:
    insert = sa.text(
        "INSERT INTO node_samples (at, meter_id, epoch_id, span_us) VALUES ('2026-03-01 12:00+00', 1, 1, 0)"
    )
    with writer.begin() as conn:
        partitions.ensure(conn, DAY, date(2026, 3, 2))
    with writer.connect() as open_transaction, writer.begin() as conn:
        open_transaction.execute(insert)
        assert partitions.ensure(conn, date(2026, 3, 2), date(2026, 3, 3)) == 9  # would time out after 5 s otherwise


@pytest.mark.parametrize(("first", "end"), [(date(1970, 1, 1), date(1970, 1, 2)), (date(2026, 1, 1), date(2999, 1, 1))])
def test_a_wild_clock_makes_no_partitions(writer: sa.Engine, first: date, end: date) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="out of bounds"), writer.begin() as conn:
        partitions.ensure(conn, first, end)


def test_a_closed_day_is_indexed_by_device_and_time_once(db: Database, worker: sa.Engine) -> None:
    with worker.begin() as conn:
        partitions.ensure(conn, DAY, date(2026, 3, 2))
        assert partitions.close_partition(conn, "device_samples", DAY)
        assert not partitions.close_partition(conn, "device_samples", DAY)
        assert not partitions.close_partition(conn, "api_calls", DAY)
        assert not partitions.close_partition(conn, "device_samples", date(2026, 3, 2))  # there is no such partition
    with db.connect("admin") as admin:
        rows = admin.execute(
            "SELECT indexdef FROM pg_indexes JOIN stored_days() ON namespace = schemaname AND relation = tablename "
            "WHERE parent = 'device_samples' AND day = %s ORDER BY indexdef LIKE %s",
            (DAY, "%btree%"),
        ).fetchall()
    assert [str(definition).rpartition(" USING ")[2] for (definition,) in rows] == [
        "brin (at) WITH (pages_per_range='16')",
        "btree (device_id, at)",
    ]


def test_a_day_still_open_is_not_closed(worker: sa.Engine) -> None:
    today = datetime.now(UTC).date()
    with worker.begin() as conn:
        partitions.ensure(conn, today, today + timedelta(days=1))
    with pytest.raises(sa.exc.DBAPIError, match="still open"), worker.begin() as conn:
        partitions.close_partition(conn, "device_samples", today)


def test_a_day_of_samples_is_dropped_and_no_other_and_nothing_a_bill_is_made_of(
    db: Database, worker: sa.Engine
) -> None:
    seal = (
        "INSERT INTO hour_catalog (site_id, hour_at, state) SELECT sites.id, %s::date::timestamp AT TIME ZONE 'UTC' "
        "+ hour * interval '1 hour', 'sealed' FROM sites, generate_series(%s::integer, %s::integer) AS hour"
    )
    with worker.begin() as conn:
        partitions.ensure(conn, DAY, date(2026, 3, 4))
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("INSERT INTO sites (name) VALUES ('s1')")
        admin.execute(seal, (DAY, 0, 22))
    with pytest.raises(sa.exc.DBAPIError, match="not every hour of 2026-03-01 is sealed"), worker.begin() as conn:
        conn.execute(sa.select(sa.func.drop_partition("device_samples", DAY)))
    with db.connect("admin", autocommit=True) as admin:
        admin.execute(seal, (DAY, 23, 23))
    with worker.begin() as conn:
        for table in partitions.DROPPABLE:
            conn.execute(sa.select(sa.func.drop_partition(table, DAY)))
        left = partitions.partitions(conn)
    for table in partitions.DROPPABLE:
        assert {partition.day.day for partition in left if partition.table == table} == {2, 3}
    assert {partition.day.day for partition in left if partition.table == "api_calls"} == {1, 2, 3}


def test_neither_writer_nor_api_can_drop_and_the_worker_no_api_calls(db: Database, worker: sa.Engine) -> None:
    for role in ("writer", "api"):
        with db.connect(role) as connection, pytest.raises(Exception, match="permission denied for function"):
            connection.execute("SELECT drop_partition('device_samples', '2026-03-01')")
    with worker.begin() as conn:
        partitions.ensure(conn, DAY, date(2026, 3, 2))
    with pytest.raises(sa.exc.DBAPIError, match="kept for ever"), worker.begin() as conn:
        conn.execute(sa.text("SELECT drop_partition('api_calls', '2026-03-01')"))


def test_the_day_of_an_instant_is_its_utc_day() -> None:
    sydney = timezone(timedelta(hours=11))
    assert partitions.utc_day(datetime(2026, 3, 2, 9, 0, tzinfo=sydney)) == date(2026, 3, 1)
    with pytest.raises(ValueError, match="no time zone"):
        partitions.utc_day(datetime(2026, 3, 2, 9, 0))  # noqa: DTZ001 - the point of the test
