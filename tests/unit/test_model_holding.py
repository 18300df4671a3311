"""Who held what: every word that was told of a holding, weighed against the others, one instant at a time."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from analytics.frames import Devices, Placements
from analytics.model.holding import hold, whole_holder
from analytics.units import US_PER_SECOND
from tests.fakes.site import Site, at, device, epoch, placed, steady, table
from tests.fakes.told_holds import START, instance, on_node, resolved, stands, told, who


def test_three_thirds_are_the_whole_board() -> None:
    assert who([told(job, 1, 0, 3600, share_ppm=333_333) for job in (1, 2, 3)]) == [
        (0, 3600, f"job:{job}", 0.333333) for job in (1, 2, 3)
    ]
    held = resolved([told(job, 1, 0, 3600, share_ppm=333_333) for job in (1, 2, 3)]).held
    assert held.select("weight", "weights").rows() == [(1, 3)] * 3


def test_a_share_that_is_no_simple_fraction_is_what_it_says() -> None:
    held = resolved([told(1, 1, 0, 3600, share_ppm=1_001)]).held
    assert held.select("holder", "weight", "weights").rows() == [
        ("idle", 998_999, 1_000_000),
        ("job:1", 1_001, 1_000_000),
    ]


def test_a_count_is_of_the_devices_that_nobody_holds_by_name() -> None:
    """Eight boards, a cgroup's job on two: 3 of 8 is 3/6 of each of the other six."""
    boards = [device(number) for number in range(1, 9)]
    held = resolved([told(1, 1, 0, 3600), told(1, 2, 0, 3600), on_node(2, 3, 0, 3600)], boards).held
    shares = {(row["device_id"], row["holder"]): row["weight"] / row["weights"] for row in held.iter_rows(named=True)}
    assert shares == {
        (1, "job:1"): 1,
        (2, "job:1"): 1,
        **{(number, name): 0.5 for number in range(3, 9) for name in ("job:2", "idle")},
    }
    assert held.filter(pl.col("device_id") > 2)["method"].unique().to_list() == ["count"]


def test_a_count_of_all_that_is_free_holds_it_whole() -> None:
    boards = [device(1), device(2)]
    held = resolved([told(1, 1, 0, 3600), on_node(2, 2, 0, 3600)], boards)
    assert held.held.select("device_id", "holder", "method").rows() == [(1, "job:1", "whole"), (2, "job:2", "whole")]
    # It was said to hold two, and there is one: somebody is wrong.
    assert held.too_many.select("wanted", "free").rows() == [(2, 1)]


def test_a_count_shrinks_to_what_is_free_only_while_a_named_device_is_taken() -> None:
    boards = [device(1), device(2)]
    assert who([told(1, 2, 1200, 2400), on_node(2, 1, 0, 3600)], boards) == [
        (0, 1200, "idle", 0.5),
        (0, 1200, "job:2", 0.5),
        (1200, 2400, "job:2", 1),
        (2400, 3600, "idle", 0.5),
        (2400, 3600, "job:2", 0.5),
    ]


def test_devices_that_a_job_holds_by_name_are_part_of_its_count() -> None:
    boards = [device(1), device(2), device(3)]
    held = resolved([told(7, 1, 0, 3600), on_node(7, 2, 0, 3600)], boards).held
    assert [
        (row[0], row[1], row[2] / row[3]) for row in held.select("device_id", "holder", "weight", "weights").rows()
    ] == [
        (1, "job:7", 1),
        (2, "idle", 0.5),
        (2, "job:7", 0.5),
        (3, "idle", 0.5),
        (3, "job:7", 0.5),
    ]


def test_a_board_out_of_service_is_not_counted() -> None:
    boards = [device(1), device(2)]
    held = resolved([on_node(7, 1, 0, 3600)], boards, [stands(1), stands(2, in_service=False)]).held
    assert held.select("device_id", "holder", "weight").rows() == [(1, "job:7", 1)]


def test_of_a_board_that_is_cut_up_a_count_counts_the_instances() -> None:
    devices = [device(1), device(2), instance(11, 1, 500_000), instance(12, 1, 500_000)]
    # Three to be had: two halves of board 1 and board 2. One of them is a third of each.
    held = resolved([on_node(7, 1, 0, 3600)], devices).held
    assert [
        (row[0], row[1] * 3 / row[2])
        for row in held.filter(holder="job:7").select("device_id", "weight", "weights").rows()
    ] == [
        (1, 1),
        (2, 1),
    ]


def test_a_node_metered_as_a_whole_is_as_many_accelerators_as_it_says() -> None:
    node = [device(9, kind="node", accelerators=8)]
    assert who([on_node(7, 2, 0, 3600)], node) == [(0, 3600, "idle", 0.75), (0, 3600, "job:7", 0.25)]


def test_a_node_whose_boards_are_known_is_counted_by_them() -> None:
    devices = [device(1), device(9, kind="node", accelerators=8)]
    held = resolved([on_node(7, 1, 0, 3600)], devices, [stands(1, 1800), stands(9)]).held.filter(holder="job:7")
    assert held.select("device_id", "weight", "weights", "method").rows() == [(1, 1, 1, "whole"), (9, 1, 8, "count")]


