"""Who holds what when, and the power that comes of it: boards one job at a time, and boards shared by several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tests.sim.spec import SLICES, JobMix, Sharing, WorldSpec
from tests.sim.steps import STEP_MW, Ints, Rectangle, in_steps, on_grid, runs
from tests.sim.truth import IDLE, Rectangles, job_holder

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3_600 * SECOND_US
MARGIN_US: Final = 900 * SECOND_US
"""How far before the first hour and after the last one the world goes on, so that both have readings around them."""
_STAIR_US: Final = 100_000
_PHASE_S: Final = 7
"""How long a job of a shared board works alike."""
INSTANCES_OF_A_BOARD: Final = 100
"""Ids of a board's MIG instances: board x this + a number of their own."""


@dataclass(frozen=True, slots=True)
class SimHold:
    """A job has a board, or ``weight_num/weight_den`` of it, during [start, end) µs from the first hour."""

    job: int
    board: int
    start_us: int
    end_us: int
    weight_num: int = 1
    weight_den: int = 1
    instance: int | None = None
    """The MIG instance that is held."""


@dataclass(frozen=True, slots=True)
class Work:
    """True SM time of one job on a shared board, a value (0-1) for each second from ``first_s`` on."""

    hold: SimHold
    first_s: int
    sm_ratio: NDArray[np.float64]


def node_of(board: int, spec: WorldSpec) -> int:
    """Return the node a board stands in at first: boards and nodes are numbered from 1."""
    return (board - 1) * spec.nodes // spec.boards + 1


def put_to_work(spec: WorldSpec, into: Rectangles) -> tuple[list[SimHold], list[Work]]:
    """Draw the jobs of all boards; return what they hold and the activity on shared boards, and add their power."""
    draw = np.random.default_rng([spec.seed, 1])
    for board in range(1, spec.boards + 1):
        into.floor_mw[board] = in_steps(float(draw.uniform(*spec.floor_w)))
    shared = 0
    holds: list[SimHold] = []
    works: list[Work] = []
    if spec.sharing is not None:
        shared = min(spec.boards, spec.sharing.boards or spec.boards)
        # So that each slot's part of the floor is a whole number of steps.
        whole = STEP_MW * (SLICES if spec.sharing.kind == "mig" else spec.sharing.clients)
        for board in range(1, shared + 1):
            into.floor_mw[board] = into.floor_mw[board] // whole * whole
            room = spec.jobs.count * board // spec.boards - len(holds)
            slots = np.random.default_rng([spec.seed, 2, board])
            mine = _shared_board(spec, spec.sharing, board, len(holds) + 1, room, slots)
            _shared_power(spec.sharing, board, mine, into, spec, np.random.default_rng([spec.seed, 3, board]), works)
            holds += mine
    rest = list(range(shared + 1, spec.boards + 1))
    if rest:
        holds += _one_at_a_time(spec, rest, len(holds), into, np.random.default_rng([spec.seed, 4]))
    return holds, works


def _one_at_a_time(
    spec: WorldSpec, boards: list[int], jobs: int, into: Rectangles, draw: np.random.Generator
) -> list[SimHold]:
    """Give each job the boards of one node that are free first."""
    mix, until = spec.jobs, spec.hours * HOUR_US
    free = dict.fromkeys(boards, max(on_grid(mix.first_s), -MARGIN_US))
    idle_since = dict.fromkeys(boards, -MARGIN_US)
    holds: list[SimHold] = []
    open_boards = set(boards)
    while open_boards and jobs < mix.count:
        first = min(open_boards, key=lambda board: (free[board], board))
        beside = sorted(
            (board for board in open_boards if node_of(board, spec) == node_of(first, spec)),
            key=lambda board: (free[board], board),
        )
        taken = beside[: int(draw.integers(mix.boards_each[0], mix.boards_each[1] + 1))]
        start = max(free[board] for board in taken) + on_grid(float(draw.uniform(*mix.gap_s)))
        end = min(start + max(on_grid(float(draw.uniform(*mix.duration_s))), on_grid(0.01)), until + MARGIN_US)
        if start >= until:
            open_boards.discard(first)
            continue
        jobs += 1
        for board in taken:
            floor = into.floor_mw[board]
            into.add(board, IDLE, "floor", (idle_since[board], start, floor))
            into.add(board, job_holder(jobs), "floor", (start, end, floor))
            active = max(in_steps(float(draw.uniform(*mix.power_w))) - floor, 0)
            for shape in shapes(mix, start, end, active):
                into.add(board, job_holder(jobs), "active", shape)
            holds.append(SimHold(jobs, board, start, end))
            free[board] = idle_since[board] = end
    for board in boards:
        into.add(board, IDLE, "floor", (idle_since[board], until + MARGIN_US, into.floor_mw[board]))
    return holds


