"""The cap on the agent's own processor time: down at once, up carefully, and never off the row's grid."""

from __future__ import annotations

import pytest

from collector.governor import WINDOW_US, Governor

pytestmark = pytest.mark.unit

S = 1_000_000


class Minute:
    """Tells a governor minute after minute what was used."""

    def __init__(self, governor: Governor) -> None:
        self.governor = governor
        self.at_us = 0
        self.used_s = 0.0
        governor.note(0, 0.0)

    def pass_with(self, ratio: float) -> int:
        self.at_us += WINDOW_US
        self.used_s += 60 * ratio
        self.governor.note(self.at_us, self.used_s)
        return self.governor.period_us // S


def test_each_minute_above_the_cap_is_one_step_down_to_one_reading_a_row() -> None:
    minute = Minute(Governor(cap_ratio=0.01, sample_us=S, row_us=10 * S))
    # 1 → 2 → 5 → 10 s: at least twice as long each, and divisors of the row, so that its end is always read.
    assert [minute.pass_with(0.02) for _ in range(4)] == [2, 5, 10, 10]


def test_at_the_cap_nothing_changes_and_without_one_nothing_ever_does() -> None:
    assert Minute(Governor(cap_ratio=0.01, sample_us=S, row_us=10 * S)).pass_with(0.01) == 1
    assert Minute(Governor(cap_ratio=0.0, sample_us=S, row_us=10 * S)).pass_with(0.9) == 1


def test_it_recovers_after_three_quiet_minutes_in_which_the_faster_step_would_have_fitted() -> None:
    minute = Minute(Governor(cap_ratio=0.01, sample_us=S, row_us=10 * S))
    assert minute.pass_with(0.02) == 2
    # At 1 s it would take twice 0.5 %, which is more than 0.8 of the cap.
    assert [minute.pass_with(0.005) for _ in range(4)] == [2, 2, 2, 2]
    assert [minute.pass_with(0.003) for _ in range(3)] == [2, 2, 1]


def test_a_recovery_that_failed_makes_the_next_one_wait_longer() -> None:
    minute = Minute(Governor(cap_ratio=0.01, sample_us=S, row_us=10 * S))
    minute.pass_with(0.02)
    assert [minute.pass_with(0.003) for _ in range(3)][-1] == 1
    assert minute.pass_with(0.02) == 2
    assert [minute.pass_with(0.003) for _ in range(6)] == [2, 2, 2, 2, 2, 1]


def test_readings_of_less_than_a_second_have_a_ladder_too() -> None:
    minute = Minute(Governor(cap_ratio=0.01, sample_us=S // 10, row_us=S))
    periods_us = []
    for _ in range(4):
        minute.pass_with(0.02)
        periods_us.append(minute.governor.period_us)
    assert periods_us == [200_000, 500_000, S, S]
    minute = Minute(Governor(cap_ratio=0.01, sample_us=S, row_us=S))
    assert minute.pass_with(0.02) == 1


def test_what_matters_less_than_readings_gives_way_before_they_do() -> None:
    left = ["at a half", "at a quarter"]
    governor = Governor(cap_ratio=0.01, sample_us=S, row_us=10 * S, give_way=lambda: bool(left and left.pop()))
    minute = Minute(governor)
    assert [minute.pass_with(0.02) for _ in range(4)] == [1, 1, 2, 5]
