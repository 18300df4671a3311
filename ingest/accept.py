"""Decides, row by row, what of a group of bodies is taken: pure, from decoded rows to rows per table and counted refusals.

It works on many bodies at once, since a pass over 125 bodies of 80 rows costs what a pass over one costs. A row is
refused when its place in the books would be a guess (time, device); a single value that cannot be a measurement becomes
null. Both are counted by stream and reason; nothing is dropped in silence. It reads no clock and no database: ``now_us``
and ids are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import polars as pl

from collector.wire import COLUMNS, MAX_CLOCK_SKEW_US, Reading, Stream

EARLIEST_AT_US: Final = 946_684_800_000_000
"""2000-01-01: a clock before it was never set, and partitions begin here."""
MAX_SPAN_US: Final = 86_400_000_000
BODY: Final = "body"
"""Name of the column that says which body of the group a row came with."""

# Cumulative readings and sizes: below zero they are an error value of some library, never a measurement.
_COUNTER_SUFFIXES: Final = ("_mj", "_ns", "_bytes", "_kib", "_ticks", "_tokens")
_COUNTERS: Final = frozenset(
    (
        "pcie_replays",
        "nvlink_errors",
        "ecc_corrected",
        "ecc_uncorrected",
        "symbol_errors",
        "link_downed",
        "receive_errors",
        "discards",
        "congestion_notifications",
        "out_of_sequence",
        "retransmissions",
        "prefix_cache_hits",
        "prefix_cache_queries",
        "requests_finished",
        "preemptions",
        "link_recoveries",
        "integrity_errors",
        "buffer_overruns",
        "remote_errors",
        "ecn_marked_packets",
        "adaptive_retransmissions",
        "ack_timeouts",
        "receiver_not_ready",
        "pause_rx_us",
        "pause_tx_us",
        "ecc_corrected_aggregate",
        "ecc_uncorrected_aggregate",
        "oldest_unsent_us",
    )
)
MOST_MW: Final = 2**31 - 1
"""2.1 MW: more than any node draws, and the most that a close reads as milliwatts."""
MOST_PERCENT: Final = 10_000
"""Of the sum over many processes of one device: a hundred that keep all of it busy. What is more is an error value of some library."""
MOST_RATIO: Final = 2
"""Above 1, for a mean over a span that was misjudged; twice as much is no ratio."""
_MANY_CORES: Final = "cpu_ratio"
"""Of one core: an agent may use several."""
_LEAST_SHARE: Final = 6e-7
"""Shares are kept to six places; what is less would be kept as none."""
_NOT_NEGATIVE_SUFFIXES: Final = ("_mw", "_mhz", "_mbps")


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """What the rows of one body need to know of it. ``device_ids`` has None where the device is refused on this node."""

    epoch_id: int
    device_ids: tuple[int | None, ...]
    second: Mapping[int, int] = field(default_factory=dict)
    """Devices whose rows are of another epoch than the body's, with that epoch."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """``rows`` rows of a body's stream refused or repaired for a reason."""

    body: int
    stream: Stream
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Rows to keep, with ``body``, ``epoch_id`` and (streams of devices) ``device_id`` beside the wire's columns."""

    rows: pl.DataFrame
    refusals: tuple[Refusal, ...]


def clock_skew_us(sent_at_us: int | None, now_us: int) -> int | None:
    """Return how far ahead the sender's clock is if that is too far to believe its times; None = fine or unknown."""
    if sent_at_us is None or abs(sent_at_us - now_us) <= MAX_CLOCK_SKEW_US:
        return None
    return sent_at_us - now_us


