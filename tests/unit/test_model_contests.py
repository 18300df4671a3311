"""Claims that meet on one board: what each of them is left with, to the part, and what is told of it."""

from __future__ import annotations

import polars as pl

from analytics.model.contests import MOST_PARTS
from analytics.units import US_PER_SECOND
from tests.fakes.site import device
from tests.fakes.told_holds import START, instance, resolved, told, who


def _seconds(at_us: int) -> float:
    return (at_us - START) / US_PER_SECOND


def test_of_parts_that_no_denominator_holds_each_is_rounded_down_and_the_rest_is_idle() -> None:
    # 1/499, 1/497, 1/493 and 1,001 millionths meet in 1.2e14 parts; of 1e12, 1/499 is 2,004,008,016.03 and so on.
    shares = {1: 2_004, 2: 2_012, 3: 2_028, 4: 1_001}
    held = resolved([told(job, 1, 0, 3600, share_ppm=ppm) for job, ppm in shares.items()]).held
    weights = dict(held.select("holder", "weight").rows())
    assert held["weights"].unique().to_list() == [MOST_PARTS] == [1_000_000_000_000]
    assert weights == {
        "job:1": 2_004_008_016,
        "job:2": 2_012_072_434,
        "job:3": 2_028_397_565,
        "job:4": 1_001_000_000,
        "idle": 1_000_000_000_000 - 7_045_478_015,
    }


def test_what_a_process_says_alone_is_no_jobs_time_whether_it_is_contested_or_not() -> None:
    alone = resolved([told(1, 1, 0, 3600, evidence="environ")]).held
    assert alone.select("holder", "job_id").rows() == [("unattributed:hint_only", None)]
    # Beside a grant of half of the board, to which half of it does not object.
    halves = [told(1, 1, 0, 3600, evidence="environ", share_ppm=500_000), told(2, 1, 0, 3600, share_ppm=500_000)]
    assert resolved(halves).held.select("holder", "job_id", "weight", "weights").rows() == [
        ("job:2", 2, 1, 2),
        ("unattributed:hint_only", None, 1, 2),
    ]


def test_of_shares_that_pass_the_whole_the_weakest_words_go_first() -> None:
    """Three quarters by what its node saw, half by a job table, a quarter by what a process says: 1.5 of one board."""
    words = [
        told(1, 1, 0, 3600, share_ppm=750_000),
        told(2, 1, 0, 3600, share_ppm=500_000, evidence="sacct"),
        told(3, 1, 0, 3600, share_ppm=250_000, evidence="environ"),
    ]
    assert who(words) == [(0, 3600, "idle", 0.25), (0, 3600, "job:1", 0.75)]
    assert resolved(words).contests.select("kind", "jobs").rows() == [("conflict", [1, 2, 3])]
    # A quarter more is not too much, and of words of one rank none is better.
    assert who([words[0], words[2]]) == [(0, 3600, "job:1", 0.75), (0, 3600, "unattributed:hint_only", 0.25)]
    assert who([words[0], told(2, 1, 0, 3600, share_ppm=500_000)]) == [(0, 3600, "job:1", 0.6), (0, 3600, "job:2", 0.4)]
    # Four seconds of both are one that gives way to another.
    handed = [told(1, 1, 0, 1804, share_ppm=750_000), told(2, 1, 1800, 3600, share_ppm=500_000, evidence="sacct")]
    assert resolved(handed).contests.is_empty()


def test_whoever_has_part_of_an_instance_contradicts_whoever_has_it_whole() -> None:
    devices = [device(1), instance(11, 1, 250_000)]
    assert who([told(1, 11, 0, 3600), told(2, 11, 0, 3600, share_ppm=500_000)], devices) == [
        (0, 3600, "idle", 0.75),
        (0, 3600, "unattributed:overlap", 0.25),
    ]


def test_boards_are_told_apart_and_so_is_time_that_lies_apart() -> None:
    """Board 1 is contested until 600 s; the same job has it again from 1,200 s, and board 2 from where board 1 ends."""
    words = [
        told(1, 1, 0, 600),
        told(1, 1, 300, 900, evidence="hook"),
        told(1, 1, 1200, 1800),
        told(1, 2, 1800, 2400),
        told(1, 2, 2100, 3000, evidence="hook"),
    ]
    held = resolved(words, [device(1), device(2)]).held
    assert [
        (row["device_id"], _seconds(row["start_us"]), _seconds(row["end_us"])) for row in held.iter_rows(named=True)
    ] == [(1, 0, 900), (1, 1200, 1800), (2, 1800, 3000)]


def test_stretches_of_several_boards_have_numbers_of_their_own() -> None:
    """Boards 1 and 3 have one word for each stretch, board 2 has several at once: nobody's parts are added to another's."""
    words = [
        *(told(job, 1, 600 * job, 600 * job + 600) for job in range(3)),
        *(told(job, 2, 600 * job, 600 * job + 900, share_ppm=250_000) for job in range(4)),
        *(told(job, 3, 600 * job, 600 * job + 300, share_ppm=500_000) for job in range(3)),
    ]
    of_each = (
        resolved(words, [device(1), device(2), device(3)])
        .held.group_by("segment")
        .agg(
            pl.struct("device_id", "start_us", "end_us", "weights").n_unique().alias("stretches"),
            (pl.col("weight").sum() - pl.col("weights").first()).alias("beyond"),
        )
    )
    # 3 of board 1; on board 2 a cut each 300 s but at 300 s, to 2,700 s, where only who holds it counts; 3 of board 3.
    assert of_each["stretches"].unique().to_list() == [1]
    assert of_each["beyond"].unique().to_list() == [0]
    assert of_each.height == 3 + 7 + 3


def test_a_contest_is_told_once_for_as_long_as_the_same_jobs_claim_by_the_same_words() -> None:
    devices = [device(1), device(2), instance(11, 1, 250_000), instance(12, 1, 250_000), instance(21, 2, 250_000)]
    words = [
        told(1, 11, 0, 3600),
        told(2, 11, 600, 2400),
        told(3, 12, 900, 1200),  # on the same board, and no part of it
        told(4, 11, 2400, 3000),
        told(4, 11, 3000, 3300, evidence="hook"),
        told(4, 11, 3400, 3500, evidence="hook"),
        told(1, 21, 3500, 3600),
        told(4, 21, 3500, 3600, evidence="hook"),
    ]
    found = resolved(words, devices).contests
    assert [
        (row["device_id"], _seconds(row["from_us"]), _seconds(row["to_us"]), row["jobs"], row["evidence"])
        for row in found.iter_rows(named=True)
    ] == [
        (1, 600, 2400, [1, 2], ["cgroup", "cgroup"]),
        (1, 2400, 3000, [1, 4], ["cgroup", "cgroup"]),
        (1, 3000, 3300, [1, 4], ["cgroup", "hook"]),
        (1, 3400, 3500, [1, 4], ["cgroup", "hook"]),
        (2, 3500, 3600, [1, 4], ["cgroup", "hook"]),
    ]


def test_where_nobody_says_anything_nobody_has_a_board() -> None:
    found = resolved([])
    assert (found.held.height, found.contests.height) == (0, 0)
    assert who([]) == [(0, 3600, "idle", 1)]
