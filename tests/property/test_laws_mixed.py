"""Laws 1, 2, 3 and 6 over fleets in which everything awkward happens at once: devices, nodes, holders, evidence, tenants and rates.

Law 1 against the readings stands in ``test_laws_truth`` and ``test_laws_overhead``; here it is money, carbon and time that must add up.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.frames import NamedUsage, Prices
from analytics.inputs import HourInputs
from analytics.pipeline import (
    HourResult,
    RatingInputs,
    close_hours,
    content_hash,
    map_devices,
    rate_hours,
    reduce_shards,
)
from analytics.policy import Policy
from analytics.shards import shards
from analytics.units import US_PER_HOUR
from tests.fakes.site import at, binding, call, factor, intensity, moved, price, tariff
from tests.property.test_laws_overhead import with_chassis
from tests.property.test_laws_truth import EVERYTHING, nothing_is_silent
from tests.sim.spec import JobMix, Sampling, Sharing, WorldSpec
from tests.sim.world import World

pytestmark = pytest.mark.property
LAW: Final = settings(max_examples=4, deadline=None)
HOURS: Final = 2
WRAP_MJ: Final = 400_000_000
WEATHER: Final = replace(EVERYTHING, wrap_mj=WRAP_MJ, node_meter_gain=1.0)
SHARINGS: Final = st.sampled_from(
    [
        None,
        Sharing("mig", boards=2, profiles=((3, 2, 2), (7,)), reconfigure_at_s=4_000),
        Sharing("time_slice", boards=2),
        Sharing("mps", boards=2, contention=0.5),
        Sharing("mps", boards=2, capped=False),
    ]
)
RATES: Final = (Decimal("2.123456789"), Decimal("3.000000001"))
"""The price of an hour of a board in the first hour, and in the second."""
TARIFF, FACTOR, GRAMS = Decimal("0.1134567"), Decimal("1.37"), Decimal("381.7")


@st.composite
def fleets(draw: st.DrawFn) -> HourInputs:
    """Five boards on two nodes with meters that wrap, and what befalls them and those who hold them; calls, tenants that move, prices that change."""
    mix = JobMix(
        count=draw(st.integers(8, 30)), duration_s=draw(st.sampled_from([(5, 300), (300, 5_000)])), boards_each=(1, 2)
    )
    spec = WorldSpec(
        seed=draw(st.integers(0, 2**32)), hours=HOURS, boards=5, nodes=2, jobs=mix, sharing=draw(SHARINGS), weather=WEATHER
    )  # fmt: skip
    hooks = draw(st.booleans())
    seen = World(spec).sample(Sampling(exact_at_events=not hooks, hook_anchors=hooks, event_delay_s=0.2, refresh_s=0.1))
    site = seen.site(
        anchors=seen.anchors.to_dicts(),
        tenants=[{"tenant_id": number, "path": f"acme/{number}"} for number in (1, 2, 3)],
        bindings=[binding(1, 1, account="a"), binding(2, 2, account="b"), binding(3, 2, api_key="k1")],
        moves=[moved(1, 2, 3, 3_600)],
        prices=[
            price(1, str(RATES[0]), model="SIM-700", valid_to=at(3_600)),
            price(2, str(RATES[1]), model="SIM-700", valid_from=at(3_600)),
            price(3, "0.000000001234", provider="openai", model="gpt", meter="input_tokens"),
        ],
        tariffs=[tariff(1, str(TARIFF), metering_point="facility")],
        intensity=[intensity(1, str(GRAMS))],
        factors=[factor(1, str(FACTOR))],
        calls=[
            call(key, 60 * minute, input_uncached_tokens=7, origin=4)
            for minute in range(HOURS * 60)
            for key in ("k1", "k2")
        ],
    )
    accounts = [{**row, "account": "abc"[row["job_id"] % 3]} for row in site.jobs]
    inputs = replace(site, jobs=accounts).inputs()
    return replace(inputs, usage=with_chassis(seen, WRAP_MJ, site))


def hashes(result: HourResult) -> dict[str, bytes]:
    names = ("usage", "lines", "findings", "quality", "job_tenants")
    return {name: content_hash(getattr(result, name)) for name in names}


@LAW
@given(fleets())
def test_energy_time_cost_and_carbon_add_up_and_no_figure_is_silent(inputs: HourInputs) -> None:
    result = close_hours(inputs, Policy())
    nothing_is_silent(result)
    usage, lines = result.usage, result.lines
    assert (usage.select(pl.col("energy_mj", "held_us", "covered_us").fill_null(0)).to_numpy() >= 0).all()
    boards = usage.filter(pl.col("device_id") < 1_000)
    assert (boards.group_by("device_id", "hour_at").agg(pl.col("held_us").sum())["held_us"] == US_PER_HOUR).all()
    for number, (hour,) in enumerate(sorted(usage.select("hour_at").unique().iter_rows())):
        mine, told = usage.filter(pl.col("hour_at") == hour), lines.filter(pl.col("hour_at") == hour)
        energy = sum(mine["energy_mj"].drop_nulls().to_list())
        held = sum(boards.filter(pl.col("hour_at") == hour)["held_us"].to_list())
        owned = Fraction(RATES[number]) * Fraction(held, US_PER_HOUR)
        power = Fraction(energy, 3_600_000_000) * Fraction(FACTOR) * Fraction(TARIFF)
        for category, cost in (("gpu_owned", owned), ("electricity", power)):
            assert _sum(told.filter(charge_category=category)["billed_cost"]) == Fraction(round(cost * 10**9), 10**9)
        assert told["energy_mj"].sum() == energy
        assert told["facility_mj"].sum() == round(Fraction(energy) * Fraction(FACTOR))
        grams = Fraction(energy, 3_600_000_000) * Fraction(FACTOR) * Fraction(GRAMS)
        assert _sum(told["carbon_gco2e"]) == Fraction(round(grams * 10**9), 10**9)
        # 60 calls of two keys in the hour, 7 tokens each: one group, one rounding.
        tokens = told.filter(pl.col("api_key").is_not_null())
        assert _sum(tokens["billed_cost"]) == Fraction(round(Fraction("0.000000001234") * 840 * 10**9), 10**9)
        # From its move on the second tenant pays nothing, and the third what was its.
        assert (3 if number == 0 else 2) not in told["tenant_id"].to_list()


def _sum(amounts: pl.Series) -> Fraction:
    return sum((Fraction(str(amount)) for amount in amounts.drop_nulls()), Fraction(0))


@LAW
@given(fleets(), st.randoms(use_true_random=False))
def test_rows_told_twice_and_in_any_order_give_the_same_bytes(inputs: HourInputs, order: random.Random) -> None:
    """Laws 3 and 6: every reading comes twice, and every table in another order."""
    usage = inputs.usage
    mixed: dict[str, Any] = {}
    for each in fields(usage):
        frame = getattr(usage, each.name)
        if isinstance(frame, pl.DataFrame):
            twice = [frame, frame] if each.name in ("readings", "node_readings") else [frame]
            mixed[each.name] = pl.concat(twice).sample(fraction=1, shuffle=True, seed=order.randint(0, 2**31))
    told = close_hours(replace(inputs, usage=replace(usage, **mixed)), Policy())
    once = close_hours(inputs, Policy())
    # That they came twice is told.
    assert {**hashes(told), "quality": b""} == {**hashes(once), "quality": b""}


@LAW
@given(fleets(), st.integers(1, 6))
def test_any_cut_into_shards_and_hours_gives_the_same_bytes(inputs: HourInputs, devices_at_once: int) -> None:
    whole = close_hours(inputs, Policy())
    mapped = [map_devices(part, Policy()) for part in shards(inputs.usage, devices_at_once)]
    parts = reduce_shards(inputs.usage.window, mapped[::-1], inputs.references, inputs.api_calls)
    assert hashes(parts) == hashes(whole)
    alone = [close_hours(_only(inputs, number), Policy()) for number in range(HOURS)]
    for name in ("usage", "lines", "quality"):
        assert content_hash(pl.concat([getattr(each, name) for each in alone])) == hashes(whole)[name], name


def _only(inputs: HourInputs, number: int) -> HourInputs:
    window = inputs.usage.window
    start = window.from_at + number * (window.to_at - window.from_at) / HOURS
    end = start + (window.to_at - window.from_at) / HOURS
    return replace(
        inputs, usage=replace(inputs.usage, window=replace(window, from_at=start, to_at=end, closed_before_at=end))
    )


@LAW
@given(fleets(), st.decimals("0", "9", places=9))
def test_a_corrected_price_restates_lines_of_stored_usage_as_closing_anew_does(
    inputs: HourInputs, more: Decimal
) -> None:
    """Law 6 across the split, over all kinds of holders and devices."""
    before = close_hours(inputs, Policy())
    references = inputs.references
    prices = references.prices.with_columns((pl.col("amount") + more).cast(references.prices["amount"].dtype))
    corrected = replace(inputs, references=replace(references, prices=Prices.validate(prices)))
    keys = inputs.usage.holds.select("job_id", ("job:" + pl.col("job_key")).alias("holder_key")).unique()
    models = inputs.usage.devices.select("device_id", pl.col("model").alias("device_model"))
    stored = before.usage.join(models, on="device_id").join(keys, on="job_id", how="left")
    named = NamedUsage.validate(stored.with_columns(pl.coalesce("holder_key", "holder").alias("holder_key")))
    rated = rate_hours(
        RatingInputs(inputs.usage.window, named, before.findings, corrected.references, inputs.api_calls)
    )
    closed: Mapping[str, bytes] = hashes(close_hours(corrected, Policy()))
    for name in ("usage", "lines", "findings", "job_tenants"):
        assert content_hash(getattr(rated, name)) == closed[name], name
