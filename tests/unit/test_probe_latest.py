"""What runs beside the sampling loop."""

from __future__ import annotations

import threading
import time

import pytest

from collector.probe.latest import Latest


@pytest.mark.unit
def test_without_a_thread_it_asks_no_more_often_than_its_period() -> None:
    now_s = [0.0]
    asked: list[float] = []

    def fetch() -> float:
        asked.append(now_s[0])
        return now_s[0]

    latest = Latest(fetch, period_s=10.0, name="test", background=False, monotonic=lambda: now_s[0])
    taken = []
    for second in range(25):
        now_s[0] = float(second)
        taken.append(latest.take())
    assert asked == [0.0, 10.0, 20.0]
    assert [value for value in taken if value is not None] == [0.0, 10.0, 20.0]


@pytest.mark.unit
def test_a_fault_nobody_foresaw_ends_neither_the_thread_nor_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    finished = threading.Event()

    def fetch() -> str | None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        return "fine" if len(calls) == 2 else None

    latest = Latest(fetch, period_s=0.01, name="test", finish=finished.set)
    deadline = time.monotonic() + 5
    taken = latest.take()
    while taken is None and time.monotonic() < deadline:
        time.sleep(0.01)
        taken = latest.take()
    assert taken == "fine"
    assert "one turn failed" in caplog.text
    latest.close()
    assert finished.wait(5)


@pytest.mark.unit
def test_a_slow_answer_holds_nobody_up_and_close_waits_for_none() -> None:
    release = threading.Event()
    latest = Latest(lambda: release.wait(10), period_s=1.0, name="test")
    began = time.monotonic()
    assert latest.take() is None
    latest.close()
    assert time.monotonic() - began < 1
    release.set()


@pytest.mark.unit
def test_what_was_never_started_is_let_go_of_at_once() -> None:
    finished: list[bool] = []
    Latest(lambda: None, period_s=1.0, name="test", finish=lambda: finished.append(True)).close()
    assert finished == [True]
