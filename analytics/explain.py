"""Follows the energy and time of a line's usage hours back to the readings: which stood around each cut, and what lies between.

The model says who held what and which instrument speaks; what a counter grew by is worked out here once more in integers (``replay``)
and put beside what the model measured. How an interval between holders or a shared board is divided is told as the model divides it.
Frames in, steps out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import polars as pl

from analytics.frames import UNATTRIBUTED_GAP
from analytics.inputs import UsageInputs
from analytics.model.activity import cuts, looks
from analytics.model.anchors import insert
from analytics.model.authority import Measured, measure
from analytics.model.beyond import BEYOND
from analytics.model.edges import alone, split_edges
from analytics.model.energy import meter
from analytics.model.explain import Step
from analytics.model.holding import Holdings, hold
from analytics.model.pools import POOL
from analytics.model.readings import KeySpace, Timeline, timelines
from analytics.model.replay import COVERED, GAP, Cut, Limits, Reading, Stretch, stretches
from analytics.model.sensors import instruments
from analytics.model.sharing import at_rest
from analytics.model.usage import Activity, attribute
from analytics.pipeline import resolve_holds
from analytics.policy import Policy
from analytics.units import from_us, to_us

FEEDS: Final = {1: "native", 2: "dcgm", 3: "remote write", 4: "import", 5: "second scraper"}
"""``collector.wire.Feed`` in words."""
NOT_FOLLOWED: Final = ("overhead", "overhead_model", "shared_it", POOL)
"""Methods whose energy is not one device's counter: told from the usage hour."""
_DATED: Final = {
    "overhead": "what the node's meter shows beyond its boards, by what its holders drew",
    "overhead_model": "assumed of the node beyond its boards, by configuration",
    "shared_it": "shared IT of the site, by its meter or its configured power",
    POOL: "a count of a pool: time alone, no meter",
}


