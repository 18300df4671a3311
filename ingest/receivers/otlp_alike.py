"""Finds the spans of an export that are alike, and reads what differs between them in columns, all spans in step.

A program's spans of one kind have the same attributes in the same order; they differ in ids, times, counts and some texts.
So the first of them is taken apart into steps: bytes that must be the same, numbers, and texts of any length between them.
All others are walked along these steps at once, with an operation of numpy for each. A span that differs anywhere else, whose
lengths contradict each other or whose texts are not UTF-8 is not alike, and is left to the parser. There is no third way: an
odd span can cost time, never a wrong value. What a span means is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, NamedTuple

import numpy as np

from ingest.errors import BadBodyError
from ingest.receivers.protobuf import fields

FEWEST: Final = 48
"""Fewer that are alike are parsed as fast one by one: a walk costs some 300 µs whatever their number."""
LONGEST_BYTES: Final = 64 * 1024
"""Of a span; longer ones are thinned out before they are parsed."""
_MOST_SHAPES: Final = 24
_MOST_MISSES: Final = 4
"""Shapes that hardly another span has: then spans differ too much to go on."""
_MOST_STEPS: Final = 600
_LONGEST_SAME: Final = 4_096
_VARINT_BYTES: Final = 5
_NARROW_BELOW: Final = 0.9
"""Of those that began; then it is cheaper to go on without the others."""
_LONG: Final = 0x80
_Array = np.ndarray[Any, Any]
Names = Mapping[str, tuple[str, int]]


class _Do(Enum):
    SAME = auto()
    """These very bytes."""
    TAKE = auto()
    """As many bytes, which differ."""
    OPEN = auto()
    """The length of an attribute."""
    CLOSE = auto()
    """A length that must end where the attribute does."""
    TEXT = auto()
    """The same, and a text."""
    COUNT = auto()
    """A number of the varint kind, at the attribute's end."""
    DOUBLE = auto()
    """Eight bytes at the attribute's end."""


class _Step(NamedTuple):
    do: _Do
    same: bytes = b""
    name: str = ""
    size: int = 0


@dataclass(slots=True)
class Found:
    """Spans that are alike, by their positions, the first of them the one that all others are like.

    Columns have a value a span: ids in hex, times in nanoseconds, ``values`` by the meaning of the attribute. A span
    without ``parent_span_ids`` has none, or one that is the same in all.
    """

    positions: list[int]
    trace_ids: list[str]
    span_ids: list[str]
    parent_span_ids: list[str] | None
    start_ns: list[int]
    end_ns: list[int]
    values: dict[str, list[Any]]


@dataclass(slots=True)
class _Walked:
    """Spans on their way along the steps: where each is, what was found of it, and which are still alike."""

    positions: _Array
    at: _Array
    ends: _Array
    stop: _Array
    """Where the attribute ends in which they are."""
    alike: _Array
    taken: dict[str, _Array] = field(default_factory=dict)
    texts: list[tuple[str, _Array, _Array]] = field(default_factory=list)
    numbers: dict[str, _Array] = field(default_factory=dict)

    def narrow(self) -> None:
        """Go on with those that are alike alone."""
        keep = np.flatnonzero(self.alike)
        self.positions, self.at, self.ends = self.positions[keep], self.at[keep], self.ends[keep]
        self.stop, self.alike = self.stop[keep], np.ones(len(keep), bool)
        self.taken = {name: column[keep] for name, column in self.taken.items()}
        self.texts = [(name, begin[keep], stop[keep]) for name, begin, stop in self.texts]
        self.numbers = {name: column[keep] for name, column in self.numbers.items()}


# Number of the field, its tag and length as every sender writes them, bytes, name.
_TAKEN: Final = {
    1: (b"\x0a\x10", 16, "trace_id"),
    2: (b"\x12\x08", 8, "span_id"),
    4: (b"\x22\x08", 8, "parent_span_id"),
    7: (b"\x39", 8, "start"),
    8: (b"\x41", 8, "end"),
}
_NEEDED: Final = {1, 2, 7, 8}
_ATTRIBUTE, _EVENT = 9, 11
_TEXT, _TRUTH, _INT, _DOUBLE = 0x0A, 0x10, 0x18, 0x21


def find_alike(
    data: bytes, places: Sequence[tuple[int, int]], wanted: Names, varying: AbstractSet[str]
) -> tuple[list[Found], list[int]]:
    """Return the groups of spans that are alike, and the positions of all others.

    ``places``: where each span is. ``varying``: meanings of attributes that differ between spans that are alike; those that
    mean nothing to us may differ too, all others may not.
    """
    left = np.array([at for at, (start, end) in enumerate(places) if end - start <= LONGEST_BYTES], dtype=np.int64)
    if len(left) < FEWEST:
        return [], list(range(len(places)))
    groups: list[Found] = []
    where = np.array(places, dtype=np.int64)
    # What is the same in all may lead beyond a span's end, by a span's length at most, before that is looked at.
    padded = data + bytes(LONGEST_BYTES + _LONGEST_SAME)
    misses = 0
    for _ in range(_MOST_SHAPES):
        if len(left) < FEWEST or misses == _MOST_MISSES:
            break
        found: Found | None = None
        steps = _steps_of(padded, *places[int(left[0])], wanted, varying)
        if steps is not None:
            found = _read(padded, left, where[left, 0], where[left, 1], steps)
        if found is None:
            misses += 1
            left = left[1:]
        else:
            groups.append(found)
            left = np.setdiff1d(left, found.positions, assume_unique=True)
    grouped = {position for group in groups for position in group.positions}
    return groups, [position for position in range(len(places)) if position not in grouped]


