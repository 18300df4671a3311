"""`wattledger segments`: hours and files listed, damage found, files made anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.cli import cli
from wattledger.errors import WattledgerError
from wattledger.runtime import SEGMENTS_VARIABLE

pytestmark = pytest.mark.db
Run = Callable[..., Result]


@pytest.fixture
def fleet(db: Database, tmp_path: Path) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=90))
    sealer = Sealer(db, Segments.at(tmp_path / "sealed"))
    for number in range(2):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    return fleet


@pytest.fixture
def run(fleet: SmallFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(URL_VARIABLE, fleet.database.url)
    monkeypatch.setenv(SEGMENTS_VARIABLE, str(tmp_path / "sealed"))

    def called(*words: str) -> Result:
        bounds = ["--from", "2026-11-01", "--to", "2026-11-02"]
        return CliRunner().invoke(cli, ["--home", str(tmp_path), "segments", *words, *bounds])

    return called


def test_hours_are_listed_with_generation_rows_and_size(run: Run) -> None:
    answer = run("list", "--format", "json")
    assert answer.exit_code == 0, answer.output
    rows = json.loads(answer.stdout)
    assert [(row["hour_at"], row["state"], row["generation"], row["rows"]) for row in rows] == [
        ("2026-11-01T08:00:00Z", "sealed", 1, 360),
        ("2026-11-01T09:00:00Z", "sealed", 1, 181),
    ]
    assert "2 hours" in run("list").output


def test_a_damaged_file_is_told_and_made_anew(run: Run, fleet: SmallFleet, tmp_path: Path) -> None:
    assert run("verify").exit_code == 0
    path = next((tmp_path / "sealed").rglob("hour=09/*.parquet"))
    path.write_bytes(path.read_bytes()[:-4] + b"LOST")

    told = run("verify", "--quick")

    assert told.exit_code == 1
    assert "another SHA-256" in told.output
    assert "2 files looked at, 1 missing or damaged" in told.output
    found = "SELECT count(*) FROM findings WHERE kind = 'segment_damaged' AND withdrawn_at IS NULL"
    assert fleet.rows(found) == [(1,)]
    made = run("rebuild")
    assert (made.exit_code, made.output) == (0, "s1 2026-11-01 09:00 device_samples: generation 2, 181 rows\n")
    assert run("verify").exit_code == 0
    assert fleet.rows(found) == [(0,)]
    assert run("rebuild").output == "every file is whole\n"


def test_what_is_not_hot_any_more_is_not_made_anew(run: Run, fleet: SmallFleet, tmp_path: Path) -> None:
    next((tmp_path / "sealed").rglob("hour=08/*.parquet")).unlink()
    fleet.rows("DELETE FROM device_samples WHERE at < %s RETURNING 1", HOUR_AT + timedelta(minutes=30))
    made = run("rebuild")
    assert made.exit_code == 1
    assert "hold 180 of the 360 rows" in made.output


def test_a_place_without_its_marker_is_no_damage_until_somebody_says_it_is(
    run: Run, fleet: SmallFleet, tmp_path: Path
) -> None:
    (tmp_path / "sealed").rename(tmp_path / "disk")
    (tmp_path / "sealed").mkdir()  # its mount point
    told = run("verify")
    assert isinstance(told.exception, WattledgerError)
    assert "has no file 'wattledger-segments'" in str(told.exception)
    assert fleet.rows("SELECT count(*) FROM findings") == [(0,)]
    claimed = CliRunner().invoke(cli, ["--home", str(tmp_path), "segments", "claim"])
    assert (claimed.exit_code, "is the place of the segments" in claimed.output) == (0, True)
    assert "2 files looked at, 2 missing or damaged" in run("verify").output
    assert "generation 2, 360 rows" in run("rebuild").output