def shapes(mix: JobMix, start_us: int, end_us: int, active_mw: int) -> list[Rectangle]:
    """Return the active power of one job as rectangles: steady, after a ramp, or a square wave."""
    if mix.wave_s:
        half = on_grid(mix.wave_s / 2)
        return [(at, min(at + half, end_us), active_mw) for at in range(start_us, end_us, 2 * half)]
    stairs = on_grid(mix.ramp_s) // _STAIR_US
    if not stairs or end_us - start_us < 2 * stairs * _STAIR_US:
        return [(start_us, end_us, active_mw)]
    rising = [
        (start_us + k * _STAIR_US, start_us + (k + 1) * _STAIR_US, in_steps(active_mw * (2 * k + 1) / (2_000 * stairs)))
        for k in range(stairs)
    ]
    return [*rising, (start_us + stairs * _STAIR_US, end_us, active_mw)]


def _shared_board(
    spec: WorldSpec, sharing: Sharing, board: int, job: int, room: int, draw: np.random.Generator
) -> list[SimHold]:
    """Fill the slots of one board, whole seconds each, up to ``room`` jobs."""
    holds: list[SimHold] = []
    for layout, (begins, ends) in enumerate(_layout_times(spec, sharing)):
        slots = sharing.profiles[layout] if sharing.kind == "mig" else (1,) * sharing.clients
        weight_den = SLICES if sharing.kind == "mig" else sharing.clients
        at = [max(begins, round(spec.jobs.first_s)) for _ in slots]
        while len(holds) < room and any(second < ends for second in at):
            slot = int(np.argmin(at))
            start = at[slot] + round(float(draw.uniform(*spec.jobs.gap_s)))
            end = min(start + max(1, round(float(draw.uniform(*spec.jobs.duration_s)))), ends)
            at[slot] = end if start < ends else ends
            if start >= min(ends, spec.hours * 3_600):
                at[slot] = ends
                continue
            number = board * INSTANCES_OF_A_BOARD + layout * 10 + slot
            instance = number if sharing.kind == "mig" else None
            span = (start * SECOND_US, end * SECOND_US)
            holds.append(SimHold(job + len(holds), board, *span, slots[slot], weight_den, instance))
    return holds


def _layout_times(spec: WorldSpec, sharing: Sharing) -> list[tuple[int, int]]:
    """Return from when to when (s) each layout of the board holds."""
    margin = MARGIN_US // SECOND_US
    begins, ends = -margin, spec.hours * 3_600 + margin
    if sharing.reconfigure_at_s is None or sharing.kind != "mig" or len(sharing.profiles) == 1:
        return [(begins, ends)]
    middle = round(sharing.reconfigure_at_s)
    return [(begins, middle), (middle, ends)]


def _shared_power(
    sharing: Sharing,
    board: int,
    holds: list[SimHold],
    into: Rectangles,
    spec: WorldSpec,
    draw: np.random.Generator,
    works: list[Work],
) -> None:
    """Add the power of one shared board: active ones slow each other down; the floor goes by what each is entitled to."""
    begins = -MARGIN_US // SECOND_US
    seconds = spec.hours * 3_600 - 2 * begins
    common = _phases(draw, seconds)
    sm = np.zeros((len(holds), seconds))
    for number, hold in enumerate(holds):
        first, last = hold.start_us // SECOND_US - begins, hold.end_us // SECOND_US - begins
        own = _phases(draw, seconds)
        phases = sharing.correlation * common + (1 - sharing.correlation) * own
        mixed = sharing.steadiness * float(draw.uniform()) + (1 - sharing.steadiness) * phases
        low, high = sharing.activity
        sm[number, first:last] = (low + (high - low) * mixed)[first:last]
    weight = np.array([hold.weight_num / hold.weight_den for hold in holds])[:, None]
    if sharing.kind == "mps" and sharing.capped:
        sm = np.minimum(sm, weight)
    if sharing.kind != "mig":
        # One device has one device's SM time to give.
        sm /= np.maximum(sm.sum(axis=0), 1)
    of_board = sm * weight if sharing.kind == "mig" else sm
    overlap = np.clip(of_board.sum(axis=0) - of_board, 0, 1)
    full_w = draw.uniform(*spec.jobs.power_w, size=len(holds))[:, None]
    active_w = full_w * of_board * (1 - sharing.contention * overlap)
    active_mw = (np.round(active_w * 10) * 100).astype(np.int64)
    held = np.zeros(seconds, dtype=np.int64)
    parts = [into.floor_mw[board] * hold.weight_num // hold.weight_den for hold in holds]
    for number, hold in enumerate(holds):
        first, last = hold.start_us // SECOND_US - begins, hold.end_us // SECOND_US - begins
        for shape in _rectangles(active_mw[number], begins):
            into.add(board, job_holder(hold.job), "active", shape)
        into.add(board, job_holder(hold.job), "floor", (hold.start_us, hold.end_us, parts[number]))
        held[first:last] += parts[number]
        works.append(Work(hold, hold.start_us // SECOND_US, sm[number, first:last].copy()))
    for shape in _rectangles(into.floor_mw[board] - held, begins):
        into.add(board, IDLE, "floor", shape)


def _phases(draw: np.random.Generator, seconds: int) -> NDArray[np.float64]:
    return np.repeat(draw.uniform(0, 1, seconds // _PHASE_S + 1), _PHASE_S)[:seconds]


def _rectangles(power_mw: Ints, begins_s: int) -> list[Rectangle]:
    return [((first + begins_s) * SECOND_US, (last + begins_s) * SECOND_US, mw) for first, last, mw in runs(power_mw)]
