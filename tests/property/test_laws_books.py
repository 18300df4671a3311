"""Laws 1, 3 and 6 of the books: they balance against the meter, nothing counts twice, and the same inputs are the same bytes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.frames import DeviceReadings, Devices, Epochs, Holds, NamedUsage, Placements
from analytics.inputs import HourInputs, UsageInputs
from analytics.pipeline import (
    HourResult,
    RatingInputs,
    close_hours,
    content_hash,
    map_devices,
    rate_hours,
    reduce_shards,
    roll_minutes,
)
from analytics.policy import Policy
from analytics.units import US_PER_HOUR, US_PER_SECOND, to_us
from tests.fakes.site import (
    HOUR,
    LONG_AGO,
    Site,
    at,
    binding,
    call,
    device,
    epoch,
    factor,
    holds,
    intensity,
    job,
    moved,
    price,
    reading,
    tariff,
)

pytestmark = pytest.mark.property
LAW: Final = settings(max_examples=12, deadline=None)
HOURS: Final = 2
RATE, POWER_PRICE, FACTOR, GRAMS = Decimal("2.123456789"), Decimal("0.1134567"), Decimal("1.37"), Decimal("381.7")


@st.composite
def counters(draw: st.DrawFn, device_id: int) -> list[dict[str, Any]]:
    """Readings of one device: uneven steps, gaps, counters that start over, now and then no counter."""
    steps = draw(st.lists(st.sampled_from([1, 7, 10, 10, 10, 59, 61, 300, 1500, 3599]), min_size=2, max_size=25))
    seconds, joules = draw(st.integers(-900, 3000)), 0.0
    rows = []
    for step in steps:
        seconds += step
        reset = draw(st.integers(0, 9)) == 0
        joules = 0.0 if reset else joules + draw(st.integers(0, 700_000)) * step / 1000
        blind = draw(st.integers(0, 7)) == 0
        util = draw(st.sampled_from([None, 0, 50]))
        rows.append(
            reading(
                device_id, seconds, None if blind else joules, draw(st.sampled_from([60, 400])), gpu_util_percent=util
            )
        )
    return rows


@st.composite
def sites(draw: st.DrawFn) -> Site:
    devices = [device(number, node_id=(number - 1) // 2 + 1) for number in (1, 2, 3)]
    readings = [
        {**row, "epoch_id": (row["device_id"] - 1) // 2 + 1} for number in (1, 2, 3) for row in draw(counters(number))
    ]
    allocations = []
    for job_id in range(1, draw(st.integers(1, 5)) + 1):
        start = draw(st.integers(-4000, 7000))
        end = draw(st.one_of(st.none(), st.integers(start + 1, start + 6000)))
        share = draw(st.sampled_from([None, None, 0.25, 0.333333, 0.7]))
        evidence = draw(st.sampled_from(["cgroup", "cgroup", "hook", "job-mapping", "import", "environ"]))
        allocations += [
            {**holds(job_id, number, start, end, share), "evidence": evidence}
            for number in draw(st.sets(st.sampled_from([1, 2, 3]), min_size=1))
        ]
        if draw(st.integers(0, 2)) == 0:
            of_node = {"device_id": None, "node_id": draw(st.sampled_from([1, 2])), "evidence": "sacct"}
            count = {"accelerators": draw(st.integers(1, 3)), "allocation_id": job_id * 1000}
            allocations.append({**holds(job_id, 0, start, end), **of_node, **count})
        if draw(st.booleans()):
            allocations.append({**holds(job_id, 9, start, end), "accelerators": draw(st.sampled_from([1, 8, 11_616]))})
    return Site(
        readings=readings,
        devices=[*devices, device(9, node_id=None, kind="pool")],
        epochs=[epoch(1), epoch(2, node_id=2)],
        allocations=allocations,
        jobs=[job(number, account=f"a{number % 2}") for number in range(1, 6)],
        bindings=[binding(1, 10, account="a1")],
        prices=[price(1, str(RATE))],
        tariffs=[tariff(1, str(POWER_PRICE), metering_point="facility")],
        intensity=[intensity(1, str(GRAMS))],
        factors=[factor(1, str(FACTOR))],
        hours=HOURS,
    )


def hashes(result: HourResult) -> list[bytes]:
    return [content_hash(frame) for frame in (result.usage, result.lines, result.findings, result.quality)]


Interval = tuple[int, int, int]
"""From, to, energy in mJ: one stretch over which an instrument speaks."""


def _counted(rows: list[dict[str, Any]]) -> list[Interval]:
    """What the counter says between its readings (ADR 0006); where it starts over, nothing. One that both beside it contradict is none."""
    told = [(to_us(row["at"]), row["energy_mj"]) for row in rows if row["energy_mj"] is not None]
    read, was_above = told[:1], False
    for before, here, after in zip(told, told[1:], told[2:], strict=False):
        agree = after[0] - before[0] <= Policy().margin_us // 2 and before[1] <= after[1]
        above, below = agree and here[1] > after[1], agree and here[1] < before[1]
        read += [] if above or (below and not was_above) else [here]
        was_above = above
    read += told[1:][-1:]
    return [
        (start, end, last - first)
        for (start, first), (end, last) in pairwise(read)
        if last >= first and end - start <= Policy().gaps.reach_us
    ]


def _gauged(rows: list[dict[str, Any]]) -> list[Interval]:
    """What the gauge says between readings close enough: the trapezoid, rounded down."""
    read = [(to_us(row["at"]), row["power_mw"]) for row in rows]
    return [
        (start, end, (first + last) * (end - start) // 2_000_000)
        for (start, first), (end, last) in pairwise(read)
        if end - start <= Policy().gaps.max_gap_us
    ]


def _between(intervals: list[Interval], first: int, last: int) -> tuple[int, int]:
    """Energy and time of [first, last), each interval's energy read at both ends and rounded down there."""
    energy = time = 0
    for start, end, delta in intervals:
        low, high = (min(max(instant, start), end) - start for instant in (first, last))
        energy += delta * high // (end - start) - delta * low // (end - start)
        time += high - low
    return energy, time


