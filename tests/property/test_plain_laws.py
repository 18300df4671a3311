"""Running sums of a meter, made of whole columns at once, against one interval after the other by the rules as they are written."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.model import plain
from analytics.model.energy import REASONS, Meter, meter
from analytics.model.readings import Instrument, KeySpace, Timeline
from analytics.policy import THROTTLE_BITS, Policy

pytestmark = pytest.mark.property
POLICY = Policy()
KEYS = KeySpace(0, 10**12)
SCHEMA = {
    "key": pl.Int64,
    "device_id": pl.Int32,
    "segment": pl.Int32,
    "max_gap_us": pl.Int64,
    "value": pl.Int64,
    "power_mw": pl.Int32,
    "gpu_util_percent": pl.Int16,
    "clocks_event_reasons": pl.Int64,
    "throttled_ns": pl.Int64,
}
S = 1_000_000
DEVICES = pl.DataFrame(
    {"device_id": [1, 2, 3], "accelerators": [1, 1, 4], "idle_power_mw": [None, 50_000, None]},
    schema={"device_id": pl.Int32, "accelerators": pl.Int32, "idle_power_mw": pl.Int32},
)
MOST_MW = {1: 20_000_000, 2: 20_000_000, 3: 80_000_000}
IDLE_MW = {1: 130_000, 2: 65_000, 3: 520_000}
Row = dict[str, Any]


@st.composite
def readings(draw: st.DrawFn) -> list[Row]:
    """Rows of up to three devices by time, with jumps, falls, reloads, silences, and gauges that are missing."""
    rows: list[Row] = []
    for device in sorted(draw(st.sets(st.sampled_from([1, 2, 3]), min_size=1))):
        at_us, value, throttled, segment = draw(st.integers(0, 10**9)), draw(st.integers(0, 10**9)), 0, device * 10
        for _ in range(draw(st.integers(1, 9))):
            at_us += draw(st.sampled_from([1, 500, 10 * S, 10 * S, 60 * S, 61 * S, 4_000 * S, 172_801 * S]))
            value += draw(st.sampled_from([0, 7_000_000, 7_000_000, 1, -5, 10**12]))
            throttled += draw(st.sampled_from([0, 0, 3 * 10**9, 20 * 10**9 + 1, -1]))
            segment += draw(st.sampled_from([0, 0, 0, 0, 1]))
            is_event = draw(st.booleans())
            gauges = {
                "power_mw": st.sampled_from([None, 60_000, 65_000, 130_000, 130_001, 700_000]),
                "gpu_util_percent": st.sampled_from([None, 0, 1, 100]),
                "clocks_event_reasons": st.sampled_from([None, 0, 1, 4, 0x21]),
                "throttled_ns": st.sampled_from([None, throttled]),
            }
            seen = {name: None if is_event else draw(values) for name, values in gauges.items()}
            rows.append(
                {
                    "key": device * KEYS.span_us + at_us,
                    "device_id": device,
                    "segment": segment,
                    "max_gap_us": draw(st.sampled_from([60 * S, 1_800 * S])),
                    "value": max(value, 0),
                    **seen,
                }
            )
    return rows


def by_the_rules(rows: list[Row], instrument: Instrument) -> tuple[list[Row], list[tuple[Any, ...]]]:
    """Return of each interval what it adds to each sum, and the holes as (device, from, to, mJ, reason)."""
    added: list[Row] = []
    holes: list[tuple[Any, ...]] = []
    gaps = POLICY.gaps
    after = [*rows[2:], None, None]
    for (begin, end), later in zip(pairwise(rows), after, strict=False):
        device, dt_us, growth = begin["device_id"], end["key"] - begin["key"], end["value"] - begin["value"]
        if end["device_id"] != device:
            added.append({})
            continue
        if instrument == "gauge":
            growth = (begin["value"] + end["value"]) * dt_us // (2 * S)
        reason = None
        if begin["segment"] != end["segment"]:
            reason = "epoch_change"
        elif dt_us > (gaps.reach_us if instrument == "counter" else begin["max_gap_us"]):
            reason = "no_data"
        elif instrument == "counter" and growth < 0:
            reason = "counter_reset"
        elif growth > MOST_MW[device] // 1_000 * (dt_us + gaps.refresh_us) // 1_000 + 1:
            reason = "implausible"
        elif instrument == "counter" and dt_us > begin["max_gap_us"]:
            reason = "telemetry_gap"
        counts = reason in (None, "telemetry_gap")
        if reason is not None:
            at_us = begin["key"] - device * KEYS.span_us
            holes.append((device, at_us, at_us + dt_us, growth if counts else 0, reason))
        covered = dt_us if reason is None else 0
        soon = later is not None and later["device_id"] == device and later["key"] - end["key"] <= gaps.max_gap_us
        said = {
            name: end[name] if end[name] is not None or not soon else later[name]  # type: ignore[index]
            for name in ("gpu_util_percent", "power_mw", "clocks_event_reasons")
        }
        util, power = said["gpu_util_percent"], said["power_mw"]
        active = util is not None and util > 0
        slowed = active and ((said["clocks_event_reasons"] or 0) & THROTTLE_BITS) != 0
        both = begin["throttled_ns"] is not None and end["throttled_ns"] is not None
        violation = (end["throttled_ns"] - begin["throttled_ns"]) // 1_000 if both else -1
        added.append(
            {
                "energy_mj": growth if counts else 0,
                "covered_us": covered,
                "known_us": covered if util is not None else 0,
                "active_us": covered if active else 0,
                "idle_us": covered if util == 0 and power is not None and power <= IDLE_MW[device] else 0,
                "throttled_us": min(violation, covered) if violation >= 0 else covered if slowed else 0,
                "throttle_bits_us": covered if slowed else 0,
                "throttle_counter_us": covered if violation >= 0 else 0,
            }
        )
    return [*added, {}], holes


def metered(rows: list[Row], instrument: Instrument, chunk: int) -> Meter:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    with mock.patch.object(plain, "_CHUNK", chunk):
        return meter(Timeline(1, 1, instrument, frame, None), DEVICES, KEYS, POLICY)


@settings(max_examples=150, deadline=None)
@given(rows=readings(), instrument=st.sampled_from(["counter", "gauge"]), chunk=st.sampled_from([1, 2, 3, 64]))
def test_sums_and_holes_are_those_of_the_rules_interval_by_interval(
    rows: list[Row], instrument: Instrument, chunk: int
) -> None:
    if instrument == "gauge":  # milliwatts of 32 bits
        rows = [{**row, "value": row["value"] % 2**31} for row in rows]
    added, holes = by_the_rules(rows, instrument)
    made = metered(rows, instrument, chunk)
    for name in made.sums.columns:
        assert made.sums[name].to_list() == list(accumulate(each.get(name, 0) for each in added)), name
    for name in ("energy_mj", *added[0]):  # what is left out would have been nothing
        if name not in made.sums.columns:
            assert not any(each.get(name, 0) for each in added), name
    assert made.holes.drop("unbooked_mj").rows() == holes
    assert set(made.holes["reason"]) <= set(REASONS.values())


@settings(max_examples=150, deadline=None)
@given(rows=readings(), moments=st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 10**12 - 1)), min_size=1))
def test_a_sum_at_any_instant_is_the_line_between_the_readings_around_it(
    rows: list[Row], moments: list[tuple[int, int]]
) -> None:
    made = metered(rows, "counter", 64)
    near = [(row["device_id"], row["key"] - row["device_id"] * KEYS.span_us) for row in rows]
    asked = [*moments, *near, *((device, at_us + 3) for device, at_us in near)]
    cuts = pl.DataFrame(asked, schema={"device_id": pl.Int32, "at_us": pl.Int64}, orient="row")
    told = made.at(cuts, ["energy_mj", "covered_us"])
    keys = made.key.to_list()
    for name in ("energy_mj", "covered_us"):
        sums = [0, *made.sums[name].to_list()]
        for (device, at_us), found in zip(asked, told[name], strict=True):
            at = device * KEYS.span_us + at_us
            index = sum(key <= at for key in keys) - 1
            if index < 0:
                assert found == 0
                continue
            following = keys[min(index + 1, len(keys) - 1)]
            width = max(following - keys[index], 1)
            assert found == sums[index] + (sums[index + 1] - sums[index]) * (at - keys[index]) // width


def test_energy_of_years_at_an_instant_needs_more_than_64_bits() -> None:
    # 9 GJ over two days, read after a day and a bit: the product is 7.8e23.
    rows = [
        {
            **dict.fromkeys(SCHEMA),
            "key": 3 * KEYS.span_us + at,
            "device_id": 3,
            "segment": 1,
            "max_gap_us": 60 * S,
            "value": mj,
        }
        for at, mj in ((0, 0), (172_800 * S, 9_000_000_000_000))
    ]
    made = metered(rows, "counter", 64)
    cuts = pl.DataFrame(
        {"device_id": [3], "at_us": [86_400 * S + 1]}, schema={"device_id": pl.Int32, "at_us": pl.Int64}
    )
    # Half of it, and of the microsecond more 52 mJ of 52.08.
    assert made.at(cuts, ["energy_mj"])["energy_mj"].to_list() == [4_500_000_000_052]
