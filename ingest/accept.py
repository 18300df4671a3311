"""Decides, row by row, what of a group of bodies is taken: pure, from decoded rows to rows per table and counted refusals.

It works on many bodies at once, since a pass over 125 bodies of 80 rows costs what a pass over one costs. A row is
refused when its place in the books would be a guess (time, device); a single value that cannot be a measurement becomes
null. Both are counted by stream and reason; nothing is dropped in silence. It reads no clock and no database: ``now_us``
and ids are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from collector.wire import COLUMNS, MAX_CLOCK_SKEW_US, Reading, Stream

EARLIEST_AT_US: Final = 946_684_800_000_000
"""2000-01-01: a clock before it was never set, and partitions begin here."""
MAX_SPAN_US: Final = 86_400_000_000
BODY: Final = "body"
"""Name of the column that says which body of the group a row came with."""

_KEY_COLUMN: Final = {Stream.NODE: "meter", Stream.FABRIC: "port", Stream.ENGINE: "engine"}
# Cumulative readings and sizes: below zero they are an error value of some library, never a measurement.
_COUNTER_SUFFIXES: Final = ("_mj", "_ns", "_bytes", "_kib", "_ticks", "_tokens")
_COUNTERS: Final = frozenset(
    "pcie_replays nvlink_errors ecc_corrected ecc_uncorrected symbol_errors link_downed receive_errors discards "
    "congestion_notifications out_of_sequence retransmissions prefix_cache_hits".split()
)
_NOT_NEGATIVE_SUFFIXES: Final = ("_mw", "_mhz", "_mbps")


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """What the rows of one body need to know of it. ``device_ids`` has None where the device is refused on this node."""

    epoch_id: int
    device_ids: tuple[int | None, ...]


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
    rows, device_is_known = _with_ids(stream, rows, facts)
    refusals: list[Refusal] = []
    rules = _row_rules(stream, now_us, device_is_known=device_is_known)
    repairs = _repairs(stream)
    # One pass answers for all rules; nearly always nothing is wrong and no row is touched.
    flags = rows.select(
        *(bad.any().alias(f"row {number}") for number, (_, bad) in enumerate(rules)),
        *(bad.any().alias(f"value {name}") for name, _, bad in repairs),
    ).row(0, named=True)
    for number, (reason, bad) in enumerate(rules):
        if flags[f"row {number}"]:
            refusals += _count(rows, stream, reason, bad)
            rows = rows.filter(~bad)
    for name, reason, bad in repairs:
        if flags[f"value {name}"]:
            refusals += _count(rows, stream, reason, bad)
            rows = rows.with_columns(pl.when(bad).then(None).otherwise(pl.col(name)).alias(name))
    return Accepted(rows, _summed(refusals))


def _with_ids(stream: Stream, rows: pl.DataFrame, facts: Sequence[BodyFacts]) -> tuple[pl.DataFrame, bool]:
    """Add epoch and device ids; a device outside its body's table gets id -1, one refused on this node null."""
    body = rows[BODY].to_numpy()
    epochs = np.array([fact.epoch_id for fact in facts], dtype=np.int32)
    columns = [pl.Series("epoch_id", epochs[body])]
    all_devices_known = True
    if "device" in rows.columns:
        counts = np.array([len(fact.device_ids) for fact in facts], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        # 0 stands for a refused device, -1 for an index outside the table; ids of the store begin at 1.
        ids = np.array([identity or 0 for fact in facts for identity in fact.device_ids] or [0], dtype=np.int32)
        index = rows["device"].to_numpy().astype(np.int64)
        inside = (index >= 0) & (index < counts[body])
        found = np.where(inside, ids[np.where(inside, starts[body] + index, 0)], np.int32(-1))
        all_devices_known = bool((found > 0).all())
        columns.append(pl.Series("device_id", found.astype(np.int32)))
    return rows.with_columns(columns), all_devices_known


def _row_rules(stream: Stream, now_us: int, *, device_is_known: bool) -> list[tuple[str, pl.Expr]]:
    at = pl.col("at_us")
    rules = [("from_the_future", at > now_us + MAX_CLOCK_SKEW_US), ("before_2000", at < EARLIEST_AT_US)]
    names = {column.name for column in COLUMNS[stream]}
    if "span_us" in names:
        rules.append(("impossible_span", (pl.col("span_us") < 0) | (pl.col("span_us") > MAX_SPAN_US)))
    if stream is Stream.DEVICE:
        rules.append(("unknown_reading", (pl.col("reading") < 0) | (pl.col("reading") > max(Reading))))
        rules.append(("negative_count", (pl.col("samples") < 0) | (pl.col("samples_missed") < 0)))
    if stream is Stream.ALLOCATION:
        rules.append(("unknown_action", ~pl.col("action").is_in([1, 2])))
        started = pl.col("job_started_at_us")
        rules.append(("impossible_job_start", (started < EARLIEST_AT_US) | (started > now_us + MAX_CLOCK_SKEW_US)))
    if not device_is_known:
        rules.append(("unknown_device", pl.col("device_id") == -1))
        rules.append(("device_on_two_nodes", pl.col("device_id") == 0))
    if stream in _KEY_COLUMN:
        rules.append(("empty_name", pl.col(_KEY_COLUMN[stream]).str.len_bytes() == 0))
    return rules


def _repairs(stream: Stream) -> list[tuple[str, str, pl.Expr]]:
    """Return (column, reason, which values cannot be measurements); null passes every rule."""
    repairs: list[tuple[str, str, pl.Expr]] = []
    for column in COLUMNS[stream]:
        value = pl.col(column.name)
        if not column.nullable:
            continue
        if column.type == "f32":
            # Not finite covers NaN and both infinities.
            repairs.append((column.name, "not_a_number", ~value.is_finite()))
        elif column.name in _COUNTERS or column.name.endswith(_COUNTER_SUFFIXES):
            repairs.append((column.name, "negative_counter", value < 0))
        elif column.name.endswith(_NOT_NEGATIVE_SUFFIXES):
            repairs.append((column.name, "out_of_range", value < 0))
        elif column.name.endswith("_percent"):
            repairs.append((column.name, "out_of_range", (value < 0) | (value > 100)))
    return repairs


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
        parts.append(frame.with_columns(pl.Series(BODY, np.repeat(indices, counts))))
    return parts[0] if len(parts) == 1 else pl.concat(parts, rechunk=True)