def _outside(intervals: list[Interval], first: int, last: int) -> list[tuple[int, int]]:
    """The time of [first, last) that none of the intervals, one after the other, speaks for."""
    free, at = [], first
    for start, end, _ in sorted(intervals):
        if start < last and end > first:
            free.append((at, max(start, at)))
            at = max(at, end)
    return [(start, end) for start, end in [*free, (at, last)] if start < end]


@LAW
@given(sites())
def test_every_interval_of_a_device_hour_is_of_the_one_instrument_of_authority(site: Site) -> None:
    """The counter where it spans the time; else, in an hour with a reading that lacks it, the gauge; else nothing."""
    usage = site.close().usage
    for number in (1, 2, 3):
        mine = [dict(row) for row in site.readings if row["device_id"] == number]
        counted, gauged = _counted(mine), _gauged(mine)
        gaps = [interval for interval in counted if interval[1] - interval[0] > Policy().gaps.max_gap_us]
        for hour in range(HOURS):
            start = to_us(HOUR) + hour * US_PER_HOUR
            end = start + US_PER_HOUR
            rows = usage.filter((pl.col("device_id") == number) & (pl.col("hour_at").dt.epoch("us") == start))
            assert rows["held_us"].sum() == US_PER_HOUR
            energy, time = _between(counted, start, end)
            estimated = _between(gaps, start, end)[0]
            if any(row["energy_mj"] is None and start <= to_us(row["at"]) < end for row in mine):
                for since, until in _outside(counted, start, end):
                    more, longer = _between(gauged, since, until)
                    energy, estimated, time = energy + more, estimated + more, time + longer
            if time:
                assert rows["energy_mj"].sum() == energy
                # A split over holders by levels is an estimate too; it moves no energy between hours or devices.
                assert rows["estimated_mj"].sum() >= estimated
            else:
                # No instrument at all: unknown, which is not zero.
                assert rows["energy_mj"].null_count() == rows["estimated_mj"].null_count() == rows.height


