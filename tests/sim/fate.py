"""What befalls boards and nodes: reloads, silences, moves. Drawn apart from jobs, so that weather changes no truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.sim.jobs import HOUR_US, node_of
from tests.sim.spec import WorldSpec
from tests.sim.steps import on_grid


@dataclass(frozen=True, slots=True)
class Stay:
    """A board stands in a node during [start, end); None = no limit."""

    node: int
    start_us: int | None
    end_us: int | None

    def covers(self, at_us: int) -> bool:
        return (self.start_us is None or at_us >= self.start_us) and (self.end_us is None or at_us < self.end_us)


@dataclass(frozen=True, slots=True)
class Fate:
    """All of it, instants in µs from the first hour, on the grid."""

    reloads: dict[int, list[int]]
    """By node, ascending."""
    silences: dict[int, tuple[int, int]]
    """By board, half-open."""
    stays: dict[int, list[Stay]]

    def resets(self, board: int) -> list[int]:
        """Return when a board's counter begins at 0, ascending: a driver load of the node it stands in, or its arrival."""
        found = [stay.start_us for stay in self.stays[board] if stay.start_us is not None]
        found += [at for stay in self.stays[board] for at in self.reloads[stay.node] if stay.covers(at)]
        return sorted(found)


def draw_fate(spec: WorldSpec) -> Fate:
    """Draw what befalls the world of this spec."""
    weather, until = spec.weather, spec.hours * HOUR_US
    draw = np.random.default_rng([spec.seed, 5])
    if weather.moved_devices and spec.nodes < 2:
        raise ValueError(f"{weather.moved_devices} boards cannot move: the world has one node")
    reloads = {
        node: [on_grid(float(at)) for at in draw.uniform(0, until / 1e6, draw.poisson(weather.reset_rate * spec.hours))]
        for node in range(1, spec.nodes + 1)
    }
    silences = {}
    for board in range(1, spec.boards + 1) if weather.silence_s else ():
        start = on_grid(float(draw.uniform(0, max(until / 1e6 - weather.silence_s, 1))))
        silences[board] = (start, start + on_grid(weather.silence_s))
    if weather.reload_in_outage and silences:
        reloads[node_of(1, spec)].append(on_grid(sum(silences[1]) / 2e6))
    stays = {}
    for board in range(1, spec.boards + 1):
        home = node_of(board, spec)
        stays[board] = [Stay(home, None, None)]
        if board <= weather.moved_devices:
            left = on_grid(float(draw.uniform(0, until / 1e6)))
            stays[board] = [Stay(home, None, left), Stay(home % spec.nodes + 1, left, None)]
    return Fate({node: sorted(set(found)) for node, found in reloads.items()}, silences, stays)
