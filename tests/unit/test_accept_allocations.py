"""Allocation events folded into allocations: a start opens, an end closes, a repetition changes nothing."""

from datetime import UTC, datetime, timedelta

import pytest

from ingest.store.allocations import END, START, START_UNKNOWN, Allocation, Event, JobKey, fold

pytestmark = pytest.mark.unit
JOB_START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def at(minutes: int) -> datetime:
    return JOB_START + timedelta(minutes=minutes)


def event(action: int, minutes: int, energy_mj: int | None = None) -> Event:
    started_us = int(JOB_START.timestamp()) * 1_000_000
    return Event(
        site_id=1,
        device_id=1,
        job=JobKey("c", "7", started_us),
        at_us=started_us + minutes * 60_000_000,
        action=action,
        energy_mj=energy_mj,
        share_ratio=None,
        accelerators=1,
        evidence="cgroup",
        origin=1,
        texts=(None,) * 8,
    )


def spans(rows: list[Allocation]) -> list[tuple[datetime, datetime | None, str]]:
    return [(row.start_at, row.end_at, row.evidence) for row in rows if not row.superseded]


def test_a_start_opens_and_an_end_closes_with_the_counter_readings() -> None:
    rows: list[Allocation] = []
    assert fold(rows, event(START, 1, 100)) == at(1)
    assert fold(rows, event(END, 9, 900)) == at(9)
    assert spans(rows) == [(at(1), at(9), "cgroup")]
    assert (rows[-1].start_energy_mj, rows[-1].end_energy_mj) == (100, 900)


def test_an_end_leaves_the_written_row_as_it_was_known_and_makes_a_new_one() -> None:
    written = Allocation(5, at(1), None, 100, None, None, "cgroup", accelerators=2)
    rows = [written]
    assert fold(rows, event(END, 9, 900)) == at(9)
    assert (written.superseded, written.end_at, written.end_energy_mj) == (True, None, None)
    assert (rows[-1].id, rows[-1].start_energy_mj, rows[-1].end_energy_mj, rows[-1].accelerators) == (None, 100, 900, 2)
    assert spans(rows) == [(at(1), at(9), "cgroup")]
    assert fold(rows, event(END, 9, 900)) is None


def test_repeated_events_change_nothing() -> None:
    rows: list[Allocation] = []
    for action, minutes in ((START, 1), (START, 1), (START, 3), (END, 9), (END, 9), (START, 1), (START, 5)):
        fold(rows, event(action, minutes))
    assert spans(rows) == [(at(1), at(9), "cgroup")]


def test_a_device_given_back_and_taken_again_is_two_allocations() -> None:
    rows: list[Allocation] = []
    for action, minutes in ((START, 1), (END, 4), (START, 6)):
        fold(rows, event(action, minutes))
    assert spans(rows) == [(at(1), at(4), "cgroup"), (at(6), None, "cgroup")]


def test_an_end_without_a_start_begins_with_the_job_and_says_so() -> None:
    rows: list[Allocation] = []
    assert fold(rows, event(END, 9, 900)) == at(0)
    assert spans(rows) == [(at(0), at(9), "cgroup" + START_UNKNOWN)]
    assert rows[0].start_energy_mj is None


def test_a_start_that_comes_late_replaces_the_guess() -> None:
    rows: list[Allocation] = []
    fold(rows, event(END, 9, 900))
    assert fold(rows, event(START, 2, 200)) == at(0)
    assert spans(rows) == [(at(2), at(9), "cgroup")]
    assert (rows[-1].start_energy_mj, rows[-1].end_energy_mj) == (200, 900)
