"""A worker that stands still in the middle of its transaction: others go on around it, and it cannot hold its hour for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from analytics.closing.hours import Here
from analytics.closing.request import Computed, Done, Task, Told
from analytics.frames import Findings, JobTenants, LedgerLines, Quality, UsageHours
from analytics.io.hours import batches, due_hours
from analytics.io.lease import Lease
from analytics.io.runs import Saved
from analytics.io.save import HourBooks, save_hour
from analytics.jobs import HourCloser, Round, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, RUN_BY_HAND, small_fleet

pytestmark = pytest.mark.db

LATER = HOUR_AT + timedelta(hours=4)
HASTY = WorkerSettings(code_version="test", row_wait_s=1, standstill_s=7)
EMPTY = HourBooks(
    usage=UsageHours.create_empty(),
    lines=LedgerLines.create_empty(),
    findings=Findings.create_empty(),
    quality=Quality.create_empty(),
    job_tenants=JobTenants.create_empty(),
)


def test_an_hour_held_by_another_worker_is_left_for_the_next_round(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)  # 08:00, 09:00, and one reading at 10:00
    closer = HourCloser(db, HASTY)
    with db.connect("worker") as other:
        held = due_hours(other, LATER)[0]
        assert save_hour(other, held, EMPTY, RUN_BY_HAND, closed=True) is Saved.WRITTEN

        done = closer.run(LATER)  # while the other has written 08:00 and not committed

        assert (done.lost_races, done.closed) == (1, 2)
        other.rollback()
    assert closer.run(LATER).closed == 1
    assert fleet.rows("SELECT hour_at, revision FROM ledger_hours ORDER BY 1") == [
        (HOUR_AT + number * HOUR, 1) for number in range(3)
    ]


def test_a_worker_asks_the_server_to_end_its_session_should_it_stand_still(db: Database) -> None:
    small_fleet(db).samples(HOUR_AT, HOUR_AT + HOUR)
    closer = HourCloser(db, WorkerSettings(code_version="test"))
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("CREATE TABLE asked AS SELECT ''::text AS lock_timeout, ''::text AS standstill")
        admin.execute("GRANT ALL ON asked TO PUBLIC")
        admin.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE asked SET lock_timeout = "
            "current_setting('lock_timeout'), standstill = current_setting('idle_in_transaction_session_timeout'); "
            "RETURN NEW; END $$"
        )
        admin.execute("CREATE TRIGGER note BEFORE INSERT ON ledger_runs FOR EACH ROW EXECUTE FUNCTION note()")

        closer.run(LATER)

        assert admin.execute("SELECT * FROM asked").fetchone() == ("10s", "20s")


def test_who_takes_over_ends_the_sessions_of_the_silent_worker_even_in_the_middle_of_a_copy(db: Database) -> None:
    first = Lease("host/1/aaaa")
    second = Lease("host/2/bbbb", expires=timedelta(0))  # to whom half a minute of silence is over at once
    with (
        db.connect("worker", autocommit=True) as connection,
        db.connect("worker", application=first.session) as silent,
        db.connect("worker", application=second.session) as own,
    ):
        assert first.take(connection)
        copying = ExitStack()
        copying.enter_context(silent.cursor().copy("COPY minute_rollups FROM STDIN"))  # the server waits for rows
        assert second.take(connection)
        await_ended(db, first.session)
        with pytest.raises(psycopg.OperationalError):
            copying.close()
        first.renew(connection)
        assert own.execute("SELECT holder FROM watermarks").fetchall() == [(second.holder,)]


def await_ended(db: Database, session: str) -> None:
    deadline = time.monotonic() + 30
    with db.connect("admin", autocommit=True) as admin:
        while admin.execute("SELECT FROM pg_stat_activity WHERE application_name = %s", (session,)).fetchone():
            assert time.monotonic() < deadline, f"{session} is still there"
            time.sleep(0.05)


class _DiesAtItsEnd(Here):
    """Its process is ended right after the last hour's commit."""

    def close(self, task: Task) -> Iterator[Told]:
        left = len(task.batch.hours)
        for told in super().close(task):
            yield told
            left -= isinstance(told, Done)
            if not left:
                return


def test_who_dies_right_after_it_saved_the_end_of_a_silence_has_told_of_the_hours_of_it(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    settings, late = WorkerSettings(code_version="test"), HOUR_AT + timedelta(hours=12)
    HourCloser(db, settings).run(late)
    back = HOUR_AT + 6 * HOUR
    fleet.samples(back, back + timedelta(minutes=30), start_mj=3_000_000_000)
    HourCloser(db, settings, closing=_DiesAtItsEnd()).run(late)
    HourCloser(db, settings).run(late)
    known = "SELECT count(*) FROM current_usage_hours WHERE hour_at > %s AND hour_at < %s AND energy_mj > 0"
    assert fleet.rows(known, HOUR_AT + 2 * HOUR, back) == [(3,)]
    assert HourCloser(db, settings).run(late) == Round()


@pytest.mark.parametrize("is_rating", [True, False])
def test_what_was_computed_of_a_picture_that_others_found_taken_back_is_not_written(
    db: Database, *, is_rating: bool
) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    closer = HourCloser(db, HASTY)
    closer.run(LATER)
    ((other,),) = fleet.rows("INSERT INTO tenants (path) VALUES ('globex') RETURNING id")

    def bind(tenant_id: int) -> None:
        fleet.rows("UPDATE bindings SET superseded_at = now() WHERE superseded_at IS NULL RETURNING 1")
        given = "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (1, %s, 'nlp', '2026-10-01Z') RETURNING 1"
        fleet.rows(given, tenant_id)
        with fleet.admin() as connection:
            fleet.changed("bindings", HOUR_AT, HOUR_AT + HOUR, connection)

    bind(int(other))
    with db.connect("worker", autocommit=True) as connection:
        (batch,) = batches([replace(hour, is_rating_only=is_rating) for hour in due_hours(connection, LATER)], 24)
    held = Here().close(Task(db, None, HASTY, batch, LATER, LATER, "1", 100))
    assert isinstance(next(held), Computed)  # for globex; and now it stands still
    bind(fleet.tenant_id)
    closer.run(LATER)
    assert fleet.rows("SELECT count(*) FROM changes") == [(0,)]
    saved = [told.saved for told in held if isinstance(told, Done)]
    assert set(saved) == {Saved.LOST_RACE}
    paid = "SELECT DISTINCT tenant_id FROM current_ledger_lines WHERE job_id IS NOT NULL"
    assert fleet.rows(paid) == [(fleet.tenant_id,)]
