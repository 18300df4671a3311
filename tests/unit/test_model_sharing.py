"""A shared board's energy by holder, worked out by hand: the floor by what each is entitled to, the rest by who was active."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest

from analytics.frames import DeviceShares, InstanceActivity
from analytics.model import activity
from analytics.model.levels import levels
from analytics.model.sharing import at_rest, parts, split_shared
from analytics.policy import IdlePolicy, SharingError
from tests.fakes.site import HOUR, at, table

pytestmark = pytest.mark.unit
S = 1_000_000
KINDS = {"device_id": pl.Int32, "span": pl.UInt32, "job_id": pl.Int64}
HOUR_US = int(HOUR.timestamp()) * S
ERROR = SharingError(process_utilization=100_000, slice_activity=50_000, share=200_000, slice=250_000)
SLICES = {"device_id": pl.Int32, "parent_device_id": pl.Int32, "slice_ppm": pl.Int32}
ON_SLICES = {
    "instance_id": pl.Int32,
    "job_id": pl.Int64,
    "slice_ppm": pl.Int64,
    "start_us": pl.Int64,
    "end_us": pl.Int64,
}
NO_SLICES = (pl.DataFrame(schema=SLICES), pl.DataFrame(schema=ON_SLICES))


def piece(start: float, end: float, joules: float, covered: float | None = None, number: int = 0) -> dict[str, Any]:
    return {
        "piece": number,
        "span": number,
        "device_id": 1,
        "hour_us": HOUR_US,
        "from_us": HOUR_US + round(start * S),
        "to_us": HOUR_US + round(end * S),
        "energy_mj": round(joules * 1000),
        "gap_mj": 0,
        "covered_us": round((end - start if covered is None else covered) * S),
    }


def holder(job: int | None, weight: int, weights: int, number: int = 0, method: str = "share") -> dict[str, Any]:
    name = "idle" if job is None else f"job:{job}"
    return {
        "span": number, "holder": name, "job_id": job, "holder_key": name, "weight": weight, "weights": weights, "method": method,
    }  # fmt: skip


def look(
    job: int | None, end: float, span: float, util: float | None, method: str = "process_utilization", **more: Any
) -> dict[str, Any]:
    return {
        "device_id": 1,
        "at": at(end),
        "span_us": round(span * S),
        "job_id": job,
        "sm_util_ppm": None if util is None else round(util * 1_000_000),
        "method": method,
        **more,
    }


def held(*holds: tuple[int, float, float]) -> pl.DataFrame:
    return pl.DataFrame(
        [(1, job, HOUR_US + round(start * S), HOUR_US + round(end * S)) for job, start, end in holds],
        schema={"device_id": pl.Int32, "job_id": pl.Int64, "start_us": pl.Int64, "end_us": pl.Int64},
        orient="row",
    )


def seen(*rows: dict[str, Any], holds: pl.DataFrame | None = None) -> pl.DataFrame:
    everybody = held((1, 0, 3600), (2, 0, 3600), (3, 0, 3600)) if holds is None else holds
    return activity.looks(table(DeviceShares, rows), InstanceActivity.create_empty(), everybody, *NO_SLICES)


def split(
    pieces: list[dict[str, Any]], holders: list[dict[str, Any]], looks: pl.DataFrame, floor_w: float = 100
) -> dict[str, tuple[float, float, float, str]]:
    """Energy, bounds (J) and method by holder, over all pieces; each piece's parts sum to it."""
    floors = pl.DataFrame({"device_id": [1], "idle_power_mw": [round(floor_w * 1000)]}, schema_overrides=KINDS)
    frame, named = pl.DataFrame(pieces, schema_overrides=KINDS), pl.DataFrame(holders, schema_overrides=KINDS)
    rows = split_shared(frame, named, looks, floors, ERROR)
    sums = dict(rows.group_by("span").agg(pl.col("energy_mj").sum()).iter_rows())
    assert sums == {row["span"]: row["energy_mj"] - row["gap_mj"] for row in pieces}
    assert rows.select((pl.col("below_mj") >= 0).all() & (pl.col("above_mj") >= 0).all()).item()
    return {
        row["holder"]: (
            row["energy_mj"] / 1000,
            (row["energy_mj"] - row["below_mj"]) / 1000,
            (row["energy_mj"] + row["above_mj"]) / 1000,
            row["method"],
        )
        for row in rows.iter_rows(named=True)
    }