@LAW
@given(sites())
def test_no_term_of_the_books_is_negative_and_coverage_is_a_ratio(site: Site) -> None:
    usage = site.close().usage
    for name in ("energy_mj", "estimated_mj", "held_us", "covered_us", "active_us", "idle_us", "throttled_us"):
        assert (usage[name].fill_null(0) >= 0).all()
    assert usage["coverage"].is_between(0, 1).all()


@LAW
@given(sites())
def test_lines_add_up_to_the_exact_cost_and_carbon_of_their_group(site: Site) -> None:
    result = site.close()
    for hour in result.usage["hour_at"].unique():
        usage = result.usage.filter(pl.col("hour_at") == hour)
        lines = result.lines.filter(pl.col("hour_at") == hour)
        energy, held = (
            sum(usage["energy_mj"].drop_nulls().to_list()),
            sum(
                time_us * accelerators for time_us, accelerators in usage.select("held_us", "accelerators").iter_rows()
            ),
        )
        kwh = Fraction(energy, 3_600_000_000)
        exact = {
            "gpu_owned": Fraction(held, US_PER_HOUR) * Fraction(RATE),
            "electricity": kwh * Fraction(FACTOR) * Fraction(POWER_PRICE),
        }
        for category, cost in exact.items():
            billed = lines.filter(charge_category=category)["billed_cost"]
            assert sum((Fraction(str(amount)) for amount in billed.to_list()), Fraction(0)) == Fraction(
                round(cost * 10**9), 10**9
            )
        grams = round(kwh * Fraction(FACTOR) * Fraction(GRAMS) * 10**9)
        assert sum((g for g in lines["carbon_gco2e"].to_list() if g is not None), Decimal(0)) == Decimal(grams).scaleb(
            -9
        )
        assert lines["energy_mj"].sum() == energy
        assert lines["facility_mj"].sum() == round(Fraction(energy) * Fraction(FACTOR))


@LAW
@given(sites())
def test_minutes_of_a_device_hour_sum_to_its_books(site: Site) -> None:
    """Whoever of several instruments told of which part of the hour."""
    minutes = roll_minutes(site.inputs().usage, site.policy).select(
        "device_id", pl.col("minute_at").dt.truncate("1h").alias("hour_at"), "energy_mj"
    )
    hour = ["device_id", "hour_at"]
    booked = site.close().usage.filter(pl.col("device_id") < 9).group_by(hour).agg(pl.col("energy_mj").sum())
    both = booked.join(minutes.group_by(hour).agg(pl.col("energy_mj").sum().alias("minutes_mj")), on=hour, how="left")
    assert both["minutes_mj"].fill_null(0).to_list() == both["energy_mj"].to_list()


@LAW
@given(sites(), st.integers(0, 2**32))
def test_the_order_of_rows_is_irrelevant(site: Site, seed: int) -> None:
    shuffled = random.Random(seed)
    mixed: dict[str, Any] = {
        name: shuffled.sample(list(getattr(site, name)), len(getattr(site, name)))
        for name in ("readings", "allocations", "devices", "epochs", "jobs")
    }
    assert hashes(replace(site, **mixed).close()) == hashes(site.close())


@LAW
@given(sites(), st.integers(0, 2**32))
def test_another_database_with_other_ids_has_the_same_books(site: Site, seed: int) -> None:
    """Law 6: what is left of a rounding goes by names that survive a rebuild, never by ids, which are drawn anew."""
    shares = [row for row in site.allocations if row["device_id"] != 9]
    # Equal jobs on equal shares and equal callers: nothing but their names tells whose the last billionth is.
    alike = [{**row, "share_ppm": 333_333, "start_at": HOUR, "end_at": None} for row in shares]
    calls = [call(key, 60 * at, input_uncached_tokens=7) for at in range(HOURS * 40) for key in ("k1", "k2", "k3")]
    site = replace(
        site,
        allocations=alike,
        tenants=[{"tenant_id": number, "path": f"acme/{number}"} for number in (10, 11)],
        bindings=[*site.bindings, binding(2, 10, api_key="k1"), binding(3, 11, api_key="k2")],
        prices=[*site.prices, price(2, "0.000000001234", provider="openai", model="gpt", meter="input_tokens")],
        calls=calls,
    )
    renumbered, back = _renumbered(site, random.Random(seed))
    assert _by_name(renumbered.close(), back) == _by_name(site.close(), {})


