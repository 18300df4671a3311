import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.store.embedded import EmbeddedServer
from ingest.store.embedded.process import ProcessId
from tests.e2e.fleet_stand import await_true, impatience
from tests.scratch import quick_folder
from wattledger.home import Home, resolve_home
from wattledger.standing import SUPERVISOR_STOP_TIMEOUT_S
from wattledger.supervise import PortError, down, free_port_or_explain, status

pytestmark = pytest.mark.e2e

PATIENCE_S = 120.0
"""For what takes a second on an idle machine."""

REPOSITORY = Path(__file__).parents[2]
PRELUDE = """
import sys
from pathlib import Path
from ingest.store.engine import Database
from wattledger.home import resolve_home
from wattledger.supervise import *
home = resolve_home({}, sys.argv[1])
def say(text): print(text, flush=True)
def ready(*_): say("ready"); return True
def child(name, code, *arguments, **options):
    return Child(name, [sys.executable, "-c", "import os, signal, subprocess, sys, time\\n" + code, *arguments], **options)
SLEEP = "time.sleep(600)"
policy = RestartPolicy(limit=2, window_s=60, first_delay_s=0.05)
"""
WITH_POSTGRES = "supervise(home, lambda *_: [child('one', SLEEP), child('two', SLEEP)], when_ready=ready, announce=say)"


def alone(children: str) -> str:
    """A supervisor of these children, without PostgreSQL."""
    return (
        f"with Supervisor(home, announce=say, policy=policy) as supervisor:\n"
        f"    for each in [{children}]: supervisor.start(each)\n"
        f"    ready()\n"
        f"    supervisor.run()\n"
    )


@pytest.fixture
def home() -> Iterator[Home]:
    folder = quick_folder("wl-supervise-")
    made = resolve_home({}, folder).create()
    yield made
    down(made)
    shutil.rmtree(folder)


