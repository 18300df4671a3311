"""The agent's place on the node: processors, the service manager, maintenance."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from collector.placement import housekeeping_cpus, parse_cpus, pin
from collector.release import Release
from collector.service import ServiceManager

pytestmark = pytest.mark.unit


def test_lists_of_processors_read_as_the_kernel_writes_them() -> None:
    assert parse_cpus("0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_cpus("") == frozenset()
    for text in ("3-1", "a", "-1", "1-99999999"):
        with pytest.raises(ValueError):
            parse_cpus(text)


def test_housekeeping_is_what_is_neither_isolated_nor_tickless(tmp_path: Path) -> None:
    (tmp_path / "online").write_text("0-7\n")
    (tmp_path / "isolated").write_text("4-5\n")
    (tmp_path / "nohz_full").write_text("  (null)\n")
    assert housekeeping_cpus(tmp_path) == {0, 1, 2, 3, 6, 7}
    (tmp_path / "nohz_full").write_text("6-7\n")
    assert housekeeping_cpus(tmp_path) == {0, 1, 2, 3}
    (tmp_path / "isolated").write_text("0-7\n")
    assert pin("housekeeping", tmp_path) == "no processor is left by housekeeping"


def test_pinning_to_where_it_may_run_works_and_elsewhere_is_told() -> None:
    allowed = os.sched_getaffinity(0)
    one = str(min(allowed))
    try:
        assert pin(one) is None
        assert os.sched_getaffinity(0) == {int(one)}
        assert "cannot run on processors 65000" in (pin("65000") or "")
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_service_manager_hears_that_the_agent_is_ready_and_alive_as_often_as_it_asked(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.setblocking(False)
        service = ServiceManager({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "40000000"}, pid=7)
        service.ready()
        for second in range(21):
            service.alive(second * 1_000_000)
        service.stopping()
        told = [manager.recv(100).decode() for _ in range(5)]
        # A sign of life in each quarter of the 40 s: at 0, 10 and 20 s.
        assert told == ["READY=1", *3 * ["WATCHDOG=1"], "STOPPING=1"]


def test_without_a_service_manager_or_for_another_process_nothing_is_told(tmp_path: Path) -> None:
    ServiceManager({}, pid=7).ready()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, pid=7).ready()
    assert ServiceManager({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "8"}, pid=7).watchdog_s is None


def test_devices_are_wanted_while_the_file_is_there_or_the_signal_came_an_odd_number_of_times(tmp_path: Path) -> None:
    flag = tmp_path / "release"
    release = Release(str(flag))
    assert release.wanted() is None
    flag.touch()
    assert release.wanted() == f"the file {flag}"
    release.toggle()
    assert release.wanted() == "SIGUSR1"
    flag.unlink()
    assert release.wanted() == "SIGUSR1"
    release.toggle()
    assert release.wanted() is None
