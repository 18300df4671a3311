"""What is fuzzed: each decoder with bodies that real senders made, and the refusals it may answer with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder. ``decode`` takes any bytes; whatever it raises beside ``refusals`` is a fault."""

    name: str
    seeds: Sequence[bytes]
    decode: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    words: Sequence[bytes] = ()
    grows_mib: int = 128
    """How much more memory than its seeds one input may take, high water, in MiB."""


def all_targets() -> list[Target]:
    """Return every target; seeds are read and made now."""
    from tests.fuzz import files, wires  # noqa: PLC0415 - they import this module's Target

    return [*wires.targets(), *files.targets()]
