"""The thread that asks, and what becomes of it when a call does not come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from collector.probe.nvml_reader import MAX_HANGING, NoAnswer, Reader, Task

pytestmark = pytest.mark.unit


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def reader(gate: threading.Event) -> Iterator[Reader[int]]:
    made: Reader[int] = Reader(0.05)
    yield made
    gate.set()
    made.stop()


def answers(number: int) -> Task[int]:
    return ("test", 0, number), lambda: number


def waits(gate: threading.Event, number: int) -> Task[int]:
    def wait() -> int:
        gate.wait(10)
        return number

    return ("test", 0, number), wait


def until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_answers_come_in_the_order_of_the_tasks(reader: Reader[int]) -> None:
    assert reader.run([answers(number) for number in range(5)]) == [0, 1, 2, 3, 4]
    assert reader.run([]) == []


def test_one_thread_serves_all_rounds(reader: Reader[int]) -> None:
    threads = {reader.run([(("test", 0, 0), threading.get_ident)])[0] for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_task_that_hangs_is_skipped_and_told_when_it_is_back(reader: Reader[int], gate: threading.Event) -> None:
    assert reader.run([answers(1), waits(gate, 2), answers(3)]) == [1, NoAnswer.OVERDUE, 3]
    assert (reader.hanging, reader.returned()) == (1, [])
    assert reader.run([answers(4)]) == [4]
    gate.set()
    until(lambda: reader.hanging == 0)
    assert reader.returned() == [(("test", 0, 2), 2)]
    assert reader.returned() == []


def test_threads_given_up_are_bounded(reader: Reader[int], gate: threading.Event) -> None:
    tasks = [waits(gate, number) for number in range(MAX_HANGING + 2)]
    overdue = [NoAnswer.OVERDUE] * MAX_HANGING
    assert reader.run(tasks) == [*overdue, NoAnswer.NOT_ASKED, NoAnswer.NOT_ASKED]
    assert reader.run([answers(1)]) == [NoAnswer.NOT_ASKED]
    gate.set()
    until(lambda: reader.hanging == 0)
    assert len(reader.returned()) == MAX_HANGING
    assert reader.run([answers(1)]) == [1]


def test_a_task_that_raises_is_logged_once_and_costs_no_other(
    reader: Reader[int], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> int:
        raise ValueError("broken")

    for _ in range(3):
        assert reader.run([answers(1), (("test", 0, 7), fail), answers(3)]) == [1, NoAnswer.RAISED, 3]
    assert [record.getMessage() for record in caplog.records] == ["asking test of position 7 failed; going on without"]


def test_what_raises_too_late_is_told_as_no_answer(reader: Reader[int], gate: threading.Event) -> None:
    def fail() -> int:
        gate.wait(10)
        raise ValueError("too late")

    assert reader.run([(("test", 0, 7), fail)]) == [NoAnswer.OVERDUE]
    gate.set()
    until(lambda: reader.hanging == 0)
    assert reader.returned() == [(("test", 0, 7), None)]


def test_a_task_that_works_is_not_taken_for_one_that_hangs(reader: Reader[int]) -> None:
    def work() -> int:
        until_s = time.thread_time() + 0.2  # four times the patience, on a core
        while time.thread_time() < until_s:
            pass
        return 1

    assert reader.run([(("test", 0, 0), work)]) == [1]