def accept(stream: Stream, rows: pl.DataFrame, facts: Sequence[BodyFacts], now_us: int) -> Accepted:
    """Return the rows of one stream that are kept, in the order they came.

    ``rows`` has the contract's columns and :data:`BODY`, an index into ``facts``.
    """
    rows = _with_ids(rows, facts)
    refusals: list[Refusal] = []
    if stream is Stream.ALLOCATION:
        rows, refusals = _with_real_shares(rows)
    # Nearly always nothing is wrong: a minimum and a maximum per column tell, and no row is touched. Plain calls on
    # columns, as one lazy query over forty of them takes four times as long to plan as they take to run.
    for bounds in (*row_bounds(stream, now_us), *value_bounds(stream)):
        if not bounds.broken_in(rows):
            continue
        bad = bounds.broken()
        refusals += _count(rows, stream, bounds.reason, bad)
        if bounds.refuses_row:
            rows = rows.filter(~bad)
        else:
            rows = rows.with_columns(pl.when(~bad).then(pl.col(bounds.column)).alias(bounds.column))
    return Accepted(rows, _summed(refusals))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a column's values may be; None on a side is no bound, for floats it means finite. Null is within all bounds."""

    reason: str
    column: str
    low: int | None
    high: int | None
    refuses_row: bool = False
    """False: the value becomes null and the row is kept."""

    def hold(self, values: np.ndarray[Any, Any]) -> bool:
        """Whether all values are within: a minimum and a maximum tell, and of floats not even infinity hides from them."""
        if values.dtype.kind == "f" and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            return False
        return (self.low is None or bool(values.min() >= self.low)) and (
            self.high is None or bool(values.max() <= self.high)
        )

    def broken_in(self, rows: pl.DataFrame) -> bool:
        values = rows[self.column]
        if self.low is None and self.high is None:
            return not bool(values.is_finite().all())
        low: Any = values.min()
        high: Any = values.max()
        if low is None or high is None:
            return False
        return bool((self.low is not None and low < self.low) or (self.high is not None and high > self.high))

    def broken(self) -> pl.Expr:
        value = pl.col(self.column)
        if self.low is None and self.high is None:
            return value.is_finite().not_().fill_null(value=False)
        low = pl.lit(value=False) if self.low is None else value < self.low
        high = pl.lit(value=False) if self.high is None else value > self.high
        return (low | high).fill_null(value=False)


def _with_real_shares(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[Refusal]]:
    """Refuse rows whose share is none. Null is the whole device, so it cannot stand for a number that makes no sense.

    One such row would keep its hour, and the whole site's, from closing.
    """
    bad = pl.col("share_ratio").is_between(_LEAST_SHARE, 1).not_().fill_null(value=False)  # NaN is between nothing
    refusals = _count(rows, Stream.ALLOCATION, "impossible_share", bad)
    return (rows.filter(~bad) if refusals else rows), refusals


def _with_ids(rows: pl.DataFrame, facts: Sequence[BodyFacts]) -> pl.DataFrame:
    """Add epoch ids and, for streams of devices, device ids: -1 outside the body's table, 0 where refused on this node."""
    body = rows[BODY].to_numpy()
    epochs = np.array([fact.epoch_id for fact in facts], dtype=np.int32)
    columns = [pl.Series("epoch_id", epochs[body])]
    if "device" in rows.columns:
        counts = np.array([len(fact.device_ids) for fact in facts], dtype=np.int32)
        starts = np.cumsum(counts, dtype=np.int32) - counts
        ids = np.array([identity or 0 for fact in facts for identity in fact.device_ids] or [0], dtype=np.int32)
        index = rows["device"].to_numpy()
        inside = (index >= 0) & (index < counts[body])
        found = np.where(inside, ids[np.where(inside, starts[body] + index, 0)], np.int32(-1))
        columns.append(pl.Series("device_id", found))
        if any(fact.second for fact in facts):
            columns[0] = _of_second(columns[0], body, found, facts)
    return rows.hstack(columns)


def _of_second(
    epochs: pl.Series, body: np.ndarray[Any, Any], devices: np.ndarray[Any, Any], facts: Sequence[BodyFacts]
) -> pl.Series:
    found = epochs.to_numpy().copy()
    for number, fact in enumerate(facts):
        for device_id, epoch_id in fact.second.items():
            found[(body == number) & (devices == device_id)] = epoch_id
    return pl.Series("epoch_id", found)


