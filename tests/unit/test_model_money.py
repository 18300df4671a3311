"""Rounding once per group, spreading by largest remainder, and the lines that come of it."""

from decimal import Decimal

import polars as pl
import pytest

from analytics.errors import AmountError, BooksError
from analytics.frames import MONEY
from analytics.model.money import exact_nano, from_nano, round_and_spread, spread
from analytics.pipeline import close_hours
from analytics.policy import Policy
from tests.fakes.explained import explained
from tests.fakes.site import Site, at, call, device, factor, holds, intensity, price, steady, tariff

KW = steady(1, 0, 3600, 1000)


def _spread(total: int | None, *weights: int) -> list[int | None]:
    frame = pl.DataFrame({"group": [1] * len(weights), "key": range(len(weights)), "weight": weights})
    frame = frame.with_columns(pl.lit(total, dtype=pl.Int64).alias("total"))
    parts = spread(frame, group=["group"], weight="weight", ties=["key"], total="total", into="part")
    return parts["part"].to_list()


def test_half_a_billionth_rounds_to_even() -> None:
    assert exact_nano(1, Decimal("0.0000000005")) == 0
    assert exact_nano(3, Decimal("0.0000000005")) == 2
    assert exact_nano(-3, Decimal("0.0000000005")) == -2


def test_rates_with_eighteen_decimals_lose_nothing() -> None:
    assert exact_nano(10**18, Decimal("0.000000000000000001")) == 10**9


def test_a_remainder_goes_to_the_largest_rests_then_to_the_first_key() -> None:
    # 10 over 3, 3, 3, 1: exactly 3, 3, 3, 1; 11: 3.3, 3.3, 3.3, 1.1 and the one left goes to the first.
    assert _spread(10, 3, 3, 3, 1) == [3, 3, 3, 1]
    assert _spread(11, 3, 3, 3, 1) == [4, 3, 3, 1]
    # 5 over 1, 3: 1.25 and 3.75: the second has the larger rest.
    assert _spread(5, 1, 3) == [1, 4]


def test_one_unit_of_weight_takes_all_and_what_weighs_nothing_has_nothing() -> None:
    assert _spread(5, 0, 1) == [0, 5]
    assert _spread(5, 1, 0, 0) == [5, 0, 0]


def test_equal_rests_go_by_the_key_whatever_they_weigh() -> None:
    # 2 over 1 and 3: 0.5 and 1.5. Both rests are a half, and the first key has the one that is left.
    assert _spread(2, 1, 3) == [1, 1]
    assert _spread(2, 3, 1) == [2, 0]


def test_a_token_line_is_named_by_its_key_its_provider_its_model_and_its_part() -> None:
    prices = _token_prices(input_tokens="0.1")
    told = Site(calls=[call("k", 1, input_uncached_tokens=2)], prices=prices, devices=[]).close().lines
    assert told.select("line_key", "holder_key").rows() == [
        ("-|api:k|openai/gpt/input_uncached_tokens|api_tokens|10", "api:openai/gpt/input_uncached_tokens")
    ]
    nobody = Site(calls=[call(None, 1, usage_known=False)], devices=[]).close().lines
    assert nobody.select("line_key", "holder_key").rows() == [
        ("-|api:-|openai/gpt/usage_unknown|api_tokens|-", "api:openai/gpt/usage_unknown")
    ]


def test_a_negative_total_is_split_like_its_mirror() -> None:
    assert _spread(-11, 3, 3, 3, 1) == [-4, -3, -3, -1]


def test_a_total_without_weights_stays_with_the_first_line_and_null_stays_null() -> None:
    assert _spread(7, 0, 0) == [7, 0]
    assert _spread(None, 1, 2) == [None, None]


