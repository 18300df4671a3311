"""Which segments are old enough to go: counted from what came last, and never what is still needed."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from ingest.store.engine import Database
from ingest.store.hours import hold_open
from ingest.store.seal import hour_of
from ingest.store.seal_retention import expirable, expire
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
DAY = timedelta(days=1)
BEFORE = HOUR_AT + 30 * DAY
OLD, NEW = HOUR_AT + DAY, HOUR_AT + 40 * DAY


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def sealed(fleet: SmallFleet, *, published: datetime = OLD, stream: str = "device_samples") -> None:
    with fleet.admin() as connection:
        given = {"site": fleet.site_id, "at": HOUR_AT, "published": published, "stream": stream}
        connection.execute(
            "INSERT INTO hour_catalog (site_id, hour_at, state, generation) VALUES (%(site)s, %(at)s, 'sealed', 1)",
            given,
        )
        connection.execute(
            "INSERT INTO hour_segments (site_id, hour_at, stream, generation, path, rows, size_bytes, sha256, feeds, published_at) "
            "VALUES (%(site)s, %(at)s, %(stream)s, 1, 'a.parquet', 1, 1, '', '{1}', %(published)s)",
            given,
        )


def booked(fleet: SmallFleet, *, first_closed: datetime = OLD, status: str = "closed") -> None:
    with fleet.admin() as connection:
        for revision, at in ((0, OLD), (1, first_closed), (2, NEW)):
            connection.execute(
                "INSERT INTO ledger_runs (site_id, hour_at, revision, code_version, as_of_at, seen_xid, inputs_sha256, content_sha256, "
                "reason, finished_at) VALUES (%s, %s, %s, 't', now(), '1', '', '', 't', %s)",
                (fleet.site_id, HOUR_AT, revision, at),
            )
        connection.execute(
            "INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256) "
            "SELECT site_id, hour_at, 2, max(id), %s, '1', '' FROM ledger_runs GROUP BY 1, 2",
            (status,),
        )


def expired(fleet: SmallFleet) -> int:
    with fleet.database.connect("worker") as connection:
        could = expirable(connection, BEFORE)
        connection.commit()
        gone = expire(connection, BEFORE)
        assert could == bool(gone) or not gone  # what somebody is writing to is told as old, and stays
        return len(gone)


def test_an_hour_goes_when_it_its_files_and_its_books_are_old_however_often_it_was_closed_again(
    fleet: SmallFleet,
) -> None:
    sealed(fleet)
    booked(fleet)
    assert expired(fleet) == 1
    assert expired(fleet) == 0
    assert fleet.rows("SELECT count(*) FROM hour_segments WHERE retired_at IS NOT NULL") == [(1,)]


def test_history_that_was_imported_just_now_stays(fleet: SmallFleet) -> None:
    sealed(fleet, published=NEW)
    booked(fleet)
    assert expired(fleet) == 0


def test_what_the_books_used_just_now_for_the_first_time_stays(fleet: SmallFleet) -> None:
    sealed(fleet)
    booked(fleet, first_closed=NEW)
    assert expired(fleet) == 0


def test_an_hour_that_the_books_have_open_or_never_used_stays(fleet: SmallFleet) -> None:
    sealed(fleet)
    assert expired(fleet) == 0
    booked(fleet, status="provisional")
    assert expired(fleet) == 0


def test_an_hour_of_which_the_books_need_nothing_goes_without_them(fleet: SmallFleet) -> None:
    sealed(fleet, stream="fabric_samples")
    assert expired(fleet) == 1


def test_an_hour_with_late_rows_or_changes_stays_until_they_are_used(fleet: SmallFleet) -> None:
    sealed(fleet)
    booked(fleet)
    fleet.rows(
        "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed) VALUES (%s, %s, %s, 0, 0, 1, 0) "
        "RETURNING 1",
        HOUR_AT + timedelta(minutes=5),
        fleet.device_id,
        fleet.epoch_id,
    )
    assert expired(fleet) == 0
    fleet.rows("DELETE FROM late_samples RETURNING 1")
    with fleet.admin() as connection:
        fleet.changed("tariffs", HOUR_AT, HOUR_AT + HOUR, connection)
    assert expired(fleet) == 0
    fleet.rows("DELETE FROM changes RETURNING 1")
    assert expired(fleet) == 1


def test_an_hour_that_an_import_is_writing_to_stays(fleet: SmallFleet) -> None:
    sealed(fleet)
    booked(fleet)
    with fleet.database.connect("writer") as writer:
        hold_open(writer, [hour_of(fleet.site_id, HOUR_AT)])
        assert expired(fleet) == 0
    assert expired(fleet) == 1