@pytest.mark.parametrize(("start", "stop", "left_s"), [(None, 1800, 1800), (1800, None, 1800), (600, 1200, 3000)])
def test_a_node_metered_as_a_whole_counts_while_no_board_of_it_is_known(
    start: float | None, stop: float | None, left_s: int
) -> None:
    site = Site(
        readings=[*steady(1, 0, 3600, 100), *steady(9, 0, 3600, 1000)],
        devices=(device(1), device(9, kind="node", accelerators=8)),
        placements=(placed(1, start, stop), placed(9)),
    )
    rows = site.close().usage.select("device_id", "energy_mj", "held_us").rows()
    assert rows == [(1, 360_000_000, 3_600_000_000), (9, left_s * 1_000_000, left_s * US_PER_SECOND)]


def test_root_s_word_stands_against_an_import_and_the_contradiction_is_told_once() -> None:
    found = resolved([told(1, 1, 0, 1800), told(2, 1, 900, 3600, evidence="import")])
    assert found.held.select("holder", "start_us", "end_us").rows() == [
        ("job:1", START, START + 1800 * US_PER_SECOND),
        ("job:2", START + 1800 * US_PER_SECOND, START + 3600 * US_PER_SECOND),
    ]
    assert found.contests.select("kind", "jobs", "evidence").rows() == [("conflict", [1, 2], ["cgroup", "import"])]


def test_two_of_equal_rank_hand_over_within_five_seconds() -> None:
    found = resolved([told(1, 1, 0, 1803), told(2, 1, 1800, 3600, evidence="hook")])
    assert found.held.select("holder", "start_us").rows() == [
        ("job:1", START),
        ("job:2", START + 1800 * US_PER_SECOND),
    ]
    assert found.contests.is_empty()


def test_five_seconds_of_overlap_are_nobodys() -> None:
    assert who([told(1, 1, 0, 1805), told(2, 1, 1800, 3600)]) == [
        (0, 1800, "job:1", 1),
        (1800, 1805, "unattributed:overlap", 1),
        (1805, 3600, "job:2", 1),
    ]


def test_equal_starts_hand_nothing_over() -> None:
    assert who([told(1, 1, 0, 4), told(2, 1, 0, 3600)])[0] == (0, 4, "unattributed:overlap", 1)


def test_a_process_that_names_a_job_is_believed_by_nobody() -> None:
    assert who([told(1, 1, 0, 1800, evidence="environ")]) == [
        (0, 1800, "unattributed:hint_only", 1),
        (1800, 3600, "idle", 1),
    ]


def test_a_hint_against_a_grant_is_a_contradiction_that_the_grant_wins() -> None:
    found = resolved([told(1, 1, 0, 3600), told(2, 1, 0, 3600, evidence="environ")])
    assert found.held["holder"].to_list() == ["job:1"]
    assert found.contests["kind"].to_list() == ["conflict"]


def test_an_unknown_instrument_is_believed_like_an_import() -> None:
    assert who([told(1, 1, 0, 3600, evidence="their own script"), told(2, 1, 0, 3600)]) == [(0, 3600, "job:2", 1)]
    assert who([told(1, 1, 0, 3600, evidence="their own script")]) == [(0, 3600, "job:1", 1)]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({"job_ended_at": at(1000)}, "job_ended"),
        ({}, "node_rebooted"),
    ],
)
def test_an_end_that_nobody_told_is_the_jobs_or_the_reboots(more: dict[str, Any], cause: str) -> None:
    epochs = [epoch(), epoch(2, boot_id="later", first_seen_at=at(1000))] if cause == "node_rebooted" else [epoch()]
    assert who([told(1, 1, 0, None, **more)], epochs=epochs) == [(0, 1000, "job:1", 1), (1000, 3600, "idle", 1)]
    assert resolved([told(1, 1, 0, None, **more)], epochs=epochs).unended["ended_by"].to_list() == [cause]


def test_a_boot_that_was_seen_before_the_holding_was_told_of_ends_nothing() -> None:
    """After an outage of the server, boots and holdings of it arrive together: the holding is of the new boot."""
    epochs = [epoch(), epoch(2, boot_id="later", first_seen_at=at(1000))]
    assert who([told(1, 1, 0, None, recorded_at=at(1000))], epochs=epochs) == [(0, 3600, "job:1", 1)]


def test_the_first_boot_that_a_feed_tells_of_is_no_reboot() -> None:
    other_feed = [epoch(), epoch(2, boot_id="of dcgm", feed=2, first_seen_at=at(1000))]
    assert who([told(1, 1, 0, None)], epochs=other_feed) == [(0, 3600, "job:1", 1)]


def test_an_open_holding_ends_where_another_job_takes_the_whole_device() -> None:
    assert who([told(1, 1, 0, None), told(2, 1, 2000, None)]) == [(0, 2000, "job:1", 1), (2000, 3600, "job:2", 1)]
    # Not by weaker evidence: that contradicts it, and loses.
    assert who([told(1, 1, 0, None), told(2, 1, 2000, None, evidence="import")]) == [(0, 3600, "job:1", 1)]


