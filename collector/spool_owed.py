"""Remembers which bodies of one lane are settled though their rows are still in the file, because the disk did not let them go.

They are never given out again by this process; after a restart they are, and the server counts them once. It deletes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MAX_PUT_OFF: Final = 100


class Owed:
    """The rows of one lane that are to be deleted, or to be moved away, and that nobody is to see meanwhile."""

    def __init__(self) -> None:
        """Owe nothing."""
        self.floor = 0
        """Whatever is in the file up to this number is to be deleted; a number each would be megabytes after an outage."""
        self.above: set[int] = set()
        self.put_off: dict[int, tuple[str, int]] = {}
        """Refused bodies that could not be moved into quarantine yet, each with the reason and the instant."""
        self._below_floor = False

    def __bool__(self) -> bool:
        """Say whether there is anything to do."""
        return bool(self.above or self.put_off or self._below_floor)

    def add(self, sequence: int) -> None:
        """Owe the deletion of a body."""
        if sequence > self.floor:
            self.above.add(sequence)

    def deleted(self) -> None:
        """Note that all deletions were done."""
        self.above.clear()
        self._below_floor = False

    def first_seen(self, sequences: Iterable[int], after: int) -> int | None:
        """Return the first number that is not owed; they are the lane's, ascending, from beyond ``after`` and the floor."""
        from_floor = after <= self.floor
        for sequence in sequences:
            if sequence in self.above:
                if from_floor:
                    self.floor, self._below_floor = sequence, True
                    self.above.discard(sequence)
            elif sequence in self.put_off:
                from_floor = False
            else:
                return sequence
        return None

    def hides(self, sequence: int) -> bool:
        """Say whether nobody is to see that body."""
        return sequence <= self.floor or sequence in self.above or sequence in self.put_off
