"""What was told of holdings, read to its edges: which part it is, when it ends that nobody saw end, what a count is of."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from analytics.frames import Devices, Placements
from analytics.model.holding import hold
from analytics.units import US_PER_SECOND
from tests.fakes.site import at, device, epoch, table
from tests.fakes.told_holds import BOARD, START, instance, on_node, resolved, stands, told, who


def _ends(*words: dict[str, Any], **more: Any) -> list[tuple[str, float]]:
    """Return why and when (s) holdings whose end nobody told were taken to end."""
    found = resolved(list(words), **more).unended
    return [(row["ended_by"], (row["end_us"] - START) / US_PER_SECOND) for row in found.iter_rows(named=True)]


@pytest.mark.parametrize(
    ("ppm", "part"),
    [
        (2_000, (1, 500)),
        (1_996, (499, 250_000)),  # 1/501 would be 1,996.008, and is beyond the fractions that are guessed
        (500_001, (1, 2)),
        (500_002, (250_001, 500_000)),
        (1, (1, 1_000_000)),
    ],
)
def test_a_share_is_a_fraction_of_up_to_500_parts_if_it_is_one_to_a_millionth(ppm: int, part: tuple[int, int]) -> None:
    held = resolved([told(1, 1, 0, 3600, share_ppm=ppm)]).held.filter(holder="job:1")
    assert held.select("weight", "weights").rows() == [part]


def test_a_share_of_an_instance_is_that_part_of_its_slice() -> None:
    devices = [device(1), instance(11, 1, 250_000)]
    found = resolved([told(1, 11, 0, 3600, share_ppm=500_000)], devices)
    assert found.held.select("holder", "weight", "weights", "method").rows() == [
        ("idle", 7, 8, "slice"),
        ("job:1", 1, 8, "slice"),
    ]
    assert found.instances.select("instance_id", "slice_ppm").rows() == [(11, 125_000)]


def test_a_slice_of_two_thirds_is_told_cut_to_the_millionth() -> None:
    devices = [device(1), instance(11, 1, 666_667)]
    assert resolved([told(1, 11, 0, 3600)], devices).instances["slice_ppm"].to_list() == [666_666]


def test_the_first_of_several_ends_counts_and_of_two_at_once_the_jobs_own() -> None:
    booted = [epoch(), epoch(2, boot_id="later", first_seen_at=at(1000))]
    assert _ends(told(1, 1, 0, None, job_ended_at=at(900)), epochs=booted) == [("job_ended", 900)]
    assert _ends(told(1, 1, 0, None, job_ended_at=at(1000)), epochs=booted) == [("job_ended", 1000)]
    assert _ends(told(1, 1, 0, None, job_ended_at=at(1100)), epochs=booted) == [("node_rebooted", 1000)]


def test_a_job_that_is_told_of_again_does_not_end_itself() -> None:
    words = [told(1, 1, 0, None), told(1, 1, 2000, None)]
    assert _ends(*words) == []
    assert who(words) == [(0, 3600, "job:1", 1)]


def test_two_open_holdings_of_one_start_end_nothing_and_are_nobodys() -> None:
    words = [told(1, 1, 0, None), told(2, 1, 0, None)]
    assert _ends(*words) == []
    assert who(words) == [(0, 3600, "unattributed:overlap", 1)]


def test_a_part_that_another_takes_ends_no_open_holding() -> None:
    assert _ends(told(1, 1, 0, None), told(2, 1, 2000, None, share_ppm=500_000)) == []


def test_a_holding_of_no_length_ends_no_open_one() -> None:
    assert _ends(told(1, 1, 0, None), told(2, 1, 600, 600)) == []
    assert _ends(told(1, 1, 0, None), told(2, 1, 600, 601)) == [("held_by_another", 600)]


def test_a_share_of_one_is_the_whole_device() -> None:
    assert _ends(told(1, 1, 0, None), told(2, 1, 600, 900, share_ppm=1_000_000)) == [("held_by_another", 600)]
    both = [told(1, 1, 0, 3600), told(2, 1, 0, 3600, share_ppm=1_000_000)]
    assert who(both) == [(0, 3600, "unattributed:overlap", 1)]


def test_a_board_leaves_where_it_goes_to_another_node_or_another_board_comes_in_its_place() -> None:
    for there in (stands(1, start=1200, node=2), stands(2, start=1200)):
        placements = [stands(1, end=1200), there]
        assert _ends(told(1, 1, 0, None), devices=[device(1), device(2)], placements=placements) == [
            ("device_left", 1200)
        ]


def test_what_is_told_of_the_instant_at_which_a_board_left_is_not_ended_by_it() -> None:
    away = [stands(1, end=1200), stands(1, start=2400)]
    assert who([told(1, 1, 1200, None)], placements=away) == [
        (0, 1200, "idle", 1),
        (1200, 2400, "job:1", 1),
        (2400, 3600, "job:1", 1),
    ]


def test_a_count_by_the_word_of_a_process_is_believed_by_nobody() -> None:
    assert who([on_node(7, 1, 0, 3600, evidence="environ")]) == [(0, 3600, "unattributed:hint_only", 1)]


def test_a_board_that_an_import_names_is_not_free_for_a_count_by_better_evidence() -> None:
    found = resolved([told(1, 1, 0, 3600, evidence="import"), on_node(2, 1, 0, 3600, evidence="cgroup")])
    assert found.held["holder"].to_list() == ["job:1"]
    assert found.too_many.select("from_us", "to_us", "wanted", "free", "jobs").rows() == [
        (START, START + 3600 * US_PER_SECOND, 1, 0, [2])
    ]


def test_counts_of_exactly_what_is_free_are_not_too_many() -> None:
    found = resolved([on_node(1, 1, 0, 3600), on_node(2, 1, 0, 3600)], [device(1), device(2)])
    assert found.too_many.is_empty()
    assert found.held.select("device_id", "holder", "weight", "weights", "method").rows() == [
        (number, name, 1, 2, "count") for number in (1, 2) for name in ("job:1", "job:2")
    ]


def test_counts_that_pass_what_is_free_have_it_by_how_many_each_is() -> None:
    """Eight of one and one of another, of eight: 8/9 and 1/9 of each board, and the node that has too few is told of."""
    boards = [device(number) for number in range(1, 9)]
    words = [on_node(1, 8, 0, 3600), on_node(2, 1, 0, 3600)]
    assert who(words, boards) == [(0, 3600, "job:1", 0.888889), (0, 3600, "job:2", 0.111111)]
    found = resolved(words, boards)
    assert found.too_many.select("wanted", "free", "jobs").rows() == [(9, 8, [1, 2])]
    assert found.contests.is_empty()
    # Nobody has more than there is: 20 of 8 are 8.
    assert who([on_node(1, 20, 0, 3600), on_node(2, 8, 0, 3600)], boards) == [
        (0, 3600, "job:1", 0.5),
        (0, 3600, "job:2", 0.5),
    ]


def test_of_two_counts_that_overlap_by_less_than_five_seconds_the_later_one_has_the_node() -> None:
    boards = [device(number) for number in range(1, 9)]
    words = [on_node(1, 8, 0, 1804), on_node(2, 8, 1800, 3600)]
    assert who(words, boards) == [(0, 1800, "job:1", 1), (1800, 3600, "job:2", 1)]
    words = [on_node(1, 8, 0, 1805), on_node(2, 8, 1800, 3600)]
    assert who(words, boards)[1:3] == [(1800, 1805, "job:1", 0.5), (1800, 1805, "job:2", 0.5)]


def test_a_job_known_to_hold_more_than_its_count_gets_no_more() -> None:
    boards = [device(1), device(2), device(3)]
    held = resolved([told(7, 1, 0, 3600), told(7, 2, 0, 3600), on_node(7, 1, 0, 3600)], boards).held
    assert held.select("device_id", "holder").rows() == [(1, "job:7"), (2, "job:7")]


def test_instances_of_a_board_that_somebody_holds_are_not_free() -> None:
    devices = [device(1), device(2), instance(11, 1, 500_000), instance(12, 1, 500_000)]
    found = resolved([told(1, 1, 0, 3600), on_node(2, 1, 0, 3600)], devices)
    assert found.held.select("device_id", "holder", "weight", "weights").rows() == [
        (1, "job:1", 1, 1),
        (2, "job:2", 1, 1),
    ]


def test_a_nodes_meter_is_a_method_of_who_has_the_node_whole_and_of_nobody_else() -> None:
    devices = [device(1, node_id=2), device(9, kind="node", accelerators=8)]
    where = table(Placements, [stands(1, node=2), stands(9)])

    def methods(*words: dict[str, Any]) -> dict[str, str]:
        held = resolved(list(words), devices, [stands(1, node=2), stands(9)]).held
        found = hold(table(Devices, devices), where, held, START, START + 3600 * US_PER_SECOND)
        spans = found.pieces.select("span", "device_id")
        rows = found.holders.join(spans, on="span").select(pl.format("{} of {}", "holder", "device_id"), "method")
        return dict(rows.rows())

    assert methods(told(1, 1, 0, 3600), told(2, 9, 0, 3600)) == {"job:1 of 1": "whole", "job:2 of 9": "node_meter"}
    assert methods(on_node(3, 2, 0, 3600)) == {"idle of 1": "whole", "job:3 of 9": "count", "idle of 9": "count"}


def test_holdings_of_no_length_and_of_devices_nobody_described_vanish() -> None:
    assert resolved([told(1, 1, 10, 10), told(2, 5, 0, 3600)], BOARD).held.is_empty()


def test_a_count_of_an_instance_is_of_its_slice() -> None:
    # Three sevenths, all that there is to be had.
    held = resolved([on_node(7, 1, 0, 3600)], [device(1), instance(11, 1, 428_571)]).held
    assert held.select("holder", "weight", "weights", "method").rows() == [
        ("idle", 4, 7, "count"),
        ("job:7", 3, 7, "count"),
    ]


def test_a_count_that_ends_when_its_board_leaves_lasts_until_then() -> None:
    assert who([on_node(7, 1, 0, 1800)], placements=[stands(1, end=1800)]) == [
        (0, 1800, "job:7", 1),
        (1800, 3600, "idle", 1),
    ]
