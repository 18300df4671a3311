"""Rows kept of an open hour are the table's: whatever transactions write, in whatever order they commit, and whenever somebody looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.io.open_rows import Look, OpenRows
from collector.wire import Stream

pytestmark = pytest.mark.property

HOUR_AT = datetime(2026, 11, 1, 8, tzinfo=UTC)
FROM_AT = HOUR_AT - timedelta(minutes=10)
MINUTE = timedelta(minutes=1)
KEY = (Stream.DEVICE, ("energy_mj",), 1, (1, 2, 3), "as they are")
ROWS: dict[str, Any] = {"device_id": pl.Int32, "at": pl.Datetime("us", "UTC"), "energy_mj": pl.Int64}


@dataclass
class Store:
    """A table and its changes, as a snapshot sees them: what transactions that are over have written."""

    rows: list[tuple[int, datetime, int]] = field(default_factory=list)
    changes: list[tuple[int, str, datetime, datetime]] = field(default_factory=list)
    """With the number of the transaction."""
    over: set[int] = field(default_factory=set)
    seen: dict[str, frozenset[int]] = field(default_factory=dict)
    server: str = "one"
    heard: dict[datetime, int] = field(default_factory=dict)
    """By hour before the open one, how many transactions its books know of."""

    answer: list[tuple[Any, ...]] = field(default_factory=list)

    def execute(self, query: str, asked: dict[str, Any] | None = None) -> Store:
        """Answer the three questions of a look: where it is, what the hours before know, and what was written since the one before."""
        del query
        if asked is not None and "before" not in asked:
            self.answer = list(self.heard.items())
        elif asked is None:
            name = str(len(self.seen))
            self.seen[name] = frozenset(self.over)
            self.answer = [(name, self.server)]
        else:
            before = self.seen[asked["before"]]
            self.answer = [(*told,) for number, *told in self.changes if number in self.over and number not in before]
        return self

    def fetchone(self) -> tuple[Any, ...]:
        return self.answer[0]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.answer

    def fetch(self, from_at: datetime, to_at: datetime) -> pl.DataFrame:
        found = [row for row in self.rows if from_at <= row[1] < to_at]
        return pl.DataFrame(found, schema=ROWS, orient="row")


bodies = st.tuples(
    st.sampled_from([1, 2, 3]), st.integers(-12, 28), st.integers(1, 15), st.sampled_from([True, True, False])
)
"""Device, first minute, minutes, whether its transaction is over at once; else with the next one."""
looks = st.integers(0, 20)
accidents = st.sampled_from(["started anew", "fails"])
steps = st.lists(st.one_of(bodies, looks, bodies, looks, bodies, looks, accidents), min_size=4, max_size=20)


@given(steps)
def test_what_is_kept_is_what_the_table_has(steps: list[Any]) -> None:
    store, kept = Store(), OpenRows(1 << 20)
    waiting: list[tuple[int, list[tuple[int, datetime, int]]]] = []
    now = HOUR_AT
    for number, step in enumerate(steps):
        if step == "started anew":
            store.server = f"{store.server}'"
        elif step == "fails":
            kept.look(1, HOUR_AT)  # and is not kept
        elif isinstance(step, int):
            now = max(now, HOUR_AT + step * MINUTE)
            looked = look(store, kept, now)
            assert looked.sort(*ROWS).equals(store.fetch(FROM_AT, now + 10 * MINUTE).sort(*ROWS))
        else:
            device, first, count, at_once = step
            since = HOUR_AT + first * MINUTE
            rows = [(device, since + n * MINUTE, number) for n in range(count)]
            store.changes.append((number, "device_samples", since, rows[-1][1] + timedelta(microseconds=1)))
            waiting.append((number, rows))
            if at_once:
                for each, written in waiting:
                    store.over.add(each)
                    store.rows += written
                waiting.clear()


def test_a_second_look_fetches_no_row_that_it_has() -> None:
    store, kept = Store(rows=[(1, HOUR_AT + n * MINUTE, n) for n in range(30)]), OpenRows(1 << 20)
    look(store, kept, HOUR_AT + 30 * MINUTE)
    store.rows, store.over = [(1, HOUR_AT + 30 * MINUTE, 30)], {7}
    store.changes.append((7, "device_samples", HOUR_AT + 30 * MINUTE, HOUR_AT + 31 * MINUTE))

    assert look(store, kept, HOUR_AT + 31 * MINUTE)["energy_mj"].to_list() == list(range(31))


def test_rows_of_a_clock_that_is_ahead_are_fetched_once_they_are_asked_for() -> None:
    store, kept = Store(rows=[(1, HOUR_AT + 30 * MINUTE, 7)]), OpenRows(1 << 20)

    assert look(store, kept, HOUR_AT + 5 * MINUTE).is_empty()
    assert look(store, kept, HOUR_AT + 25 * MINUTE)["energy_mj"].to_list() == [7]


def look(store: Store, kept: OpenRows, now: datetime) -> pl.DataFrame:
    looking: Look = kept.look(1, HOUR_AT)
    looking.begin(store)  # type: ignore[arg-type]
    found = looking.rows(KEY, (FROM_AT, now + 10 * MINUTE), store.fetch)
    assert kept.keep(looking)
    return found


BEFORE = HOUR_AT - 3 * 60 * MINUTE, HOUR_AT - 10 * MINUTE


@given(st.lists(st.sampled_from(["late", "closed anew", "look", "look"]), max_size=30), st.data())
def test_what_was_found_in_hours_before_is_what_is_there(steps: list[str], data: st.DataObject) -> None:
    store, kept = Store(), OpenRows(1 << 20)
    for number, step in enumerate(steps):
        if step == "late":
            at = HOUR_AT - data.draw(st.integers(11, 180)) * MINUTE
            store.rows.append((1, at, number))
            store.over.add(number)
            store.changes.append((number, "device_samples", at, at + timedelta(microseconds=1)))
        elif step == "closed anew":  # and then the changes of the hour are forgotten, seen by a look or not
            hour_at = HOUR_AT - data.draw(st.integers(1, 3)) * 60 * MINUTE
            store.heard[hour_at] = number
            store.changes = [each for each in store.changes if not hour_at <= each[2] < hour_at + 60 * MINUTE]
        else:
            looking = kept.look(1, HOUR_AT)
            looking.begin(store)  # type: ignore[arg-type]
            found = looking.found(Stream.DEVICE, "ends", BEFORE, lambda: store.fetch(*BEFORE))
            assert found.sort(*ROWS).equals(store.fetch(*BEFORE).sort(*ROWS))
            kept.keep(looking)


def test_what_was_found_is_looked_for_once() -> None:
    store, kept, asked = Store(heard={HOUR_AT - 60 * MINUTE: 1}), OpenRows(1 << 20), []

    def find() -> pl.DataFrame:
        asked.append(1)
        return store.fetch(*BEFORE)

    for _ in range(3):
        looking = kept.look(1, HOUR_AT)
        looking.begin(store)  # type: ignore[arg-type]
        looking.found(Stream.DEVICE, "ends", BEFORE, find)
        kept.keep(looking)
    assert len(asked) == 1
