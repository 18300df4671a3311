"""A dump that is loaded by hand, as docs/databases.md says: the books must not believe the old server's transaction ids."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from analytics.io.hours import due_hours
from analytics.io.restored import SETTLE
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from ingest.store.segments import Segments
from tests import servers
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.backup_programs import find_programs, reach

pytestmark = pytest.mark.db
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy/server/settle.sql"
LATER = HOUR_AT + timedelta(days=1, hours=3)


def as_told() -> list[list[str]]:
    """Return the words of each pg_dump on the page."""
    page = (ROOT / "docs/databases.md").read_text(encoding="utf-8")
    said = re.search(r'^    all="(.*)"$', page, flags=re.MULTILINE)
    assert said is not None
    return [[*said[1].split(), *words.split()] for words in re.findall(r"pg_dump \$all (.*) OLD &&", page)]


@pytest.fixture
def other(server: EmbeddedServer) -> Iterator[Database]:
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute("CREATE DATABASE by_hand OWNER wattledger_owner")
        try:
            upgrade(server.database("by_hand").url)
            yield server.database("by_hand")
        finally:
            admin.execute("DROP DATABASE by_hand WITH (FORCE)")


def test_the_script_does_what_a_restore_does_and_the_page_has_it_run() -> None:
    text = re.sub(r"^--.*\n", "", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert text.split() == f"SET search_path = public; {SETTLE}".split()
    page = (ROOT / "docs/databases.md").read_text(encoding="utf-8")
    assert page.count(f"{SCRIPT.relative_to(ROOT)}") >= 3


def test_an_hour_closed_before_the_move_is_restated_by_a_change_after_it(
    db: Database, other: Database, server_kind: servers.Kind, tmp_path: Path
) -> None:
    if server_kind is servers.Kind.TIMESCALE:
        return  # tests/db/test_layout_change.py moves data between its layouts
    fleet, segments = small_fleet(db), Segments.at(tmp_path)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    HourCloser(db, WorkerSettings(code_version="test"), segments).run(LATER)
    with fleet.admin() as connection:  # a server that has seen four billion transactions more than the new one
        connection.execute("UPDATE ledger_hours SET seen_xid = '4000000001'")
        connection.execute("UPDATE changes SET written_xid = '4000000000'")
        major = connection.info.server_version // 10_000
    with other.connect("admin", autocommit=True) as connection:
        connection.execute("SELECT ensure_partitions(%s, %s)", (HOUR_AT.date(), HOUR_AT.date() + timedelta(days=1)))
    programs = find_programs(major, os.environ)
    (old, env), (new, _) = reach(db), reach(other)
    dumped = b"".join(
        subprocess.run([programs["pg_dump"], *taken, old], env=env, check=True, capture_output=True).stdout
        for taken in as_told()
    )
    script = b"\n".join(line for line in dumped.splitlines() if not line.startswith(b"SET transaction_timeout"))
    loading = [programs["psql"], "-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", new]
    loaded = subprocess.run(
        loading, env=env, input=script + b"\n" + SCRIPT.read_bytes(), check=False, capture_output=True
    )
    assert loaded.returncode == 0, loaded.stderr.decode()
    copy = SmallFleet(other, fleet.site_id, fleet.node_id, fleet.device_id, fleet.epoch_id, fleet.tenant_id)
    with copy.admin() as connection:
        assert due_hours(connection, LATER) == []
        copy.changed("device_samples", HOUR_AT, HOUR_AT + timedelta(seconds=1), connection)
        assert HOUR_AT in {hour.hour_at for hour in due_hours(connection, LATER)}
