"""What a simulated world is made of and how it is looked at: values only, nothing is drawn here.

Seconds and watts, as one writes them down; the world itself reckons in microseconds and milliwatts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Span = tuple[float, float]
"""From and to; a value is drawn evenly between them."""
Kind = Literal["mig", "time_slice", "mps"]
Gauge = Literal["counter", "average", "instant_25_of_100"]


@dataclass(frozen=True, slots=True)
class JobMix:
    """Jobs one after the other on each board (or slot of a shared one), as many as fit, at most ``count``."""

    count: int = 50
    duration_s: Span = (5, 300)
    power_w: Span = (90, 700)
    """Power of the board while the job runs, its floor included; of a shared board, what full activity would add to its floor."""
    ramp_s: float = 0
    """How long the power of a job takes to get there, in stairs of 100 ms; of a job at least twice as long."""
    wave_s: float = 0
    """Period of a square wave on the active power, half of it at no activity; 0 = steady."""
    gap_s: Span = (0, 60)
    """Time without a job between two."""
    boards_each: tuple[int, int] = (1, 1)
    """How many boards of one node a job takes, if the node has as many; on shared boards always one slot."""
    first_s: float = -300
    """No job begins before; below 0, some hold over the beginning of the first hour."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the first ``boards`` boards are shared. Activity changes on the second."""

    kind: Kind
    profiles: tuple[tuple[int, ...], ...] = ((3, 2, 2),)
    """MIG only: slices (of 7) of the instances of each layout; the second layout holds from ``reconfigure_at_s`` on."""
    reconfigure_at_s: float | None = None
    clients: int = 3
    """Slots of a time-sliced or MPS board; each is entitled to an equal share of the floor."""
    boards: int | None = None
    """None = all."""
    correlation: float = 0.0
    """0 = each job has its own phases, 1 = all of a board work at the same times."""
    contention: float = 0.2
    """By how much of its active power a job loses where all the rest of the board is active too."""
    activity: Span = (0.05, 0.95)
    """Between which a job's SM time lies, of what it is given."""
    steadiness: float = 0.7
    """How much of that is the job's own level, all the time, so that jobs differ; the rest goes up and down by phases."""
    clock_distortion: float = 0.1
    """Seen activity is true SM time x a factor of the job's own, 1 +- this: activity at other clocks is other power."""
    capped: bool = True
    """MPS only: threads are capped, without which no client's activity is told apart."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What goes wrong. Default: nothing does."""

    reset_rate: float = 0
    """Driver reloads per node and hour: its boards' counters begin at 0, in a new epoch."""
    silence_s: float = 0
    """Each board is silent once, for so long."""
    reload_in_outage: bool = False
    """Its node's driver is loaded again in the middle of the first board's silence."""
    wrap_mj: int | None = None
    """Node meters begin at 0 again whenever they reach this."""
    two_feeds: bool = False
    """The same counters are read by DCGM too, at 30 s, which is never silent."""
    moved_devices: int = 0
    """So many boards leave for the next node, at some time, and begin to count at 0 there."""
    lost_end_rate: float = 0
    """Of holds whose end nobody told; of half of these the job's end is known."""
    requeue_rate: float = 0
    """Of jobs that have the native id of the job before them on their board."""
    clock_jitter_us: int = 0
    """By how much the instant written is off, at most; readings stay in order."""
    node_meter_gain: float | None = None
    """A node meter reads (boards + overhead) x this; None = no node has a meter."""
    failing_evidence: float = 0
    """Of holds that a second source tells of another job, on thinner evidence."""
    overlap_rate: float = 0
    """Of holds that are told of another job too in their second half, on evidence as good."""
    count_only_rate: float = 0
    """Of jobs on whole boards that nobody tells more of than a node and how many boards of it."""


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """All that decides a world; equal values are equal bytes."""

    seed: int = 0
    hours: int = 1
    boards: int = 4
    nodes: int = 1
    jobs: JobMix = field(default_factory=JobMix)
    sharing: Sharing | None = None
    weather: Weather = field(default_factory=Weather)
    floor_w: Span = (60, 110)
    """Power of a board at rest."""
    overhead_w: float = 400
    """Power of a node beside its boards."""

    def __post_init__(self) -> None:
        if self.hours < 1 or self.boards < self.nodes or self.nodes < 1:
            raise ValueError(f"{self.boards} boards on {self.nodes} nodes for {self.hours} hours is no world")
        if self.sharing is not None and any(sum(layout) > SLICES for layout in self.sharing.profiles):
            raise ValueError(f"a board has {SLICES} slices, layouts {self.sharing.profiles} want more")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the world is looked at."""

    cadence_s: float = 10
    jitter_s: float = 0.5
    """A reading is taken up to so much before or after its turn, and says when; 0 = on the second, on the hour too."""
    exact_at_events: bool = True
    """A reading is taken where a hold begins and ends, as agents do."""
    event_delay_s: float = 0
    """That reading comes up to so much after the event, and says when."""
    refresh_s: float = 0
    """A counter or gauge shows what it was at its last refresh, at most so long ago; 0 = always of now."""
    hook_anchors: bool = False
    """Counter values that hooks read where a hold begins and ends: in ``anchors``, not among the readings."""
    gauge: Gauge = "counter"
    process_period_s: float = 5
    process_noise: float = 0.05
    """Standard deviation of an activity read, of full activity."""


SLICES = 7
"""Compute slices of a MIG-capable board."""