HALVES = [holder(1, 500_000, 1_000_000), holder(2, 500_000, 1_000_000)]


def test_the_floor_goes_by_share_and_the_rest_by_activity() -> None:
    """60 s at 500 W over a floor of 100 W: 3,000 + 3,000 J of floor; 24,000 J active at 60 % and 20 %: 18,000 + 6,000 J."""
    found = split([piece(0, 60, 30_000)], HALVES, seen(look(1, 60, 60, 0.6), look(2, 60, 60, 0.2)))
    # Bounds: 10 % of 24,000 J to either side.
    assert found == {
        "job:1": (21_000, 18_600, 23_400, "process_utilization"),
        "job:2": (9_000, 6_600, 11_400, "process_utilization"),
    }


def test_below_its_floor_a_board_has_no_active_energy() -> None:
    found = split([piece(0, 60, 3_000)], HALVES, seen(look(1, 60, 60, 0.6), look(2, 60, 60, 0.2)))
    assert found["job:1"] == found["job:2"] == (1_500, 1_500, 1_500, "process_utilization")


def test_without_activity_energy_goes_by_what_was_granted_and_the_method_says_so() -> None:
    quarter = [holder(1, 250_000, 1_000_000), holder(None, 750_000, 1_000_000)]
    found = split([piece(0, 60, 30_000)], quarter, seen())
    assert found == {"job:1": (7_500, 2_700, 12_300, "share"), "idle": (22_500, 17_700, 27_300, "share")}


def test_where_nobody_was_active_energy_goes_by_what_was_granted() -> None:
    found = split([piece(0, 60, 30_000)], HALVES, seen(look(1, 60, 60, 0), look(2, 60, 60, 0)))
    assert found["job:1"][0] == found["job:2"][0] == 15_000
    assert found["job:1"][3] == "share"


def test_what_nobody_holds_has_its_floor_and_nothing_of_the_work() -> None:
    quarter = [holder(1, 250_000, 1_000_000), holder(None, 750_000, 1_000_000)]
    found = split([piece(0, 60, 30_000)], quarter, seen(look(1, 60, 60, 0.3, "measured")))
    # Floor 6,000 J: 1,500 and 4,500; all 24,000 J of work are the job's.
    assert found["job:1"][0] == 25_500
    assert found["idle"][0] == 4_500


def test_processes_of_no_job_pay_for_their_work_and_hold_nothing() -> None:
    found = split(
        [piece(0, 60, 30_000)], HALVES, seen(look(1, 60, 60, 0.3), look(2, 60, 60, 0.3), look(None, 60, 60, 0.2))
    )
    assert {name: energy for name, (energy, *_) in found.items()} == {
        "job:1": 12_000,
        "job:2": 12_000,
        "unattributed:no_job": 6_000,
    }


def test_a_job_that_holds_nothing_of_the_board_is_nobody() -> None:
    looks = seen(look(1, 60, 60, 0.3), look(9, 60, 60, 0.3), holds=held((1, 0, 60), (2, 0, 60)))
    found = split([piece(0, 60, 30_000)], HALVES, looks)
    assert found["unattributed:no_job"][0] == 12_000


def test_a_job_without_a_process_did_no_work() -> None:
    found = split([piece(0, 60, 30_000)], HALVES, seen(look(1, 60, 60, None, "measured")))
    assert (found["job:1"][0], found["job:2"][0]) == (27_000, 3_000)
    assert found["job:2"][3] == "process_utilization"


def test_activity_of_mps_clients_without_caps_is_not_believed() -> None:
    found = split([piece(0, 60, 30_000)], HALVES, seen(look(1, 60, 60, 0.9, "equal"), look(2, 60, 60, 0.1, "equal")))
    assert found["job:1"][0] == 15_000
    assert found["job:1"][3] == "share"


def test_mps_clients_of_which_no_time_is_told_go_by_their_threads() -> None:
    rows = [
        look(1, 60, 60, None, "mps_threads", share_ppm=750_000),
        look(2, 60, 60, None, "mps_threads", share_ppm=250_000),
    ]
    found = split([piece(0, 60, 30_000)], HALVES, seen(*rows))
    assert (found["job:1"][0], found["job:2"][0]) == (21_000, 9_000)
    assert found["job:1"][3] == "mps_threads"


