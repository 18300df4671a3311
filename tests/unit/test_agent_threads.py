"""What runs beside the loop: probes and sources in threads of their own, bounded in time and number."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from collector.clock import SystemClock
from collector.doorbell import Doorbell
from collector.probe import Observation, Sweep
from collector.probe_thread import ProbeThread
from collector.source_thread import MAX_WAITING, Seen, SourceThreads
from collector.wire import Stream
from tests.fakes.agent import ListedSource, ScriptedProbe
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit


def one_row() -> Observation:
    return Observation({Stream.NODE: ({"meter": "host"},)})


def test_a_probe_is_asked_once_however_often_while_it_does_not_answer() -> None:
    gate = threading.Event()
    probe = ScriptedProbe(FixedClock(), readings=10)
    probe.before_read = lambda _left: gate.wait(5)
    device = ProbeThread("nvml", probe)
    assert device.ask()
    assert device.sweep(0.01) is None
    assert device.overdue
    assert not device.ask()
    assert device.exact(["GPU-0"], 1.0) is None
    gate.set()
    sweep = device.sweep(1.0)
    assert sweep is not None
    assert probe.left == 9
    assert device.sweep(0.0) is None
    device.begin_close()


def test_a_released_probe_is_not_opened_by_a_question() -> None:
    probe = ScriptedProbe(FixedClock(), readings=10)
    device = ProbeThread("nvml", probe)
    device.ask()
    assert device.sweep(1.0) is not None
    assert device.release()
    assert (probe.open, probe.opened) == (False, 1)
    assert not device.ask()
    assert device.call(probe.read, 1.0) is None
    assert device.exact(["GPU-0"], 1.0) is None
    device.released = False
    assert device.ask()
    assert device.sweep(1.0) is not None
    assert probe.opened == 2
    device.begin_close()


def test_closing_a_probe_that_hangs_takes_a_bounded_time_and_says_so() -> None:
    gate = threading.Event()
    probe = ScriptedProbe(FixedClock(), readings=10)
    probe.before_read = lambda _left: gate.wait(20)
    device = ProbeThread("nvml", probe)
    device.ask()
    began_s = time.monotonic()
    device.begin_close()
    assert not device.closed(1.0)
    assert time.monotonic() - began_s < 2.0
    gate.set()


class Owing(ScriptedProbe):
    """Can let go of its driver only once the call that hangs has returned, as the probe of the driver's library."""

    returned = False
    released = True

    def read(self) -> Sweep:
        self.released = False
        return super().read()

    def close(self) -> None:
        super().close()
        self.released = self.released or self.returned


def test_what_a_closed_probe_owes_it_does_by_itself_and_until_then_the_next_one_has_not_let_go() -> None:
    owing, fresh = Owing(FixedClock(), readings=10), Owing(FixedClock(), readings=10)
    fresh.returned = True
    before = ProbeThread("nvml", owing)
    before.ask()
    assert before.sweep(1.0) is not None
    before.begin_close()
    assert not before.closed(0.2)
    after = ProbeThread("nvml", fresh, before=[before])
    after.ask()
    assert after.sweep(1.0) is not None
    assert not after.release()
    assert not after.let_go()
    owing.returned = True
    until_s = time.monotonic() + 5
    freed = False
    while not freed and time.monotonic() < until_s:
        time.sleep(0.01)
        freed = after.let_go()
    assert freed
    after.begin_close()
    assert after.closed(1.0)


def test_a_source_s_fault_is_counted_and_it_is_read_again() -> None:
    class Faulty(ListedSource):
        failed = False

        def read(self) -> Observation:
            if not self.failed:
                self.failed = True
                raise OSError("no such thing")
            return super().read()

    source = Faulty([one_row()], period_s=0.01)
    found, errors = gathered(SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0), rows=1)
    assert errors["listed:OSError"] == 1
    assert [seen.source for seen in found] == ["listed"]
    assert source.closed


def test_a_source_that_hangs_is_counted_while_it_does_and_told_of_once() -> None:
    class Hanging(ListedSource):
        def read(self) -> Observation:
            if not self.left:
                never.wait(20)
            return super().read()

    never = threading.Event()
    source = Hanging([one_row()], period_s=0.02)
    threads = SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0, overdue_s=0.1)
    threads.start()
    errors: Counter[str] = Counter()
    told: list[tuple[str, float]] = []
    until_s = time.monotonic() + 5
    while errors["listed:overdue"] < 8 and time.monotonic() < until_s:
        errors += threads.take_errors()
        told += threads.take_overdue()
        time.sleep(0.005)
    # Of the eight periods and the rest in which it hangs, none is counted a second time when it is back at last.
    assert [name for name, _ in told] == ["listed"]
    assert told[0][1] >= 0.1
    source.left = [Observation()] * 3
    never.set()
    time.sleep(0.03)
    assert threads.take_errors()["listed:slow"] <= 2
    assert threads.take_overdue() == []
    threads.close()


