"""The laws of the job ledger, for any interleaving of evidence."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.jobs.evidence import Change, Evidence, Grant, Job, JobKey, Use
from collector.jobs.ledger import Ledger
from collector.jobs.roster import Roster
from collector.jobs.state import Memory, dump, load
from tests.fakes.holdings import check_no_overlap, held_by_device

pytestmark = pytest.mark.property

S = 1_000_000
T0 = 1_800_000_000 * S
DEVICES = ("GPU-1", "GPU-2", "GPU-3")


def job(number: int, run: int = 0) -> Job:
    return Job(JobKey("lab", str(number), T0 + run * S))


JOBS = st.builds(job, st.integers(1, 4), st.integers(0, 1))
DEVICE_SETS = st.lists(st.sampled_from(DEVICES), max_size=3, unique=True)


@dataclass
class Step:
    """One piece of evidence and how long after the one before it came; ``late_us`` is how old it was then."""

    kind: str
    after_us: int
    late_us: int
    jobs: list[Job]
    devices: list[str]
    shared: bool


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["grant", "release", "mapped", "pods", "used", "used", "restart"]),
        st.integers(0, 8 * S),
        st.sampled_from([0, 0, 0, 1, S, 5 * S]),
        st.lists(JOBS, min_size=1, max_size=3, unique_by=lambda entry: entry.key),
        DEVICE_SETS,
        st.booleans(),
    ),
    max_size=40,
)


def apply(ledger: Ledger, step: Step, at_us: int) -> None:
    weight = 1 if step.shared else None
    if step.kind == "grant":
        ledger.granted(at_us, step.devices, Grant(step.jobs[0], Evidence.HOOK, at_us, None, weight))
    elif step.kind == "release":
        ledger.released(at_us, step.jobs[0].key)
    elif step.kind == "used":
        uses = {uuid: [Use(entry, Evidence.CGROUP, at_us - 3 * S) for entry in step.jobs] for uuid in step.devices}
        ledger.used(dict.fromkeys(DEVICES, at_us), uses)
    else:
        evidence = Evidence.JOB_MAPPING if step.kind == "mapped" else Evidence.POD_RESOURCES
        since_us = at_us - 2 * S if step.kind == "mapped" else None
        ledger.stated(
            at_us, evidence, {uuid: [Grant(entry, evidence, since_us) for entry in step.jobs] for uuid in step.devices}
        )


def restarted(ledger: Ledger) -> Ledger:
    again, roster = Ledger(), Roster("lab")
    assert load(dump(Memory("boot"), ledger, Roster("lab")), again, roster) is not None
    return again


@given(STEPS)
@settings(max_examples=120, deadline=None)
def test_whatever_is_said_in_whatever_order_no_device_is_held_twice_and_no_end_comes_twice(steps: list[Step]) -> None:
    ledger = Ledger()
    changes: list[Change] = []
    at_us = T0 + 100 * S
    for step in steps:
        at_us += step.after_us
        if step.kind == "restart":
            ledger = restarted(ledger)
        else:
            apply(ledger, step, at_us - step.late_us)
        changes += ledger.take()[0]
    for holdings in held_by_device(changes).values():
        check_no_overlap(holdings, at_us + S)


@given(STEPS)
@settings(max_examples=50, deadline=None)
def test_the_same_evidence_told_twice_changes_nothing(steps: list[Step]) -> None:
    ledger = Ledger()
    at_us = T0 + 100 * S
    for step in steps:
        at_us += step.after_us
        if step.kind == "restart":
            continue
        apply(ledger, step, at_us)
        ledger.take()
        if step.kind == "grant" and not step.shared:
            apply(ledger, step, at_us)
            assert ledger.take()[0] == []


@given(STEPS, st.integers(0, 3_600 * S))
@settings(max_examples=60, deadline=None)
def test_after_a_clock_was_set_back_a_hook_s_job_holds_its_device_from_that_instant_on(
    steps: list[Step], back_us: int
) -> None:
    ledger = Ledger()
    at_us = T0 + 5_000 * S
    for step in steps:
        at_us += step.after_us
        if step.kind != "restart":
            apply(ledger, step, at_us)
    at_us -= back_us
    ledger.clock_set_back(at_us)
    for number in (31, 32):  # the second after the first one's end, and that after whatever ran when the clock was set
        ledger.take()
        ledger.granted(at_us + 1, DEVICES, Grant(job(number), Evidence.HOOK, at_us + 1))
        begun = [change for change in ledger.take()[0] if change.begins]
        assert {(change.device_uuid, change.at_us) for change in begun if change.job.key.native_id == str(number)} == {
            (uuid, at_us + 1) for uuid in DEVICES
        }
        ledger.released(at_us + 2, job(number).key)
        at_us += 2


@dataclass
class Board:
    """One GPU with a counter that knows no jobs: constant power between two instants at which the power changes."""

    times: list[int] = field(default_factory=list)
    energies: list[int] = field(default_factory=list)

    def go_on(self, until_us: int, power_mw: int) -> None:
        since_us, energy = self.times[-1], self.energies[-1]
        self.times.append(until_us)
        self.energies.append(energy + power_mw * (until_us - since_us) // 1_000_000)

    def at(self, at_us: int) -> int:
        """The interpolated counter of the books (ADR 0006): whole millijoules, rounded down."""
        if at_us >= self.times[-1]:
            return self.energies[-1]
        left = bisect_right(self.times, at_us) - 1
        grown, width = self.energies[left + 1] - self.energies[left], self.times[left + 1] - self.times[left]
        return self.energies[left] + grown * (at_us - self.times[left]) // width


@dataclass(frozen=True)
class Told:
    """A piece of evidence of the play: when the agent gets it, when it was so, what, where and whose."""

    arrives_us: int
    at_us: int
    what: str
    uuid: str
    job: Job

    @property
    def order(self) -> tuple[bool, int, bool]:
        """As one reading of the agent takes it in: hooks by their own instants, ends first, then the processes."""
        return self.what == "used", self.at_us, self.what == "grant"


class Play:
    """Jobs of 2 ms to minutes follow each other on 8 GPUs, some at the very microsecond; hooks tell of all.

    The truth is kept by the one who plays: what each job drew while it had the device. The driver's list of processes is looked at
    every five seconds and up to a second old; the second half of each job runs none. One hook in twenty is read up to a second late,
    but, as the agent reads hooks first and a prolog ends before its job's first process, never after a process of its own job.
    """

    def __init__(self, seed: int, jobs: int) -> None:
        self.rng = random.Random(seed)
        self.boards = {f"GPU-{number}": Board([T0], [0]) for number in range(8)}
        self.truth: dict[tuple[str, JobKey], int] = {}
        self.evidence: list[Told] = []
        for uuid, board in self.boards.items():
            arrives_us = 0
            for number in range(jobs // len(self.boards)):
                arrives_us = self._job(uuid, board, f"{uuid[4:]}{number:05}", arrives_us)
        self.evidence.sort(key=lambda told: (told.arrives_us, told.order))

    def _job(self, uuid: str, board: Board, native_id: str, arrived_us: int) -> int:
        rng = self.rng
        idle_us = rng.choice([0, 0, 1, 800, rng.randrange(20 * S)])
        if idle_us:
            board.go_on(board.times[-1] + idle_us, rng.randrange(60_000, 90_000))
        start_us, length_us = board.times[-1], rng.choice([2_000, 400_000, rng.randrange(1, 90 * S)])
        job = Job(JobKey("lab", native_id, start_us // S * S))
        before_mj = board.energies[-1]
        board.go_on(start_us + length_us, rng.randrange(100_000, 700_000))
        self.truth[uuid, job.key] = board.energies[-1] - before_mj
        granted_us = 0
        for at_us, what in ((start_us, "grant"), (start_us + length_us, "release")):
            late_us = rng.randrange(S) if rng.random() < 0.05 else rng.randrange(3_000)
            arrived_us = max(arrived_us, at_us + late_us)  # one script of a device runs after the other
            granted_us = granted_us or arrived_us
            self.evidence.append(Told(arrived_us, at_us, what, uuid, job))
        for look in range(start_us // (5 * S) + 1, (start_us + length_us // 2) // (5 * S) + 1):
            seen_us = look * 5 * S - rng.randrange(S)
            if seen_us > start_us:
                self.evidence.append(Told(max(look * 5 * S, granted_us), seen_us, "used", uuid, job))
        return arrived_us

    def readings(self) -> Iterator[list[Told]]:
        """Give out the evidence as the agent gets it: what 50 ms brought, at a time."""
        for _, group in groupby(self.evidence, key=lambda told: told.arrives_us // 50_000):
            yield sorted(group, key=lambda told: told.order)


def take_in(ledger: Ledger, told: Told) -> None:
    if told.what == "grant":
        ledger.granted(told.at_us, [told.uuid], Grant(told.job, Evidence.HOOK, told.at_us))
    elif told.what == "release":
        ledger.released(told.at_us, told.job.key)
    else:
        use = Use(told.job, Evidence.CGROUP, told.job.key.started_at_us + S)
        ledger.used({told.uuid: told.at_us}, {told.uuid: [use]})


def test_ten_thousand_hand_overs_are_billed_to_the_right_job_to_the_millijoule() -> None:
    play = Play(20261121, 10_000)
    ledger = Ledger()
    changes: list[Change] = []
    for number, reading in enumerate(play.readings()):
        for told in reading:
            take_in(ledger, told)
        changes += ledger.take()[0]
        if number % 3_000 == 2_999:
            ledger = restarted(ledger)
    billed: dict[tuple[str, JobKey], int] = {}
    for uuid, holdings in held_by_device(changes).items():
        ordered = sorted(holdings, key=lambda held: (held.start_us, held.end_us or 0))
        for before, after in pairwise(ordered):
            assert before.end_us is not None
            assert before.end_us <= after.start_us
        for held in ordered:
            energy_mj = play.boards[uuid].at(held.end_us or 0) - play.boards[uuid].at(held.start_us)
            billed[uuid, held.key] = billed.get((uuid, held.key), 0) + energy_mj
    assert len(play.truth) == 10_000
    assert {key: (billed.get(key), mj) for key, mj in play.truth.items() if billed.get(key) != mj} == {}
    assert set(billed) == set(play.truth)