def test_one_whose_activity_is_unknown_leaves_the_piece_to_the_grants() -> None:
    found = split([piece(0, 60, 30_000)], HALVES, seen(look(1, 60, 60, 0.5), look(2, 60, 60, None)))
    assert found["job:1"][0] == 15_000
    assert found["job:1"][3] == "share"


def test_a_look_that_speaks_of_a_time_before_its_job_began_tells_of_the_time_it_held() -> None:
    """30 % of the 10 s since the look before, of which the job held 6: it was half active."""
    looks = seen(look(1, 10, 10, 0.3), holds=held((1, 4, 10)))
    assert looks.select("from_us", "to_us", "activity_ppm").row(0) == (HOUR_US + 4 * S, HOUR_US + 10 * S, 500_000)


def test_a_process_that_is_gone_at_the_next_look_is_taken_to_have_worked_on_until_its_job_ended() -> None:
    """Seen at 10 s, its job ends at 13 s; the look at 15 s finds it no more."""
    looks = seen(look(1, 10, 5, 0.4), look(2, 10, 5, 0.4), look(2, 15, 5, 0.4), holds=held((1, 0, 13), (2, 0, 100)))
    first = looks.filter(pl.col("job_id") == 1).select("from_us", "to_us", "activity_ppm")
    assert first.rows() == [(HOUR_US + 5 * S, HOUR_US + 13 * S, 400_000)]
    second = looks.filter(pl.col("job_id") == 2).select("from_us", "to_us")
    assert second.rows() == [(HOUR_US + 5 * S, HOUR_US + 10 * S), (HOUR_US + 10 * S, HOUR_US + 20 * S)]


def test_the_first_look_of_an_agent_speaks_of_no_time() -> None:
    row = look(1, 10, 5, 0.4)
    shares = pl.DataFrame([{**row, "span_us": 0, "memory_used_bytes": None, "share_ppm": None}])
    kinds = DeviceShares.create_empty().schema
    assert activity.looks(
        shares.select(pl.col(n).cast(k) for n, k in kinds.items()),
        InstanceActivity.create_empty(),
        held((1, 0, 100)),
        *NO_SLICES,
    ).is_empty()


def test_a_look_back_over_more_than_five_minutes_tells_nothing() -> None:
    """Else an hour would know less of it than a day does, which reads further."""
    assert seen(look(1, 400, 300, 0.4)).height == 1
    assert seen(look(1, 400, 301, 0.4)).is_empty()


def test_two_halves_of_a_piece_are_weighed_by_time() -> None:
    """Job 1 works alone for 20 s of 60, job 2 for the other 40, as busy: a third and two thirds of 24,000 J."""
    looks = seen(look(1, 20, 20, 0.5), look(2, 20, 20, 0), look(1, 60, 40, 0), look(2, 60, 40, 0.5))
    found = split([piece(0, 60, 30_000)], HALVES, looks)
    assert found["job:1"][0] == pytest.approx(3_000 + 8_000, abs=20)


