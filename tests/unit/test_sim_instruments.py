"""The simulator's instruments: counters round down, begin again, fall silent and wrap; gauges see what they look at."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from analytics.units import to_us
from collector.wire import Feed
from tests.sim.fate import Fate, Stay
from tests.sim.instruments import activity_ppm, counter_mj, gauge_mw, heard, looks, node_meter_mj, refreshed, written
from tests.sim.jobs import SimHold, Work
from tests.sim.spec import JobMix, Sampling, Sharing, Weather, WorldSpec
from tests.sim.steps import Steps
from tests.sim.world import NODE_METER, START_US, World

pytestmark = pytest.mark.unit
S = 1_000_000
HUNDRED_W = Steps([(0, 1_000 * S, 100_000)])


def _at(*us: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(us, dtype=np.int64)


def test_a_counter_shows_whole_millijoules_rounded_down() -> None:
    # 100 W is a millijoule every 10 µs.
    assert counter_mj(HUNDRED_W, [], _at(0, 9, 10, 19, 1 * S), 7).tolist() == [7, 7, 8, 8, 100_007]


def test_a_counter_begins_at_zero_where_the_driver_is_loaded() -> None:
    assert counter_mj(HUNDRED_W, [10 * S, 20 * S], _at(9 * S, 10 * S, 15 * S, 20 * S, 21 * S), 5).tolist() == [
        900_005,
        0,
        500_000,
        0,
        100_000,
    ]


def test_readings_keep_within_their_jitter_and_events_are_read_exactly() -> None:
    how = Sampling(cadence_s=10, jitter_s=0.5)
    found = looks(100 * S, how, [3 * S, 33 * S, 33 * S], np.random.default_rng(1))
    assert found.at_us[found.exact].tolist() == [3 * S, 33 * S]
    turns = found.at_us[~found.exact]
    assert np.abs(turns - np.round(turns / (10 * S)) * 10 * S).max() <= 0.5 * S
    assert (np.diff(found.at_us) > 0).all()
    assert not looks(100 * S, replace(how, exact_at_events=False), [3 * S], np.random.default_rng(1)).exact.any()


def test_an_event_is_read_a_little_late_and_a_counter_shows_its_last_refresh() -> None:
    late = looks(100 * S, Sampling(event_delay_s=0.2), [3 * S] * 40, np.random.default_rng(1))
    at = late.at_us[late.exact]
    assert 3 * S <= at.min() < at.max() <= 3.2 * S
    assert refreshed(_at(0, 99_999, 100_000, 3 * S + 1), 0.1, []).tolist() == [0, 0, 100_000, 3 * S]
    assert refreshed(_at(0, 99_999), 0, []).tolist() == [0, 99_999]
    # A driver that is loaded at 50 ms shows nothing of before.
    assert refreshed(_at(40_000, 50_000, 110_000), 0.1, [50_000]).tolist() == [0, 50_000, 100_000]
    stale = World(WorldSpec(boards=1)).sample(Sampling(jitter_s=0, refresh_s=7)).readings
    # At 10 s it still shows what it was at 7 s.
    shown = stale.filter(pl.col("at").dt.epoch("us") == START_US + 10 * S)["energy_mj"].item()
    assert shown == World(WorldSpec(boards=1)).counter_mj(1, _at(7 * S))[0]


def test_without_jitter_there_is_a_reading_on_the_hour() -> None:
    at = looks(3_600 * S, Sampling(jitter_s=0), [], np.random.default_rng(1)).at_us
    assert {0, 3_600 * S} <= set(at.tolist())


def test_the_slow_gauge_averages_a_second_and_the_fast_one_sees_a_quarter_of_it() -> None:
    # On for 50 ms of each 100: 200 W on average; the window of 25 ms lies in the half that is on.
    wave = Steps([(at, at + 50_000, 400_000) for at in range(0, 10 * S, 100_000)])
    assert gauge_mw(wave, "average", _at(5 * S)).tolist() == [200_000]
    assert gauge_mw(wave, "instant_25_of_100", _at(5 * S)).tolist() == [400_000]


def test_a_silent_board_says_nothing_from_its_beginning_to_before_its_end() -> None:
    fate = Fate({1: []}, {1: (10, 20)}, {1: [Stay(1, None, None)]})
    assert heard(_at(9, 10, 19, 20), 1, fate).tolist() == [True, False, False, True]
    assert heard(_at(15), 2, fate).tolist() == [True]


def test_a_node_meter_reads_boards_while_they_stand_there_and_wraps() -> None:
    # 100 W of a board that leaves at 50 s, 400 W of overhead since 900 s before: at 100 s 5 + 400 kJ.
    boards = [(HUNDRED_W, None, 50 * S)]
    assert node_meter_mj(boards, 400_000, 1_000_000, None, _at(100 * S)).tolist() == [405_000_000]
    assert node_meter_mj(boards, 400_000, 1_020_000, None, _at(100 * S)).tolist() == [413_100_000]
    assert node_meter_mj(boards, 400_000, 1_000_000, 400_000_000, _at(100 * S)).tolist() == [5_000_000]
    arrives = [(HUNDRED_W, 50 * S, None)]
    assert node_meter_mj(arrives, 0, 1_000_000, None, _at(40 * S, 60 * S)).tolist() == [0, 1_000_000]


def test_activity_is_seen_at_the_clocks_of_the_job_on_the_period_and_where_it_begins_and_ends() -> None:
    work = Work(SimHold(1, 1, 3 * S, 12 * S), 3, np.array([0.2] * 2 + [0.6] * 7))
    seen = activity_ppm(work, Sampling(process_noise=0), 0, np.random.default_rng(0))
    assert seen == [(5 * S, 2 * S, 200_000), (10 * S, 5 * S, 600_000), (12 * S, 2 * S, 600_000)]


def test_a_clock_that_is_off_keeps_the_order_of_readings() -> None:
    said = written(_at(0, 5, 10, 11), 50, np.random.default_rng(2))
    assert (np.diff(said) > 0).all()
    assert written(_at(0, 5), 0, np.random.default_rng(2)).tolist() == [0, 5]


def test_a_reload_inside_a_silence_is_another_epoch_of_both_feeds_and_energy_that_nobody_counted() -> None:
    weather = Weather(silence_s=600, reload_in_outage=True, two_feeds=True)
    world = World(WorldSpec(seed=4, boards=1, weather=weather))
    (reload,) = world.fate.reloads[1]
    start, end = world.fate.silences[1]
    assert start + 300 * S == reload
    readings = world.sample(Sampling(jitter_s=0)).readings.with_columns(pl.col("at").dt.epoch("us") - START_US)
    native = readings.filter(pl.col("epoch_id") % 1_000 < 500).sort("at")
    assert native.filter(pl.col("at").is_between(start, end - 1)).is_empty()
    assert native["epoch_id"].unique().to_list() == [1_000, 1_001]
    first = native.filter(pl.col("epoch_id") == 1_001).row(0, named=True)
    at = first["at"]
    # The first value after it is the energy since the load: known to have been used, and not since when.
    assert first["energy_mj"] == world.truth.energy_mj(reload, at, device=1)
    assert readings.filter(pl.col("epoch_id") % 1_000 >= 500)["epoch_id"].n_unique() == 2
    assert world.epoch_id(1, reload, Feed.DCGM) == 1_501


def test_a_board_that_moves_is_read_in_its_new_node_and_counts_from_there() -> None:
    world = World(WorldSpec(seed=2, boards=2, nodes=2, weather=Weather(moved_devices=1)))
    seen = world.sample(Sampling(jitter_s=0))
    first, second = seen.placements.filter(device_id=1).sort("valid_from").iter_rows(named=True)
    assert (first["node_id"], second["node_id"], first["valid_to"]) == (1, 2, second["valid_from"])
    moved = to_us(second["valid_from"]) - START_US
    assert world.counter_mj(1, _at(moved)).tolist() == [0]
    of_board = seen.readings.filter(device_id=1)
    assert (of_board.filter(pl.col("at") < second["valid_from"])["epoch_id"] // 1_000).unique().to_list() == [1]
    assert (of_board.filter(pl.col("at") >= second["valid_from"])["epoch_id"] // 1_000).unique().to_list() == [2]


def test_gauges_replace_the_counter_and_anchors_are_the_counter_at_events() -> None:
    world = World(WorldSpec(boards=1, jobs=JobMix(count=3)))
    gauged = world.sample(Sampling(gauge="average")).readings
    assert gauged["energy_mj"].null_count() == gauged.height
    assert gauged["power_mw"].null_count() == 0
    hooks = world.sample(Sampling(exact_at_events=False, hook_anchors=True))
    assert hooks.readings["power_mw"].null_count() == 0
    hold = world.holds[1]
    anchor = hooks.anchors.filter(pl.col("at").dt.epoch("us") == START_US + hold.end_us)["energy_mj"].item()
    assert anchor == world.counter_mj(1, _at(hold.end_us))[0]


def test_ends_are_lost_ids_requeued_and_thin_evidence_told_at_the_rates_asked_for() -> None:
    weather = Weather(lost_end_rate=0.5, requeue_rate=0.5, failing_evidence=0.5)
    seen = World(WorldSpec(seed=1, boards=8, jobs=JobMix(count=150), weather=weather)).sample(Sampling())
    good, thin = (seen.holds.filter(evidence=name) for name in ("cgroup", "environ"))
    assert 0.35 < good["end_at"].null_count() / good.height < 0.65
    assert 0.35 < thin.height / good.height < 0.65
    assert 0 < good.filter(pl.col("end_at").is_null())["job_ended_at"].null_count() < good["end_at"].null_count()
    assert len(set(seen.native_ids.values())) < 0.7 * len(seen.native_ids)
    assert good["job_key"].n_unique() == good["job_id"].n_unique()


def test_mps_without_caps_tells_no_clients_apart_and_mig_reports_by_instance() -> None:
    loose = World(WorldSpec(sharing=Sharing("mps", capped=False))).sample(Sampling())
    assert loose.shares["sm_util_ppm"].null_count() == loose.shares.height > 0
    mig = World(WorldSpec(sharing=Sharing("mig"))).sample(Sampling())
    assert mig.shares.is_empty()
    instances = {row["device_id"]: row for row in mig.devices if row["kind"] == "mig"}
    assert set(mig.activity["instance_id"]) <= set(instances)
    assert (instances[100]["parent_device_id"], instances[100]["slice_ppm"]) == (1, 428_571)


def test_a_node_with_a_meter_is_seen_as_a_device_of_its_own() -> None:
    seen = World(WorldSpec(boards=2, weather=Weather(node_meter_gain=1.0))).sample(Sampling(jitter_s=0))
    meter = seen.readings.filter(device_id=NODE_METER + 1).sort("at")
    assert meter["energy_mj"].is_sorted()
    assert seen.devices[-1]["kind"] == "node"