class _Steps:
    """Steps while they are put together; bytes that must be the same are put into one step."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self._same = bytearray()
        self._best: dict[str, tuple[int, int]] = {}

    def same(self, octets: bytes) -> None:
        self._same += octets

    def then(self, do: _Do, name: str = "", size: int = 0) -> None:
        if self._same:
            self.steps.append(_Step(_Do.SAME, bytes(self._same)))
            self._same.clear()
        self.steps.append(_Step(do, b"", name, size))

    def claim(self, meaning: str, rank: int, *, varies: bool) -> None:
        """Note an attribute of this meaning, the step before if it varies: the best counts, of equals the first."""
        if meaning not in self._best or rank < self._best[meaning][0]:
            self._best[meaning] = rank, len(self.steps) - 1 if varies else -1

    def made(self) -> list[_Step] | None:
        if self._same:
            self.steps.append(_Step(_Do.SAME, bytes(self._same)))
        chosen = {at for _, at in self._best.values()}
        steps = [
            step._replace(name="") if step.do in (_Do.TEXT, _Do.COUNT, _Do.DOUBLE) and at not in chosen else step
            for at, step in enumerate(self.steps)
        ]
        if len(steps) > _MOST_STEPS or any(len(step.same) > _LONGEST_SAME for step in steps):
            return None
        return steps


def _steps_of(data: bytes, start: int, end: int, wanted: Names, varying: AbstractSet[str]) -> list[_Step] | None:
    """Return how to walk spans like this one; None where it is not written as senders write them."""
    steps = _Steps()
    seen: set[int] = set()
    try:
        for number, begin, at, stop in fields(data, start, end):
            if number in _TAKEN:
                head, size, name = _TAKEN[number]
                if number == 4 and stop == at:
                    steps.same(data[begin:stop])
                    continue
                if number in seen or data[begin:at] != head or stop - at != size:
                    return None
                seen.add(number)
                steps.same(head)
                steps.then(_Do.TAKE, name, size)
            elif number == _EVENT or (
                number == _ATTRIBUTE and not _attribute(steps, data, begin, at, stop, wanted, varying)
            ):
                return None
            elif number != _ATTRIBUTE:
                steps.same(data[begin:stop])
    except (BadBodyError, UnicodeDecodeError):
        return None
    return steps.made() if seen >= _NEEDED else None


def _attribute(
    steps: _Steps, data: bytes, begin: int, at: int, stop: int, wanted: Names, varying: AbstractSet[str]
) -> bool:
    """Add the steps of one attribute; False where it is not written as senders write them."""
    if data[begin] != 0x4A or stop - at < 4 or data[at] != 0x0A or data[at + 1] >= _LONG:
        return False
    value_at = at + 2 + data[at + 1]
    if value_at + 2 >= stop or data[value_at] != 0x12:
        return False
    size, inner = _varint_at(data, value_at + 1)
    if inner + size != stop or inner == stop:
        return False
    meaning, rank = wanted.get(data[at + 2 : value_at].decode(), ("", 0))
    kind = data[inner]
    if kind not in (_TEXT, _TRUTH, _INT, _DOUBLE):
        steps.same(data[begin:stop])  # a list or a map, which is never read, or nothing
        return True
    if not _is_whole(data, kind, inner + 1, stop):
        return False
    varies = kind != _TRUTH and (not meaning or meaning in varying)
    if not varies:
        steps.same(data[begin:stop])
    else:
        steps.same(b"\x4a")
        steps.then(_Do.OPEN)
        steps.same(data[at : value_at + 1])
        steps.then(_Do.CLOSE)
        steps.same(bytes((kind,)))
        steps.then({_TEXT: _Do.TEXT, _INT: _Do.COUNT, _DOUBLE: _Do.DOUBLE}[kind], meaning)
    if meaning:
        steps.claim(meaning, rank, varies=varies)
    return True


def _is_whole(data: bytes, kind: int, at: int, stop: int) -> bool:
    """Whether a value of this kind, begun before ``at``, is all there is up to ``stop``."""
    if kind == _DOUBLE:
        return at + 8 == stop
    number, after = _varint_at(data, at)
    return after + number == stop if kind == _TEXT else after == stop


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_VARINT_BYTES):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < _LONG:
            return value, at + place + 1
    raise BadBodyError("malformed", f"an odd number at byte {at}")


def _read(padded: bytes, positions: _Array, starts: _Array, ends: _Array, steps: Sequence[_Step]) -> Found | None:
    walked = _walk(padded, positions, starts, ends, steps)
    if walked is None:
        return None
    columns = [(name, _texts(padded, begin, stop)) for name, begin, stop in walked.texts]
    odd = [column for _, column in columns if None in column]
    broken = sorted({at for column in odd for at, text in enumerate(column) if text is None})
    texts = {name: column for name, column in columns if name}
    if broken:
        sound = sorted(set(range(len(walked.at))).difference(broken))
        texts = {name: [column[at] for at in sound] for name, column in texts.items()}
        walked.alike[broken] = False
        is_of_itself = 0 not in broken
        if len(sound) < FEWEST or not is_of_itself:
            return None
        walked.narrow()
    parents = walked.taken.get("parent_span_id")
    return Found(
        walked.positions.tolist(),
        _hex(walked.taken["trace_id"]),
        _hex(walked.taken["span_id"]),
        None if parents is None else _hex(parents),
        walked.taken["start"].view("<u8").tolist(),
        walked.taken["end"].view("<u8").tolist(),
        texts | {name: column.tolist() for name, column in walked.numbers.items() if name},
    )


def _walk(padded: bytes, positions: _Array, starts: _Array, ends: _Array, steps: Sequence[_Step]) -> _Walked | None:
    """Walk all spans along the steps, and return those that are alike; None where they are too few, or not the first."""
    octets = np.frombuffer(padded, np.uint8)
    walked = _Walked(positions, starts.copy(), ends, ends, np.ones(len(starts), bool))
    for step in steps:
        _do(step, walked, padded, octets)
        if step.do is _Do.SAME and not walked.alike.all():
            left = np.count_nonzero(walked.alike)
            if left < FEWEST:
                return None
            if left < len(walked.alike) * _NARROW_BELOW:
                walked.narrow()
    walked.alike &= walked.at == walked.ends
    if np.count_nonzero(walked.alike) < FEWEST or walked.positions[walked.alike][0] != positions[0]:
        return None
    walked.narrow()
    return walked


def _do(step: _Step, walked: _Walked, padded: bytes, octets: _Array) -> None:
    at = walked.at
    if step.do is _Do.SAME:
        _compare(padded, at, step.same, walked.alike)
        walked.at = at + len(step.same)
    elif step.do is _Do.TAKE:
        walked.taken[step.name] = _gathered(padded, at, step.size)
        walked.at = at + step.size
    elif step.do is _Do.DOUBLE:
        walked.numbers[step.name] = _gathered(padded, at, 8).view("<f8")
        walked.at = at + 8
        walked.alike &= walked.at == walked.stop
    else:
        number, walked.at = _varints(padded, octets, at, walked.alike)
        if step.do is _Do.OPEN:
            stop = walked.at + number
            walked.alike &= stop <= walked.ends  # nor did anything before lead beyond it
            walked.stop = np.minimum(stop, walked.ends)
        elif step.do is _Do.COUNT:
            walked.numbers[step.name] = number
            walked.alike &= walked.at == walked.stop
        else:
            walked.alike &= walked.at + number == walked.stop
            if step.do is _Do.TEXT:
                walked.texts.append((step.name, walked.at, walked.stop))
                walked.at = walked.stop


def _compare(padded: bytes, at: _Array, same: bytes, alike: _Array) -> None:
    """Take out of those that are alike all that have other bytes here."""
    there = _gathered(padded, at, len(same)).tobytes()
    if there != same * len(at):
        equal = np.frombuffer(there, np.uint8).reshape(len(at), -1) == np.frombuffer(same, np.uint8)
        alike &= equal.all(axis=1)


def _gathered(padded: bytes, at: _Array, size: int) -> _Array:
    """Return ``size`` bytes from each of these places."""
    everywhere: _Array = np.ndarray((len(padded) - size + 1,), f"V{size}", padded, strides=(1,))
    return everywhere[at]


def _varints(padded: bytes, octets: _Array, at: _Array, alike: _Array) -> tuple[_Array, _Array]:
    """Return the number at each of these places, and where the next thing begins; those too long are not alike."""
    first = octets[at].astype(np.int64)
    if int(first.max()) < _LONG:
        return first, at + 1
    eight = _gathered(padded, at, 8).view("<i8")
    value = first & 0x7F
    after = at + 1
    more = first >= _LONG
    for place in range(1, _VARINT_BYTES):
        byte = eight >> 8 * place & 0xFF
        value += np.where(more, (byte & 0x7F) << 7 * place, 0)
        after += more
        more = more & (byte >= _LONG)
        if not more.any():
            return value, after
    alike &= ~more
    return value, after


def _texts(data: bytes, begin: _Array, stop: _Array) -> list[str | None]:
    """Return the texts between these places, None for what is none."""
    places = zip(begin.tolist(), stop.tolist(), strict=True)
    try:
        return [data[start:end].decode() for start, end in places]
    except UnicodeDecodeError:
        return [_text(data[start:end]) for start, end in zip(begin.tolist(), stop.tolist(), strict=True)]


def _text(octets: bytes) -> str | None:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return None


def _hex(ids: _Array) -> list[str]:
    digits = 2 * ids.dtype.itemsize
    text = ids.tobytes().hex()
    return [text[at : at + digits] for at in range(0, len(text), digits)]