def on_instances(
    active: dict[int, float], slices: dict[int, int], holds: list[tuple[int, int, float, float, float]]
) -> pl.DataFrame:
    """Looks of 60 s at instances (id: activity) of so many sevenths of board 1; holds: instance, job, its share, from, to."""
    rows = [
        {"device_id": 1, "instance_id": n, "at": at(60), "span_us": 60 * S, "sm_active_ppm": round(ratio * 10**6)}
        for n, ratio in active.items()
    ]
    held_by = [
        (n, job, round(share * slices[n] * 10**6 / 7), HOUR_US + round(a * S), HOUR_US + round(b * S))
        for n, job, share, a, b in holds
    ]
    return activity.looks(
        DeviceShares.create_empty(),
        table(InstanceActivity, rows),
        held(*((job, a, b) for _, job, _, a, b in holds)),
        pl.DataFrame([(n, 1, part * 10**6 // 7) for n, part in slices.items()], schema=SLICES, orient="row"),
        pl.DataFrame(held_by, schema=ON_SLICES, orient="row"),
    )


def test_an_instances_activity_counts_by_its_slice() -> None:
    """3 of 7 slices fully active beside 4 of 7 at a quarter: 3 : 1 of the work; the floor goes 3 : 4."""
    looks = on_instances({11: 1, 12: 0.25}, {11: 3, 12: 4}, [(11, 1, 1, 0, 3600), (12, 2, 1, 0, 3600)])
    holders = [holder(1, 3, 7, method="slice"), holder(2, 4, 7, method="slice")]
    found = split([piece(0, 60, 31_000)], holders, looks, 700 / 6)
    # Floor 116,667 mW x 60 s = 7,000.02 J, 3 : 4; active 23,999.98 J, 428,571 : 142,857 of 571,428 ppm.
    assert found["job:1"][0] == pytest.approx(3_000 + 18_000, abs=0.1)
    assert found["job:2"][0] == pytest.approx(4_000 + 6_000, abs=0.1)
    assert found["job:1"][3] == "slice_activity"


def test_activity_on_an_instance_that_nobody_holds_is_nobodys() -> None:
    looks = on_instances({11: 0.5, 12: 0.5}, {11: 1, 12: 3}, [(11, 1, 1, 0, 3600)])
    quarter = [holder(1, 250_000, 1_000_000), holder(None, 750_000, 1_000_000)]
    found = split([piece(0, 60, 30_000)], quarter, looks)
    # 71,428 and 214,285 ppm of the board: a quarter and three of 24,000 J, but for a hundredth of a joule.
    assert found["unattributed:no_job"][0] == pytest.approx(18_000, abs=0.1)


def test_all_activity_of_an_instance_is_of_those_who_held_it() -> None:
    """Of one slice, half active for the minute: a job that held it for 30 s was fully active; two halves have half each."""
    alone = on_instances({11: 0.5}, {11: 7}, [(11, 1, 1, 30, 3600)])
    assert alone.select("from_us", "to_us", "activity_ppm").rows() == [(HOUR_US + 30 * S, HOUR_US + 60 * S, 1_000_000)]
    halves = on_instances({11: 0.5}, {11: 7}, [(11, 1, 0.5, 0, 3600), (11, 2, 0.5, 0, 3600)])
    assert halves.select("job_id", "activity_ppm").sort("job_id").rows() == [(1, 250_000), (2, 250_000)]


def fitted(turns: list[dict[int, float]], watts: list[float]) -> dict[int, float]:
    """Levels of one board by job from pieces of 10 s: who is how active in each, and the board's active power."""
    pieces = pl.DataFrame(
        {
            "device_id": [1] * len(turns),
            "hour_us": [0] * len(turns),
            "from_us": [n * 10 * S for n in range(len(turns))],
            "to_us": [(n + 1) * 10 * S for n in range(len(turns))],
        }
    )
    rows = [(n, job, round(ratio * 1_000_000)) for n, turn in enumerate(turns) for job, ratio in sorted(turn.items())]
    place, job, ppm = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    found = levels(pieces, place, job, ppm, np.array([round(w * 10 * 1000) for w in watts], dtype=np.int64))
    return {int(number): float(level) for number, level in zip(job, found, strict=True)}


def test_levels_tell_who_draws_more_of_two_that_are_equally_busy_by_turns() -> None:
    """Job 1 alone: 300 W active; job 2 alone: 100 W; both: 400 W. Each fully active: levels 1.5 and 0.5 of the mean of 200 W."""
    found = fitted([{1: 1}, {2: 1}, {1: 1, 2: 1}] * 40, [300, 100, 400] * 40)
    # The prior of 5 s beside 800 s of each holds them back by less than a hundredth.
    assert found == {1: pytest.approx(1_500, abs=10), 2: pytest.approx(500, abs=10)}


def test_levels_of_jobs_that_always_work_together_stay_even() -> None:
    assert fitted([{1: 0.5, 2: 0.5}] * 60, [100, 200] * 30) == {1: 1_000, 2: 1_000}


def test_a_level_is_an_eighth_at_least_and_eight_at_most() -> None:
    found = fitted([{1: 0.05}, {2: 1}] * 180, [700, 1] * 180)
    assert found == {1: 8_000, 2: 125}


def test_whoever_is_not_active_has_no_level() -> None:
    assert fitted([{1: 1, 2: 0}] * 3, [100] * 3) == {1: 1_000, 2: 0}


def test_what_is_left_over_goes_to_the_largest_remainders_first() -> None:
    total = np.array([10, 1, 7, 0], dtype=np.int64)
    place = np.array([0, 0, 0, 1, 1, 2, 2, 3], dtype=np.int64)
    weight = np.array([1, 1, 1, 1, 1, 0, 0, 5], dtype=np.int64)
    # 10/3: 3 each and the first has the one left; 1/2: the first of equals; no weights: the first row has it all.
    assert parts(total, weight, place).tolist() == [4, 3, 3, 1, 0, 7, 0, 0]
    assert parts(np.array([10]), np.array([2, 3, 2]), np.zeros(3, dtype=np.int64)).tolist() == [3, 4, 3]


def test_parts_are_exact_beyond_64_bits() -> None:
    total, weight = np.array([2**61 + 1]), np.array([10**12, 2 * 10**12], dtype=np.int64)
    assert parts(total, weight, np.zeros(2, dtype=np.int64)).tolist() == [768614336404564651, 1537228672809129302]


def test_only_what_several_hold_is_cut_at_looks() -> None:
    """Job 1 alone until 60 s, with job 2 until 120 s, alone again."""
    parts = [(1, 0, 60, 1, 1), (1, 60, 120, 1, 2), (2, 60, 120, 1, 2), (1, 120, 180, 1, 1)]
    whose = pl.DataFrame(
        [(1, job, HOUR_US + a * S, HOUR_US + b * S, weight, weights) for job, a, b, weight, weights in parts],
        schema={**held().schema, "weight": pl.Int64, "weights": pl.Int64},
        orient="row",
    )
    looks = seen(*(look(1, end, 30, 0.5) for end in (30, 60, 90, 120, 150)), holds=whose)
    found = activity.cuts(looks, whose)
    assert sorted((us - HOUR_US) // S for us in found["cut_us"]) == [60, 90]


def test_a_device_that_tells_no_floor_has_the_policys_for_each_accelerator() -> None:
    devices = pl.DataFrame({"device_id": [1, 2], "accelerators": [1, 4], "idle_power_mw": [70_000, None]})
    assert at_rest(devices, IdlePolicy(default_idle_power_mw=90_000))["idle_power_mw"].to_list() == [70_000, 360_000]


def test_energy_of_gaps_is_left_where_it_is() -> None:
    """Of 30,000 J 12,000 lie in a gap: 18,000 are divided, of which the 30 s that were covered have a floor of 3,000."""
    gap = {**piece(0, 60, 30_000, covered=30), "gap_mj": 12_000_000}
    found = split([gap], HALVES, seen(look(1, 60, 60, 0.6), look(2, 60, 60, 0.2)))
    assert (found["job:1"][0], found["job:2"][0]) == (1_500 + 11_250, 1_500 + 3_750)


def test_products_beyond_64_bits_are_divided_exactly_whichever_factor_is_large() -> None:
    total, weight = np.array([2**40 + 1]), np.array([2**40, 2**40], dtype=np.int64)
    assert parts(total, weight, np.zeros(2, dtype=np.int64)).tolist() == [2**39 + 1, 2**39]


def test_where_nobody_weighs_anything_the_first_row_has_it_also_of_the_first_place() -> None:
    assert parts(np.array([5, 3]), np.zeros(3, dtype=np.int64), np.array([0, 0, 1])).tolist() == [5, 0, 3]


def test_a_client_that_is_granted_no_threads_has_none_of_the_work() -> None:
    rows = [
        look(1, 60, 60, None, "mps_threads", share_ppm=0),
        look(2, 60, 60, None, "mps_threads", share_ppm=500_000),
    ]
    found = split([piece(0, 60, 30_000)], HALVES, seen(*rows))
    assert (found["job:1"][0], found["job:2"][0]) == (3_000, 27_000)


def test_time_is_told_of_strangers_alone() -> None:
    frame = pl.DataFrame([piece(0, 60, 30_000)], schema_overrides=KINDS)
    named = pl.DataFrame(HALVES, schema_overrides=KINDS)
    floors = pl.DataFrame({"device_id": [1], "idle_power_mw": [100_000]}, schema_overrides=KINDS)
    found = split_shared(frame, named, seen(look(1, 60, 60, 0.3), look(None, 60, 60, 0.3)), floors, ERROR)
    assert found.select("holder", "seen_us").rows() == [("job:1", 0), ("job:2", 0), ("unattributed:no_job", 60 * S)]


def test_no_shared_board_is_no_rows() -> None:
    empty = pl.DataFrame([piece(0, 60, 1)], schema_overrides=KINDS).clear()
    nobody = pl.DataFrame([holder(1, 1, 1)], schema_overrides=KINDS).clear()
    floors = pl.DataFrame(schema={"device_id": pl.Int32, "idle_power_mw": pl.Int64})
    assert split_shared(empty, nobody, seen(), floors, ERROR).is_empty()


def test_a_span_has_the_sum_of_its_pieces_and_the_least_exact_of_their_methods() -> None:
    """Two pieces under one holding, the second of unknown activity: 21,000 + 15,000 J and 9,000 + 15,000 J."""
    pieces = [piece(0, 60, 30_000), {**piece(60, 120, 30_000), "piece": 1}, piece(120, 180, 9_000, number=2)]
    holders = [*HALVES, holder(3, 1, 1, number=2)]
    floors = pl.DataFrame({"device_id": [1], "idle_power_mw": [100_000]}, schema_overrides=KINDS)
    looks = [look(1, 60, 60, 0.6), look(2, 60, 60, 0.2), look(1, 120, 60, None), look(2, 120, 60, None)]
    frame, named = pl.DataFrame(pieces, schema_overrides=KINDS), pl.DataFrame(holders, schema_overrides=KINDS)
    found = split_shared(frame, named, seen(*looks), floors, ERROR)
    # Floor 6,000 J each piece, half each; bounds: 10 % and 20 % of 24,000 J to either side.
    assert found.select("span", "holder", "energy_mj", "active_mj", "below_mj", "above_mj", "method").rows() == [
        (0, "job:1", 36_000_000, 36_000_000, 7_200_000, 7_200_000, "share"),
        (0, "job:2", 24_000_000, 24_000_000, 7_200_000, 7_200_000, "share"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_those_of_the_largest_remainder_reckoned_one_by_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 6, 8)
    place = np.repeat(np.arange(8), counts)
    total = draw.integers(0, 50, 8)
    weight = draw.integers(0, 6, len(place))
    expected = []
    for number, count in enumerate(counts.tolist()):
        mine = [int(w) for w in weight[place == number]]
        shares = [Fraction(int(total[number]) * w, sum(mine)) if sum(mine) else Fraction(0) for w in mine]
        if not sum(mine):
            shares[0] = Fraction(int(total[number]))
        whole = [share.numerator // share.denominator for share in shares]
        order = sorted(range(count), key=lambda i: (whole[i] - shares[i], i))
        for i in order[: int(total[number]) - sum(whole)]:
            whole[i] += 1
        expected += whole
    assert parts(total, weight, place).tolist() == expected


def test_boards_are_divided_as_each_alone() -> None:
    """Three boards, each with spans of other holders: what one of them shows says nothing of another."""
    boards = []
    for board in (1, 2, 3):
        draw = np.random.default_rng(board)
        rows, who, told = [], [], []
        for span in range(3):
            jobs = [100 * board + n for n in range(int(draw.integers(2, 4)))]
            who += [{**holder(job, int(draw.integers(1, 5)), 20), "span": 10 * board + span} for job in jobs]
            for k in range(4):
                start = (4 * span + k) * 10
                made = piece(start, start + 10, int(draw.integers(500, 7_000)))
                rows.append({**made, "piece": 1_000 * board + start, "span": 10 * board + span, "device_id": board})
                told += [
                    {**look(job, start + 10, 10, float(draw.uniform())), "device_id": board} for job in [*jobs, None]
                ]
        boards.append((rows, who, told))

    def divided(*some: int) -> list[tuple[Any, ...]]:
        rows, who, told = ([row for board in some for row in boards[board][n]] for n in range(3))
        jobs = {row["job_id"] for row in who}
        held_by = pl.DataFrame(
            [(job // 100, job, HOUR_US, HOUR_US + 120 * S) for job in sorted(jobs)], schema=held().schema, orient="row"
        )
        floors = pl.DataFrame(
            {"device_id": [1, 2, 3], "idle_power_mw": [50_000, 60_000, 70_000]}, schema_overrides=KINDS
        )
        frame, named = pl.DataFrame(rows, schema_overrides=KINDS), pl.DataFrame(who, schema_overrides=KINDS)
        found = split_shared(frame.sort("piece"), named, seen(*told, holds=held_by), floors, ERROR)
        of_span = frame.group_by("span").agg(pl.col("energy_mj").sum()).sort("span")
        assert found.group_by("span").agg(pl.col("energy_mj").sum()).sort("span").equals(of_span)
        return found.rows()

    assert divided(0, 1, 2) == [*divided(0), *divided(1), *divided(2)]
    assert len(divided(0)) > 6


def _fitted_one_by_one(part: np.ndarray[Any, Any], ms: float, watts: np.ndarray[Any, Any]) -> list[int]:
    """Levels of one board as the method says it, in plain floats; ``part`` (piece, job) in ten-thousandths, pieces of ``ms``."""
    pieces, jobs = part.shape
    both = [[float((part[:, i] * part[:, j] * ms).sum()) / 1e8 for j in range(jobs)] for i in range(jobs)]
    energy = [float(round(watt * ms)) if of_piece.any() else 0.0 for watt, of_piece in zip(watts, part, strict=True)]
    work = [float((part[:, job] * ms).sum()) for job in range(jobs)]
    mean = max(sum(energy) / max(sum(work) / 1e4, 1.0), 1e-9)
    wanted = [sum(float(part[p, job]) * energy[p] for p in range(pieces)) / 1e4 / mean for job in range(jobs)]
    level = [1.0] * jobs
    for _ in range(40):
        for job in range(jobs):
            rest = wanted[job] + 5000.0
            for other in range(jobs):
                if other != job:
                    rest = rest - both[job][other] * level[other]
            level[job] = min(max(rest / (both[job][job] + 5000.0), 0.125), 8.0)
    return [int(round_to) for round_to in np.rint(np.array(level) * 1000)]


def _boards(jobs_of: list[int]) -> tuple[pl.DataFrame, list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Pieces of 10 s on boards with so many jobs, all of which are active at times, and the boards' watts in each piece."""
    draw = np.random.default_rng(7)
    pieces, parts, watts = [], [], []
    for board, jobs in enumerate(jobs_of):
        many = 30
        part = draw.integers(1, 5_000, (many, jobs)) * (draw.random((many, jobs)) < 0.7)
        part[0] = 1  # each of them is active once
        parts.append(part)
        watts.append(draw.integers(50, 600, many))
        pieces += [(board, 0, n * 10_000_000, (n + 1) * 10_000_000) for n in range(many)]
    frame = pl.DataFrame(pieces, schema=["device_id", "hour_us", "from_us", "to_us"], orient="row")
    return frame, parts, np.concatenate(watts)


def _levels_of(jobs_of: list[int]) -> list[list[int]]:
    pieces, parts, watts = _boards(jobs_of)
    offsets = np.cumsum([0, *[len(part) for part in parts]])
    place = np.concatenate([np.repeat(np.arange(len(p)), p.shape[1]) + o for p, o in zip(parts, offsets, strict=False)])
    job = np.concatenate([np.tile(np.arange(part.shape[1]), len(part)) for part in parts])
    found = levels(pieces, place, job, np.concatenate([part.ravel() for part in parts]) * 100, watts * 10_000)
    ends = np.cumsum([part.shape[1] for part in parts for _ in range(len(part))])
    last = np.concatenate([[0], ends])
    first_rows = [last[offset] for offset in offsets[:-1]]
    return [found[row : row + part.shape[1]].tolist() for row, part in zip(first_rows, parts, strict=True)]


def test_levels_are_those_of_each_board_alone_however_many_jobs_others_have() -> None:
    jobs_of = [2, 9, 13, 1, 16, 2, 8]
    _, parts, watts = _boards(jobs_of)
    alone = [
        _fitted_one_by_one(part.astype(float), 10_000.0, watts[30 * board : 30 * board + 30])
        for board, part in enumerate(parts)
    ]
    assert _levels_of(jobs_of) == alone


def test_a_board_that_hundreds_of_jobs_shared_in_an_hour_takes_no_minute() -> None:
    began_s = time.process_time()
    _levels_of([360, *range(121, 129)])
    assert time.process_time() - began_s < 3  # 0.4 s; 24 s where each pair of jobs was a step of its own
