"""What meters show against what is known below them: the gap, over the hours that both sides know."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from analytics.model.reconcile import gap, hours_of
from analytics.units import MJ_PER_KWH, US_PER_HOUR

pytestmark = pytest.mark.unit

QUARTER_US = US_PER_HOUR // 4
UTILITY, PDU_A, PDU_B, ON_NODE = 1, 2, 3, 9


def _periods(*rows: tuple[int, float, float, float]) -> pl.DataFrame:
    """Meter, from and to in hours, kWh."""
    return pl.DataFrame(
        [(m, round(a * US_PER_HOUR), round(b * US_PER_HOUR), round(kwh * MJ_PER_KWH)) for m, a, b, kwh in rows],
        schema={"meter_id": pl.Int32, "from_us": pl.Int64, "to_us": pl.Int64, "energy_mj": pl.Int64},
        orient="row",
    )


def _meters(*rows: tuple[int, int | None, str, str, str, int | None, int]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={
            "meter_id": pl.Int32, "parent_meter_id": pl.Int32, "level": pl.String, "name": pl.String, "covers": pl.String,
            "node_id": pl.Int32, "gain_ppm": pl.Int32,
        },
        orient="row",
    )  # fmt: skip


def _nodes(*rows: tuple[int, int, float | None, float], shared: float = 0) -> pl.DataFrame:
    """Node, hour, kWh of the node (None: too little is known) and of its devices; node 0 has what is ``shared`` beside."""
    told = [
        (n, h * US_PER_HOUR, None if kwh is None else round(kwh * MJ_PER_KWH), round(of * MJ_PER_KWH), 0)
        for n, h, kwh, of in rows
    ]
    other = [(0, hour * US_PER_HOUR, *[round(kwh * MJ_PER_KWH) for kwh in (shared, 0, shared)]) for hour in (0,)]
    return pl.DataFrame(
        told + other if shared else told,
        schema={
            "node_id": pl.Int32, "hour_us": pl.Int64, "energy_mj": pl.Int64, "devices_mj": pl.Int64, "shared_mj": pl.Int64,
        },
        orient="row",
    )  # fmt: skip


def _gaps(
    meters: pl.DataFrame, periods: pl.DataFrame, nodes: pl.DataFrame, hours: int = 1
) -> dict[Any, dict[str, Any]]:
    found = gap(meters, hours_of(periods, 0, hours * US_PER_HOUR), nodes, hours)
    return {(row["level"], row["meter"], row["below"]): row for row in found.iter_rows(named=True)}


SITE = _meters(
    (UTILITY, None, "utility", "grid", "all", None, 5_000),
    (PDU_A, UTILITY, "pdu", "pdu-a", "it", None, 10_000),
    (PDU_B, UTILITY, "pdu", "pdu-b", "it", None, 10_000),
    (ON_NODE, PDU_A, "node", "redfish", "it", 1, 20_000),
)


def test_100_kwh_over_97_5_over_96_is_a_gap_of_2_5_and_of_1_54_percent() -> None:
    found = _gaps(
        SITE,
        _periods((UTILITY, 0, 1, 100), (PDU_A, 0, 1, 50), (PDU_B, 0, 1, 47.5)),
        _nodes((1, 0, 49, 40), (2, 0, 47, 47)),
    )
    first, second = found["utility", None, "pdu"], found["pdu", None, "node"]
    assert (first["metered_mj"], first["below_mj"], first["gap_ppm"]) == (
        100 * MJ_PER_KWH,
        round(97.5 * MJ_PER_KWH),
        25_000,
    )
    assert (second["gap_ppm"], second["hours"], second["of_hours"]) == (15_385, 1, 1)
    # 0.5 % of 100 and 1 % of 97.5 kWh may add up: 1.475 kWh of 100.
    assert first["error_ppm"] == 14_750
    # Of the nodes only one is known beyond its devices: 49 kWh, 40 of them the devices'.
    assert found["node", None, "device"]["gap_ppm"] == 183_673


def test_a_meter_is_set_against_what_hangs_on_it() -> None:
    found = _gaps(
        SITE,
        _periods((UTILITY, 0, 1, 100), (PDU_A, 0, 1, 50), (PDU_B, 0, 1, 47.5)),
        _nodes((1, 0, 49, 40), (2, 0, 47, 47)),
    )
    assert found["utility", "grid", "pdu"]["gap_ppm"] == 25_000
    # Node 1 alone hangs on pdu-a: 50 over 49.
    assert found["pdu", "pdu-a", "node"]["gap_ppm"] == 20_000
    assert ("pdu", "pdu-b", "node") not in found


def test_hours_that_one_side_lacks_are_not_compared() -> None:
    # pdu-b says nothing of the second hour; a day's difference would be all of its energy.
    found = _gaps(
        SITE,
        _periods((UTILITY, 0, 2, 200), (PDU_A, 0, 2, 100), (PDU_B, 0, 1, 47.5)),
        _nodes((1, 0, 49, 49), (2, 0, 47, 47)),
        hours=2,
    )
    row = found["utility", None, "pdu"]
    assert (row["metered_mj"], row["gap_ppm"], row["hours"], row["of_hours"]) == (100 * MJ_PER_KWH, 25_000, 1, 2)


def test_quarters_and_days_give_the_hours_they_cover() -> None:
    quarters = [(PDU_A, quarter / 4, quarter / 4 + 0.25, 1.0) for quarter in (0, 1, 2, 3, 4, 5, 6)]
    # Three quarters of the second hour are no hour.
    assert hours_of(_periods(*quarters), 0, 4 * US_PER_HOUR).rows() == [(PDU_A, 0, 4 * MJ_PER_KWH)]
    day = hours_of(_periods((PDU_B, 0, 24, 100)), 0, 24 * US_PER_HOUR)
    assert (day.height, day["energy_mj"].sum()) == (24, 100 * MJ_PER_KWH)
    assert QUARTER_US * 4 == US_PER_HOUR


def test_cooling_counts_below_the_utility_and_not_above_the_nodes() -> None:
    cooled = pl.concat([SITE, _meters((4, UTILITY, "cdu", "pumps", "cooling", None, 10_000))])
    found = _gaps(
        cooled,
        _periods((UTILITY, 0, 1, 100), (PDU_A, 0, 1, 40), (PDU_B, 0, 1, 40), (4, 0, 1, 15)),
        _nodes((1, 0, 39, 39), (2, 0, 39, 39)),
    )
    assert found["utility", None, "pdu"]["below_mj"] == 95 * MJ_PER_KWH
    assert found["pdu", None, "node"]["gap_ppm"] == 25_000


def test_without_meters_above_there_is_nothing_to_compare() -> None:
    assert _gaps(_meters(), _periods(), _nodes((1, 0, 49, 49))) == {}


def test_an_hour_in_which_one_node_is_not_known_is_no_gap_of_the_site() -> None:
    """Two hours of 100 kWh; in the second node 2 fell silent: the first alone is compared, of node 1 both are."""
    periods = _periods(*((meter, 0, 2, kwh) for meter, kwh in ((UTILITY, 200), (PDU_A, 100), (PDU_B, 100))))
    found = _gaps(SITE, periods, _nodes((1, 0, 50, 40), (2, 0, 50, 40), (1, 1, 50, 40), (2, 1, None, 3)), hours=2)
    of_site = found["pdu", None, "node"]
    assert (of_site["metered_mj"], of_site["gap_mj"], of_site["hours"]) == (100 * MJ_PER_KWH, 0, 1)
    assert found["pdu", "pdu-a", "node"]["hours"] == 2


def test_shared_it_is_below_the_site_and_above_no_device() -> None:
    periods = _periods((UTILITY, 0, 1, 100), (PDU_A, 0, 1, 50), (PDU_B, 0, 1, 50))
    found = _gaps(SITE, periods, _nodes((1, 0, 45, 40), (2, 0, 45, 45), shared=10))
    assert found["pdu", None, "node"]["gap_mj"] == 0
    pair = found["node", None, "device"]
    assert (pair["metered_mj"], pair["below_mj"]) == (45 * MJ_PER_KWH, 40 * MJ_PER_KWH)


def test_a_period_that_ends_within_an_hour_takes_nothing_from_the_next() -> None:
    # A kWh until half past, then 2 kWh an hour for two and a half hours; the third hour is not asked for.
    told = hours_of(_periods((1, 0, 0.5, 1), (1, 0.5, 3, 5)), 0, 2 * US_PER_HOUR)
    assert told.rows() == [(1, 0, 2 * MJ_PER_KWH), (1, US_PER_HOUR, 2 * MJ_PER_KWH)]
    # Nor the first, where the second alone is asked for.
    assert hours_of(_periods((1, 0, 3, 6)), US_PER_HOUR, 2 * US_PER_HOUR).rows() == [(1, US_PER_HOUR, 2 * MJ_PER_KWH)]


def test_a_period_is_even_over_its_time_and_adds_up_in_integers() -> None:
    # 10 mJ over three hours: 3.33 each; what was reached by the end of an hour is rounded down.
    rows = pl.DataFrame(
        [(1, 0, 3 * US_PER_HOUR, 10)],
        schema={"meter_id": pl.Int32, "from_us": pl.Int64, "to_us": pl.Int64, "energy_mj": pl.Int64},
        orient="row",
    )
    assert hours_of(rows, 0, 3 * US_PER_HOUR)["energy_mj"].to_list() == [3, 3, 4]


def test_a_meter_that_showed_nothing_has_a_gap_of_no_share() -> None:
    found = _gaps(SITE, _periods((UTILITY, 0, 1, 0), (PDU_A, 0, 1, 1), (PDU_B, 0, 1, 0)), _nodes((1, 0, 1, 1)))
    row = found["utility", None, "pdu"]
    assert (row["metered_mj"], row["below_mj"], row["gap_ppm"]) == (0, MJ_PER_KWH, None)


def test_devices_are_taken_as_exact_beside_their_node() -> None:
    # 2 % of 50 kWh; the devices' 40 add nothing to it.
    row = _gaps(SITE, _periods((PDU_A, 0, 1, 50)), _nodes((1, 0, 50, 40)))["node", None, "device"]
    assert (row["metered_mj"], row["below_mj"], row["gap_ppm"]) == (50 * MJ_PER_KWH, 40 * MJ_PER_KWH, 200_000)
    assert row["error_ppm"] == 20_000


def test_meters_are_told_from_the_utility_down_and_by_name() -> None:
    tree = _meters(
        (4, 5, "rack", "a-rack", "it", None, 0),
        (5, 6, "cdu", "b-cdu", "it", None, 0),
        (6, 7, "pdu", "c-pdu", "it", None, 0),
        (7, None, "utility", "z-grid", "all", None, 0),
        (8, 4, "node", "redfish", "it", 1, 0),
    )
    periods = _periods(*((meter, 0, 1, 1) for meter in (4, 5, 6, 7)))
    found = gap(tree, hours_of(periods, 0, US_PER_HOUR), _nodes((1, 0, 1, 1)), 1)
    named = found.drop_nulls("meter")["meter"].to_list()
    assert named[0] == "z-grid"
    assert sorted(named) == ["a-rack", "b-cdu", "c-pdu", "z-grid"]