Up = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def up(home: Home) -> Iterator[Up]:
    """Starts a supervisor script in a process of its own; whatever is left of it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, home.root],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    """Return what the process said up to the line that holds the wanted words; one that never says them is killed."""
    assert process.stdout is not None
    said = ""
    with impatience(process, PATIENCE_S):
        for line in process.stdout:
            said += line
            if wanted in line:
                return said
    raise AssertionError(f"ended without saying {wanted!r}:\n{said}")


def is_gone(pid: int) -> bool:
    return ProcessId.of(pid) is None


def test_ctrl_c_stops_everything_in_reverse_and_is_no_failure(home: Home, up: Up) -> None:
    order = home.root / "order"
    note = (
        "def end(*_):\n"
        "    with open(sys.argv[1], 'a') as order: order.write(sys.argv[2])\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open(sys.argv[1] + sys.argv[2], 'w').close()\n"
        "while True: time.sleep(0.05)"
    )
    children = ", ".join(
        f"child({name!r}, {note!r}, {str(order)!r}, {name!r}, is_ready=Path({str(order) + name!r}).exists)"
        for name in "abc"
    )
    process = up(alone(children))
    read_until(process, "ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    assert order.read_text() == "cba"
    assert not home.supervisor_state.exists()


def test_kill_9_takes_the_children_along_and_leaves_postgresql_to_the_next_start(home: Home, up: Up) -> None:
    first = up(WITH_POSTGRES)
    read_until(first, "ready")
    before = status(home)
    assert [child.name for child in before.children if child.is_alive] == ["one", "two"]
    first.kill()
    first.wait()
    await_true(
        lambda: all(is_gone(child.pid) for child in before.children),
        PATIENCE_S,
        "the children end with their supervisor",
        home.log,
    )
    assert status(home).postgres_pid == before.postgres_pid is not None
    assert not status(home).is_up
    second = up(WITH_POSTGRES)
    assert "PostgreSQL was still running and is taken over" in read_until(second, "ready")
    assert status(home).postgres_pid == before.postgres_pid
    ended = down(home)
    assert (ended.supervisor_pid, ended.postgres_pid) == (second.pid, before.postgres_pid)
    assert second.wait(PATIENCE_S) == 0
    assert not EmbeddedServer.in_home(home.root).is_ready()


def test_down_stops_a_postgresql_whose_supervisor_was_killed(home: Home, up: Up) -> None:
    process = up(WITH_POSTGRES)
    read_until(process, "ready")
    process.kill()
    process.wait()
    ended = down(home)
    assert ended.supervisor_pid is None
    assert ended.postgres_pid is not None
    assert is_gone(ended.postgres_pid)
    assert not down(home).is_anything


def test_a_killed_postgresql_is_started_again(home: Home, up: Up) -> None:
    process = up(WITH_POSTGRES)
    read_until(process, "ready")
    killed = status(home).postgres_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    read_until(process, "PostgreSQL ended; starting it again")
    await_true(lambda: status(home).postgres_pid not in {None, killed}, PATIENCE_S, "PostgreSQL is another", home.log)


def test_once_ends_when_the_work_is_done(home: Home, up: Up) -> None:
    process = up("supervise(home, lambda *_: [child('one', SLEEP)], when_ready=lambda *_: False, announce=say)")
    assert process.wait(PATIENCE_S) == 0
    assert status(home).postgres_pid is None


def test_grandchildren_of_a_killed_supervisor_end_with_down(home: Home, up: Up) -> None:
    pid_file = home.root / "grandchild"
    parent = (
        "sleeper = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "with open(sys.argv[1], 'w') as file: file.write(str(sleeper.pid))\n"
        "time.sleep(600)"
    )
    process = up(alone(f"child('parent', {parent!r}, {str(pid_file)!r})"))
    read_until(process, "ready")
    await_true(
        lambda: pid_file.exists() and pid_file.read_text() != "", PATIENCE_S, "the grandchild is there", home.log
    )
    grandchild = int(pid_file.read_text())
    process.kill()
    process.wait()
    assert not is_gone(grandchild)
    assert grandchild in down(home).leftover_pids
    assert is_gone(grandchild)


def test_a_second_up_names_the_first(home: Home, up: Up) -> None:
    first = up(alone("child('one', SLEEP)"))
    read_until(first, "ready")
    second = up(alone("child('one', SLEEP)"))
    said, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 1
    assert f"AlreadyUpError: Wattledger is already up in {home.root} (pid {first.pid}); stop it with" in said.replace(
        "wattledger.supervise.", ""
    )
    assert first.poll() is None


def test_a_crashed_child_is_started_again(home: Home, up: Up) -> None:
    process = up(alone("child('one', SLEEP)"))
    read_until(process, "ready")
    (child,) = status(home).children
    os.kill(child.pid, signal.SIGKILL)
    assert "one was killed by SIGKILL; restart 1 of 2 in" in read_until(process, "restart")
    await_true(
        lambda: status(home).children[0].pid != child.pid and status(home).children[0].is_alive,
        PATIENCE_S,
        "the child is another",
        home.log,
    )


def test_what_keeps_crashing_stops_everything_with_the_reason(home: Home, up: Up) -> None:
    process = up(alone("child('good', SLEEP), child('bad', 'sys.exit(\"no model named x\")')"))
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "bad exited with 1, 3 times within 60 s; stopping." in said
    assert said.rstrip().endswith("no model named x\nno model named x\nno model named x")


def test_a_child_that_ends_before_it_is_ready_fails_the_start(home: Home, up: Up) -> None:
    process = up(alone("child('bad', 'sys.exit(3)', is_ready=lambda: False)"))
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert "ChildFailedError: bad exited with 3 before it was ready; the end of" in said


def test_children_started_together_do_not_wait_for_one_another(home: Home, up: Up) -> None:
    made = home.root / "made"
    late = f"open({str(made)!r}, 'w'); " + "time.sleep(600)"
    script = (
        f"import pathlib\nfirst = child('first', SLEEP, is_ready=pathlib.Path({str(made)!r}).exists, ready_timeout_s=100)\n"
        "with Supervisor(home, announce=say, policy=policy) as supervisor:\n"
        f"    supervisor.start(first, child('second', {late!r}))\n"
        "    ready()\n"
    )
    read_until(up(script), "ready")


def test_a_child_that_ignores_the_request_to_stop_is_killed(home: Home, up: Up) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    process = up(alone(f"child('deaf', {deaf!r}, stop_timeout_s=0.3)"))
    read_until(process, "ready")
    await_true(
        lambda: "deaf" in (home.log / "deaf.log").read_text(),
        PATIENCE_S,
        "the child does not listen any more",
        home.log,
    )
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert "deaf does not stop; killing it" in said
    assert process.returncode == 0


def test_down_never_signals_a_stranger_with_a_recorded_pid(home: Home) -> None:
    """After a crash and a reboot every recorded pid may be somebody else's."""
    with subprocess.Popen(["sleep", "600"]) as stranger:
        home.supervisor_lock.write_text(f"{stranger.pid} 1\n", encoding="ascii")
        home.supervisor_state.write_text(
            f'{{"boot_id": "another", "token": "t", "children": [{{"name": "one", "pid": {stranger.pid}, '
            '"start_ticks": 1, "log": "x"}]}',
            encoding="utf-8",
        )
        assert not status(home).children[0].is_alive
        assert not down(home).is_anything
        assert stranger.poll() is None
        stranger.kill()


def test_a_port_in_use_names_port_holder_and_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError) as caught:
            free_port_or_explain(port, "--api-port")
    said = str(caught.value)
    assert said.startswith(f"port {port} on 127.0.0.1 (--api-port) cannot be used: in use by pid {os.getpid()} (")
    assert said.endswith("choose another with --api-port")


def test_port_zero_is_a_free_port_and_a_free_port_is_itself() -> None:
    port = free_port_or_explain(0, "--api-port")
    assert port > 0
    assert free_port_or_explain(port, "--api-port") == port


def test_nothing_starts_when_a_port_is_taken(home: Home, up: Up) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = up(f"supervise(home, lambda *_: [], ports={{'--port': {taken.getsockname()[1]}}})")
        said, _ = process.communicate(timeout=PATIENCE_S)
    assert "PortError: port" in said
    assert status(home).postgres_pid is None
    assert not (home.root / "pg").exists()


def test_down_waits_longer_than_a_child_may_take() -> None:
    """Four children at their default 15 s and PostgreSQL's fast shutdown of 30 s fit."""
    assert SUPERVISOR_STOP_TIMEOUT_S >= 4 * 15 + 30
