"""Finds throttling and idle waste per device, job and hour, with evidence and the energy and capacity behind it.

An idle finding needs two signals, utilization and power; a throttling finding needs the reason bits of working time, and
where the violation counters exist they must agree. It decides nothing: a finding is a fact for policies to judge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from analytics.frames import INSTANT
from analytics.model.energy import Meter
from analytics.model.holding import Resolved
from analytics.policy import Policy
from analytics.units import US_PER_HOUR

THROTTLING: Final = "throttling"
IDLE_WASTE: Final = "idle_waste"
OVERLAP: Final = "overlapping_allocations"
CONFLICT: Final = "evidence_conflict"
TOO_MANY: Final = "count_exceeds_devices"
NO_END: Final = "allocation_without_end"
_NOTHING_HEARD: Final = pl.lit(2, dtype=pl.Int16)
"""Imported: the origin of a node of which nothing but an import ever told."""
SCHEMA: Final = {
    "hour_us": pl.Int64,
    "kind": pl.String,
    "device_id": pl.Int32,
    "job_id": pl.Int64,
    "start_us": pl.Int64,
    "end_us": pl.Int64,
    "evidence": pl.String,
    "waste_energy_mj": pl.Int64,
    "capacity_freed_us": pl.Int64,
    "confidence": pl.Float64,
    "origin": pl.Int16,
}
_BOTH_SIGNALS, _ONE_SIGNAL = 0.9, 0.5
_UW_PER_MW: Final = 1_000_000
"""Microseconds of a milliwatt in a millijoule."""


def throttling(usage: pl.DataFrame, pieces: pl.DataFrame, holders: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """Return a finding per device, job and hour slowed for long enough. ``usage``: attributed rows with accelerators.

    The energy and capacity lost are the policy's assumed share of what was spent while throttled.
    """
    limits = policy.throttle
    slow = usage.filter(
        pl.col("job_id").is_not_null()
        & pl.col("energy_mj").is_not_null()
        & (pl.col("throttled_us") >= limits.min_throttled_us)
        & (pl.col("throttled_us") * 100 >= pl.col("held_us") * limits.min_throttled_percent)
        & (pl.col("throttle_bits_us") > 0)
    )
    if slow.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    # A shared board's spans are cut into hundreds of pieces.
    spans = pieces.group_by("span", "hour_us", "device_id").agg(
        pl.col("from_us").min().alias("start_us"), pl.col("to_us").max().alias("end_us")
    )
    when = (
        holders.filter(pl.col("job_id").is_not_null())
        .join(spans, on="span", how="inner")
        .group_by("hour_us", "device_id", "job_id")
        .agg(pl.col("start_us").min(), pl.col("end_us").max())
    )
    rows = slow.join(when, on=["hour_us", "device_id", "job_id"], how="inner").sort("hour_us", "device_id", "job_id")
    share = pl.col("energy_mj").cast(pl.Int128) * pl.col("throttled_us") // pl.col("held_us").clip(1, None)
    counted = pl.col("throttle_counter_us") > 0
    by_bits = {"instrument": "clocks_event_reasons", "throttled_us": pl.col("throttle_bits_us")}
    by_counter = {"instrument": "violation_counters", "throttled_us": pl.col("throttled_us")}
    told = {"held_us": pl.col("held_us"), "loss_percent": limits.loss_percent, "loss_source": "assumed"}
    rows = rows.with_columns(
        (share * limits.loss_percent // 100).cast(pl.Int64).alias("waste_energy_mj"),
        (pl.col("throttled_us") * pl.col("accelerators") * limits.loss_percent // 100).alias("capacity_freed_us"),
        pl.when(counted).then(_BOTH_SIGNALS).otherwise(_ONE_SIGNAL).alias("confidence"),
        pl.when(counted)
        .then(json_of(signals=[by_bits, by_counter], **told))
        .otherwise(json_of(signals=[by_bits], **told))
        .alias("evidence"),
    )
    return _shaped(rows, THROTTLING)


def idle_waste(
    meters: Sequence[Meter],
    meter_of: Mapping[int, pl.DataFrame],
    usage: pl.DataFrame,
    held: pl.DataFrame,
    devices: pl.DataFrame,
    policy: Policy,
    to_us: int,
) -> pl.DataFrame:
    """Return a finding per idle run of a wholly held device that lasts long enough, clipped to each hour it touches.

    ``to_us``: the end of the window, where its last hour may be cut short.
    """
    idle_hours = (
        usage.filter(pl.col("job_id").is_not_null() & (pl.col("idle_us") > 0)).select("device_id", "hour_us").unique()
    )
    found = [pl.DataFrame(schema=SCHEMA)]
    for index, hours in meter_of.items():
        wanted = hours.join(idle_hours, on=["device_id", "hour_us"], how="semi")
        if wanted.height and "idle_us" in meters[index].sums.columns:
            found.append(_idle_of(meters[index], wanted, held, devices, policy, to_us))
    return pl.concat(found).sort("hour_us", "device_id", "start_us")


def contradictions(
    resolved: Resolved, pieces: pl.DataFrame, origins: pl.DataFrame, from_us: int, to_us: int
) -> pl.DataFrame:
    """Return a finding per hour of what was told of holdings and cannot be so, or was not told: :class:`Resolved`.

    Several jobs on one device (overlapping: nobody has it; contradicting: the better evidence has it), counts beyond what a node has,
    and holdings without an end, in the hour of the end that was taken. ``origins``: device_id, hour_us, origin.
    """
    contests = resolved.contests.select(
        pl.col("kind").replace_strict({"overlap": OVERLAP, "conflict": CONFLICT}, return_dtype=pl.String).alias("kind"),
        "device_id",
        pl.lit(None, dtype=pl.Int32).alias("node_id"),
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        "from_us",
        "to_us",
        pl.Series(
            "evidence",
            [
                to_json(jobs=jobs) if kind == "overlap" else to_json(jobs=jobs, evidence=said)
                for kind, jobs, said in resolved.contests.select("kind", "jobs", "evidence").iter_rows()
            ],
            dtype=pl.String,
        ),
    )
    too_many = resolved.too_many.select(
        pl.lit(TOO_MANY).alias("kind"),
        pl.lit(None, dtype=pl.Int32).alias("device_id"),
        "node_id",
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        "from_us",
        "to_us",
        pl.Series(
            "evidence",
            [
                to_json(**row)
                for row in resolved.too_many.select("node_id", "jobs", "wanted", "free").iter_rows(named=True)
            ],
            dtype=pl.String,
        ),
    )
    last_hour = (pl.col("end_us") - 1) // US_PER_HOUR * US_PER_HOUR
    ended = resolved.unended.filter((pl.col("end_us") > from_us) & (pl.col("end_us") <= to_us))
    unended = ended.select(
        pl.lit(NO_END).alias("kind"),
        "device_id",
        "node_id",
        "job_id",
        pl.max_horizontal("start_us", last_hour).alias("from_us"),
        pl.col("end_us").alias("to_us"),
        pl.Series("evidence", [to_json(ended_by=why) for why in ended["ended_by"].to_list()], dtype=pl.String),
    )
    told = pl.concat([contests, too_many, unended]).filter((pl.col("from_us") < to_us) & (pl.col("to_us") > from_us))
    if told.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    return _by_hour(told, pieces, origins, from_us, to_us)


def _by_hour(told: pl.DataFrame, pieces: pl.DataFrame, origins: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    first = pl.max_horizontal("from_us", pl.lit(from_us, dtype=pl.Int64))
    last = pl.min_horizontal("to_us", pl.lit(to_us, dtype=pl.Int64))
    hours = (
        told.with_columns(first.alias("from_us"), last.alias("to_us"))
        .with_columns(
            pl.int_ranges(
                pl.col("from_us") // US_PER_HOUR, (pl.col("to_us") - 1) // US_PER_HOUR + 1, dtype=pl.Int64
            ).alias("hour")
        )
        .explode("hour", empty_as_null=False)
        .with_columns((pl.col("hour") * US_PER_HOUR).alias("hour_us"))
        .with_columns(
            pl.max_horizontal("from_us", "hour_us").alias("start_us"),
            pl.min_horizontal("to_us", pl.col("hour_us") + US_PER_HOUR).alias("end_us"),
        )
    )
    # What is said of a node is told with its first device, and is of its devices' kind of data: the least real of it.
    of_node = (
        pieces.select("device_id", "hour_us", "node_id")
        .unique()
        .join(origins, on=["device_id", "hour_us"], how="inner")
        .group_by("node_id", "hour_us")
        .agg(pl.col("origin").max().alias("node_origin"), pl.col("device_id").min().alias("node_device_id"))
    )
    rows = (
        hours.join(origins, on=["device_id", "hour_us"], how="left")
        .join(of_node, on=["node_id", "hour_us"], how="left")
        .with_columns(
            pl.coalesce("origin", "node_origin", _NOTHING_HEARD).cast(pl.Int16).alias("origin"),
            pl.coalesce("device_id", "node_device_id").alias("device_id"),
            pl.lit(None, dtype=pl.Int64).alias("waste_energy_mj"),
            pl.lit(None, dtype=pl.Int64).alias("capacity_freed_us"),
            pl.lit(1.0).alias("confidence"),
        )
    )
    identity = ["hour_us", "kind", "device_id", "start_us", "job_id"]
    shaped = rows.select(*SCHEMA).cast(SCHEMA).sort(*identity, "end_us", "evidence")  # type: ignore[arg-type]
    return shaped.unique(identity, keep="last", maintain_order=True)


def _idle_runs(meter: Meter, devices: pl.Series, least_us: int) -> pl.DataFrame:
    """Return device_id, run_from_us, run_to_us of runs of adjacent idle intervals, as long as they get, of at least so long."""
    keys, key, idle_us = meter.keys, meter.key.to_numpy(), meter.sums["idle_us"].to_numpy()
    # Keys are unique: what is adjacent is so by number, and of one device, as an interval between two is none and not idle.
    idle = np.flatnonzero(np.append(idle_us[:1] > 0, idle_us[1:] > idle_us[:-1]))
    first = np.flatnonzero(np.diff(idle, prepend=-2) != 1)
    last = np.flatnonzero(np.diff(idle, append=-2) != 1)
    begin, end = key[idle[first]], key[idle[last] + 1]
    long = end - begin >= least_us
    begin, end = begin[long], end[long]
    device = begin // keys.span_us
    base_us = device * keys.span_us - keys.base_us
    runs = pl.DataFrame({"device_id": device, "run_from_us": begin - base_us, "run_to_us": end - base_us})
    return runs.cast({"device_id": pl.Int32}).filter(pl.col("device_id").is_in(devices.implode()))


def _idle_of(
    meter: Meter, hours: pl.DataFrame, held: pl.DataFrame, devices: pl.DataFrame, policy: Policy, to_us: int
) -> pl.DataFrame:
    least_us = policy.idle.min_episode_us
    runs = _idle_runs(meter, hours["device_id"].unique(), least_us)
    crowd = held.filter((pl.col("weight") == pl.col("weights")) & pl.col("job_id").is_not_null())
    start, end = pl.max_horizontal("run_from_us", "start_us"), pl.min_horizontal("run_to_us", "end_us")
    episodes = (
        runs.join(crowd, on="device_id", how="inner")
        .with_columns(start.alias("start_us"), end.alias("end_us"))
        .filter(pl.col("end_us") - pl.col("start_us") >= least_us)
    )
    hour_end = pl.min_horizontal(pl.col("hour_us") + US_PER_HOUR, pl.lit(to_us, dtype=pl.Int64))
    clipped = (
        episodes.join(hours, on="device_id", how="inner")
        .with_columns(
            pl.max_horizontal("start_us", "hour_us").alias("start_us"),
            pl.min_horizontal(pl.col("end_us"), hour_end).alias("end_us"),
        )
        .filter(pl.col("start_us") < pl.col("end_us"))
        .unique(["device_id", "job_id", "start_us", "end_us"])
        .join(devices.select("device_id", "accelerators", "idle_power_mw"), on="device_id", how="left")
        .sort("hour_us", "device_id", "start_us", "job_id")
    )
    at_start, at_end = (
        meter.at(clipped.select("device_id", pl.col(name).alias("at_us")), ["energy_mj"])["energy_mj"]
        for name in ("start_us", "end_us")
    )
    length = pl.col("end_us") - pl.col("start_us")
    mean_mw = pl.col("waste_energy_mj") * _UW_PER_MW // length
    utilization = {"instrument": "gpu_util_percent", "value": 0}
    signals = [utilization, {"instrument": "power", "mean_mw": mean_mw}]
    rows = clipped.with_columns(
        (at_end - at_start).alias("waste_energy_mj"),
        (length * pl.col("accelerators")).alias("capacity_freed_us"),
        pl.lit(_BOTH_SIGNALS).alias("confidence"),
        pl.lit(meter.origin, dtype=pl.Int16).alias("origin"),
    ).with_columns(json_of(signals=signals, episode_at_least_us=least_us).alias("evidence"))
    return _shaped(rows, IDLE_WASTE)


def _shaped(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    return rows.with_columns(pl.lit(kind).alias("kind")).select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True)
"""Made once: json.dumps makes one for each of some ten thousand findings, which took as long as all they say."""


def to_json(**evidence: Any) -> str:
    return _ENCODER.encode(evidence)


def json_of(**evidence: Any) -> pl.Expr:
    """Return what :func:`to_json` says of each row, where some of the values are columns of integers, none of them null."""
    return pl.concat_str([part if isinstance(part, pl.Expr) else pl.lit(part) for part in _parts_of(evidence)])


def _parts_of(value: Any) -> list[str | pl.Expr]:
    if isinstance(value, pl.Expr):
        return [value.cast(pl.String)]
    if isinstance(value, Mapping):
        named = [[f"{_ENCODER.encode(name)}:", *_parts_of(value[name])] for name in sorted(value)]
        return ["{", *_with_commas(named), "}"]
    if isinstance(value, list):
        return ["[", *_with_commas([_parts_of(item) for item in value]), "]"]
    return [_ENCODER.encode(value)]


def _with_commas(items: list[list[str | pl.Expr]]) -> list[str | pl.Expr]:
    return [part for number, item in enumerate(items) for part in ([","] if number else []) + item]


def instants(rows: pl.DataFrame) -> pl.DataFrame:
    """Return findings with their microseconds as instants."""
    return rows.with_columns(
        pl.col("hour_us").cast(INSTANT).alias("hour_at"),
        pl.col("start_us").cast(INSTANT).alias("start_at"),
        pl.col("end_us").cast(INSTANT).alias("end_at"),
    )
