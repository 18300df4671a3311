"""Law 6: a past bill is computed again to the byte, from its own files and as its inputs were then known; what cannot be is said."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analytics.io.recompute import Ground, Recomputed, recompute, runs_in_force
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.cli import cli

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + 6 * HOUR


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=20))
    return fleet


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    return Segments.at(tmp_path)


@pytest.fixture
def closer(fleet: SmallFleet, segments: Segments) -> HourCloser:
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    return closer


def again(fleet: SmallFleet, closer: HourCloser, kind: str = "allocations") -> None:
    with fleet.admin() as connection:
        fleet.changed(kind, HOUR_AT, HOUR_AT + HOUR, connection)
    closer.run(LATER)


def of_now(fleet: SmallFleet) -> datetime:
    ((now,),) = fleet.rows("SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    return now


def recomputed(fleet: SmallFleet, segments: Segments, as_of: datetime | None = None) -> Recomputed:
    with fleet.database.connect("worker", autocommit=True) as connection:
        runs = runs_in_force(connection, as_of or of_now(fleet), HOUR_AT, HOUR_AT + HOUR, None)
        (found,) = (recompute(fleet.database, connection, segments, *run) for run in runs)
    return found


def verdict(found: Recomputed) -> tuple[Any, ...]:
    return found.revision, found.kind, found.ground, found.is_same


def late(fleet: SmallFleet, minute: int = 55) -> None:
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0, %s)",
            (HOUR_AT + timedelta(minutes=minute), fleet.device_id, fleet.epoch_id, minute * 6_000_000),
        )


def test_an_hour_closed_of_hot_rows_comes_out_the_same_from_them_and_from_its_file(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    assert verdict(recomputed(fleet, segments)) == (1, "close", Ground.SAMPLES, True)
    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))
    assert verdict(recomputed(fleet, segments)) == (1, "close", Ground.SAMPLES, True)
    del closer


def test_a_bill_of_before_a_merge_a_price_and_a_binding_comes_out_as_it_was(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    sealer, hour = Sealer(fleet.database, segments), hour_of(fleet.site_id, HOUR_AT)
    sealer.seal(hour)
    again(fleet, closer)
    attested_at = of_now(fleet)
    late(fleet)
    sealer.merge(hour)
    again(fleet, closer, "device_samples")
    merged_at = of_now(fleet)
    fleet.rows("UPDATE tariffs SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
        "VALUES (%s, 'it', 0.35, 'USD', 'late', '2026-10-01Z') RETURNING 1",
        fleet.site_id,
    )
    ((other,),) = fleet.rows("INSERT INTO tenants (path) VALUES ('globex') RETURNING id")
    fleet.rows("UPDATE bindings SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (1, %s, 'nlp', '2026-10-01Z') RETURNING 1",
        other,
    )
    again(fleet, closer, "bindings")
    with fleet.database.connect("worker") as connection:
        delete_retired(connection, segments, timedelta(0))

    assert verdict(recomputed(fleet, segments, attested_at)) == (1, "attest", Ground.SAMPLES, True)
    assert verdict(recomputed(fleet, segments, merged_at)) == (2, "close", Ground.SAMPLES, True)
    assert verdict(recomputed(fleet, segments)) == (3, "rate", Ground.SAMPLES, True)


def test_where_rows_have_changed_since_lines_are_made_of_the_usage_hours_and_it_is_said(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    late(fleet)  # nobody has closed the hour with it yet
    found = recomputed(fleet, segments)
    assert verdict(found) == (1, "close", Ground.USAGE, True)
    assert found.why == "it read rows before they were sealed, and what lies there now is not the same"
    del closer


def test_a_line_or_a_usage_hour_that_somebody_altered_is_found(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    fleet.rows("UPDATE ledger_runs SET content_sha256 = sha256('another') WHERE hour_at = %s RETURNING 1", HOUR_AT)
    found = recomputed(fleet, segments)
    assert (verdict(found), found.why) == ((1, "close", Ground.SAMPLES, False), "the same inputs give other books")
    fleet.rows("UPDATE prices SET amount = 3 RETURNING 1")  # not as a new row, as nobody may
    assert recomputed(fleet, segments).why == "other prices than then"
    del closer


def test_what_an_older_version_closed_is_not_computed_and_says_so(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    fleet.rows("UPDATE ledger_runs SET method_version = NULL RETURNING 1")
    found = recomputed(fleet, segments)
    assert verdict(found) == (1, "close", Ground.NOTHING, None)
    assert "kept no record of what it read, those of wattledger test" in found.why
    fleet.rows("UPDATE ledger_runs SET method_version = 999 RETURNING 1")
    assert "formulas 999" in recomputed(fleet, segments).why
    del closer


def test_the_command_tells_by_hour_and_ends_with_one_where_a_bill_differs(
    fleet: SmallFleet, closer: HourCloser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, fleet.database.url)
    command = ["--home", str(tmp_path), "recompute", "--from", "2026-11-01", "--to", "2026-11-02", "--format", "json"]

    answer = CliRunner().invoke(cli, command)
    assert answer.exit_code == 0, answer.output
    assert [(row["hour_at"], row["verdict"], row["ground"]) for row in json.loads(answer.stdout)] == [
        ("2026-11-01T08:00:00Z", "same", "samples")
    ]

    fleet.rows("UPDATE ledger_runs SET content_sha256 = sha256('another') RETURNING 1")
    assert CliRunner().invoke(cli, command).exit_code == 1
    fleet.rows("UPDATE ledger_runs SET method_version = 999 RETURNING 1")
    assert CliRunner().invoke(cli, command).exit_code == 2
    assert json.loads(CliRunner().invoke(cli, [*command, "--as-of", "2026-11-01"]).stdout) == []
    del closer


def test_a_job_described_anew_and_a_call_told_again_stand_as_they_were_stored_and_it_is_said(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    call = (
        "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, input_uncached_tokens, usage_known, source, origin) "
        "VALUES (%s, 'c1', %s, 'openai', 'gpt', 10, true, 'log', 1) RETURNING 1"
    )
    fleet.rows(call, HOUR_AT + timedelta(minutes=1), fleet.site_id)
    again(fleet, closer, "api_calls")
    assert verdict(recomputed(fleet, segments)) == (2, "rate", Ground.SAMPLES, True)

    # Erased, or described anew by its scheduler: by its account the job would be nobody's now. And the call has other tokens.
    fleet.rows("UPDATE jobs SET account = 'p-1' RETURNING 1")
    fleet.rows("UPDATE api_calls SET input_uncached_tokens = 99 RETURNING 1")
    found = recomputed(fleet, segments)
    assert verdict(found) == (2, "rate", Ground.SAMPLES, True)
    assert "as they are stored" in found.why

    # Any other difference is one, whatever jobs and calls say.
    fleet.rows("UPDATE prices SET amount = amount + 1 RETURNING 1")
    assert recomputed(fleet, segments).is_same is False


def test_an_hour_of_before_a_jobs_end_was_learnt_comes_out_without_it(fleet: SmallFleet, segments: Segments) -> None:
    fleet.samples(HOUR_AT + timedelta(minutes=51), HOUR_AT + HOUR, start_mj=51 * 6_000_000)
    job = fleet.job("8", HOUR_AT + timedelta(minutes=30), None)  # nobody told the end of what it holds
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    held = "SELECT held_us / 60000000 FROM current_usage_hours WHERE hour_at = %s AND job_id = %s"
    marks, minutes = [of_now(fleet)], fleet.rows(held, HOUR_AT, job)
    for ended in (45, 40, None):  # learnt, corrected, and taken back
        end_at = None if ended is None else HOUR_AT + timedelta(minutes=ended)
        fleet.rows("UPDATE jobs SET ended_at = %s WHERE id = %s RETURNING 1", end_at, job)
        again(fleet, closer)
        minutes += fleet.rows(held, HOUR_AT, job)
        marks.append(of_now(fleet))

    assert minutes == [(30,), (15,), (10,), (30,)]
    found = [recomputed(fleet, segments, mark) for mark in marks]
    assert [verdict(each) for each in found] == [(n, "close", Ground.SAMPLES, True) for n in (1, 2, 3, 4)]
    assert {each.why for each in found} == {""}


def test_ends_are_kept_as_they_were_known_whoever_writes_them_and_only_the_last_word_of_a_transaction(
    fleet: SmallFleet,
) -> None:
    def minutes(minute: int) -> datetime:
        return HOUR_AT + timedelta(minutes=minute)

    job = fleet.job("8", HOUR_AT, None)
    tell = "UPDATE jobs SET ended_at = %s WHERE id = %s"
    with fleet.database.connect("writer") as writer:  # as ingest does, which may not write the dated rows itself
        writer.execute(tell, (minutes(10), job))
        writer.execute(tell, (None, job))
        writer.execute(tell, (minutes(12), job))
    with fleet.database.connect("writer") as writer:
        writer.execute(tell, (minutes(12), job))  # nothing new
        writer.execute("UPDATE jobs SET state = 'failed' WHERE id = %s", (job,))
    with fleet.database.connect("writer") as writer:
        writer.execute(tell, (minutes(11), job))
        writer.execute(tell, (None, job))
    kept = fleet.rows(
        "SELECT ended_at, superseded_at >= recorded_at, superseded_xid > recorded_xid FROM job_ends WHERE job_id = %s",
        job,
    )
    assert kept == [(minutes(12), True, True)]
    # A job that came with its end: known from then on.
    assert fleet.rows("SELECT job_ends.ended_at FROM job_ends JOIN jobs ON jobs.id = job_id WHERE native_id = '7'") == [
        (minutes(20),)
    ]
