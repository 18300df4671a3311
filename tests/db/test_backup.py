"""Backup and restore: the bill afterwards is the one before, to the last decimal, though all went on meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner
from psycopg import sql

from analytics.io.hours import due_hours
from analytics.io.recompute import Ground, recompute, runs_in_force
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests import servers
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.scratch import quick_folder
from wattledger.backup import Made, back_up, prune
from wattledger.backup_manifest import BackupError, backups_in, hex_digest
from wattledger.cli import cli
from wattledger.restore import open_source, restore, verify
from wattledger.runtime import SEGMENTS_VARIABLE

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + timedelta(days=1, hours=3)
BILL = "SELECT hour_at, line_key, revision, billed_cost, effective_cost, energy_mj, carbon_gco2e FROM current_ledger_lines ORDER BY 1, 2"
FIGURES = "SELECT hour_at, effective_cost, energy_mj, carbon_gco2e FROM current_ledger_lines ORDER BY hour_at, line_key"
HOURS = "SELECT hour_at, content_sha256 FROM ledger_hours ORDER BY 1"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Three hours of a device and a job on it."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    fleet.job("7", HOUR_AT + timedelta(minutes=20), HOUR_AT + timedelta(minutes=100))
    return fleet


@pytest.fixture
def sealed(fleet: SmallFleet, tmp_path: Path) -> Segments:
    """The hours closed and sealed, and gone from the hot tables."""
    segments = Segments.at(tmp_path / "segments")
    HourCloser(fleet.database, SETTINGS, segments).run(LATER)
    sealer = Sealer(fleet.database, segments)
    for number in range(4):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    assert fleet.rows("WITH gone AS (DELETE FROM device_samples RETURNING 1) SELECT count(*) FROM gone") == [(1081,)]
    return segments


@contextmanager
def emptied(server: EmbeddedServer, name: str) -> Iterator[Database]:
    quoted = sql.Identifier(name)
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER wattledger_owner").format(quoted))
        try:
            yield server.database(name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


def made(fleet: SmallFleet, segments: Segments, target: Path) -> Made:
    return back_up(fleet.database, segments, target.parent, target, env=os.environ, say=print)


class Weather(threading.Thread):
    """Goes on as ingest, worker and sealer do: rows with their changes, late rows merged, files replaced and deleted."""

    def __init__(self, fleet: SmallFleet, segments: Segments) -> None:
        super().__init__()
        self.rounds = 0
        self._fleet = fleet
        self._segments = segments
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        fleet = self._fleet
        sealer = Sealer(fleet.database, self._segments)
        while not self._over.is_set():
            at = HOUR_AT + timedelta(minutes=5, microseconds=self.rounds + 1)
            with fleet.admin() as connection, connection.transaction():
                connection.execute(
                    "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
                    "VALUES (%s, %s, %s, 0, 0, 1, 0, 30000000)",
                    (at, fleet.device_id, fleet.epoch_id),
                )
                fleet.changed("device_samples", at, at + timedelta(microseconds=1), connection)
            sealer.merge(hour_of(fleet.site_id, at))
            with fleet.database.connect("worker") as connection:
                delete_retired(connection, self._segments, timedelta(0))
            self.rounds += 1


def test_the_restored_bill_is_the_one_that_was_backed_up_though_all_went_on(
    fleet: SmallFleet, sealed: Segments, server: EmbeddedServer, tmp_path: Path
) -> None:
    wanted, hours = fleet.rows(BILL), fleet.rows(HOURS)
    # An hour of 100 W is 0.1 kWh of 0.20 USD, and 2 USD of the device.
    assert sum(row[4] for row in wanted if row[0] == HOUR_AT) == Decimal("2.02")
    with Weather(fleet, sealed) as weather:
        while weather.rounds < 2:
            weather.join(0.01)
        began = weather.rounds
        backup = made(fleet, sealed, tmp_path / "target")
        assert weather.rounds > began, "nothing went on meanwhile"
    source = open_source(tmp_path / "target")
    verify(source, print)
    with emptied(server, "restored") as database:
        segments = Segments.at(tmp_path / "restored")
        checks = restore(source, database, segments, tmp_path, env=os.environ, say=print)
        assert {check.verdict for check in checks if check.subject != "clock"} == {"fine"}, checks
        copy = SmallFleet(database, fleet.site_id, fleet.node_id, fleet.device_id, fleet.epoch_id, fleet.tenant_id)
        assert (copy.rows(BILL), copy.rows(HOURS)) == (wanted, hours)
        # Every late row is in the one file its hour is read from, or still late: as many as there are changes of them.
        told = copy.rows(
            "SELECT (SELECT count(*) FROM changes WHERE to_at - from_at = interval '1 microsecond'), "
            "(SELECT count(*) FROM late_samples) + (SELECT sum(rows) FROM hour_segments WHERE retired_at IS NULL)"
        )
        assert told[0][1] == 3 * 360 + 1 + told[0][0]
        assert told[0][0] >= began
        # At 8:05 the counter had come to 30 kJ, as the late rows say: read for the first time they move nothing of the bill.
        assert HourCloser(database, SETTINGS, segments).run(LATER).failed == 0
        assert copy.rows(FIGURES) == [(hour, cost, energy, carbon) for hour, _, _, _, cost, energy, carbon in wanted]
    assert len(backup.manifest.segments) == 4


def test_a_change_after_the_restore_restates_its_hour_whatever_the_old_server_counted(
    fleet: SmallFleet, sealed: Segments, server: EmbeddedServer, tmp_path: Path
) -> None:
    with fleet.admin() as connection:  # a server that has seen four billion transactions more than this one
        connection.execute("UPDATE ledger_hours SET seen_xid = '4000000001'")
        connection.execute("UPDATE changes SET written_xid = '4000000000'")
    made(fleet, sealed, tmp_path / "target")
    with emptied(server, "restored_xid") as database:
        restore(
            open_source(tmp_path / "target"), database, Segments.at(tmp_path / "r"), tmp_path, env=os.environ, say=print
        )
        copy = SmallFleet(database, fleet.site_id, fleet.node_id, fleet.device_id, fleet.epoch_id, fleet.tenant_id)
        with copy.admin() as connection:
            assert due_hours(connection, LATER) == []
            copy.changed("device_samples", HOUR_AT, HOUR_AT + timedelta(seconds=1), connection)
            assert HOUR_AT in {hour.hour_at for hour in due_hours(connection, LATER)}
        done = HourCloser(database, SETTINGS, Segments.at(tmp_path / "r")).run(LATER)
        assert (done.restated, done.failed) == (0, 0)
        with copy.admin() as connection:
            assert due_hours(connection, LATER) == []


def test_a_past_bill_comes_out_the_same_in_a_restored_database(
    fleet: SmallFleet, sealed: Segments, server: EmbeddedServer, tmp_path: Path
) -> None:
    another = "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) VALUES (%s, 'it', %s, 'USD', 'late', %s)"
    with fleet.database.connect("admin") as slow:  # recorded before the hours are closed again, and committed after
        slow.execute("UPDATE tariffs SET superseded_at = now()")
        slow.execute(another, (fleet.site_id, "0.50", HOUR_AT))
        with fleet.admin() as connection:
            fleet.changed("allocations", HOUR_AT, HOUR_AT + 3 * HOUR, connection)
        assert HourCloser(fleet.database, SETTINGS, sealed).run(LATER).unchanged == 4
        slow.commit()
    ((closed_at,),) = fleet.rows("SELECT clock_timestamp()")
    made(fleet, sealed, tmp_path / "target")
    with emptied(server, "restored_past") as database:
        segments = Segments.at(tmp_path / "r")
        restore(open_source(tmp_path / "target"), database, segments, tmp_path, env=os.environ, say=print)
        copy = SmallFleet(database, fleet.site_id, fleet.node_id, fleet.device_id, fleet.epoch_id, fleet.tenant_id)
        with copy.admin() as connection:
            connection.execute("UPDATE tariffs SET superseded_at = now() WHERE superseded_at IS NULL")
            connection.execute(another, (fleet.site_id, "0.70", HOUR_AT))
            copy.changed("tariffs", HOUR_AT, HOUR_AT + 3 * HOUR, connection)
        assert HourCloser(database, SETTINGS, segments).run(LATER).restated == 3
        with database.connect("worker", autocommit=True) as worker:

            def again(as_of: datetime) -> set[tuple[str, Ground, bool | None]]:
                runs = runs_in_force(worker, as_of, HOUR_AT, HOUR_AT + 3 * HOUR, None)
                found = [recompute(database, worker, segments, *run) for run in runs]
                return {(each.kind, each.ground, each.is_same) for each in found}

            assert again(closed_at) == {("attest", Ground.SAMPLES, True)}
            assert again(closed_at + timedelta(hours=1)) == {("close", Ground.SAMPLES, True)}


def test_what_an_earlier_backup_has_is_not_copied_again_and_old_backups_go(
    fleet: SmallFleet, sealed: Segments, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    first = made(fleet, sealed, target)
    assert (first.copied_files, first.kept_files) == (4, 0)
    second = made(fleet, sealed, target)
    assert (second.copied_files, second.copied_bytes, second.kept_files) == (0, 0, 4)
    spoilt = target / "segments" / second.manifest.segments[0].path
    spoilt.write_bytes(b"x" * second.manifest.segments[0].size_bytes)
    third = back_up(fleet.database, sealed, tmp_path, target, env=os.environ, say=print, reread=True)
    assert (third.copied_files, third.kept_files) == (1, 3)
    (target / "segments" / "stale.parquet").touch()
    prune(target, 1, print)
    assert backups_in(target) == [third.folder]
    assert len(list((target / "segments").rglob("*.parquet"))) == 4
    verify(open_source(target), print)


def test_a_damaged_a_newer_and_a_second_restore_are_refused_and_change_nothing(
    fleet: SmallFleet, sealed: Segments, server: EmbeddedServer, tmp_path: Path
) -> None:
    backup = made(fleet, sealed, tmp_path / "target")
    with pytest.raises(BackupError, match="is not empty"):
        restore(open_source(backup.folder), fleet.database, sealed, tmp_path, env=os.environ, say=print)
    file = tmp_path / "target" / "segments" / backup.manifest.segments[1].path
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    dump = backup.folder / "database.dump"
    dump.write_bytes(dump.read_bytes()[:-7])
    with pytest.raises(BackupError, match=r"database\.dump has .* bytes instead of .*is not what was written"):
        verify(open_source(backup.folder), print)
    manifest = backup.folder / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(BackupError, match="not what was written"):
        open_source(backup.folder)
    told = json.loads(manifest.read_text()) | {"schema": "9999_from_the_future"}
    manifest.write_text(json.dumps(told))
    (backup.folder / "SHA256SUMS").write_text(f"{hex_digest(manifest)}  manifest.json\n")
    with pytest.raises(BackupError, match="which this version does not know"):
        open_source(backup.folder)


def test_a_restore_that_fails_leaves_the_database_empty_and_the_next_one_goes_through(
    fleet: SmallFleet, sealed: Segments, server: EmbeddedServer, tmp_path: Path
) -> None:
    backup = made(fleet, sealed, tmp_path / "target")
    source, dump = open_source(tmp_path / "target"), backup.folder / "database.dump"
    whole = dump.read_bytes()
    with emptied(server, "restored_again") as database:
        segments = Segments.at(tmp_path / "restored")
        dump.write_bytes(whole[: len(whole) // 3])  # as if the disk failed after the checksums were compared
        with pytest.raises(BackupError, match="was not restored and is empty as before"):
            restore(source, database, segments, tmp_path, env=os.environ, say=print)
        dump.write_bytes(whole)
        checks = restore(source, database, segments, tmp_path, env=os.environ, say=print)
        assert "broken" not in {check.verdict for check in checks}


def test_the_commands_move_a_paused_installation_into_a_new_home(
    fleet: SmallFleet,
    sealed: Segments,
    server_kind: servers.Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = fleet.rows(BILL)
    old, new, target = tmp_path / "old", quick_folder("wl-restored-"), str(tmp_path / "target")
    old.mkdir()
    (old / "actions.paused").touch()

    def called(home: Path, *words: str) -> str:
        answer = CliRunner().invoke(cli, ["--home", str(home), *words])
        assert answer.exit_code == 0, (answer.output, answer.exception)
        return answer.output

    with monkeypatch.context() as there:
        there.setenv(URL_VARIABLE, fleet.database.url)
        there.setenv(SEGMENTS_VARIABLE, sealed.shown_as)
        assert "4 copied" in called(old, "backup", target, "--keep", "2")
        assert "can be restored" in called(old, "restore", target, "--check")
    if server_kind is servers.Kind.TIMESCALE:
        return  # `up` of a home starts a server without the extension's library
    own = EmbeddedServer.in_home(new)
    try:
        told = called(new, "restore", target)
        assert "4 files, each with its checksum" in told
        assert "actions are paused, as they were" in told
        assert (new / "actions.paused").exists()
        own.start()
        with own.database().connect("admin") as connection:
            assert connection.execute(BILL.encode()).fetchall() == wanted
        again = CliRunner().invoke(cli, ["--home", str(new), "restore", target])
        assert isinstance(again.exception, BackupError)
        assert "is not empty" in str(again.exception)
    finally:
        own.destroy()
        shutil.rmtree(new)
