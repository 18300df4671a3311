"""The known-truth simulator itself: energies worked out by hand, parts that sum to the board, equal seeds, equal bytes."""

from itertools import pairwise

import numpy as np
import pytest

from analytics.frames import HOLDER_IDLE
from analytics.pipeline import content_hash
from tests.sim.jobs import shapes
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.steps import Steps
from tests.sim.truth import Rectangles, Truth
from tests.sim.world import World

pytestmark = pytest.mark.unit
S = 1_000_000
HOUR = 3_600 * S
KINDS = (
    Sharing("mig", profiles=((3, 2, 2), (4, 3)), reconfigure_at_s=1_800),
    Sharing("time_slice", contention=0.5),
    Sharing("mps", capped=False, correlation=0.8),
)


def test_a_rectangular_job_of_400_w_on_a_floor_of_100_w_for_30_s_is_3000_j_floor_and_9000_j_active() -> None:
    drawn = Rectangles()
    drawn.add(1, HOLDER_IDLE, "floor", (0, 3 * S, 100_000))
    drawn.add(1, "job:1", "floor", (3 * S, 33 * S, 100_000))
    drawn.add(1, "job:1", "active", (3 * S, 33 * S, 300_000))
    drawn.add(1, HOLDER_IDLE, "floor", (33 * S, 40 * S, 100_000))
    truth = Truth(drawn)
    assert truth.energy_mj(0, 40 * S, holder="job:1", part="floor") == 3_000_000
    assert truth.energy_mj(0, 40 * S, holder="job:1", part="active") == 9_000_000
    assert truth.energy_mj(0, 40 * S, holder=HOLDER_IDLE) == 1_000_000
    # BOOKS: the interval [0, 10) holds 3 s of the floor and 7 s of the job, 300 + 2,800 J.
    assert truth.energy_mj(0, 10 * S, device=1) == 3_100_000
    assert truth.energy_mj(0, 10 * S, device=1, holder="job:1") == 2_800_000
    assert truth.energy_mj(0, 10 * S, holder="job:2") == 0


def test_a_ramp_of_2_s_to_400_w_is_half_of_it_whatever_the_stairs() -> None:
    ramp = Steps(shapes(JobMix(ramp_s=2), 0, 10 * S, 400_000))
    assert ramp.energy_mj(0, 2 * S) == 400_000
    # 20 stairs of 100 ms, the first at 10 W, the last at 390 W.
    assert ramp.power_mw(np.array([0, 50_000, 1_950_000, 2 * S])).tolist() == [10_000, 10_000, 390_000, 400_000]
    assert ramp.energy_mj(0, 10 * S) == 400_000 + 8 * 400_000


def test_a_job_shorter_than_two_ramps_has_none_and_a_wave_is_half_the_energy() -> None:
    assert shapes(JobMix(ramp_s=2), 0, 3 * S, 400_000) == [(0, 3 * S, 400_000)]
    assert Steps(shapes(JobMix(wave_s=0.2), 0, 10 * S, 400_000)).energy_mj(0, 10 * S) == 2_000_000


def test_what_would_not_be_whole_millijoules_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number"):
        Steps([(0, 5, 100)])
    with pytest.raises(ValueError, match="whole number"):
        Steps([(0, S, 150)])
    with pytest.raises(ValueError, match="not on the grid"):
        Steps([(0, S, 100)]).energy_mj(0, 5)


def test_overlapping_rectangles_add_and_nothing_is_drawn_outside_them() -> None:
    power = Steps([(0, 2 * S, 100_000), (S, 3 * S, 50_000)])
    assert power.power_mw(np.array([-1, 0, S, 2 * S, 3 * S])).tolist() == [0, 100_000, 150_000, 50_000, 0]
    assert power.energy_mj(-S, 4 * S) == 300_000


@pytest.mark.parametrize("sharing", [None, *KINDS])
def test_holders_and_parts_sum_to_the_board_to_the_millijoule(sharing: Sharing | None) -> None:
    truth = World(WorldSpec(seed=3, sharing=sharing, boards=3, jobs=JobMix(count=60, ramp_s=1.5))).truth
    for board in truth.boards:
        for start, end in ((0, HOUR), (-900 * S, 2_000 * S), (1_234_560_000, 1_234_570_000)):
            total = truth.energy_mj(start, end, device=board)
            by_holder = [truth.energy_mj(start, end, device=board, holder=holder) for holder in truth.holders]
            floor, active = (truth.energy_mj(start, end, device=board, part=part) for part in ("floor", "active"))
            assert sum(by_holder) == total == floor + active
            assert floor == truth.floor_mw[board] * (end - start) // S
            assert min(by_holder) >= 0


