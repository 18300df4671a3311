"""Migrations of large tables go on beside those who write them: an index is made without locking them out, rows are told a day at a time."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from ingest.store import migrate
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR_AT

pytestmark = pytest.mark.db
HOURS = """
INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256)
SELECT 1, %(at)s + hours * interval '1 hour', 1, 100 + hours, 'closed', '5', '' FROM unnest('{0, 1, 2, 24}'::integer[]) AS hours;
"""
# Of the hours: 0 has energy and minutes, 1 energy and none, 2 no energy, 24, of the next day, energy and minutes.
ENERGY = """
INSERT INTO usage_hours (site_id, hour_at, revision, device_id, holder, state, held_us, covered_us, accelerators, energy_mj, source, coverage, origin)
SELECT 1, %(at)s + hours * interval '1 hour', 1, 1, 'idle', 'available', 1, 1, 1, 5, 'measured', 1, 1 FROM unnest('{0, 1, 24}'::integer[]) AS hours
"""
MINUTES = """
INSERT INTO tenant_minutes (site_id, minute_at, tenant_id, energy_mj)
SELECT 1, %(at)s + hours * interval '1 hour' + interval '5 min', NULL, 5 FROM unnest('{0, 24}'::integer[]) AS hours
"""
# Whoever tells the hour of the second day waits for this lock.
STOPS = """
CREATE FUNCTION stops() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$;
CREATE TRIGGER stops BEFORE UPDATE ON ledger_hours FOR EACH ROW WHEN (NEW.run_id = 124) EXECUTE FUNCTION stops()
"""
TOLD = "SELECT extract(epoch FROM hour_at - %(at)s)::integer / 3600, minutes_run_id FROM ledger_hours ORDER BY 1"
GIVEN = {"at": HOUR_AT}


def rows(db: Database, query: str, given: Any = None) -> list[tuple[Any, ...]]:
    with db.connect("admin", autocommit=True) as admin:
        return admin.execute(query.encode(), given).fetchall()


def test_hours_are_told_of_their_minutes_a_day_at_a_time_and_an_interrupted_run_finds_what_was_told(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "20s")
    migrate.downgrade(db.url, "0046_periods")
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("INSERT INTO sites (name) VALUES ('lab')")
        admin.execute("SET session_replication_role = replica")
        for query in (HOURS, ENERGY, MINUTES):
            admin.execute(query.encode(), GIVEN)
        admin.execute(STOPS)
    upgrade = threading.Thread(daemon=True, target=migrate.upgrade, args=(db.url, "0047_minutes_apart"))
    with db.connect("admin") as holder, db.connect("admin", autocommit=True) as writer:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        upgrade.start()
        has = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'minutes_run_id'"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (rows(db, has) == [(0,)] or rows(db, TOLD, GIVEN)[0][1] is None):
            time.sleep(0.05)
        # The first day is told, and committed; the second waits. Who closes an hour of the first does not.
        assert rows(db, TOLD, GIVEN) == [(0, 100), (1, None), (2, 102), (24, None)]
        writer.execute("SET lock_timeout = '200ms'")
        writer.execute("UPDATE ledger_hours SET status = 'provisional' WHERE run_id = 101")
        assert upgrade.is_alive()
        holder.rollback()
    upgrade.join(60)
    assert rows(db, TOLD, GIVEN) == [(0, 100), (1, None), (2, 102), (24, 124)]
    assert migrate.pending(db.url)[0].startswith("0048")


def test_an_index_of_lines_is_made_while_others_write_them_and_anew_where_a_run_was_interrupted(db: Database) -> None:
    migrate.downgrade(db.url, "0050_change_notes")
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("CREATE INDEX ledger_lines_job_ix ON ledger_lines (job_id)")
        admin.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ledger_lines_job_ix'::regclass")
    made = "SELECT indisvalid, pg_get_indexdef(indexrelid) LIKE '%%WHERE%%' FROM pg_index WHERE indexrelid = to_regclass('ledger_lines_job_ix')"
    upgrade = threading.Thread(daemon=True, target=migrate.upgrade, args=(db.url, "0051_lines_by_job"))
    with db.connect("admin") as holder:
        holder.execute("LOCK TABLE ledger_lines IN ROW EXCLUSIVE MODE")  # as who saves an hour, and takes its time
        upgrade.start()
        time.sleep(migrate_waits_s := 2.5)  # longer than a migration waits for a lock that others queue behind
        assert migrate_waits_s > float(migrate.LOCK_TIMEOUT.removesuffix("s"))
        with db.connect("admin") as writer:
            writer.execute("LOCK TABLE ledger_lines IN ROW EXCLUSIVE MODE NOWAIT")
        assert upgrade.is_alive()
        holder.rollback()
    upgrade.join(60)
    assert rows(db, made.replace("%%", "%")) == [(True, True)]
    assert migrate.pending(db.url)[0].startswith("0052")
