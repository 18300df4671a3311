"""What is written after an hour moves it as far as it listened: no round of the next hour has it computed again, and no silence is missed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import polars as pl
import pytest

from analytics.inputs import Window
from analytics.io.hours import due_hours
from analytics.io.load import load_batch
from analytics.jobs import HourCloser, Round, WorkerSettings
from analytics.pipeline import close_hours
from analytics.policy import Policy
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_two_feeds import through_dcgm

pytestmark = pytest.mark.db

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
NEXT_AT = HOUR_AT + HOUR
HOUR_MJ = 360_000_000
"""100 W for an hour."""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def closer(fleet: SmallFleet) -> HourCloser:
    return HourCloser(fleet.database, WorkerSettings(code_version="test"))


def spoke(fleet: SmallFleet, from_at: datetime, to_at: datetime) -> None:
    """100 W from 06:00 on, read every ten seconds of the interval."""
    fleet.samples(from_at, to_at, start_mj=int((from_at - HOUR_AT).total_seconds() + 7200) * 100_000)


def of_hour(fleet: SmallFleet, hour_at: datetime) -> list[tuple[int, int]]:
    """Revision and energy of an hour."""
    return fleet.rows(
        "SELECT hours.revision, sum(energy_mj)::bigint FROM ledger_hours AS hours JOIN current_usage_hours USING (site_id, hour_at) "
        "WHERE hour_at = %s GROUP BY 1",
        hour_at,
    )


def due(fleet: SmallFleet, now: datetime) -> set[datetime]:
    with fleet.database.connect("worker", autocommit=True) as connection:
        return {hour.hour_at for hour in due_hours(connection, now, 15 * MINUTE)}


def test_no_round_of_an_open_hour_looks_at_the_closed_one_before_it(fleet: SmallFleet) -> None:
    worker, now = closer(fleet), NEXT_AT + 16 * MINUTE
    spoke(fleet, HOUR_AT, now)
    fleet.job("1", HOUR_AT + 10 * MINUTE, None)
    assert worker.run(now) == Round(closed=1, provisional=1)

    for number in range(2, 10):
        until = now + 4 * MINUTE
        spoke(fleet, now + 10 * SECOND, until)
        fleet.job(str(number), now + MINUTE, until if number % 2 else None)
        with fleet.admin() as connection:
            for kind in ("device_shares", "jobs"):
                fleet.changed(kind, now + MINUTE, until, connection)
            fleet.changed("api_calls", NEXT_AT, NEXT_AT + HOUR, connection)
        now = until
        assert worker.run(now) == Round(provisional=1)


def test_rows_just_after_a_closed_hour_that_come_late_do_move_it(fleet: SmallFleet) -> None:
    worker = closer(fleet)
    spoke(fleet, HOUR_AT, NEXT_AT - 10 * SECOND)
    spoke(fleet, NEXT_AT + 11 * MINUTE, NEXT_AT + 16 * MINUTE)
    worker.run(NEXT_AT + 16 * MINUTE)

    # More than half of what was used over the edge was used in its first minute.
    fleet.samples(NEXT_AT + MINUTE, NEXT_AT + MINUTE, start_mj=(7200 + 4200) * 100_000)

    assert HOUR_AT in due(fleet, NEXT_AT + 17 * MINUTE)
    assert worker.run(NEXT_AT + 17 * MINUTE).restated == 1


def test_an_hour_whose_end_a_board_was_silent_over_is_closed_again_once_when_it_speaks(fleet: SmallFleet) -> None:
    worker = closer(fleet)
    fleet.job("7", HOUR_AT, HOUR_AT + 3 * HOUR)
    spoke(fleet, HOUR_AT, NEXT_AT - 5 * MINUTE)
    rounds = [worker.run(NEXT_AT + minutes * MINUTE) for minutes in (16, 17, 18)]
    assert [(each.closed, each.restated) for each in rounds] == [(1, 0), (0, 0), (0, 0)]
    assert of_hour(fleet, HOUR_AT) == [(1, 55 * 6_000_000)]

    spoke(fleet, NEXT_AT + 20 * MINUTE, NEXT_AT + 21 * MINUTE)
    rounds = [worker.run(NEXT_AT + 21 * MINUTE) for _ in range(2)]
    for minutes in range(22, 30):
        spoke(fleet, NEXT_AT + (minutes - 1) * MINUTE + 10 * SECOND, NEXT_AT + minutes * MINUTE)
        rounds.append(worker.run(NEXT_AT + minutes * MINUTE))

    assert [each.restated for each in rounds] == [0, 1] + [0] * 8
    assert [each.unchanged for each in rounds[2:]] == [0] * 8
    assert of_hour(fleet, HOUR_AT) == [(2, HOUR_MJ)]
    worker.run(NEXT_AT + 3 * HOUR)
    assert_as_if_at_once(fleet, 2)


def test_a_silence_over_an_edge_that_late_rows_split_is_told_again(fleet: SmallFleet) -> None:
    worker = closer(fleet)
    spoke(fleet, HOUR_AT, NEXT_AT - 5 * MINUTE)
    spoke(fleet, NEXT_AT + 40 * MINUTE, NEXT_AT + 45 * MINUTE)
    worker.run(NEXT_AT + 45 * MINUTE)
    worker.run(NEXT_AT + 45 * MINUTE)
    assert of_hour(fleet, HOUR_AT)[0][1] == HOUR_MJ

    # 200 W from the last reading before the silence until then, and nearly nothing for the rest of it.
    fleet.samples(NEXT_AT + 15 * MINUTE, NEXT_AT + 15 * MINUTE, start_mj=(7200 + 3300 + 2400) * 100_000)
    for _ in range(2):
        worker.run(NEXT_AT + 46 * MINUTE)

    assert of_hour(fleet, HOUR_AT)[0][1] == 55 * 6_000_000 + 5 * 12_000_000
    assert worker.run(NEXT_AT + 46 * MINUTE).unchanged <= 1  # the open hour itself


def test_what_is_told_of_holdings_in_a_silence_that_is_over_moves_the_hour_before_it(fleet: SmallFleet) -> None:
    worker = closer(fleet)
    spoke(fleet, HOUR_AT, NEXT_AT - 5 * MINUTE)
    spoke(fleet, NEXT_AT + 40 * MINUTE, NEXT_AT + 45 * MINUTE)
    fleet.job("7", HOUR_AT, HOUR_AT + 3 * HOUR)
    for _ in range(2):
        worker.run(NEXT_AT + 45 * MINUTE)
    assert not due(fleet, NEXT_AT + 46 * MINUTE) & {HOUR_AT}

    fleet.job("8", NEXT_AT + 20 * MINUTE, NEXT_AT + 30 * MINUTE)
    assert HOUR_AT in due(fleet, NEXT_AT + 46 * MINUTE)
    for _ in range(2):
        worker.run(NEXT_AT + 46 * MINUTE)
    fleet.job("9", NEXT_AT + 41 * MINUTE, NEXT_AT + 42 * MINUTE)
    assert HOUR_AT not in due(fleet, NEXT_AT + 46 * MINUTE)


def test_a_second_feed_that_is_dead_keeps_no_hour_due(fleet: SmallFleet) -> None:
    worker, second = closer(fleet), through_dcgm(fleet)
    spoke(second, HOUR_AT, NEXT_AT - 5 * MINUTE)
    spoke(fleet, HOUR_AT, NEXT_AT + 16 * MINUTE)
    worker.run(NEXT_AT + 16 * MINUTE)

    for minutes in range(17, 25):
        spoke(fleet, NEXT_AT + (minutes - 1) * MINUTE + 10 * SECOND, NEXT_AT + minutes * MINUTE)
        assert worker.run(NEXT_AT + minutes * MINUTE) == Round(provisional=1)
    # It is back: the hour before hangs on it once.
    spoke(second, NEXT_AT + 25 * MINUTE, NEXT_AT + 26 * MINUTE)
    rounds = [worker.run(NEXT_AT + 26 * MINUTE) for _ in range(4)]
    assert [each.unchanged + each.restated for each in rounds[1:]] == [
        2,
        1,
        1,
    ]  # the open hour, and once the one before


def test_hours_that_were_closed_before_they_said_how_far_they_listened_are_moved_by_an_hour_of_rows(
    fleet: SmallFleet,
) -> None:
    spoke(fleet, HOUR_AT, NEXT_AT + 20 * MINUTE)
    closer(fleet).run(NEXT_AT + 20 * MINUTE)
    spoke(fleet, NEXT_AT + 30 * MINUTE, NEXT_AT + 31 * MINUTE)
    assert due(fleet, NEXT_AT + 31 * MINUTE) == {NEXT_AT}

    fleet.rows("UPDATE ledger_hours SET heard_until = NULL, meters_until = NULL RETURNING 1")

    assert due(fleet, NEXT_AT + 31 * MINUTE) == {HOUR_AT, NEXT_AT}


@pytest.mark.parametrize(("cadence_min", "listened_min"), [(1, 10), (15, 45), (60, 60)])
def test_an_hour_listens_to_meters_of_nodes_for_as_long_as_the_slowest_may_be_silent(
    fleet: SmallFleet, cadence_min: int, listened_min: int
) -> None:
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) VALUES (%s, 'b1', 0, 4, 1, %s, 'test')",
            (fleet.node_id, cadence_min * 60_000_000),
        )
    spoke(fleet, HOUR_AT, NEXT_AT + 10 * MINUTE)
    closer(fleet).run(NEXT_AT + 4 * HOUR)

    for kind, minutes, is_due in (
        ("node_samples", listened_min - 1, True),
        ("node_samples", listened_min, False),
        ("device_samples", 10, False),
    ):
        with fleet.admin() as connection:
            fleet.changed(kind, NEXT_AT + minutes * MINUTE, NEXT_AT + (minutes + 1) * MINUTE, connection)
        assert (HOUR_AT in due(fleet, NEXT_AT + 5 * HOUR)) == is_due
        fleet.rows("DELETE FROM changes WHERE kind = %s RETURNING 1", kind)


HOURS = 2


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_whatever_comes_in_whatever_order_the_books_are_those_of_all_at_once(fleet: SmallFleet, seed: int) -> None:
    draw = random.Random(seed)
    boards = [fleet, *(board(fleet, f"GPU-{number}") for number in (2, 3))]
    arrivals = sorted((each for one in boards for each in told_of(one, draw)), key=lambda arrival: arrival.at)
    worker, now, jobs = closer(fleet), HOUR_AT, 0
    end = HOUR_AT + (HOURS + 3) * HOUR
    while now < end:
        now += 11 * MINUTE
        while arrivals and arrivals[0].at <= now:
            arrivals.pop(0).arrive()
        if draw.random() < 0.15 and now < HOUR_AT + HOURS * HOUR:
            jobs += 1
            start = now - draw.randint(0, 80) * MINUTE
            draw.choice(boards).job(str(jobs), start, start + draw.choice([5, 40, 90]) * MINUTE)
        assert worker.run(now).failed == 0
    assert not arrivals
    worker.run(end)

    assert worker.run(end + MINUTE) == Round()
    assert_as_if_at_once(fleet, HOURS)


@dataclass(frozen=True)
class Arrival:
    """Rows that are sent together."""

    at: datetime
    fleet: SmallFleet
    from_at: datetime
    to_at: datetime
    power_w: int
    start_mj: int

    def arrive(self) -> None:
        self.fleet.samples(self.from_at, self.to_at, power_w=self.power_w, start_mj=self.start_mj)


def told_of(fleet: SmallFleet, draw: random.Random) -> list[Arrival]:
    """What comes of a board, whose power is another every ten minutes: it speaks for a while, and is silent for up to 70 minutes."""
    found = []
    at, start_mj, silent_at = HOUR_AT - 10 * MINUTE, 0, HOUR_AT
    while at < HOUR_AT + HOURS * HOUR:
        power_w = draw.randint(50, 700)
        if at >= silent_at:
            last = at + draw.choice([4, 11, 25, 70]) * MINUTE
            silent_at = last + draw.randint(2, 60) * MINUTE
        else:
            last = at + 10 * MINUTE
            late = draw.choice([0] * 9 + [5, 30, 90]) * MINUTE
            found.append(Arrival(last + late, fleet, at, last - 10 * SECOND, power_w, start_mj))
        start_mj += int((last - at).total_seconds()) * power_w * 1000
        at = last
    return found


def board(fleet: SmallFleet, uuid: str) -> SmallFleet:
    ((device_id,),) = fleet.rows(
        "INSERT INTO devices (uuid, vendor, model, kind) VALUES (%s, 'nvidia', 'H100', 'gpu') RETURNING id", uuid
    )
    fleet.rows(
        "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s) RETURNING 1",
        device_id,
        fleet.node_id,
        HOUR_AT,
    )
    return replace(fleet, device_id=device_id)


def assert_as_if_at_once(fleet: SmallFleet, hours: int) -> None:
    """The current usage hours are those of one load of all of them, with all that is there."""
    window = Window(HOUR_AT, HOUR_AT + hours * HOUR, HOUR_AT + hours * HOUR)
    with fleet.database.connect("worker", autocommit=True) as connection:
        loaded = load_batch(fleet.database, connection, fleet.site_id, window, Policy(), "USD")
    columns = ["hour_at", "device_id", "holder", "energy_mj", "estimated_mj", "covered_us", "held_us"]
    expected = close_hours(loaded.inputs, Policy()).usage.select(columns).sort(columns[:3])
    shown = fleet.rows(
        f"SELECT {', '.join(columns)} FROM current_usage_hours WHERE hour_at >= %s AND hour_at < %s",
        window.from_at,
        window.to_at,
    )
    found = pl.DataFrame(shown, schema=expected.schema, orient="row").sort(columns[:3])
    assert found.rows() == expected.rows()
