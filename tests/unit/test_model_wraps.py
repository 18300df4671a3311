"""Meters whose register begins anew at a known limit go on counting there; one that was started again does not."""

from datetime import timedelta

import polars as pl

from analytics.frames import DeviceReadings, Epochs
from analytics.model.energy import Meter, meter
from analytics.model.readings import KeySpace, timelines, unwrapped
from analytics.policy import Policy
from analytics.units import to_us
from tests.fakes.site import HOUR, epoch, reading, table

WRAP = 2**32
POLICY = Policy()


def _meter(*told: tuple[float, int], wrap_mj: int | None = WRAP, more: tuple[tuple[float, int], ...] = ()) -> Meter:
    """The meter of device 1 (and of 2, whose register does not wrap) from (second, mJ)."""
    rows = [{**reading(1, second), "energy_mj": value} for second, value in told]
    rows += [{**reading(2, second), "energy_mj": value} for second, value in more]
    keys = KeySpace.around(to_us(HOUR), to_us(HOUR + timedelta(hours=1)), POLICY.gaps.reach_us)
    readings = table(DeviceReadings, rows)
    (line,), _ = timelines(readings, table(Epochs, [epoch()]), keys, POLICY)
    devices = pl.DataFrame(
        {"device_id": [1, 2], "accelerators": [8, 8], "idle_power_mw": [None, None]},
        schema={"device_id": pl.Int32, "accelerators": pl.Int32, "idle_power_mw": pl.Int32},
    )
    limits = pl.Series("wrap_mj", [wrap_mj, None], dtype=pl.Int64)
    wraps = devices.select("device_id", "accelerators", limits, pl.lit(0, dtype=pl.Int64).alias("key"))
    return meter(unwrapped(line, wraps, POLICY), devices, keys, POLICY)


def _grown(found: Meter, device_id: int = 1) -> int:
    at = pl.DataFrame({"device_id": [device_id] * 2, "at_us": [to_us(HOUR) - 1, to_us(HOUR) + 3_600_000_000]})
    first, last = found.at(at, ["energy_mj"])["energy_mj"].to_list()
    return int(last - first)


def test_a_register_of_32_bits_goes_on_over_its_limit() -> None:
    # 4,294,967,290 -> 10 of 2^32 is 16.
    assert _grown(_meter((0, 4_294_967_290), (10, 10))) == 16


def test_it_may_do_so_often() -> None:
    # 3 kW for ten minutes, 1.8 GJ... in mJ 1.8e9 a reading of 600 s would pass it; read each 100 s, 3e8 mJ a step, over 2^32 twice.
    told = tuple((second, (10**9 + 3_000_000 * second) % WRAP) for second in range(0, 3_500, 50))
    assert _grown(_meter(*told)) == 3_000_000 * 3_450


def test_without_a_known_limit_it_began_anew() -> None:
    found = _meter((0, 4_294_967_290), (10, 10), (20, 30), wrap_mj=None)
    assert _grown(found) == 20
    assert found.holes["reason"].to_list() == ["counter_reset"]


def test_a_controller_that_was_started_again_invents_no_energy() -> None:
    # 1 kW; at 10 MJ of 4,295 it falls to 5 J: as a wrap, 4,285 MJ... 4.28e9 mJ in 10 s would be 428 kW.
    found = _meter((0, 10_000_000), (10, 20_000_000), (20, 5_000), (30, 10_005_000))
    assert _grown(found) == 10_000_000 + 10_000_000
    assert found.holes["reason"].to_list() == ["counter_reset"]


def test_a_step_possible_for_the_node_but_not_at_the_power_around_it_is_a_start_too() -> None:
    # 100 kW may be for eight accelerators; beside 1 kW it is not believed.
    found = _meter((0, WRAP - 1_010_000_000), (10, WRAP - 1_000_000_000), (20, 5_000), (30, 10_005_000))
    assert _grown(found) == 20_000_000


def test_a_register_beside_it_that_does_not_wrap_is_left_alone() -> None:
    found = _meter((0, WRAP - 6), (10, 10), more=((0, 500), (10, 700)))
    assert (_grown(found, 1), _grown(found, 2)) == (16, 200)


def test_a_limit_holds_from_when_it_is_said_to() -> None:
    told = ((0, WRAP - 20), (10, 0), (20, 20), (30, WRAP - 20), (40, 0))
    readings = table(DeviceReadings, [{**reading(1, second), "energy_mj": value} for second, value in told])
    keys = KeySpace.around(to_us(HOUR), to_us(HOUR + timedelta(hours=1)), POLICY.gaps.reach_us)
    (line,), _ = timelines(readings, table(Epochs, [epoch()]), keys, POLICY)
    since = line.rows["key"].to_list()

    def grown(*limits: tuple[int, int | None]) -> list[int]:
        kinds = {"device_id": pl.Int32, "key": pl.Int64, "wrap_mj": pl.Int64, "accelerators": pl.Int32}
        wraps = pl.DataFrame([(1, key, limit, 8) for key, limit in limits], schema=kinds, orient="row")
        return list(unwrapped(line, wraps, POLICY).rows["value"])

    # The fall that ends at 10 s, and the one that ends at 40 s.
    assert grown((0, None), (since[1], WRAP), (since[4], None))[1:2] == [WRAP]
    assert grown((0, WRAP), (since[1], None))[1:2] == [0]
    assert grown((0, None), (since[4] + 1, WRAP)) == [value for _, value in told]