def test_a_slow_source_skips_turns_instead_of_piling_them_up() -> None:
    class Slow(ListedSource):
        reads = 0

        def read(self) -> Observation:
            self.reads += 1
            time.sleep(0.05)
            return one_row()

    source = Slow([], period_s=0.01)
    found, errors = gathered(SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0), rows=3)
    assert errors["listed:slow"] + errors["listed:overdue"] >= 2 * (len(found) - 1)
    assert source.reads <= len(found) + 1
    assert found[0].since_us == 0
    assert found[1].since_us >= 50_000


def test_observations_nobody_takes_are_dropped_and_counted_and_memory_is_bounded() -> None:
    source = ListedSource([one_row() for _ in range(MAX_WAITING + 20)], period_s=0.001)
    threads = SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0)
    threads.start()
    until_s = time.monotonic() + 5
    while source.left and time.monotonic() < until_s:
        time.sleep(0.01)
    threads.close()
    assert len(threads.take()) == MAX_WAITING
    assert threads.take_errors()["listed:dropped"] >= 20


def test_what_begins_and_ends_allocations_waits_for_room_and_is_never_dropped() -> None:
    number = MAX_WAITING + 20
    told = [Observation({Stream.ALLOCATION: ({"native_job_id": str(job)},)}) for job in range(number)]
    source = ListedSource(told, period_s=0.001)
    threads = SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0)
    threads.start()
    until_s = time.monotonic() + 5
    while len(source.left) > number - MAX_WAITING - 1 and time.monotonic() < until_s:
        time.sleep(0.005)
    assert len(source.left) == number - MAX_WAITING - 1  # one is in its hands
    found = threads.take()
    while source.left and time.monotonic() < until_s:
        found += threads.take()
        time.sleep(0.005)
    threads.close()
    found += threads.take()
    jobs = [row["native_job_id"] for seen in found for row in seen.observation.rows.get(Stream.ALLOCATION, ())]
    assert jobs == [str(job) for job in range(number)]
    assert threads.take_errors()["listed:dropped"] == 0


def test_what_a_source_still_waits_to_hand_over_at_the_end_is_taken_all_the_same() -> None:
    told = [Observation({Stream.ALLOCATION: ({"native_job_id": str(job)},)}) for job in range(MAX_WAITING + 20)]
    source = ListedSource(told, period_s=0.001)
    threads = SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0)
    threads.start()
    until_s = time.monotonic() + 5
    while len(source.left) > 19 and time.monotonic() < until_s:
        time.sleep(0.005)
    threads.close()
    assert len(threads.take()) == MAX_WAITING + 1
    assert threads.take() == []


def test_a_signal_or_a_thread_ends_the_wait_at_once() -> None:
    bell = Doorbell()
    threading.Timer(0.05, bell.ring).start()
    began_s = time.monotonic()
    bell.wait(5.0)
    assert time.monotonic() - began_s < 2.0
    bell.ring()
    bell.wait(5.0)
    began_s = time.monotonic()
    bell.wait(0.05)
    assert time.monotonic() - began_s >= 0.04


def gathered(threads: SourceThreads, *, rows: int) -> tuple[list[Seen], Counter[str]]:
    threads.start()
    found: list[Seen] = []
    until_s = time.monotonic() + 5
    while sum(len(seen.observation.rows) for seen in found) < rows and time.monotonic() < until_s:
        found += threads.take()
        time.sleep(0.005)
    threads.close()
    return found, threads.take_errors()


def test_a_source_that_is_woken_is_read_at_once_and_not_by_its_period() -> None:
    class Woken(ListedSource):
        woken = threading.Event()
        stopped = False

        def wait(self, timeout_s: float) -> bool:
            found = self.woken.wait(timeout_s)
            self.woken.clear()
            return found

        def stop(self) -> None:
            self.stopped = True
            self.woken.set()

    source = Woken([one_row(), one_row()], period_s=30.0)
    threads = SourceThreads([source], SystemClock(threading.Event()), jitter=lambda: 0.0)
    threads.start()
    time.sleep(0.2)
    assert len(threads.take()) == 1
    source.woken.set()
    until_s = time.monotonic() + 5
    found: list[Seen] = []
    while not found and time.monotonic() < until_s:
        found = threads.take()
        time.sleep(0.005)
    assert len(found) == 1
    assert found[0].since_us < 5_000_000
    began_s = time.monotonic()
    threads.close()
    assert time.monotonic() - began_s < 1.0
    assert (source.stopped, source.closed) == (True, True)
    assert threads.take_errors() == Counter()
