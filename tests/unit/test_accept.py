"""What accept does with rows of several bodies at once; expected values worked out by hand."""

from typing import Any

import polars as pl
import pytest

from collector.wire import COLUMNS, Stream
from ingest.accept import BodyFacts, Refusal, accept, clock_skew_us, with_body

pytestmark = pytest.mark.unit
NOW_US = 1_790_000_000_000_000
KINDS = {"i16": pl.Int16, "i32": pl.Int32, "i64": pl.Int64, "f32": pl.Float32, "utf8": pl.String}


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    defaults = {"at_us": NOW_US, "device": 0, "reading": 0, "span_us": 1, "samples": 1, "samples_missed": 0}
    schema = {column.name: KINDS[column.type] for column in COLUMNS[Stream.DEVICE]}
    return pl.DataFrame([{**defaults, **row} for row in rows], schema=schema)


def test_rows_of_different_bodies_get_their_own_ids() -> None:
    rows = with_body([frame({"device": 1}, {"device": 0}, {"device": 0})], [[(0, 2), (1, 1)]])
    taken = accept(Stream.DEVICE, rows, [BodyFacts(7, (10, 11)), BodyFacts(8, (20,))], NOW_US)
    assert taken.rows["device_id"].to_list() == [11, 10, 20]
    assert taken.rows["epoch_id"].to_list() == [7, 7, 8]
    assert taken.refusals == ()


def test_an_index_valid_in_the_next_body_is_unknown_in_this_one() -> None:
    rows = with_body([frame({"device": 1}, {"device": 1})], [[(0, 1), (1, 1)]])
    taken = accept(Stream.DEVICE, rows, [BodyFacts(7, (10,)), BodyFacts(8, (20, 21))], NOW_US)
    assert taken.rows["device_id"].to_list() == [21]
    assert taken.refusals == (Refusal(0, Stream.DEVICE, "unknown_device", 1),)


def test_a_body_without_devices_refuses_its_rows_only() -> None:
    rows = with_body([frame({}, {})], [[(0, 1), (1, 1)]])
    taken = accept(Stream.DEVICE, rows, [BodyFacts(7, ()), BodyFacts(8, (20,))], NOW_US)
    assert taken.rows["device_id"].to_list() == [20]


def test_a_row_is_refused_once_though_much_is_wrong_with_it() -> None:
    rows = with_body([frame({"at_us": NOW_US + 300_000_001, "device": 9, "span_us": -1})], [[(0, 1)]])
    taken = accept(Stream.DEVICE, rows, [BodyFacts(7, (10,))], NOW_US)
    assert taken.refusals == (Refusal(0, Stream.DEVICE, "from_the_future", 1),)


def test_five_minutes_ahead_is_still_taken() -> None:
    rows = with_body([frame({"at_us": NOW_US + 300_000_000})], [[(0, 1)]])
    assert accept(Stream.DEVICE, rows, [BodyFacts(7, (10,))], NOW_US).rows.height == 1
    assert clock_skew_us(NOW_US + 300_000_000, NOW_US) is None
    assert clock_skew_us(NOW_US + 300_000_001, NOW_US) == 300_000_001
    assert clock_skew_us(NOW_US - 300_000_001, NOW_US) == -300_000_001
    assert clock_skew_us(None, NOW_US) is None


def test_values_that_cannot_be_measurements_become_null_and_are_counted() -> None:
    rows = with_body(
        [
            frame(
                {"sm_active_ratio": float("nan"), "dram_active_ratio": float("inf"), "temp_c": -3},
                {
                    "gpu_util_percent": 101,
                    "memory_util_percent": 100,
                    "power_min_mw": -1,
                    "energy_mj": -1,
                    "pcie_replays": -1,
                },
            )
        ],
        [[(0, 2)]],
    )
    taken = accept(Stream.DEVICE, rows, [BodyFacts(7, (10,))], NOW_US)
    assert {refusal.reason: refusal.rows for refusal in taken.refusals} == {
        "not_a_number": 2,
        "negative_counter": 2,
        "out_of_range": 2,
    }
    assert taken.rows.select("sm_active_ratio", "dram_active_ratio", "temp_c").row(0) == (None, None, -3)
    named = taken.rows.select("gpu_util_percent", "memory_util_percent", "power_min_mw", "energy_mj", "pcie_replays")
    assert named.row(1) == (None, 100, None, None, None)


