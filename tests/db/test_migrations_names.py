"""Calls that were in before calls had names get theirs while others write, an hour at a time."""

from __future__ import annotations

import threading
import time

import pytest

from ingest.store import migrate
from ingest.store.engine import Database

pytestmark = pytest.mark.db

BEFORE = "0021_sealed_hours"
MADE = "0022_call_reports"
KNOWN = """
INSERT INTO api_calls (called_at, site_id, dedupe_key, provider, model, response_id, usage_known, status, origin, source)
SELECT timestamptz '2026-11-02' + n * interval '10 minutes', 1, 'span/' || n, 'p', 'm', CASE WHEN n % 2 = 0 THEN 'r-' || n END,
       false, 'ok', 1, 'span' FROM generate_series(0, 23) AS n
"""
NEW = """
INSERT INTO api_calls (called_at, site_id, dedupe_key, provider, model, usage_known, status, origin, source)
VALUES ('2026-11-03', 1, 'new/' || %s, 'p', 'm', false, 'ok', 1, 'span')
"""
HELD = "INSERT INTO call_keys VALUES (1, substr(encode(sha256('id/r-12'), 'hex'), 1, 32)::uuid, '2026-11-02', 'held')"
NAMED = "SELECT count(*) FROM call_keys"
NAMELESS = """
SELECT count(*) FROM api_calls AS c WHERE NOT EXISTS (SELECT FROM call_keys AS k WHERE k.key = substr(encode(sha256(
    convert_to(coalesce('id/' || response_id, 'key/' || c.dedupe_key), 'UTF8')), 'hex'), 1, 32)::uuid)
"""


def count(db: Database, query: str) -> int:
    with db.connect("admin") as admin:
        found = admin.execute(query.encode()).fetchone()
    assert found is not None
    number = found[0]
    assert isinstance(number, int)
    return number


@pytest.fixture
def filled(db: Database) -> Database:
    """24 calls of four hours, of a time when calls had no names."""
    migrate.downgrade(db.url, BEFORE)
    with db.connect("admin", autocommit=True) as admin:
        admin.execute("INSERT INTO sites (name) VALUES ('lab')")
        admin.execute("SELECT ensure_partitions('2026-11-02', '2026-11-04')")
        admin.execute(KNOWN)
    return db


def test_what_adds_columns_names_nothing_and_what_names_leaves_nobody_without(filled: Database) -> None:
    migrate.upgrade(filled.url, MADE)
    assert count(filled, NAMED) == 0  # 16 µs a call, while nobody can write one
    with filled.connect("admin", autocommit=True) as old_replica:
        old_replica.execute(NEW, ("late",))
    migrate.upgrade(filled.url)
    assert (count(filled, NAMED), count(filled, NAMELESS)) == (25, 0)


def test_calls_are_written_while_known_ones_get_their_names(filled: Database) -> None:
    migrate.upgrade(filled.url, MADE)
    upgrade = threading.Thread(target=migrate.upgrade, args=(filled.url,))
    with filled.connect("admin") as holder, filled.connect("admin", autocommit=True) as writer:
        holder.execute(HELD)  # another writer names a call of the third hour, and takes its time
        upgrade.start()
        while count(filled, NAMED) < 12:
            time.sleep(0.05)
        # Two hours are named, and committed; the third waits. Whoever writes calls does not.
        writer.execute("SET lock_timeout = '200ms'")
        for number in range(20):
            writer.execute(NEW, (number,))
        assert upgrade.is_alive()
        holder.rollback()
    upgrade.join()
    assert count(filled, NAMELESS) in range(21)  # those written meanwhile are of ingest to name
    assert count(filled, "SELECT count(*) FROM api_calls") == 44
