"""Two processes save hours of one site at the same time: what is an hour's own in any order, what hours share in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from analytics.closing.hours import Here
from analytics.closing.request import MinutesTask, Task, Told
from analytics.io.hours import Batch, batches
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db

NINE = HOUR_AT + HOUR
GATE = 4712
_GATE = f"""
CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NEW; END $$;
CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON ledger_runs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.hour_at = '{NINE.isoformat()}') EXECUTE FUNCTION gate();
"""


class LaterFirst:
    """Closes the later of two hours up to its commit, the earlier one as far as it gets, and then commits the later."""

    def __init__(self, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        self._admin = admin
        self.waited_for: list[str] = []

    def close(self, task: Task) -> Iterator[Told]:
        earlier, later = batches(task.batch.hours, 1)[:2]  # 10:00 has one reading, on its first instant
        told: list[Told] = []

        def close_one(hour: Batch) -> None:
            told.extend(Here().close(replace(task, batch=hour)))

        threads = [threading.Thread(target=close_one, args=(hour,)) for hour in (later, earlier)]
        for number, thread in enumerate(threads, start=1):
            thread.start()
            self._until_wait(number)
        self.waited_for = self._waits()
        self._admin.execute("SELECT pg_advisory_unlock(%s)", (GATE,))
        for thread in threads:
            thread.join(30)
        yield from told

    def make_minutes(self, task: MinutesTask) -> bool:
        raise AssertionError(f"nobody asked for minutes: {task}")

    def _waits(self) -> list[str]:
        query = (
            "SELECT wait_event FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return [str(event) for (event,) in self._admin.execute(query)]

    def _until_wait(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while len(self._waits()) != number:
            assert time.monotonic() < deadline, f"{number} did not wait within 30 s: {self._waits()}"
            time.sleep(0.02)


def test_a_job_of_two_hours_saved_at_once_has_the_tenant_of_the_later(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    job_id = fleet.job("7", HOUR_AT, HOUR_AT + 2 * HOUR)
    with db.connect("admin", autocommit=True) as admin:
        (other,) = admin.execute("INSERT INTO tenants (path) VALUES ('globex') RETURNING id").fetchone() or (0,)
        admin.execute("UPDATE bindings SET valid_to = %s", (NINE,))
        admin.execute(
            "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (2, %s, 'nlp', %s)", (other, NINE)
        )
        admin.execute(_GATE.encode())
        admin.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        both = LaterFirst(admin)
        done = HourCloser(db, WorkerSettings(code_version="test"), closing=both).run(HOUR_AT + timedelta(hours=6))

        assert (done.closed, done.failed, done.lost_races) == (2, 0, 0)
        assert both.waited_for == ["advisory", "advisory"]  # the gate's, and the turn's
        assert admin.execute("SELECT tenant_id FROM jobs WHERE id = %s", (job_id,)).fetchone() == (other,)