def test_an_open_holding_ends_where_its_board_leaves_the_node() -> None:
    away = [stands(1, end=1200), stands(1, start=2400)]
    assert who([told(1, 1, 0, None)], placements=away) == [
        (0, 1200, "job:1", 1),
        (1200, 2400, "idle", 1),
        (2400, 3600, "idle", 1),
    ]
    # What is only described anew has not left.
    described = [stands(1, end=1200), stands(1, start=1200, in_service=False)]
    assert {holder for _, _, holder, _ in who([told(1, 1, 0, None)], placements=described)} == {"job:1"}


def test_a_holding_without_any_end_goes_on() -> None:
    assert who([told(1, 1, 1800, None)]) == [(0, 1800, "idle", 1), (1800, 3600, "job:1", 1)]


def test_a_board_cut_anew_is_held_by_the_slices_of_the_hour() -> None:
    """1g until 1,800 s, 3g from then on: 1/7, then 3/7."""
    devices = [device(1), instance(11, 1, 142_857), instance(12, 1, 428_571)]
    placements = [stands(1), stands(11, end=1800), stands(12, start=1800)]
    found = [told(1, 11, 0, 1800), told(2, 12, 1800, 3600)]
    assert who(found, devices, placements) == [
        (0, 1800, "idle", 0.857143),
        (0, 1800, "job:1", 0.142857),
        (1800, 3600, "idle", 0.571429),
        (1800, 3600, "job:2", 0.428571),
    ]
    assert resolved(found, devices, placements).instances.select("instance_id", "job_id", "slice_ppm").rows() == [
        (11, 1, 142_857),
        (12, 2, 428_571),
    ]


def test_two_jobs_that_claim_one_instance_contest_its_slice_alone() -> None:
    devices = [device(1), instance(11, 1, 250_000), instance(12, 1, 250_000)]
    assert who([told(1, 11, 0, 3600), told(2, 11, 0, 3600), told(3, 12, 0, 3600)], devices) == [
        (0, 3600, "idle", 0.5),
        (0, 3600, "job:3", 0.25),
        (0, 3600, "unattributed:overlap", 0.25),
    ]


def test_a_claim_to_the_board_and_one_to_an_instance_cannot_both_be_true() -> None:
    devices = [device(1), instance(11, 1, 250_000)]
    assert who([told(1, 1, 0, 3600), told(2, 11, 0, 3600)], devices) == [(0, 3600, "unattributed:overlap", 1)]


def test_shares_beyond_the_whole_are_scaled_to_it() -> None:
    assert who([told(1, 1, 0, 3600, share_ppm=900_000), told(2, 1, 0, 3600, share_ppm=900_000)]) == [
        (0, 3600, "job:1", 0.5),
        (0, 3600, "job:2", 0.5),
    ]


def test_records_of_one_job_that_follow_each_other_are_one_holding() -> None:
    halves = [told(1, 1, 0, 1200), told(1, 1, 1200, 3600, evidence="hook")]
    assert resolved(halves).held.select("holder", "start_us", "end_us").rows() == [
        ("job:1", START, START + 3600 * US_PER_SECOND)
    ]
    gap = pl.DataFrame({"device_id": [1], "from_us": [START + 10], "to_us": [START + 3000 * US_PER_SECOND]})
    assert whole_holder(gap, resolved(halves).held).to_list() == [True]


def test_a_requeued_job_is_another_job_of_the_same_id() -> None:
    first, second = told(1, 1, 0, 1200, job_key="c|9|0"), told(2, 1, 1201, 3600, job_key="c|9|1201")
    assert who([first, second]) == [(0, 1200, "job:1", 1), (1200, 1201, "idle", 1), (1201, 3600, "job:2", 1)]


def test_a_gap_is_kept_only_where_nothing_changes_throughout_it() -> None:
    held = resolved([told(1, 1, 0, 1000), told(2, 1, 2000, 3600, share_ppm=500_000)]).held
    edges = [(-10, 10), (0, 1000), (10, 990), (500, 1500), (1200, 1300), (2100, 2200)]
    gaps = pl.DataFrame(
        {
            "device_id": [1] * len(edges),
            "from_us": [START + first * US_PER_SECOND for first, _ in edges],
            "to_us": [START + last * US_PER_SECOND for _, last in edges],
        }
    )
    assert whole_holder(gaps, held).to_list() == [False, True, True, False, False, True]


def test_a_piece_is_of_the_hour_in_which_it_begins_and_lies() -> None:
    held = resolved([told(1, 1, 2700, 4500)]).held
    found = hold(table(Devices, [device()]), table(Placements, [stands(1)]), held, START, START + 7200 * US_PER_SECOND)
    rows = found.pieces.select((pl.col("hour_us", "from_us", "to_us") - START) // US_PER_SECOND).rows()
    assert rows == [(0, 0, 2700), (0, 2700, 3600), (3600, 3600, 4500), (3600, 4500, 7200)]
    assert found.pieces["span"].to_list() == [1, 2, 3, 4]