@cache
def _fixed_row_bounds(stream: Stream) -> tuple[Bounds, ...]:
    bounds = []
    names = {column.name for column in COLUMNS[stream]}
    if "span_us" in names:
        bounds.append(Bounds("impossible_span", "span_us", 0, MAX_SPAN_US, refuses_row=True))
    if stream is Stream.DEVICE:
        bounds.append(Bounds("unknown_reading", "reading", min(Reading), max(Reading), refuses_row=True))
        bounds.append(Bounds("negative_count", "samples", 0, None, refuses_row=True))
        bounds.append(Bounds("negative_count", "samples_missed", 0, None, refuses_row=True))
    if stream is Stream.ALLOCATION:
        bounds.append(Bounds("unknown_action", "action", 1, 2, refuses_row=True))
        bounds.append(Bounds("before_2000", "job_started_at_us", EARLIEST_AT_US, None, refuses_row=True))
    if "device" in names:
        bounds.append(Bounds("unknown_device", "device_id", 0, None, refuses_row=True))
        bounds.append(Bounds("device_on_two_nodes", "device_id", 1, None, refuses_row=True))
    return tuple(bounds)


def row_bounds(stream: Stream, now_us: int) -> tuple[Bounds, ...]:
    """Return what a row's place in the books needs; a row outside is refused."""
    latest_us = now_us + MAX_CLOCK_SKEW_US
    future = [Bounds("from_the_future", "at_us", None, latest_us, refuses_row=True)]
    if stream is Stream.ALLOCATION:
        future.append(Bounds("from_the_future", "job_started_at_us", None, latest_us, refuses_row=True))
    return (
        *future,
        Bounds("before_2000", "at_us", EARLIEST_AT_US, None, refuses_row=True),
        *_fixed_row_bounds(stream),
    )


@cache
def value_bounds(stream: Stream) -> tuple[Bounds, ...]:
    """Return what the values of nullable columns may be to be measurements at all."""
    bounds = []
    for column in COLUMNS[stream]:
        if not column.nullable:
            continue
        if column.type == "f32":
            bounds.append(Bounds("not_a_number", column.name, None, None))
            if column.name.endswith("_percent"):
                bounds.append(Bounds("out_of_range", column.name, 0, MOST_PERCENT))
            elif column.name != _MANY_CORES:
                bounds.append(Bounds("out_of_range", column.name, 0, MOST_RATIO))
        elif column.name in _COUNTERS or column.name.endswith(_COUNTER_SUFFIXES):
            bounds.append(Bounds("negative_counter", column.name, 0, None))
        elif column.name.endswith(_NOT_NEGATIVE_SUFFIXES):
            bounds.append(Bounds("out_of_range", column.name, 0, MOST_MW if column.name.endswith("_mw") else None))
        elif column.name.endswith("_percent"):
            bounds.append(Bounds("out_of_range", column.name, 0, 100))
    return tuple(bounds)


def _count(rows: pl.DataFrame, stream: Stream, reason: str, bad: pl.Expr) -> list[Refusal]:
    counted = rows.filter(bad).group_by(BODY).len().sort(BODY)
    return [Refusal(body, stream, reason, count) for body, count in counted.iter_rows()]


def _summed(refusals: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """Add up refusals of the same body, stream and reason (several columns may be repaired for one reason)."""
    totals: dict[tuple[int, Stream, str], int] = {}
    for refusal in refusals:
        key = (refusal.body, refusal.stream, refusal.reason)
        totals[key] = totals.get(key, 0) + refusal.rows
    return tuple(Refusal(*key, rows) for key, rows in totals.items())


def with_body(frames: Sequence[pl.DataFrame], bodies: Sequence[Sequence[tuple[int, int]]]) -> pl.DataFrame:
    """Stack decoded frames and say which body each row came with.

    ``bodies`` gives, per frame, the bodies whose rows it holds in order, each with its number of rows.
    """
    parts = []
    for frame, order in zip(frames, bodies, strict=True):
        indices, counts = np.array(order, dtype=np.int32).T
        parts.append(frame.hstack([pl.Series(BODY, np.repeat(indices, counts))]))
    return parts[0] if len(parts) == 1 else pl.concat(parts, rechunk=True)
