"""The true energy of a simulated world: who used how much, on which board, active and floor apart. It is read, never fitted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, Literal

from analytics.frames import HOLDER_IDLE, HOLDER_JOB_PREFIX
from tests.sim.steps import Rectangle, Steps

Part = Literal["floor", "active"]
PARTS: Final[tuple[Part, ...]] = ("floor", "active")
Key = tuple[int, str, Part]
"""Board, holder, part."""


def job_holder(job: int) -> str:
    return f"{HOLDER_JOB_PREFIX}{job}"


class Rectangles:
    """Power as it is being put together: rectangles by board, holder and part."""

    def __init__(self) -> None:
        self.by_key: dict[Key, list[Rectangle]] = defaultdict(list)
        self.floor_mw: dict[int, int] = {}
        """Power of each board at rest, all the time."""

    def add(self, board: int, holder: str, part: Part, shape: Rectangle) -> None:
        if shape[0] < shape[1] and shape[2]:
            self.by_key[board, holder, part].append(shape)


class Truth:
    """Energy between any two instants of the grid, an exact integer.

    Holders are those of the books: ``job:<id>`` and ``idle``. The floor of a board is its holders' by what they are entitled
    to, and idle's for the rest; active power is whose work it is.
    """

    def __init__(self, rectangles: Rectangles) -> None:
        self.floor_mw = dict(rectangles.floor_mw)
        self._steps = {key: Steps(shapes) for key, shapes in rectangles.by_key.items()}
        of_board: dict[int, list[Rectangle]] = defaultdict(list)
        self._of_holder: dict[str, list[Key]] = defaultdict(list)
        for key, shapes in rectangles.by_key.items():
            of_board[key[0]] += shapes
            self._of_holder[key[1]].append(key)
        self._boards = {board: Steps(shapes) for board, shapes in of_board.items()}

    @property
    def boards(self) -> list[int]:
        return sorted(self._boards)

    @property
    def holders(self) -> list[str]:
        return sorted(self._of_holder)

    def board(self, board: int) -> Steps:
        """Return the power of a board: what its instruments are pointed at."""
        return self._boards[board]

    def energy_mj(
        self,
        from_us: int,
        to_us: int,
        *,
        device: int | None = None,
        holder: str | None = None,
        part: Part | None = None,
    ) -> int:
        """Return the energy (mJ) of [from, to): of all, or of one board, one holder, one part, or any of these together."""
        if holder is None and part is None:
            wanted = self._boards if device is None else {device: self._boards[device]}
            return sum(steps.energy_mj(from_us, to_us) for steps in wanted.values())
        keys: Iterable[Key] = self._steps if holder is None else self._of_holder.get(holder, [])
        return sum(
            self._steps[key].energy_mj(from_us, to_us)
            for key in keys
            if (device is None or key[0] == device) and (part is None or key[2] == part)
        )


IDLE: Final = HOLDER_IDLE