@LAW
@given(sites())
def test_hours_closed_one_by_one_equal_hours_closed_together(site: Site) -> None:
    together = site.close()
    alone = [site.close(site.window(hour, 1)) for hour in range(HOURS)]
    for name in ("usage", "lines", "quality"):
        assert content_hash(pl.concat([getattr(result, name) for result in alone])) == content_hash(
            getattr(together, name)
        )
    findings = pl.concat([result.findings for result in alone]).sort("dedupe_key")
    assert content_hash(findings) == content_hash(together.findings)


@LAW
@given(sites())
def test_any_sharding_by_node_gives_the_same_bytes(site: Site) -> None:
    inputs = site.inputs()
    shards = [map_devices(_of_node(inputs, node), site.policy) for node in (2, 1)]
    assert hashes(reduce_shards(inputs.usage.window, shards, inputs.references, inputs.api_calls)) == hashes(
        site.close()
    )


@LAW
@given(sites())
def test_sending_every_reading_twice_changes_no_figure(site: Site) -> None:
    twice = replace(site, readings=[*site.readings, *site.readings]).close()
    once = site.close()
    assert hashes(twice)[:3] == hashes(once)[:3]


@LAW
@given(sites(), st.integers(1, 3000))
def test_splitting_a_holding_in_two_changes_no_energy(site: Site, after: int) -> None:
    """The same job holding on with a new record is the same job: energy is additive under any cutting."""
    halves: list[Mapping[str, Any]] = []
    for row in site.allocations:
        middle = row["start_at"] + (HOUR.resolution * after * US_PER_SECOND)
        if row["end_at"] is not None and row["end_at"] <= middle:
            halves.append(row)
        else:
            halves += [{**row, "end_at": middle}, {**row, "start_at": middle}]
    whole, split = site.close().usage, replace(site, allocations=halves, policy=Policy()).close().usage
    device_hours = [
        frame.group_by("hour_at", "device_id").agg(pl.col("energy_mj", "held_us").sum()).sort("hour_at", "device_id")
        for frame in (whole, split)
    ]
    assert device_hours[0].equals(device_hours[1])


@LAW
@given(sites(), st.decimals("0", "9", places=9))
def test_a_dearer_price_never_makes_a_bill_cheaper(site: Site, more: Decimal) -> None:
    dearer = replace(site, prices=[price(1, str(RATE + more))])
    owned = [
        result.lines.filter(charge_category="gpu_owned")["billed_cost"].sum()
        for result in (site.close(), dearer.close())
    ]
    assert owned[0] <= owned[1]