def test_a_device_refused_on_this_node_loses_its_rows() -> None:
    rows = with_body([frame({"device": 0}, {"device": 1})], [[(0, 2)]])
    taken = accept(Stream.DEVICE, rows, [BodyFacts(7, (10, None))], NOW_US)
    assert taken.rows["device_id"].to_list() == [10]
    assert taken.refusals == (Refusal(0, Stream.DEVICE, "device_on_two_nodes", 1),)


def test_no_rows_are_no_problem() -> None:
    rows = with_body([frame().clear()], [[(0, 0)]])
    assert accept(Stream.DEVICE, rows, [BodyFacts(7, (10,))], NOW_US).rows.is_empty()


def shares(*given: float | None) -> pl.DataFrame:
    schema = {column.name: KINDS[column.type] for column in COLUMNS[Stream.ALLOCATION]}
    row = {"at_us": NOW_US, "device": 0, "action": 1, "job_started_at_us": NOW_US}
    frame = pl.DataFrame([row | {"share_ratio": share} for share in given], schema=schema)
    return with_body([frame], [[(0, len(given))]])


def test_a_share_is_more_than_nothing_and_at_most_the_whole() -> None:
    taken = accept(Stream.ALLOCATION, shares(None, 1.0, 0.25, 1e-6), [BodyFacts(7, (10,))], NOW_US)
    assert (taken.rows.height, taken.refusals) == (4, ())


@pytest.mark.parametrize("share", [1e-7, 0.0, -1.0, 1.001, 1e30, float("inf"), float("nan")])
def test_a_share_that_is_none_refuses_its_row_and_never_becomes_the_whole_device(share: float) -> None:
    taken = accept(Stream.ALLOCATION, shares(share, None), [BodyFacts(7, (10,))], NOW_US)
    assert taken.rows["share_ratio"].to_list() == [None]
    assert taken.refusals == (Refusal(0, Stream.ALLOCATION, "impossible_share", 1),)


def test_a_node_that_draws_more_than_two_megawatts_has_no_reading() -> None:
    schema = {column.name: KINDS[column.type] for column in COLUMNS[Stream.NODE]}
    row = {"at_us": NOW_US, "meter": "ac", "span_us": 1}
    frame = pl.DataFrame([row | {"power_mw": power_mw} for power_mw in (2**31 - 1, 2**31)], schema=schema)
    taken = accept(Stream.NODE, with_body([frame], [[(0, 2)]]), [BodyFacts(7, ())], NOW_US)
    assert taken.rows["power_mw"].to_list() == [2_147_483_647, None]
    assert taken.refusals == (Refusal(0, Stream.NODE, "out_of_range", 1),)


@pytest.mark.parametrize(
    ("stream", "column", "kept", "refused"),
    [
        (Stream.DEVICE_SHARE, "sm_util_percent", [0.0, 100.0, 10_000.0], [-5.0, 10_001.0, 300_000.0, 1e30]),
        (Stream.DEVICE, "sm_active_ratio", [0.0, 1.0, 2.0], [-0.5, 2.5, 1.4e14, 1e30]),
        (Stream.AGENT, "cpu_ratio", [0.0, 3.5, 64.0], []),
    ],
)
def test_a_percentage_or_ratio_that_no_measurement_can_be_is_null(
    stream: Stream, column: str, kept: list[float], refused: list[float]
) -> None:
    schema = {each.name: KINDS[each.type] for each in COLUMNS[stream]}
    usual = {"at_us": NOW_US, "device": 0, "reading": 0, "span_us": 1, "samples": 1, "samples_missed": 0}
    rows = pl.DataFrame([usual | {column: value} for value in (*kept, *refused)], schema=schema)
    taken = accept(stream, with_body([rows], [[(0, rows.height)]]), [BodyFacts(7, (10,))], NOW_US)
    assert taken.rows[column].to_list() == [*kept, *[None] * len(refused)]
    assert taken.refusals == ((Refusal(0, stream, "out_of_range", len(refused)),) if refused else ())
