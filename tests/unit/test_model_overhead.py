"""What a node uses beyond its boards: by its meter over the minutes both sides cover, by a model without one; nothing invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import polars as pl
import pytest

from analytics.model.node_balance import NodeMeters
from analytics.model.overhead import Overhead, book, spans_of
from analytics.units import US_PER_HOUR, US_PER_SECOND

pytestmark = pytest.mark.unit

Shown = Mapping[int, tuple[float, Sequence[tuple[int, int]]]]
"""By device or meter: watts, and the seconds it covers."""
WHOLE = [(0, 3600)]
NODE, CHASSIS, METER = 1, 90, 7


def _read(shown: Shown, *, gauge: bool = False, gap_mj: int = 0) -> Any:
    def read(asked: pl.DataFrame) -> pl.DataFrame:
        rows = []
        for device, from_us, to_us in asked.select("device_id", "from_us", "to_us").iter_rows():
            watts, spans = shown.get(device, (0.0, []))
            covered = sum(max(0, min(to_us, b * US_PER_SECOND) - max(from_us, a * US_PER_SECOND)) for a, b in spans)
            rows.append((round(watts * covered / 1000), gap_mj, covered, gauge, 1, 1))
        kinds = {
            "energy_mj": pl.Int64,
            "gap_mj": pl.Int64,
            "covered_us": pl.Int64,
            "gauge": pl.Boolean,
            "feed": pl.Int16,
            "origin": pl.Int16,
        }
        return asked.hstack(pl.DataFrame(rows, schema=kinds, orient="row"))

    return read


def _users(*rows: tuple[int, str, int | None]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"hour_us": 0, "device_id": d, "holder": h, "job_id": None, "holder_key": h, "energy_mj": e}
            for d, h, e in rows
        ],
        schema={
            "hour_us": pl.Int64,
            "device_id": pl.Int32,
            "holder": pl.String,
            "job_id": pl.Int64,
            "holder_key": pl.String,
            "energy_mj": pl.Int64,
        },
    )


def _placed(*rows: tuple[int, int, int, int], out_of_service: Sequence[int] = ()) -> pl.DataFrame:
    kinds = {
        "device_id": pl.Int32, "node_id": pl.Int32, "from_us": pl.Int64, "to_us": pl.Int64, "in_service": pl.Boolean,
    }  # fmt: skip
    told = [(d, n, a * US_PER_SECOND, b * US_PER_SECOND, d not in out_of_service) for d, n, a, b in rows]
    return pl.DataFrame(told, schema=kinds, orient="row")


def _models(*rows: tuple[int, int, int, int, int, int]) -> pl.DataFrame:
    """Precedence, milliwatts, parts per million on top, error, from and to in seconds."""
    kinds = {
        "node_id": pl.Int32, "precedence": pl.Int32, "idle_mw": pl.Int64, "per_accelerator_active_ppm": pl.Int32,
        "error_ppm": pl.Int32, "from_us": pl.Int64, "to_us": pl.Int64,
    }  # fmt: skip
    told = [(NODE, *said, a * US_PER_SECOND, b * US_PER_SECOND) for *said, a, b in rows]
    return pl.DataFrame(told, schema=kinds, orient="row")


def _overhead(
    boards: Shown,
    meters: Shown,
    users: pl.DataFrame,
    *,
    named: Sequence[tuple[int, str, str]] = ((METER, "redfish", "it"),),
    held: Mapping[int, tuple[int, int]] = MappingProxyType({}),
    placed: pl.DataFrame | None = None,
    models: pl.DataFrame | None = None,
    gauge: bool = False,
    gap_mj: int = 0,
    boards_gap_s: int = 0,
    boards_off_mj: int = 0,
    origin: int = 1,
    until_s: int = 3600,
) -> Overhead:
    spans = spans_of(
        _placed(*((board, NODE, -10, 10_000) for board in boards)) if placed is None else placed,
        0,
        until_s * US_PER_SECOND,
    )
    whole = spans.select("device_id", "hour_us").unique().sort("device_id", "hour_us")
    asked = whole.with_columns(
        pl.col("hour_us").alias("from_us"),
        pl.min_horizontal(pl.col("hour_us") + US_PER_HOUR, pl.lit(until_s * US_PER_SECOND)).alias("to_us"),
    )
    hours = _read(boards)(asked).with_columns(
        pl.lit(boards_gap_s * US_PER_SECOND, dtype=pl.Int64).alias("gap_us"),
        pl.lit(boards_off_mj, dtype=pl.Int64).alias("error_mj"),
        pl.lit(origin, dtype=pl.Int16).alias("origin"),
    )
    return book(
        spans,
        hours.select("device_id", "hour_us", "energy_mj", "gap_mj", "covered_us", "gap_us", "error_mj", "origin"),
        users,
        pl.DataFrame(
            [(CHASSIS, NODE), (91, 2)],
            schema={"device_id": pl.Int32, "node_id": pl.Int32},
            orient="row",
        ),
        NodeMeters(
            pl.DataFrame(
                [(meter, NODE, name, covers, *held.get(meter, (0, 2**61))) for meter, name, covers in named],
                schema={
                    "meter_id": pl.Int32,
                    "node_id": pl.Int32,
                    "name": pl.String,
                    "covers": pl.String,
                    "from_us": pl.Int64,
                    "to_us": pl.Int64,
                },
                orient="row",
            ),
            _read(meters, gauge=gauge, gap_mj=gap_mj),
            _read(boards),
        ),
        _models() if models is None else models,
    )


def _by_holder(found: Overhead) -> dict[str, int]:
    return dict(found.rows.select("holder", "energy_mj").iter_rows())


def test_overhead_is_the_meter_less_the_boards_by_the_boards_energy() -> None:
    # 1,000 W less 300 and 100 W: 600 W for an hour, 2,160 kJ, three quarters of it job 1's.
    found = _overhead(
        {1: (300, WHOLE), 2: (100, WHOLE)},
        {METER: (1000, WHOLE)},
        _users((1, "job:1", 1_080_000_000), (2, "idle", 360_000_000)),
    )
    assert _by_holder(found) == {"job:1": 1_620_000_000, "idle": 540_000_000}
    assert found.rows["device_id"].unique().to_list() == [CHASSIS]
    assert found.rows.select("method", "source", "reason").unique().row(0) == ("overhead", "measured", None)
    assert (found.quality.height, found.findings.height) == (0, 0)


def test_a_hole_of_61_seconds_costs_the_two_minutes_it_touches() -> None:
    # 12:30 to 13:31 is in minutes 12 and 13: 58 of 60 minutes x 600 W = 2,088 kJ.
    found = _overhead(
        {1: (300, [(0, 750), (811, 3600)]), 2: (100, WHOLE)},
        {METER: (1000, WHOLE)},
        _users((1, "job:1", 1), (2, "job:1", 1)),
    )
    assert _by_holder(found) == {"job:1": 58 * 60 * 600_000}
    assert found.rows["spanned_us"].to_list() == [58 * 60 * US_PER_SECOND]
    assert found.quality.rows() == [(0, CHASSIS, "overhead_unknown", 0, 120 * US_PER_SECOND)]


def test_a_hole_of_the_meter_costs_its_minutes_too() -> None:
    found = _overhead({1: (300, WHOLE)}, {METER: (1000, [(0, 600), (661, 3600)])}, _users((1, "job:1", 1)))
    assert _by_holder(found) == {"job:1": 58 * 60 * 700_000}


def test_a_board_that_moved_in_counts_from_the_minute_it_is_there() -> None:
    # Board 2 stands in the node from 30:00 on: 700 W before, 600 W after; nobody used board 1.
    found = _overhead(
        {1: (300, WHOLE), 2: (100, WHOLE)},
        {METER: (1000, WHOLE)},
        _users((1, "idle", 1_080_000_000), (2, "job:2", 180_000_000)),
        placed=_placed((1, NODE, 0, 3600), (2, 2, 0, 1800), (2, NODE, 1800, 3600)),
    )
    assert sum(_by_holder(found).values()) == (700 + 600) * 1800 * 1000
    # Half of board 2's 180 kJ weighs here, against board 1's 1,080 kJ: 1 to 12.
    assert _by_holder(found) == {"job:2": 180_000_000, "idle": 2_160_000_000}


def test_several_meters_of_a_node_never_add_up() -> None:
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (1000, WHOLE), 8: (900, WHOLE)},
        _users((1, "job:1", 1)),
        named=((8, "dc", "it"), (METER, "ac", "it")),
    )
    assert _by_holder(found) == {"job:1": 700 * 3_600_000}


def test_a_meter_that_checks_stands_in_where_the_one_that_bills_is_silent() -> None:
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (1000, []), 8: (900, WHOLE)},
        _users((1, "job:1", 1)),
        named=((METER, "redfish", "it"), (8, "ipmi", "it")),
    )
    assert _by_holder(found) == {"job:1": 600 * 3_600_000}


def test_a_node_nobody_used_is_the_platforms() -> None:
    found = _overhead({1: (50, WHOLE)}, {METER: (250, WHOLE)}, _users((1, "idle", 180_000_000)))
    assert _by_holder(found) == {"platform:overhead": 200 * 3_600_000}


def test_boards_above_their_nodes_meter_are_a_finding_and_no_overhead() -> None:
    found = _overhead({1: (300, WHOLE)}, {METER: (280, WHOLE)}, _users((1, "job:1", 1)))
    assert (found.rows.height, found.findings["kind"].to_list()) == (0, ["negative_remainder"])
    assert found.findings["evidence"].to_list() == ['{"minutes":60,"missing_mj":72000000}']
    assert found.quality["time_us"].to_list() == [US_PER_HOUR]


def test_a_node_without_a_meter_is_assumed_by_its_model_with_bounds() -> None:
    # 200 W while the boards run (half an hour) and 10 % of their 540 kJ: 360 + 54 = 414 kJ, 30 % either way.
    found = _overhead(
        {1: (300, [(0, 1800)])},
        {},
        _users((1, "job:1", 540_000_000)),
        named=(),
        models=_models((0, 200_000, 100_000, 300_000, -100, 9999), (1, 1, 0, 0, -100, 9999)),
    )
    row = found.rows.row(0, named=True)
    assert (row["holder"], row["energy_mj"], row["estimated_mj"]) == ("job:1", 414_000_000, 414_000_000)
    assert (row["energy_low_mj"], row["energy_high_mj"]) == (289_800_000, 538_200_000)
    assert (row["method"], row["source"], row["feed"]) == ("overhead_model", "assumed", None)
    assert found.quality.is_empty()


def test_a_model_holds_for_a_whole_hour_of_a_large_node() -> None:
    found = _overhead(
        dict.fromkeys(range(1, 17), (1400, WHOLE)),
        {},
        _users((1, "job:1", 1)),
        named=(),
        models=_models((0, 5_000_000, 100_000, 300_000, -9999, 9999)),
    )
    assert _by_holder(found) == {"job:1": (5_000 + 16 * 140) * 3_600_000}


def test_a_model_that_begins_at_half_past_counts_from_there() -> None:
    found = _overhead(
        {1: (300, WHOLE)}, {}, _users((1, "job:1", 1)), named=(), models=_models((0, 200_000, 0, 0, 1800, 9999))
    )
    assert _by_holder(found) == {"job:1": 200 * 1_800_000}


def test_where_the_nearer_model_ends_the_wider_one_counts() -> None:
    # 200 W for the first half, then 100 W.
    models = _models((0, 200_000, 0, 0, -100, 1800), (1, 100_000, 0, 0, -100, 9999))
    found = _overhead({1: (300, WHOLE)}, {}, _users((1, "job:1", 1)), named=(), models=models)
    assert _by_holder(found) == {"job:1": 300 * 1_800_000}


def test_a_node_of_which_nobody_says_anything_has_no_overhead() -> None:
    found = _overhead({1: (300, WHOLE)}, {}, _users((1, "job:1", 1)), named=())
    assert (found.rows.height, found.quality.height) == (0, 0)


def test_a_meter_of_processors_alone_is_a_part_that_is_known() -> None:
    # Nothing is taken off it: it never saw the boards.
    found = _overhead(
        {1: (300, WHOLE)}, {METER: (120, WHOLE)}, _users((1, "job:1", 1)), named=((METER, "rapl", "part"),)
    )
    assert _by_holder(found) == {"job:1": 120 * 3_600_000}
    assert found.rows["reason"].to_list() == ["processors_and_memory"]
    assert found.quality["time_us"].to_list() == [US_PER_HOUR]


def test_a_gauge_is_estimated_with_what_it_may_be_off() -> None:
    # 5 % of the node's 3,600 kJ either way: 180 kJ on 2,520.
    found = _overhead({1: (300, WHOLE)}, {METER: (1000, WHOLE)}, _users((1, "job:1", 1)), gauge=True)
    row = found.rows.row(0, named=True)
    assert (row["energy_low_mj"], row["energy_mj"], row["energy_high_mj"]) == (
        2_340_000_000,
        2_520_000_000,
        2_700_000_000,
    )
    assert (row["source"], row["estimated_mj"]) == ("estimated", 2_520_000_000)


def test_an_open_hour_counts_to_the_last_minute_that_both_sides_cover() -> None:
    found = _overhead({1: (300, [(0, 1_495)])}, {METER: (1000, [(0, 1_480)])}, _users((1, "job:1", 1)), until_s=1_500)
    assert _by_holder(found) == {"job:1": 24 * 60 * 700_000}
    assert found.quality["time_us"].to_list() == [60 * US_PER_SECOND]


def test_who_used_nothing_has_no_part_of_a_gauges_overhead_and_no_interval_of_one() -> None:
    users = _users((1, "job:1", 1), (1, "job:2", 0))
    found = _overhead({1: (300, WHOLE)}, {METER: (1000, WHOLE)}, users, gauge=True)
    rows = {row["holder"]: row for row in found.rows.iter_rows(named=True)}
    assert rows["job:1"]["energy_mj"] == 2_520_000_000
    nothing = rows["job:2"]
    assert (nothing["energy_mj"], nothing["estimated_mj"]) == (0, 0)
    assert (nothing["energy_low_mj"], nothing["energy_high_mj"]) == (None, None)


def test_what_is_less_simulated_boards_is_simulated_whoever_read_the_meter() -> None:
    boards, users = {1: (300, WHOLE)}, _users((1, "job:1", 1_080_000_000))
    assert _overhead(boards, {METER: (500, WHOLE)}, users, origin=4).rows["origin"].to_list() == [4]
    part = _overhead(boards, {METER: (120, WHOLE)}, users, origin=4, named=[(METER, "rapl", "part")])
    assert part.rows["origin"].to_list() == [4]


def test_what_gauges_of_boards_may_be_off_their_nodes_overhead_may_be_off() -> None:
    # 500 W less 300 W by gauge, 75.6 kJ up or down: 720 kJ, between 644.4 and 795.6.
    found = _overhead(
        {1: (300, WHOLE)}, {METER: (500, WHOLE)}, _users((1, "job:1", 1_080_000_000)), boards_off_mj=75_600_000
    )
    told = found.rows.select("energy_mj", "estimated_mj", "energy_low_mj", "energy_high_mj", "source").row(0)
    assert told == (720_000_000, 720_000_000, 644_400_000, 795_600_000, "estimated")


def test_boards_that_leave_together_at_half_past_take_their_half_hour_along() -> None:
    # Node 1 has 500 W all the time and a board of 300 W until 30:00: 200 W for half an hour, 500 W for the other.
    moved = _placed((1, NODE, -10, 1_800), (1, 2, 1_800, 10_000))
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (500, WHOLE), 8: (500, WHOLE)},
        _users((1, "job:1", 1_080_000_000)),
        placed=moved,
    )
    assert found.rows.filter(device_id=CHASSIS)["energy_mj"].to_list() == [360_000_000]
    assert found.findings.height == 0


def test_a_dead_board_out_of_service_costs_its_node_no_overhead_and_a_silent_one_in_service_does() -> None:
    boards, users = {1: (300, WHOLE), 2: (0, [])}, _users((1, "job:1", 1_080_000_000))
    stands = ((1, NODE, -10, 10_000), (2, NODE, -10, 10_000))
    meters = {METER: (1000, WHOLE)}
    dead = _overhead(boards, meters, users, placed=_placed(*stands, out_of_service=[2]))
    assert _by_holder(dead) == {"job:1": 2_520_000_000}
    silent = _overhead(boards, meters, users, placed=_placed(*stands))
    assert (silent.rows.height, silent.quality["reason"].to_list()) == (0, ["overhead_unknown"])


def test_a_meter_that_spoke_for_half_a_minute_leaves_the_hour_to_the_model() -> None:
    # 200 W for the hour.
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (500, [(10, 40)])},
        _users((1, "job:1", 1_080_000_000)),
        models=_models((0, 200_000, 0, 300_000, 0, 3600)),
    )
    assert found.rows.select("energy_mj", "source").row(0) == (720_000_000, "assumed")


def test_a_board_that_came_at_half_past_is_in_its_nodes_model_for_its_half_hour() -> None:
    # 200 W for half an hour and 10 % of 300 W for it: 360 + 54 kJ.
    found = _overhead(
        {1: (300, WHOLE)},
        {},
        _users((1, "job:1", 1_080_000_000)),
        named=(),
        placed=_placed((1, 2, 0, 1_800), (1, NODE, 1_800, 3_600)),
        models=_models((0, 200_000, 100_000, 0, -100, 9_999)),
    )
    assert found.rows.select("device_id", "energy_mj", "spanned_us").rows() == [
        (CHASSIS, 414_000_000, 1_800 * US_PER_SECOND)
    ]


def test_minutes_in_which_no_board_was_in_the_node_are_all_the_nodes_own() -> None:
    # Away from 10:00 to 20:00: 500 W all the time less 300 W for 3,000 s.
    stays = _placed((1, NODE, -10, 600), (1, 2, 600, 1_200), (1, NODE, 1_200, 10_000))
    found = _overhead({1: (300, WHOLE)}, {METER: (500, WHOLE)}, _users((1, "job:1", 1_080_000_000)), placed=stays)
    mine = found.rows.filter(device_id=CHASSIS)
    assert mine.select("energy_mj", "spanned_us").rows() == [(900_000_000, US_PER_HOUR)]


def test_a_stay_that_ends_a_microsecond_behind_a_minute_counts_to_its_end() -> None:
    stays = _placed((1, NODE, -10, 1_800), (1, 2, 1_800, 10_000)).with_columns(
        pl.col("from_us", "to_us").replace(1_800 * US_PER_SECOND, 1_800 * US_PER_SECOND + 1)
    )
    found = _overhead({1: (300, WHOLE)}, {METER: (500, WHOLE)}, _users((1, "job:1", 1_080_000_000)), placed=stays)
    assert found.rows.filter(device_id=CHASSIS)["spanned_us"].to_list() == [1_800 * US_PER_SECOND + 1]
    assert found.quality.filter(device_id=CHASSIS).height == 0


def test_each_term_of_a_model_is_cut_to_the_millijoule() -> None:
    # 3 mW for 1,800.5 s are 5,401.5 mJ; 5 ppm of 540,150,000 mJ 2,700.75; and 95,000 ppm of 8,101 mJ 769.595.
    models = _models((0, 3, 5, 95_000, -100, 9_999)).with_columns(pl.lit(1_800_500_000, dtype=pl.Int64).alias("to_us"))
    found = _overhead({1: (300, WHOLE)}, {}, _users((1, "job:1", 1)), named=(), models=models)
    told = found.rows.select("energy_mj", "estimated_mj", "energy_low_mj", "energy_high_mj").rows()
    assert told == [(8_101, 8_101, 7_332, 8_870)]


def test_a_model_that_may_be_off_by_more_than_all_of_it_has_nothing_as_its_lower_bound() -> None:
    models = _models((0, 1_000, 0, 1_500_000, -100, 9_999))
    found = _overhead({1: (300, WHOLE)}, {}, _users((1, "job:1", 1)), named=(), models=models)
    assert found.rows.select("energy_low_mj", "energy_high_mj").rows() == [(0, 9_000_000)]


@pytest.mark.parametrize(
    ("gauge", "told"),
    [
        (False, (430_999_999, 0, None, None, "measured")),
        (True, (430_999_999, 430_999_999, 409_450_000, 452_549_998, "estimated")),
    ],
)
def test_a_part_of_a_node_is_what_its_meter_saw_without_its_silences(*, gauge: bool, told: tuple[Any, ...]) -> None:
    # 120 W for an hour less 1,000,001 mJ of a gap; of a gauge 5 % of it, 21,549,999.95 mJ, either way.
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (120, WHOLE)},
        _users((1, "job:1", 1)),
        named=((METER, "rapl", "part"),),
        gauge=gauge,
        gap_mj=1_000_001,
    )
    columns = ("energy_mj", "estimated_mj", "energy_low_mj", "energy_high_mj", "source")
    assert found.rows.select(columns).rows() == [told]


def test_a_node_whose_meter_shows_just_what_its_boards_do_has_no_overhead_and_none_is_missing() -> None:
    found = _overhead({1: (300, WHOLE)}, {METER: (300, WHOLE)}, _users((1, "job:1", 1)), gauge=True)
    columns = ("energy_mj", "estimated_mj", "energy_low_mj", "energy_high_mj", "source")
    assert found.rows.select(columns).rows() == [(0, 0, None, None, "measured")]
    assert (found.findings.height, found.quality.height) == (0, 0)


def test_who_is_known_to_have_used_a_board_but_not_how_much_of_it_has_no_part() -> None:
    found = _overhead({1: (300, WHOLE)}, {METER: (301, WHOLE)}, _users((1, "job:1", 1), (1, "job:2", None)))
    assert _by_holder(found) == {"job:1": 3_600_000, "job:2": 0}


def test_many_hours_with_holes_are_looked_at_in_tens_of_minutes_first_and_cost_the_same() -> None:
    # In each of 61 hours the board is silent from 12:30 to 13:31: 58 minutes of 700 W.
    hours = range(61)
    heard = [(3_600 * hour + a, 3_600 * hour + b) for hour in hours for a, b in ((0, 750), (811, 3_600))]
    found = _overhead(
        {1: (300, heard)},
        {METER: (1000, [(0, 3_600 * 61)])},
        _users((1, "job:1", 1)),
        placed=_placed((1, NODE, -10, 3_600 * 61)),
        until_s=3_600 * 61,
    )
    assert _by_holder(found) == {"job:1": 58 * 60 * 700_000}
    assert found.quality["time_us"].to_list() == [120 * US_PER_SECOND] * 61


def test_a_node_ran_as_long_as_a_board_of_it_is_known_to_have_counted_on_silent_or_not() -> None:
    # Heard for half an hour, and its counter went on over a quarter more: 200 W for 45 minutes.
    found = _overhead(
        {1: (300, [(0, 1_800)])},
        {},
        _users((1, "job:1", 1)),
        named=(),
        models=_models((0, 200_000, 0, 0, -100, 9_999)),
        boards_gap_s=900,
    )
    assert found.rows.select("energy_mj", "spanned_us").rows() == [(540_000_000, 2_700 * US_PER_SECOND)]


def test_a_model_of_a_part_of_an_hour_has_its_part_of_the_time_the_boards_ran_cut_to_the_microsecond() -> None:
    # 1,000 s of running by half an hour and half a second of 3,600: 500.138888888 s.
    models = _models((0, 1_000_000, 0, 0, -100, 9_999)).with_columns(
        pl.lit(1_800_500_000, dtype=pl.Int64).alias("to_us")
    )
    found = _overhead({1: (300, [(0, 1_000)])}, {}, _users((1, "job:1", 1)), named=(), models=models)
    assert found.rows.select("spanned_us", "energy_mj").rows() == [(500_138_888, 500_138_888)]


def test_a_model_that_ended_on_the_hour_leaves_it_to_the_meter_of_a_part() -> None:
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (120, WHOLE)},
        _users((1, "job:1", 1)),
        named=((METER, "rapl", "part"),),
        models=_models((0, 200_000, 0, 0, -100, 0)),
    )
    assert _by_holder(found) == {"job:1": 120 * 3_600_000}


def test_a_silent_board_leaves_its_node_to_the_meter_of_a_part_whatever_model_there_is() -> None:
    found = _overhead(
        {1: (300, [])},
        {METER: (120, WHOLE)},
        _users((1, "job:1", 1)),
        named=((METER, "rapl", "part"),),
        models=_models((0, 200_000, 0, 0, -100, 9_999)),
    )
    assert _by_holder(found) == {"job:1": 120 * 3_600_000}


def test_of_an_open_hour_a_finding_tells_the_minutes_that_are_full() -> None:
    found = _overhead({1: (300, WHOLE)}, {METER: (280, WHOLE)}, _users((1, "job:1", 1)), until_s=1_470)
    assert found.findings["evidence"].to_list() == ['{"minutes":24,"missing_mj":29400000}']


def test_a_stay_that_begins_within_a_minute_counts_from_its_begin() -> None:
    # From 30:45 on: 200 W for 1,755 s.
    stays = _placed((1, 2, -10, 1_845), (1, NODE, 1_845, 10_000))
    found = _overhead({1: (300, WHOLE)}, {METER: (500, WHOLE)}, _users((1, "job:1", 1_080_000_000)), placed=stays)
    mine = found.rows.filter(device_id=CHASSIS)
    assert mine.select("energy_mj", "spanned_us").rows() == [(351_000_000, 1_755 * US_PER_SECOND)]


def test_a_stay_that_ends_within_a_minute_counts_to_its_end() -> None:
    # Until 30:45: 200 W for 1,845 s.
    stays = _placed((1, NODE, -10, 1_845), (1, 2, 1_845, 10_000))
    found = _overhead({1: (300, WHOLE)}, {METER: (500, WHOLE)}, _users((1, "job:1", 1_080_000_000)), placed=stays)
    mine = found.rows.filter(device_id=CHASSIS)
    assert mine.select("energy_mj", "spanned_us").rows() == [(369_000_000, 1_845 * US_PER_SECOND)]


@pytest.mark.parametrize(
    ("held", "watts"), [((0, 2**61), 700), ((0, 1), 700), ((1, 2**61), 600), ((-US_PER_HOUR, 0), 600)]
)
def test_what_is_said_of_a_meter_holds_for_hours_that_begin_in_its_time(held: tuple[int, int], watts: int) -> None:
    # The wall's 1,000 W, where it bills; else the 900 W of the supplies; less 300 W of the board.
    found = _overhead(
        {1: (300, WHOLE)},
        {METER: (1000, WHOLE), 8: (900, WHOLE)},
        _users((1, "job:1", 1)),
        named=((METER, "ac", "it"), (8, "dc", "it")),
        held={METER: held},
    )
    assert _by_holder(found) == {"job:1": watts * 3_600_000}


def test_a_node_whose_meter_does_not_bill_in_an_hour_lacks_no_overhead_there() -> None:
    found = _overhead({1: (300, WHOLE)}, {METER: (1000, WHOLE)}, _users((1, "job:1", 1)), held={METER: (1, 2**61)})
    assert found.rows.is_empty()
    assert found.quality.is_empty()
