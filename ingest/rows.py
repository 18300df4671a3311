"""Many objects of one dataclass kept as columns: an object is made only where somebody asks for one.

What thousands of spans say goes from the wire to COPY in columns; making an object of each costs more than decoding it.
Pure. It refuses columns of different lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Rows(Sequence[T], Generic[T]):
    """A sequence of ``kind``, whose fields are ``columns`` of that name, one value a row. Not to be changed."""

    __slots__ = ("_count", "columns", "kind")

    def __init__(self, kind: type[T], columns: Mapping[str, list[Any]]) -> None:
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1 or columns.keys() != set(_names(kind)):
            raise ValueError(f"columns of {kind.__name__} have {sorted(lengths)} rows and are {sorted(columns)}")
        self.kind = kind
        self.columns = columns
        self._count = lengths.pop()

    @classmethod
    def of(cls, kind: type[T], objects: Sequence[T]) -> Rows[T]:
        """Return these objects as columns."""
        if isinstance(objects, Rows):
            return objects
        names = _names(kind)
        values = zip(*map(attrgetter(*names), objects), strict=True) if objects else ((),) * len(names)
        return cls(kind, {name: list(column) for name, column in zip(names, values, strict=True)})

    @classmethod
    def joined(cls, kind: type[T], parts: Iterable[Sequence[T]]) -> Rows[T]:
        """Return the rows of all these parts, in their order."""
        given = [cls.of(kind, part) for part in parts if len(part)]
        if len(given) == 1:
            return given[0]
        columns: dict[str, list[Any]] = {name: [] for name in _names(kind)}
        for part in given:
            for name, column in part.columns.items():
                columns[name] += column
        return cls(kind, columns)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Rows[T]: ...
    def __getitem__(self, at: int | slice) -> T | Rows[T]:
        if isinstance(at, slice):
            return Rows(self.kind, {name: column[at] for name, column in self.columns.items()})
        return self.kind(**{name: column[at] for name, column in self.columns.items()})


def _names(kind: Any) -> tuple[str, ...]:
    return _known(kind)


@cache
def _known(kind: Any) -> tuple[str, ...]:
    return tuple(entry.name for entry in fields(kind))
