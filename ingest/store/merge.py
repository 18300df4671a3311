"""Makes one row of the parts in which time-series protocols deliver it, and merges late rows into a sealed hour's.

A protocol of single series splits one instant of a device over several requests, so the rows of one (device, instant, epoch)
of the remote-write feeds are parts of one row: per column the largest value that any part has, nulls aside. A request sent
twice therefore changes nothing. Rows of other feeds are left as they are. Everything that reads or seals samples asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

import polars as pl

from collector.wire import Feed, Stream

PARTS_FEEDS: Final = (Feed.REMOTE_WRITE, Feed.SECOND_SCRAPER)
KEYS: Final = {
    Stream.DEVICE: "device_id",
    Stream.NODE: "meter_id",
    Stream.FABRIC: "port_id",
    Stream.ENGINE: "engine_id",
    Stream.DEVICE_HEALTH: "device_id",
    Stream.DEVICE_SHARE: "device_id",
    Stream.AGENT: "epoch_id",
}
"""What a stream's rows are about; with the instant what they are sorted by."""
_IN_PARTS: Final = frozenset((Stream.DEVICE, Stream.NODE, Stream.FABRIC, Stream.ENGINE, Stream.DEVICE_HEALTH))
"""Streams of one row a key and instant: several shares of one device are several holders, not parts."""


def order(stream: Stream) -> tuple[str, ...]:
    """Return what rows of a stream are sorted by, in segments and out of them."""
    return tuple(dict.fromkeys((KEYS[stream], "at", "epoch_id")))


def merge_parts(stream: Stream, rows: pl.LazyFrame, epochs_in_parts: Collection[int]) -> pl.LazyFrame:
    """Return the rows with those of these epochs made whole; their order is not kept.

    ``epochs_in_parts``: ids of the epochs of :data:`PARTS_FEEDS`.
    """
    if stream not in _IN_PARTS or not epochs_in_parts:
        return rows
    is_part = pl.col("epoch_id").is_in(sorted(epochs_in_parts))
    names = rows.collect_schema().names()
    whole = rows.filter(is_part).group_by(order(stream)).agg(pl.all().max()).select(names)
    return pl.concat([rows.filter(~is_part), whole])


def whole_rows(
    stream: Stream, frames: Iterable[pl.DataFrame], epochs_in_parts: Collection[int]
) -> Iterator[pl.DataFrame]:
    """Yield sorted frames of sorted frames, parts made whole and exact repeats left out, those of two frames too.

    A repeat is equal in every column: an import done twice. Rows of one instant that differ are two readings and stay.
    """
    by = list(order(stream))
    held: pl.DataFrame | None = None
    for frame in frames:
        joined = frame if held is None else pl.concat([held, frame])
        if joined.is_empty():
            continue
        last = joined.tail(1)
        # Parts and repeats of the last instant may go on in the next frame.
        is_last = (pl.col(by[0]) == last[by[0]].item()) & (pl.col("at") == last["at"].item())
        held = joined.filter(is_last)
        yield _sorted_whole(stream, joined.filter(~is_last), epochs_in_parts, by)
    if held is not None:
        yield _sorted_whole(stream, held, epochs_in_parts, by)


def _sorted_whole(stream: Stream, frame: pl.DataFrame, epochs: Collection[int], by: list[str]) -> pl.DataFrame:
    is_again = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in by)
    if frame.select(
        is_again.any()
    ).item():  # hardly ever, and to look at all columns of all rows takes ten times as long
        frame = frame.unique(maintain_order=True)
    if stream not in _IN_PARTS or not epochs:
        return frame
    return merge_parts(stream, frame.lazy(), epochs).collect().sort(by, maintain_order=True)


def news(
    stream: Stream, frames: Iterable[pl.DataFrame], late: pl.DataFrame, epochs_in_parts: Collection[int]
) -> pl.DataFrame:
    """Return the ``late`` rows that the rows of ``frames`` do not hold already: not their repeats, nor parts they include."""
    by = list(order(stream))
    instants = late.select(by).unique()
    known = [frame.join(instants, on=by, how="semi") for frame in frames]
    if not any(frame.height for frame in known):
        return late
    told = late.with_row_index("row").join(pl.concat(known), on=by, suffix="_known")
    pairs = [(pl.col(name), pl.col(f"{name}_known")) for name in late.columns if name not in by]
    holds = pl.all_horizontal(new.eq_missing(old) for new, old in pairs)
    if stream in _IN_PARTS:
        is_within = pl.all_horizontal(new.is_null() | (new <= old).fill_null(value=False) for new, old in pairs)
        holds |= pl.col("epoch_id").is_in(sorted(epochs_in_parts)) & is_within
    held = told.filter(holds)["row"].unique()
    return late.with_row_index("row").filter(~pl.col("row").is_in(held.implode())).drop("row")


def with_late(stream: Stream, frames: Iterable[pl.DataFrame], late: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield sorted frames of sorted frames and ``late`` rows in any order, with no more than a frame in hand at once."""
    by = list(order(stream))
    waiting = late.sort(by, maintain_order=True)
    for frame in frames:
        if frame.is_empty():
            continue
        if waiting.is_empty():
            yield frame
            continue
        key, at = frame.tail(1).select(by[0], "at").row(0)
        is_here = (pl.col(by[0]) < key) | ((pl.col(by[0]) == key) & (pl.col("at") <= at))
        here = waiting.filter(is_here)
        waiting = waiting.filter(~is_here)
        yield frame if here.is_empty() else pl.concat([frame, here]).sort(by, maintain_order=True)
    if not waiting.is_empty():
        yield waiting
