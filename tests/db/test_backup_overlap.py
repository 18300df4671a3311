"""Two backups of one target: the second is refused, and what was unfinished keeps its files."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger import backup
from wattledger.backup import Made, back_up, prune
from wattledger.backup_manifest import BackupError, backups_in
from wattledger.restore import open_source, verify

pytestmark = pytest.mark.db


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    return fleet


@pytest.fixture
def segments(fleet: SmallFleet, tmp_path: Path) -> Segments:
    """With one of two hours sealed."""
    made = Segments.at(tmp_path / "segments")
    Sealer(fleet.database, made).seal(hour_of(fleet.site_id, HOUR_AT))
    return made


def again(fleet: SmallFleet, segments: Segments, target: Path, **how: Any) -> Made:
    return back_up(fleet.database, segments, target.parent, target, env=os.environ, say=print, **how)


def test_a_second_backup_and_a_prune_are_refused_while_one_runs_and_it_is_whole(
    fleet: SmallFleet, segments: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, refused, plain = tmp_path / "target", [], backup._dump
    for _ in range(3):
        again(fleet, segments, target)
    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + HOUR))

    def dump(*told: Any) -> None:
        """In the middle of it, when it has copied the hour that no backup before has, others come."""
        plain(*told)
        for other in (lambda: again(fleet, segments, target, keep=2), lambda: prune(target, 2, print)):
            with pytest.raises(BackupError, match="a backup is using") as caught:
                other()
            refused.append(caught)

    monkeypatch.setattr(backup, "_dump", dump)
    made = again(fleet, segments, target, keep=2)
    assert (len(refused), len(made.manifest.segments), len(backups_in(target))) == (2, 2, 2)
    verify(open_source(target), print)


def test_a_file_that_is_gone_when_the_dump_is_done_makes_no_backup(
    fleet: SmallFleet, segments: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, plain = tmp_path / "target", backup._dump

    def dump(*told: Any) -> None:
        plain(*told)
        shutil.rmtree(target / "segments")

    monkeypatch.setattr(backup, "_dump", dump)
    with pytest.raises(BackupError, match="was deleted or changed while the database was dumped"):
        again(fleet, segments, target)
    assert list((target / "backups").iterdir()) == []


def test_pruning_spares_sealed_files_for_a_day_while_a_backup_is_unfinished(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    again(fleet, segments, target)
    unfinished = target / "backups" / ".unfinished-20261121T021700.000000Z"
    unfinished.mkdir()
    fresh = target / "segments" / "of-the-unfinished.parquet"
    fresh.write_bytes(b"copied, and in no manifest yet")
    again(fleet, segments, target, keep=1)
    assert fresh.exists()
    assert len(backups_in(target)) == 1
    yesterday_s = time.time() - 86_401
    os.utime(unfinished, (yesterday_s, yesterday_s))
    again(fleet, segments, target, keep=1)
    assert not fresh.exists()
    assert not unfinished.exists()
    verify(open_source(target), print)