@dataclass(frozen=True, slots=True)
class Followed:
    """One usage hour followed to its readings; nulls: nothing is known of its energy."""

    device_id: int
    holder: str
    energy_mj: int | None
    held_us: int
    steps: tuple[Step, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Site:
    """The model's answer for the devices that are asked about."""

    holdings: Holdings
    linear: Measured
    final: Measured
    rows: pl.DataFrame
    lines: list[Timeline]
    keys: KeySpace
    held: pl.DataFrame
    devices: pl.DataFrame


def follow(inputs: UsageInputs, policy: Policy, rows: pl.DataFrame, names: Mapping[int, str]) -> list[Followed]:
    """Return each of ``rows`` (NamedUsage, of one hour) followed to its readings, in their order.

    ``inputs``: of that hour, with all devices of the nodes these devices stood in, and the readings of at least these devices.
    ``names``: what a device is called.
    """
    metered = inputs.devices.filter(
        pl.col("parent_device_id").is_null()
        & ~pl.col("kind").is_in([POOL, *BEYOND])
        & pl.col("device_id").is_in(rows["device_id"].implode())
    ).sort("device_id")
    site = _model(inputs, policy, metered) if metered.height else None
    followed = []
    for row in rows.to_dicts():
        name = names.get(row["device_id"], f"device {row['device_id']}")
        if site is None or row["method"] in NOT_FOLLOWED or row["device_id"] not in metered["device_id"]:
            followed.append(as_stored(row, name))
        else:
            followed.append(_followed(site, policy, row, name))
    return followed


def as_stored(row: Mapping[str, Any], name: str) -> Followed:
    """Return a usage hour as it is stored, not followed any further."""
    why = f"{_DATED[row['method']]}, as stored" if row["method"] in _DATED else "the stored usage hour"
    words = f"{name}: {why}; held {_seconds(row['held_us'])} s × {row['accelerators']}"
    energy = None if row["energy_mj"] is None else f"{row['energy_mj']:,}"
    steps = (Step("energy", words, energy, None if energy is None else "mJ"),)
    return Followed(row["device_id"], row["holder"], row["energy_mj"], row["held_us"], steps, ())


def _model(inputs: UsageInputs, policy: Policy, metered: pl.DataFrame) -> _Site:
    from_us, until_us = to_us(inputs.window.from_at), to_us(inputs.window.to_at)
    keys = KeySpace.around(from_us, until_us, policy.gaps.reach_us)
    ours = pl.col("device_id").is_in(metered["device_id"].implode())
    lines, _ = timelines(inputs.readings.filter(ours), inputs.epochs, keys, policy)
    lines, _ = insert(lines, inputs.anchors.filter(ours), metered, keys, policy)
    meters = [meter(line, metered, keys, policy) for line in lines]
    resolved = resolve_holds(inputs, policy)
    held = resolved.held.filter(ours)
    seen = looks(inputs.device_shares, inputs.instance_activity, held, inputs.devices, resolved.instances)
    holdings = hold(
        metered,
        inputs.placements,
        held,
        from_us,
        until_us,
        [cuts(seen, held)],
        inputs.assets,
        inputs.capacity_holds,
    )
    linear = measure(holdings, meters, held, instruments(metered, policy))
    final = split_edges(linear, alone(holdings), meters, metered, policy)
    activity = Activity(seen, at_rest(metered, policy.idle), policy.sharing)
    return _Site(holdings, linear, final, attribute(final, holdings, activity), lines, keys, held, metered)


def _followed(site: _Site, policy: Policy, row: Mapping[str, Any], name: str) -> Followed:
    device_id, holder = int(row["device_id"]), str(row["holder"])
    told = site.rows.filter((pl.col("device_id") == device_id) & (pl.col("holder") == holder))
    if told.is_empty():
        gone = f"{name}: by what is there now nobody would be {holder} in this hour"
        return Followed(device_id, holder, None, 0, (), (gone,))
    books = told.row(0, named=True)
    steps: list[Step] = []
    if holder == UNATTRIBUTED_GAP:
        energy = _lost(site, policy, device_id, name, steps)
    else:
        energy = _held(site, policy, device_id, holder, books, name, steps)
    differs: list[str] = []
    known = None if books["energy_mj"] is None else energy
    if known != row["energy_mj"]:
        differs.append(f"{name}: {_mj(known)} from its readings, {_mj(row['energy_mj'])} in the usage hour")
    if books["held_us"] != row["held_us"]:
        differs.append(f"{name}: held {_seconds(books['held_us'])} s, {_seconds(row['held_us'])} s in the usage hour")
    named = tuple(replace(step, of=name) if step.part == "readings" else step for step in steps)
    return Followed(device_id, holder, known, int(books["held_us"]), named, tuple(differs))


def _held(
    site: _Site, policy: Policy, device_id: int, holder: str, books: Mapping[str, Any], name: str, steps: list[Step]
) -> int:
    """Return the energy of a holder, with its steps: what it had for itself, levels at its edges, parts of what several had."""
    mine = site.holdings.holders.filter(pl.col("holder") == holder).select("span", "weight", "weights", "method")
    held = site.holdings.pieces.filter(pl.col("device_id") == device_id).join(mine, on="span", how="inner")
    whole, shared = (
        held.filter(is_so) for is_so in (pl.col("weight") == pl.col("weights"), pl.col("weight") != pl.col("weights"))
    )
    energy = _read(site, policy, device_id, whole, steps)
    before, after = (_kept(each, whole) for each in (site.linear, site.final))
    if energy != before:
        steps.append(Step("readings", "the model measured otherwise", f"{before:,}", "mJ"))
    if after != before:
        words = "between two readings holders are told apart by the power each had beside, not by time alone"
        steps.append(Step("readings", words, f"{after - before:+,}", "mJ"))
    energy += after - before
    if shared.height:
        board = _read(site, policy, device_id, shared, steps)
        part = int(books["energy_mj"] or 0) - after
        how = books["method"].replace("_", " ")
        steps.append(
            Step(
                "readings",
                f"of {board:,} mJ while several held it, this holder's part by {how}",
                f"{part:,}",
                "mJ",
            )
        )
        energy += part
    steps.append(Step("energy", f"{name}: held {_seconds(books['held_us'])} s", f"{energy:,}", "mJ"))
    return energy


def _kept(measured: Measured, held: pl.DataFrame) -> int:
    pieces = measured.pieces.join(held.select("piece"), on="piece", how="semi")
    return int(pieces.select((pl.col("energy_mj") - pl.col("gap_mj") + pl.col("kept_mj")).sum()).item())


def _read(site: _Site, policy: Policy, device_id: int, held: pl.DataFrame, steps: list[Step]) -> int:
    """Return what the meters of authority counted in these pieces, less what of silences stays with nobody; add the steps."""
    energy = 0
    for index, begin, end in _blocks(site, held):
        for each in _stretches(site, policy, device_id, index, begin, end):
            if each.kind == COVERED:
                energy += each.energy_mj
                steps.extend(_of_covered(site.lines[index], each))
            elif each.kind == GAP:
                stays = _stays(site.held, device_id, each)
                energy += each.energy_mj if stays else 0
                words = (
                    "which one holder had throughout: its own" if stays else "that nobody had throughout: unattributed"
                )
                steps.append(_of_gap(each, words))
            else:
                words = f"{_span(each.from_us, each.to_us)}: {each.kind.replace('_', ' ')}: nothing is known, nothing booked"
                steps.append(Step("readings", words))
    return energy


def _lost(site: _Site, policy: Policy, device_id: int, name: str, steps: list[Step]) -> int:
    pieces = site.holdings.pieces.filter(pl.col("device_id") == device_id)
    energy = 0
    for index, begin, end in _blocks(site, pieces):
        for each in _stretches(site, policy, device_id, index, begin, end):
            if each.kind == GAP and not _stays(site.held, device_id, each):
                energy += each.energy_mj
                steps.append(_of_gap(each, "that nobody had throughout"))
    steps.append(Step("energy", f"{name}: lost in silences", f"{energy:,}", "mJ"))
    return energy


def _blocks(site: _Site, held: pl.DataFrame) -> list[tuple[int, int, int]]:
    """Return (meter, from_us, to_us) of which the meter speaks for these pieces, neighbours together."""
    taken = site.linear.taken.join(held.select("piece"), on="piece", how="semi").sort("from_us", "meter")
    blocks: list[tuple[int, int, int]] = []
    for index, begin, end in taken.select("meter", "from_us", "to_us").sort("meter", "from_us").iter_rows():
        if blocks and blocks[-1][0] == index and blocks[-1][2] == begin:
            blocks[-1] = (index, blocks[-1][1], end)
        else:
            blocks.append((index, begin, end))
    return sorted(blocks, key=lambda block: (block[1], block[0]))


def _stretches(site: _Site, policy: Policy, device_id: int, index: int, begin: int, end: int) -> list[Stretch]:
    line = site.lines[index]
    at_us = site.keys.at_us(pl.col("device_id"), pl.col("key")).alias("at_us")
    rows = line.rows.filter(pl.col("device_id") == device_id).select(at_us, "value", "segment", "max_gap_us")
    readings = [Reading(*row) for row in rows.iter_rows()]
    accelerators = site.devices.filter(pl.col("device_id") == device_id)["accelerators"].item()
    limits = Limits(policy.gaps.reach_us, policy.gaps.refresh_us, accelerators * policy.gaps.max_power_mw)
    return stretches(readings, begin, end, line.instrument, limits)


def _stays(held: pl.DataFrame, device_id: int, gap: Stretch) -> bool:
    """Say whether one holding was there from the reading before a silence to the one after it."""
    first, last = gap.first.before.at_us, gap.last.after.at_us
    around = (pl.col("start_us") <= first) & (pl.col("end_us") >= last) & (pl.col("device_id") == device_id)
    return held.filter(around).height > 0


def _of_covered(line: Timeline, each: Stretch) -> list[Step]:
    feed = FEEDS.get(line.feed, f"feed {line.feed}")
    count = f"{each.intervals:,} interval{'s' if each.intervals != 1 else ''}"
    if line.instrument == "gauge":
        words = f"{_span(each.from_us, each.to_us)}, gauge ({feed}): mean of two powers × time, {count}"
        return [Step("readings", words, f"{each.energy_mj:,}", "mJ")]
    return [
        _of_cut(each.first),
        _of_cut(each.last),
        Step(
            "readings",
            f"{_span(each.from_us, each.to_us)}, counter ({feed}), {count}: the difference",
            f"{each.energy_mj:,}",
            "mJ",
        ),
    ]


def _of_cut(cut: Cut) -> Step:
    at = _clock(cut.at_us)
    if cut.is_exact:
        return Step("readings", f"C({at}) is the reading there", f"{cut.value_mj:,}", "mJ")
    before, after = cut.before, cut.after
    words = (
        f"C({at}) = {before.value:,} at {_clock(before.at_us)} + ⌊{after.value - before.value:,} × "
        f"{_seconds(cut.at_us - before.at_us)} s ÷ {_seconds(after.at_us - before.at_us)} s⌋, next {after.value:,} at {_clock(after.at_us)}"
    )
    return Step("readings", words, f"{cut.value_mj:,}", "mJ")


def _of_gap(each: Stretch, words: str) -> Step:
    first, last = each.first.before, each.last.after
    told = (
        f"silent {_clock(first.at_us)} to {_clock(last.at_us)}, {last.value - first.value:,} mJ known, spread evenly; "
        f"of it {_span(each.from_us, each.to_us)}, {words}"
    )
    return Step("readings", told, f"{each.energy_mj:,}", "mJ")


def _span(from_us: int, until_us: int) -> str:
    return f"{_clock(from_us)}–{_clock(until_us)}"


def _clock(at_us: int) -> str:
    at: datetime = from_us(at_us)
    return f"{at:%H:%M:%S}" + (f".{at.microsecond:06d}".rstrip("0") if at.microsecond else "")


def _seconds(us: int) -> str:
    whole, rest = divmod(us, 1_000_000)
    return f"{whole:,}" + (f".{rest:06d}".rstrip("0") if rest else "")


def _mj(energy: int | None) -> str:
    return "no energy" if energy is None else f"{energy:,} mJ"
