"""Allocation events become intervals: a start opens, an end closes, a repetition or another order changes nothing."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from ingest.store.intervals import ANEW, END, START, START_UNKNOWN, Allocation, Told, meaning, revise

pytestmark = pytest.mark.unit
JOB_START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
Span = tuple[int, int | None, str]


def at(minutes: int) -> datetime:
    return JOB_START + timedelta(minutes=minutes)


def told(action: int, minutes: int, energy_mj: int | None = None) -> Told:
    return Told(at(minutes), action, energy_mj, None, 1, "cgroup")


def spans(rows: list[Allocation]) -> list[Span]:
    def minute(instant: datetime) -> int:
        return (instant - JOB_START) // timedelta(minutes=1)

    return [(minute(row.start_at), None if row.end_at is None else minute(row.end_at), row.evidence) for row in rows]


def meant(*events: tuple[int, int]) -> list[Span]:
    """Return the minutes held, after asking that no order and no repetition tells anything else."""
    found = {
        tuple(spans(meaning([told(*event) for event in order], JOB_START)))
        for order in permutations((*events, events[0]))
    }
    assert len(found) == 1
    return list(found.pop())


def test_a_start_opens_and_an_end_closes_with_the_counter_readings() -> None:
    (row,) = meaning([told(END, 9, 900), told(START, 1, 100)], JOB_START)
    assert spans([row]) == [(1, 9, "cgroup")]
    assert (row.start_energy_mj, row.end_energy_mj) == (100, 900)


def test_a_start_inside_what_is_held_changes_nothing() -> None:
    assert meant((START, 1), (START, 3), (END, 9)) == [(1, 9, "cgroup")]


def test_a_start_inside_counts_once_an_end_before_it_turns_up() -> None:
    assert meant((START, 1), (START, 3), (END, 9), (END, 2)) == [(1, 2, "cgroup"), (3, 9, "cgroup")]


def test_a_device_given_back_and_taken_again_is_two_allocations_in_any_order() -> None:
    assert meant((START, 1), (END, 4), (START, 6)) == [(1, 4, "cgroup"), (6, None, "cgroup")]
    assert meant((START, 1), (END, 4), (START, 6), (END, 8)) == [(1, 4, "cgroup"), (6, 8, "cgroup")]


def test_given_back_and_taken_again_at_one_instant_loses_nothing() -> None:
    assert meant((START, 1), (END, 4), (START, 4)) == [(1, 4, "cgroup"), (4, None, "cgroup")]
    assert meant((START, 1), (END, 4), (START, 4), (END, 6)) == [(1, 4, "cgroup"), (4, 6, "cgroup")]


def test_what_starts_and_ends_at_one_instant_while_nothing_is_held_has_no_length() -> None:
    assert meant((START, 4), (END, 4)) == [(4, 4, "cgroup")]
    assert meant((START, 1), (END, 2), (START, 4), (END, 4)) == [(1, 2, "cgroup"), (4, 4, "cgroup")]
    assert meant((START, 4), (END, 4), (START, 6)) == [(4, 4, "cgroup"), (6, None, "cgroup")]


def test_an_end_of_something_else_at_the_instant_of_a_start_leaves_the_start_its_own_end() -> None:
    assert meant((START, 4), (END, 4), (END, 6)) == [(0, 4, "cgroup" + START_UNKNOWN), (4, 6, "cgroup")]


def test_an_end_without_a_start_begins_with_the_job_and_says_so() -> None:
    assert meant((END, 9)) == [(0, 9, "cgroup" + START_UNKNOWN)]
    assert meaning([told(END, 9, 900)], JOB_START)[0].start_energy_mj is None
    assert meant((END, -1)) == [(-1, -1, "cgroup" + START_UNKNOWN)]


def test_an_end_after_an_end_begins_no_earlier_than_the_end_before() -> None:
    assert meant((START, 1), (END, 4), (END, 6)) == [(1, 4, "cgroup"), (4, 6, "cgroup" + START_UNKNOWN)]


def test_of_several_tellings_of_one_instant_one_with_a_counter_reading_stands_in_any_order() -> None:
    for order in permutations([told(START, 1), told(START, 1, 100), told(START, 1, 90)]):
        assert meaning(order, JOB_START)[0].start_energy_mj == 90


def row(identity: int, start: int, end: int | None, evidence: str = "cgroup") -> Allocation:
    return Allocation(identity, at(start), None if end is None else at(end), None, None, None, evidence)


def test_an_end_supersedes_the_written_row_by_one_that_changes_from_the_end_on() -> None:
    revision = revise([row(5, 1, None)], [told(START, 1), told(END, 9)], JOB_START, None)
    assert [gone.id for gone in revision.superseded] == [5]
    assert spans(list(revision.made)) == [(1, 9, "cgroup")]
    assert revision.changed_from == at(9)


def test_what_is_said_already_is_left_alone() -> None:
    revision = revise([row(5, 1, 9)], [told(START, 1), told(START, 3), told(END, 9)], JOB_START, None)
    assert (revision.superseded, revision.made, revision.changed_from) == ((), (), None)


def test_a_start_that_comes_late_replaces_the_guess_and_changes_from_the_guess_on() -> None:
    revision = revise([row(5, 0, 9, "cgroup" + START_UNKNOWN)], [told(START, 2), told(END, 9)], JOB_START, None)
    assert [gone.id for gone in revision.superseded] == [5]
    assert spans(list(revision.made)) == [(2, 9, "cgroup")]
    assert revision.changed_from == at(0)


def test_rows_of_a_release_that_kept_no_events_are_the_events_they_were_made_of() -> None:
    revision = revise([row(5, 1, None)], [told(END, 9)], JOB_START, None)
    assert spans(list(revision.made)) == [(1, 9, "cgroup")]
    cut = revise([row(5, 1, 9)], [told(END, 4), told(START, 6)], JOB_START, None)
    assert spans(list(cut.made)) == [(1, 4, "cgroup"), (6, 9, "cgroup")]
    assert cut.changed_from == at(4)


def with_anew(ends_at: int, begun_at: int, *events: tuple[int, int]) -> list[Span]:
    """Return the minutes held where an agent began anew then, and what was open was given that end; in any order."""
    begun_at_us = round(at(begun_at).timestamp() * 1_000_000)
    end = Told(at(ends_at), END, None, None, 1, f"{ANEW}{begun_at_us}")
    known = [end, *(told(*event) for event in events)]
    found = {tuple(spans(meaning(order, JOB_START))) for order in permutations(known)}
    assert len(found) == 1
    return list(found.pop())


def test_an_end_because_an_agent_began_anew_ends_what_was_open() -> None:
    assert with_anew(8, 20, (START, 1)) == [(1, 8, "cgroup")]
    assert with_anew(8, 20, (START, 1), (START, 25)) == [(1, 8, "cgroup"), (25, None, "cgroup")]


def test_it_is_no_end_of_what_the_agent_found_held_as_it_began() -> None:
    assert with_anew(8, 20, (START, 1), (START, 20)) == [(1, None, "cgroup")]
    assert with_anew(8, 20, (START, 1), (START, 20), (END, 30)) == [(1, 30, "cgroup")]


def test_it_makes_nothing_where_an_end_was_told_and_that_end_counts() -> None:
    assert with_anew(8, 20, (START, 1), (END, 5)) == [(1, 5, "cgroup")]
    assert with_anew(8, 20, (START, 1), (END, 8)) == [(1, 8, "cgroup")]
    # From 8 to 12 it was held, though no start says so anew.
    assert with_anew(8, 20, (START, 1), (END, 12)) == [(1, 8, "cgroup"), (8, 12, "cgroup" + START_UNKNOWN)]
    assert with_anew(1, 20, (START, 1)) == [(1, 1, "cgroup")]
