"""The login that deploy/compose/roles.sh makes for backups is enough for one, on every server, and for nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_backup import BILL, LATER, emptied
from wattledger.backup import back_up
from wattledger.restore import open_source, restore

pytestmark = pytest.mark.db
ROLES = Path(__file__).resolve().parents[2] / "deploy/compose/roles.sh"


@pytest.fixture
def login(db: Database) -> Iterator[Database]:
    said = re.findall(
        r"^(?:CREATE ROLE|GRANT pg_read_all_data TO|ALTER ROLE) wattledger_backup.*;", ROLES.read_text(), re.MULTILINE
    )
    assert len(said) == 3
    with db.connect("admin", autocommit=True) as admin:
        for statement in said:
            admin.execute(statement.replace("PASSWORD :'backup_password' ", "").encode())
        try:
            yield Database.at_url(db.as_login("wattledger_backup"))
        finally:
            admin.execute("DROP ROLE wattledger_backup")


def test_what_it_backs_up_is_the_bill_of_all_tenants(
    db: Database, login: Database, server: EmbeddedServer, tmp_path: Path
) -> None:
    fleet, segments = small_fleet(db), Segments.at(tmp_path / "segments")
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    HourCloser(db, WorkerSettings(code_version="test"), segments).run(LATER)
    wanted = fleet.rows(BILL)
    assert wanted
    made = back_up(login, segments, tmp_path, tmp_path / "target", env=os.environ, say=print)
    assert made.manifest.ledger.lines == len(wanted)
    with emptied(server, "from_the_login") as database:
        checks = restore(
            open_source(tmp_path / "target"), database, Segments.at(tmp_path / "r"), tmp_path, env=os.environ, say=print
        )
        assert "broken" not in {check.verdict for check in checks}, checks
        copy = SmallFleet(database, fleet.site_id, fleet.node_id, fleet.device_id, fleet.epoch_id, fleet.tenant_id)
        assert copy.rows(BILL) == wanted