def test_the_largest_amounts_split_without_wrapping() -> None:
    most = 2**63 - 1
    assert _spread(most, most) == [most]
    assert _spread(most, most // 2, most // 2) == [2**62, 2**62 - 1]


def test_a_group_beyond_64_bits_of_billionths_is_refused_not_wrapped() -> None:
    frame = pl.DataFrame({"price": [1], "quantity": [2**62]})
    with pytest.raises(AmountError):
        round_and_spread(
            frame, group=["price"], quantity="quantity", ties=[], rates={(1,): ((Decimal(1),), 1)}, into="cost"
        )


def test_a_group_of_just_2_to_the_63_billionths_is_one_too_many() -> None:
    def cost(quantity: int, rate: str) -> list[Decimal]:
        frame = pl.DataFrame({"price": [1], "quantity": [quantity]})
        return round_and_spread(
            frame, group=["price"], quantity="quantity", ties=[], rates={(1,): ((Decimal(rate),), 1)}, into="cost"
        )["cost"].to_list()

    assert cost(2**63 - 1, "0.000000001") == [Decimal(2**63 - 1).scaleb(-9)]
    with pytest.raises(AmountError):
        cost(2**62, "0.000000002")


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(BooksError):
        _spread(1, -1, 2)


def test_billionths_become_money_exactly() -> None:
    frame = pl.DataFrame({"nano": [1, -1, 2**63 - 1]}).select(from_nano(pl.col("nano")))
    assert frame.schema["nano"] == MONEY
    assert frame["nano"].to_list() == [Decimal("1e-9"), Decimal("-1e-9"), Decimal("9223372036.854775807")]


def test_a_group_is_rounded_once_not_line_by_line() -> None:
    # Three lines of 0.4 billionths each: rounded one by one 0, together 1.2 -> 1.
    frame = pl.DataFrame({"price": [1, 1, 1], "quantity": [4, 4, 4], "key": [1, 2, 3]})
    priced = round_and_spread(
        frame,
        group=["price"],
        quantity="quantity",
        ties=["key"],
        rates={(1,): ((Decimal("0.0000000001"),), 1)},
        into="cost",
    )
    assert priced["cost"].to_list() == [Decimal("1e-9"), Decimal(0), Decimal(0)]


def test_owned_time_costs_the_standard_rate_and_energy_its_tariff() -> None:
    # 1 kW for an hour: 1 kWh; half an hour held. 2.40 an hour, 0.10 a kWh at the meter of the IT.
    lines = (
        Site(readings=KW, allocations=[holds(7, 1, 0, 1800)], prices=[price(1, "2.40")], tariffs=[tariff(4, "0.10")])
        .close()
        .lines
    )
    cost = {(row["pool"], row["charge_category"]): row["billed_cost"] for row in lines.iter_rows(named=True)}
    assert cost == {
        ("job", "gpu_owned"): Decimal("1.2"),
        ("idle", "gpu_owned"): Decimal("1.2"),
        ("job", "electricity"): Decimal("0.05"),
        ("idle", "electricity"): Decimal("0.05"),
    }
    assert lines["energy_mj"].sum() == 3_600_000_000  # on gpu_owned lines only


def test_a_facility_tariff_and_carbon_count_the_facilitys_energy() -> None:
    result = Site(
        readings=KW,
        tariffs=[tariff(4, "0.10", metering_point="facility")],
        factors=[factor(1, "1.5")],
        intensity=[intensity(3, "400")],
    ).close()
    electricity = result.lines.filter(charge_category="electricity").row(0, named=True)
    assert (electricity["billed_cost"], electricity["quantity"]) == (Decimal("0.15"), 3_600_000_000)
    owned = result.lines.filter(charge_category="gpu_owned").row(0, named=True)
    assert (owned["carbon_gco2e"], owned["facility_mj"], owned["facility_category"]) == (Decimal(600), 5_400_000_000, 1)
    assert (electricity["carbon_gco2e"], electricity["facility_mj"]) == (None, None)  # on lines that carry energy only


def test_a_factor_that_changes_inside_the_hour_counts_by_time() -> None:
    # 1 kWh; 1.2 for the first 15 minutes, 1.6 then: 1.5 by time. 400 g/kWh x 1.5 = 600 g; 0.10 x 1.5 = 0.15.
    factors = [factor(1, "1.2", valid_to=at(900), category=2), factor(2, "1.6", valid_from=at(900), category=1)]
    tariffs = [tariff(4, "0.10", metering_point="facility")]
    lines = Site(readings=KW, tariffs=tariffs, factors=factors, intensity=[intensity(3, "400")]).close().lines
    owned, paid = (lines.filter(charge_category=of).row(0, named=True) for of in ("gpu_owned", "electricity"))
    assert (owned["facility_mj"], owned["carbon_gco2e"], owned["facility_category"]) == (5_400_000_000, Decimal(600), 1)
    assert paid["billed_cost"] == Decimal("0.15")


def test_carbon_by_an_estimated_intensity_is_estimated_however_well_the_energy_was_metered() -> None:
    lines = Site(readings=KW, intensity=[intensity(3, "400", estimated=True)]).close().lines
    told = {row["charge_category"]: (row["source"], row["carbon_gco2e"]) for row in lines.to_dicts()}
    assert told == {"gpu_owned": ("estimated", Decimal(400)), "electricity": ("measured", None)}


def test_direct_intensity_counts_where_it_is_in_force_and_life_cycle_elsewhere_whatever_hours_are_closed_together() -> (
    None
):
    both = [intensity(3, "400", valid_to=at(3600)), intensity(4, "50", life_cycle=True)]
    site = Site(readings=steady(1, 0, 7200, 1000), intensity=both, hours=2)
    windows = [site.window(), site.window(0, 1), site.window(1, 1)]
    grams = [
        site.close(window).lines.filter(charge_category="gpu_owned")["carbon_gco2e"].to_list() for window in windows
    ]
    assert grams == [[Decimal(400), Decimal(50)], [Decimal(400)], [Decimal(50)]]


def test_a_negative_tariff_is_a_credit() -> None:
    lines = Site(readings=KW, tariffs=[tariff(4, "-0.10")]).close().lines
    assert lines.filter(charge_category="electricity")["billed_cost"].to_list() == [Decimal("-0.1")]


def test_electricity_included_in_the_rent_is_no_line() -> None:
    lines = Site(readings=KW, tariffs=[tariff(4, "0", metering_point="included")]).close().lines
    assert lines["charge_category"].to_list() == ["gpu_owned"]


def test_what_has_no_price_is_unpriced_never_free() -> None:
    result = Site(readings=KW).close()
    assert result.lines["billed_cost"].to_list() == [None, None]
    assert result.lines["carbon_gco2e"].to_list() == [None, None]
    assert result.lines["facility_mj"].to_list() == [None, None]


def test_the_price_in_force_at_the_hour_counts() -> None:
    old = price(1, "1", valid_to=at(3600))
    new = price(2, "3", valid_from=at(3600))
    lines = Site(readings=[], prices=[old, new], hours=2).close().lines
    assert lines["billed_cost"].to_list() == [Decimal(1), Decimal(3)]


def test_a_price_in_another_currency_leaves_its_lines_unpriced_and_named_and_no_other_line() -> None:
    # 1 kWh at 0.20 USD; the board's own price is in EUR, and the books are in USD.
    result = Site(readings=KW, prices=[price(1, "1", currency="EUR")], tariffs=[tariff(2, "0.2")]).close()
    priced = {
        row["charge_category"]: (row["price_id"] or row["tariff_id"], row["billed_cost"])
        for row in result.lines.to_dicts()
    }
    assert priced == {"gpu_owned": (1, None), "electricity": (2, Decimal("0.2"))}


def test_a_line_of_a_price_in_another_currency_is_explained_as_unpriced() -> None:
    inputs = Site(readings=KW, prices=[price(1, "1.5", currency="EUR")]).inputs()
    (line,) = [
        each
        for each, _ in explained(inputs, close_hours(inputs, Policy()), Policy())
        if each.line["charge_category"] == "gpu_owned"
    ]
    assert line.differs == ()
    told = [(step.words, step.value, step.unit) for step in line.steps if step.part == "price"]
    assert told[0][1:] == ("1.5", "EUR/accelerator-hour")
    assert told[1] == ("the books are in USD: the line is unpriced, which is not zero", None, None)


def test_a_price_in_another_currency_does_not_let_an_older_one_count() -> None:
    older = price(1, "1", valid_from=at(-7200))
    lines = Site(readings=[], prices=[older, price(2, "3", currency="EUR", valid_from=at(-3600))]).close().lines
    assert lines["billed_cost"].to_list() == [None]


def test_a_tariff_in_another_currency_prices_neither_electricity_nor_what_was_wasted() -> None:
    result = Site(readings=KW, prices=[price(1, "1")], tariffs=[tariff(2, "0.2", currency="EUR")]).close()
    priced = {row["charge_category"]: row["billed_cost"] for row in result.lines.to_dicts()}
    assert priced == {"gpu_owned": Decimal(1), "electricity": None}
    assert result.findings["avoidable_cash"].null_count() == result.findings.height


def test_a_node_costs_each_of_its_accelerators() -> None:
    lines = Site(devices=[device(accelerators=8)], prices=[price(1, "2")]).close().lines
    assert lines["billed_cost"].to_list() == [Decimal(16)]


def _token_prices(**amounts: str) -> list[dict[str, object]]:
    return [
        price(number, amount, provider="openai", model="gpt", meter=meter)
        for number, (meter, amount) in enumerate(amounts.items(), 10)
    ]


def test_each_token_part_has_its_own_price_and_line() -> None:
    tokens = {"input_uncached_tokens": 1000, "cache_read_tokens": 500, "output_text_tokens": 100}
    lines = (
        Site(
            calls=[call("k", 1, **tokens), call("k", 2, **tokens)],
            prices=_token_prices(input_tokens="0.000003", cache_read_tokens="0.0000003", output_tokens="0.000015"),
            devices=[],
        )
        .close()
        .lines
    )
    cost = dict(zip(lines["price_id"].to_list(), lines["billed_cost"].to_list(), strict=True))
    assert cost == {10: Decimal("0.006"), 11: Decimal("0.0003"), 12: Decimal("0.003")}
    assert lines["pool"].unique().to_list() == ["api"]


def test_reasoning_bills_at_the_output_price_unless_it_has_its_own() -> None:
    calls = [call("k", 1, reasoning_tokens=10, output_text_tokens=10)]
    lines = Site(calls=calls, prices=_token_prices(output_tokens="0.1"), devices=[]).close().lines
    assert lines["billed_cost"].to_list() == [Decimal(1), Decimal(1)]
    own = _token_prices(output_tokens="0.1", reasoning_tokens="0.2")
    assert Site(calls=calls, prices=own, devices=[]).close().lines["billed_cost"].sum() == Decimal(3)


def test_an_unknown_token_price_is_a_line_without_cost() -> None:
    lines = Site(calls=[call("k", 1, cache_write_tokens=5)], devices=[]).close().lines
    assert lines.select("quantity", "billed_cost", "price_id").rows() == [(5, None, None)]


def test_calls_without_reported_usage_are_counted() -> None:
    calls = [call("k", second, usage_known=False) for second in (1, 2, 3)]
    row = Site(calls=calls, devices=[]).close().lines.row(0, named=True)
    assert (row["quantity"], row["quantity_unit"], row["billed_cost"], row["coverage"]) == (3, "request", None, 0.0)


def test_a_price_change_within_the_hour_applies_from_its_instant() -> None:
    common = {"provider": "openai", "model": "gpt", "meter": "input_tokens"}
    prices = [price(1, "1", valid_to=at(60), **common), price(2, "2", valid_from=at(60), **common)]
    calls = [call("k", second, input_uncached_tokens=1) for second in (59, 60, 61)]
    lines = Site(calls=calls, prices=prices, devices=[]).close().lines
    assert lines.select("price_id", "quantity", "billed_cost").rows() == [(1, 1, Decimal(1)), (2, 2, Decimal(4))]


def test_no_float_stands_in_a_line_but_its_coverage() -> None:
    result = Site(readings=KW, prices=[price(1, "2")], tariffs=[tariff(4, "1")], calls=[call("k", 1)]).close()
    for frame in (result.usage, result.lines):
        floats = [name for name, kind in frame.schema.items() if kind.is_float()]
        assert floats == ["coverage"]
    assert result.lines.schema["carbon_gco2e"] == MONEY