def test_slots_that_make_up_a_board_leave_none_of_its_floor_to_idle() -> None:
    mix = JobMix(count=30, duration_s=(900, 900), gap_s=(0, 0), first_s=-900)
    for sharing in (Sharing("time_slice"), Sharing("mig", profiles=((3, 2, 2),))):
        truth = World(WorldSpec(sharing=sharing, boards=1, jobs=mix)).truth
        assert truth.energy_mj(0, HOUR, holder=HOLDER_IDLE) == 0


def test_contention_takes_active_power_and_no_floor() -> None:
    def energy(contention: float, part: str) -> int:
        truth = World(WorldSpec(seed=5, sharing=Sharing("mig", contention=contention), boards=1)).truth
        return truth.energy_mj(0, HOUR, part="floor" if part == "floor" else "active")

    assert energy(0.5, "floor") == energy(0, "floor")
    assert energy(0.5, "active") < energy(0, "active")


def test_a_layout_ends_where_the_next_one_begins() -> None:
    holds = World(WorldSpec(sharing=KINDS[0], boards=1, jobs=JobMix(count=200))).holds
    before = [hold for hold in holds if hold.instance is not None and hold.instance % 100 < 10]
    after = [hold for hold in holds if hold.instance is not None and hold.instance % 100 >= 10]
    assert max(hold.end_us for hold in before) <= 1_800 * S <= min(hold.start_us for hold in after)
    assert {hold.weight_num for hold in before} == {2, 3}
    assert {hold.weight_num for hold in after} == {3, 4}


def test_a_job_of_several_boards_holds_boards_of_one_node_at_the_same_time() -> None:
    mix = JobMix(count=40, boards_each=(1, 4))
    holds = World(WorldSpec(boards=8, nodes=2, jobs=mix)).holds
    spans: dict[int, set[tuple[int, int, bool]]] = {}
    for hold in holds:
        spans.setdefault(hold.job, set()).add((hold.start_us, hold.end_us, hold.board <= 4))
    assert all(len(span) == 1 for span in spans.values())
    assert len(holds) > len(spans) == 40


def test_no_board_is_held_twice_at_once() -> None:
    holds = World(WorldSpec(boards=3, jobs=JobMix(count=500, gap_s=(0, 2)))).holds
    for board in (1, 2, 3):
        mine = sorted((hold.start_us, hold.end_us) for hold in holds if hold.board == board)
        assert all(end <= start for (_, end), (start, _) in pairwise(mine))


MIXED = WorldSpec(
    seed=11,
    boards=4,
    nodes=2,
    sharing=Sharing("time_slice", boards=2),
    weather=Weather(reset_rate=2, silence_s=300, two_feeds=True, moved_devices=1, node_meter_gain=1.02),
)


def test_the_same_seed_is_the_same_bytes_and_another_seed_is_another_world() -> None:
    def bytes_of(spec: WorldSpec) -> list[bytes]:
        seen = World(spec).sample(Sampling())
        return [content_hash(frame) for frame in (seen.readings, seen.holds, seen.shares, seen.placements)]

    assert bytes_of(MIXED) == bytes_of(MIXED)
    assert bytes_of(MIXED)[0] != bytes_of(WorldSpec(seed=12, boards=4, nodes=2, weather=MIXED.weather))[0]


def test_weather_changes_what_is_seen_and_never_the_truth() -> None:
    calm = World(WorldSpec(seed=11, boards=4, nodes=2, sharing=MIXED.sharing)).truth
    stormy = World(MIXED).truth
    assert [calm.energy_mj(0, HOUR, holder=holder) for holder in calm.holders] == [
        stormy.energy_mj(0, HOUR, holder=holder) for holder in stormy.holders
    ]


def test_all_that_is_seen_says_that_it_is_simulated_and_so_do_its_books() -> None:
    seen = World(MIXED).sample(Sampling())
    assert {row["origin"] for row in [*seen.epochs, *seen.devices]} == {4}
    result = World(WorldSpec()).sample(Sampling()).site().close()
    assert result.usage["origin"].unique().to_list() == [4]
    assert result.lines["origin"].unique().to_list() == [4]


def test_steady_jobs_of_a_shared_board_work_each_at_a_level_of_its_own() -> None:
    works = World(WorldSpec(sharing=Sharing("mig", steadiness=1), boards=2)).works
    assert all(work.sm_ratio.max() - work.sm_ratio.min() < 1e-12 for work in works)
    levels = [float(work.sm_ratio[0]) for work in works]
    assert 0.05 <= min(levels) < 0.3
    assert 0.7 < max(levels) <= 0.95
