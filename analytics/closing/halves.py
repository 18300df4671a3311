"""Divides the devices of one hour between two processes: the one that closes it reads and maps a half, another does the other.

Both read one snapshot, and what comes back is mapped as here: books, and the record of what was read, are the same bytes whoever did
what. An other half that does not come is done here. It closes nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol

from analytics.closing.request import MinutesTask, Task
from analytics.inputs import UsageInputs
from analytics.io.apart import Apart, ReadApart, begin_apart
from analytics.io.load import Begun
from analytics.io.open_rows import Look, OpenRows
from analytics.shards import shards
from ingest.store.engine import Database
from ingest.store.segments import Segments

_STEP: Final = 64
"""Large shards are of a multiple of so many devices: rows that are kept of an open hour stay where they are while a site grows a little."""
_STEPS: Final = 8
"""Shards of fewer steps are as large as it comes: to even them out would leave one process with much more than the other."""


class Work(Protocol):
    """What is to be made of some devices; travels through a pipe, and so does what it gives."""

    def of(self, part: UsageInputs) -> Any:
        """Return it; the inputs have their readings."""


@dataclass(frozen=True, slots=True)
class Half:
    """The devices of an hour that another process is to read, shard by shard, and what it is to make of them."""

    database: Database
    segments: Segments | None
    session: str
    hour_at: datetime
    is_at_hand: bool
    """Whether rows of them are kept from one look to the next."""
    is_kept_at_once: bool
    """Whether they may be kept before whoever asked says that books were written."""
    apart: Apart
    shards: tuple[tuple[UsageInputs, Work], ...]

    def reading(self, segments: Segments) -> Half:
        """Return the same with sealed hours read from ``segments``."""
        return replace(self, segments=segments)


@dataclass(frozen=True, slots=True)
class HalfDone:
    """What was made of each shard, and what was read for it."""

    made: tuple[Any, ...]
    read: ReadApart
    is_read_whole: bool
    """As of an hour that is done."""


class Helper(Protocol):
    """Another process, as seen by the one that closes an hour."""

    def ask(self, half: Half) -> None:
        """Have it begin."""

    def answer(self) -> HalfDone | None:
        """Wait for what became of it; null = nothing did."""


def map_shards(
    begun: Begun,
    task: Task | MinutesTask,
    work_of: Callable[[UsageInputs], Work],
    look: Look | None,
    helper: Helper | None = None,
) -> list[Any]:
    """Return what is made of each shard of the devices of an hour, or of some; with a ``helper``, of a large site, of half of them there."""
    usage = begun.inputs.usage

    def done(
        part: UsageInputs,
    ) -> Any:  # under no name: while the readings of one shard are read, those of another are gone
        return work_of(part).of(begun.read(part))

    devices = usage.devices["device_id"].n_unique()
    if helper is None or not begun.is_shareable or devices < task.settings.devices_to_share:
        return list(map(done, shards(usage, task.devices_together)))
    parts = list(shards(usage, shard_size(devices, min(task.devices_together, task.settings.devices_per_look))))
    ours = first_half([part.devices.height for part in parts])
    mine, theirs = parts[:ours], parts[ours:]
    if theirs:
        helper.ask(_half(begun, task, theirs, work_of, is_kept_at_once=isinstance(task, MinutesTask)))
    made = list(map(done, mine))
    if not theirs:
        return made
    answer = helper.answer()
    if answer is None:
        return [*made, *map(done, theirs)]
    begun.take(answer.read)
    if look is not None:
        look.is_whole |= answer.is_read_whole
    return [*made, *answer.made]


def do_half(half: Half, rows: OpenRows | None) -> tuple[HalfDone, Look | None]:
    """Do what another process asked for; gives the look at an open hour too, which is kept when books were written."""
    look = rows.look(half.apart.site_id, half.hour_at) if rows is not None and half.is_at_hand else None
    begun = begin_apart(half.database, half.apart, application=half.session, segments=half.segments, look=look)
    with begun as reader:

        def done(shard: tuple[UsageInputs, Work]) -> Any:
            part, work = shard
            return work.of(reader.read(part, digested=half.apart.is_digested))

        made = tuple(map(done, half.shards))
        read = reader.told()
    if rows is not None and look is not None and half.is_kept_at_once:
        rows.keep(look)
    return HalfDone(made, read, look is not None and look.is_whole), look


def _half(
    begun: Begun,
    task: Task | MinutesTask,
    parts: Sequence[UsageInputs],
    work_of: Callable[[UsageInputs], Work],
    *,
    is_kept_at_once: bool,
) -> Half:
    return Half(
        task.database,
        task.segments,
        task.settings.session,
        begun.inputs.usage.window.from_at,
        task.is_at_hand,
        is_kept_at_once,
        begun.apart(parts),
        tuple((part, work_of(part)) for part in parts),
    )


def shard_size(devices: int, at_most: int) -> int:
    """Return how many devices a shard has at most: as many shards for either process, of about one size."""
    shards_each = -(-devices // (2 * at_most))
    size = -(-devices // (2 * shards_each))
    # A step more: shards are of whole nodes, so that none is full, and what is left over by each would be one more.
    return size if size < _STEPS * _STEP else (-(-size // _STEP) + 1) * _STEP


def first_half(sizes: Sequence[int]) -> int:
    """Return how many of these shards make the first half: it has as little more or less than the second as can be, and at least one."""
    whole = sum(sizes)
    return min(range(1, len(sizes) + 1), key=lambda count: abs(2 * sum(sizes[:count]) - whole))
