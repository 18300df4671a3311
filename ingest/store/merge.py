"""Makes one row of the parts in which time-series protocols deliver it, and merges late rows into a sealed hour's.

A protocol of single series splits one instant of a device over several requests, so the rows of one (device, instant, epoch)
of the remote-write feeds are parts of one row: per column the largest value that any part has, nulls aside. A request sent
twice therefore changes nothing. Rows of other feeds are left as they are. Everything that reads or seals samples asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

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


class LateMerge:
    """Merges late rows into a sealed hour's, both sorted frames of any size, with some frames of each in hand. For one use."""

    def __init__(self, stream: Stream, epochs_in_parts: Collection[int]) -> None:
        self._stream, self._epochs = stream, epochs_in_parts
        self.new_rows = 0
        """Late rows so far that say something the sealed ones do not; 0 at the end = the hour is as it was."""

    def frames(self, sealed: Iterable[pl.DataFrame], late: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield sorted frames of the sealed rows and the late ones that are news; without late rows nothing of either is read."""
        by = order(self._stream)
        late_ones = _Side(late, by)
        if not late_ones.has_rows:
            return
        sealed_ones = _Side(sealed, by)
        while sealed_ones.has_rows or late_ones.has_rows:
            # Up to the earlier of both ends, without that instant: it may go on in the next frame of either.
            ends = [side.last for side in (sealed_ones, late_ones) if not side.is_complete]
            until = min(ends, default=None)
            known, told = sealed_ones.taken(until), late_ones.taken(until)
            if not (known.is_empty() or told.is_empty()):
                told = news(self._stream, [known], told, self._epochs)
            self.new_rows += told.height
            some = [rows for rows in (known, told) if not rows.is_empty()]
            if some:
                yield some[0] if len(some) == 1 else pl.concat(some).sort(by, maintain_order=True)
            for side in (sealed_ones, late_ones):
                if not side.is_complete and side.last == until:
                    side.more()


class _Side:
    """Sorted frames that come one after another, and what of them was not taken yet."""

    def __init__(self, frames: Iterable[pl.DataFrame], by: tuple[str, ...]) -> None:
        self._frames, self._by = iter(frames), by
        self._waiting: pl.DataFrame | None = None
        self.is_complete = False
        """No more frames come."""
        self.more()

    @property
    def has_rows(self) -> bool:
        return self._waiting is not None and not (self.is_complete and self._waiting.is_empty())

    @property
    def last(self) -> tuple[Any, ...]:
        """The place of the last row that is here; only while more may come."""
        if self._waiting is None:
            raise RuntimeError("a side that has had no row is complete")
        return self._waiting.select(self._by).row(-1)

    def more(self) -> None:
        for frame in self._frames:
            if not frame.is_empty():
                self._waiting = frame if self._waiting is None else pl.concat([self._waiting, frame])
                return
        self.is_complete = True

    def taken(self, until: tuple[Any, ...] | None) -> pl.DataFrame:
        """Take out the rows before a place; null = all."""
        if self._waiting is None:
            return pl.DataFrame()
        waiting, self._waiting = self._waiting, self._waiting.clear()
        if until is None:
            return waiting
        is_before, is_level = pl.lit(value=False), pl.lit(value=True)
        for name, value in zip(self._by, until, strict=True):
            is_before |= is_level & (pl.col(name) < value)
            is_level &= pl.col(name) == value
        count = int(waiting.select(is_before.sum()).item())  # they are sorted: those before come first
        self._waiting = waiting.slice(count)
        return waiting.head(count)