@LAW
@given(sites(), st.decimals("0", "9", places=9))
def test_usage_rated_again_gives_the_lines_that_closing_under_the_new_rates_gives(site: Site, more: Decimal) -> None:
    """Law 6 across the split: who pays and how much may change without a reading being looked at."""
    calls = [call("k1", 60 * at, input_uncached_tokens=7) for at in range(HOURS * 40)]
    before = replace(site, calls=calls).close()
    other = replace(
        site,
        calls=calls[1:],
        bindings=[binding(3, 12, account="a0"), binding(4, 12, api_key="k1")],
        prices=[price(3, str(RATE + more))],
        tariffs=[tariff(3, str(POWER_PRICE + more))],
        intensity=[intensity(3, str(GRAMS + more), estimated=True)],
        factors=[factor(3, str(FACTOR + more), valid_from=at(1800))],
        tenants=[{"tenant_id": number, "path": f"t/{number}"} for number in range(10, 14)],
        moves=[moved(1, 12, 13, 3600)],
        idle=[{"policy_id": 1, "policy": "proportional", "basis": "time", "valid_from": LONG_AGO}],
    )
    inputs = other.inputs()
    keys = inputs.usage.holds.select("job_id", ("job:" + pl.col("job_key")).alias("holder_key")).unique()
    models = inputs.usage.devices.select("device_id", pl.col("model").alias("device_model"))
    stored = before.usage.join(models, on="device_id").join(keys, on="job_id", how="left")
    named = NamedUsage.validate(stored.with_columns(pl.coalesce("holder_key", "holder").alias("holder_key")))
    rated = rate_hours(RatingInputs(inputs.usage.window, named, before.findings, inputs.references, inputs.api_calls))
    closed = other.close()
    for name in ("usage", "lines", "findings", "job_tenants"):
        assert content_hash(getattr(rated, name)) == content_hash(getattr(closed, name)), name
    spread = closed.lines.filter(charge_category="idle_spread").group_by("hour_at").agg(pl.col("billed_cost").sum())
    assert (spread["billed_cost"] == 0).all()


Ids = dict[str, dict[int, int]]
_IDS: Final = ("device_id", "job_id", "tenant_id", "epoch_id", "price_id", "binding_id")


def _renumbered(site: Site, drawn: random.Random) -> tuple[Site, Ids]:
    """Return the same site under other ids, and for each kind of id which one it was."""
    tables = ("readings", "devices", "epochs", "allocations", "jobs", "bindings", "prices", "tenants")
    rows = {name: [dict(row) for row in getattr(site, name)] for name in tables}
    known: dict[str, set[int]] = {name: set() for name in _IDS}
    for row in (row for found in rows.values() for row in found):
        for name in known.keys() & row.keys():
            known[name] |= {row[name]} - {None}
    new = {
        name: dict(zip(sorted(ids), drawn.sample(range(100, 1000), len(ids)), strict=True))
        for name, ids in known.items()
    }
    changed: dict[str, Any] = {
        name: [
            {key: new[key].get(value, value) if key in new else value for key, value in row.items()} for row in found
        ]
        for name, found in rows.items()
    }
    back = {name: {after: before for before, after in ids.items()} for name, ids in new.items()}
    return replace(site, **changed), back


def _by_name(result: HourResult, back: Ids) -> tuple[list[Any], list[Any]]:
    """Return usage and lines with ids as they were before renumbering, in an order that no id has a say in."""
    names = {name: pl.col(name).replace(ids) for name, ids in back.items()}
    usage = result.usage.drop("holder").with_columns(
        result.usage["holder"].str.split(":").list.first().alias("kind"),
        *(names[n] for n in names if n in result.usage.columns),
    )
    lines = result.lines.drop("line_key").with_columns(*(names[n] for n in names if n in result.lines.columns))
    return sorted(usage.rows(), key=repr), sorted(lines.rows(), key=repr)


def _of_node(inputs: HourInputs, node: int) -> UsageInputs:
    usage = inputs.usage
    devices = usage.devices.filter(pl.col("node_id").fill_null(1) == node)  # pools may go anywhere
    mine = pl.col("device_id").is_in(devices["device_id"].implode())
    return replace(
        usage,
        devices=Devices.validate(devices),
        epochs=Epochs.validate(usage.epochs.filter(pl.col("node_id") == node)),
        readings=DeviceReadings.validate(usage.readings.filter(mine)),
        placements=Placements.validate(usage.placements.filter(mine)),
        holds=Holds.validate(usage.holds.filter(mine | (pl.col("node_id") == node))),
    )


def test_close_is_a_function_of_its_inputs() -> None:
    site = Site(readings=[reading(1, 0, 0), reading(1, 10, 1)], allocations=[holds(1, 1, 0, 5)])
    inputs = site.inputs()
    assert len({tuple(hashes(close_hours(inputs, site.policy))) for _ in range(10)}) == 1
