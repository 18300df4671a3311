"""`wattledger up` as people run it: a process in a terminal, another terminal beside it, and accidents in between."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.fleet_stand import await_end, await_true, impatience, seen
from tests.scratch import quick_folder
from wattledger.home import Home, resolve_home
from wattledger.standing import down, status

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

ANY_PORT = ("--port", "0", "--dashboard-port", "0")
UP_TIMEOUT_S = 300
"""For what takes ten seconds on an idle machine."""
# The interpreter may lie in root's home, so everything is imported before the rights are given up.
AS_NOBODY = """
import os, sys
import wattledger.cli.processes, wattledger.cli.failure, wattledger.installation, wattledger.supervise
from wattledger.cli import main
uid = int(sys.argv.pop(1))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
main()
"""


@contextmanager
def temporary_home() -> Iterator[Home]:
    """A home every user may pass through; whatever still runs in it afterwards is stopped."""
    folder = quick_folder("wl-up-")
    home = resolve_home({}, folder / "home")
    yield home
    if home.root.exists():
        down(home)
    shutil.rmtree(folder)


@pytest.fixture
def home() -> Iterator[Home]:
    with temporary_home() as made:
        yield made


@contextmanager
def up(home: Home, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `wattledger up` until the block ends."""
    with subprocess.Popen(
        command(home, "up", *ANY_PORT, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=UP_TIMEOUT_S)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Home, int]]:
    """One installation that is up, with the pid of its supervisor, for the tests that only look or do what heals."""
    with temporary_home() as home, up(home) as process:
        read_until(process, "running;", home)
        yield home, process.pid


def command(home: Home, *words: str) -> list[str]:
    return [sys.executable, "-m", "wattledger", "--home", str(home.root), *words]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("WATTLEDGER_")}


def run(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, *words), capture_output=True, text=True, check=False, env=environment(), timeout=UP_TIMEOUT_S
    )


def read_until(process: subprocess.Popen[str], wanted: str, home: Home) -> str:
    """Return what the process said up to the line that begins with the wanted words; one that never says them is killed."""
    assert process.stdout is not None
    said = ""
    with impatience(process, UP_TIMEOUT_S):
        for line in process.stdout:
            said += line
            if line.startswith(wanted):
                return said
    raise AssertionError(f"ended without saying {wanted!r}:\n{said}\n{seen(home.log)}")


def left_behind(home: Home) -> list[str]:
    """Return the command lines of all processes that name the home."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it ended while we looked
            continue
        if str(home.root) in line:
            found.append(line)
    return found


def test_once_starts_everything_stops_everything_and_says_where_it_was(home: Home) -> None:
    done = run(home, "up", "--once", *ANY_PORT)
    assert done.returncode == 0, done.stdout + done.stderr
    for told in (
        "ingest and API  http://127.0.0.1:",
        "dashboard       http://127.0.0.1:",
        "metrics         http://127.0.0.1:",
        "budgets         dry run: nothing is acted on",
        f"state           {home.root}",
    ):
        assert told in done.stdout
    assert left_behind(home) == []
    assert status(home).postgres_pid is None


def test_up_listens_where_it_is_told_and_lets_budgets_act_only_where_it_is_told(home: Home) -> None:
    with up(home, "--host", "127.0.0.2", "--enforced") as process:
        said = read_until(process, "running;", home)
        assert "budgets         enforced: those armed act\n" in said
        (serve,) = [line.split() for line in left_behind(home) if " serve " in line]
        assert serve[serve.index("--host") + 1] == "127.0.0.2"
        (worker,) = [line.split() for line in left_behind(home) if " worker " in line]
        assert "--enforced" in worker
        # What runs beside it on this machine still finds it.
        assert "service" in {
            check["subject"]
            for check in json.loads(run(home, "doctor", "--format", "json").stdout)
            if check["verdict"] == "fine"
        }


def test_a_second_up_is_refused_with_the_pid_of_the_first(running: tuple[Home, int]) -> None:
    home, pid = running
    second = run(home, "up", *ANY_PORT)
    assert second.returncode == 2
    assert second.stderr.startswith(f"error: Wattledger is already up in {home.root} (pid {pid}); stop it with")
    assert "Traceback" not in second.stderr


def test_the_doctor_finds_a_fresh_installation_in_order(running: tuple[Home, int]) -> None:
    home, _ = running
    found = ("doctor", "--format", "json")
    await_true(lambda: "held by" in run(home, *found).stdout, UP_TIMEOUT_S, "the worker takes its lease", home.log)
    done = run(home, "doctor", "--format", "json")
    assert done.returncode == 0, done.stdout
    verdicts = {check["subject"]: check["verdict"] for check in json.loads(done.stdout)}
    answering = ("supervisor", "serve", "worker", "dashboard", "PostgreSQL", "schema", "roles and row-level security")
    assert {verdicts[subject] for subject in (*answering, "worker's lease", "service")} == {"fine"}


@pytest.mark.parametrize("name", ["serve", "worker"])
def test_a_process_that_is_killed_is_running_again_soon(running: tuple[Home, int], name: str) -> None:
    home, _ = running

    def pid() -> int:
        return next(child.pid for child in status(home).children if child.name == name)

    killed = pid()
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        return pid() != killed and all(child.is_alive for child in status(home).children)

    await_true(is_back, UP_TIMEOUT_S, f"{name} is started again", home.log)
    service = f"http://127.0.0.1:{status(home).ports['--port']}/readyz"

    def answers() -> bool:
        try:
            return httpx.get(service, timeout=5).is_success
        except httpx.TransportError:
            return False

    await_true(answers, UP_TIMEOUT_S, "the service answers", home.log)


def test_the_worker_s_metrics_are_where_up_says(running: tuple[Home, int]) -> None:
    home, _ = running
    shown = f"http://127.0.0.1:{status(home).ports['--metrics-port']}/metrics"

    def are_counted() -> bool:
        try:
            return 'wattledger_worker_rounds_total{outcome="worked"}' in httpx.get(shown, timeout=5).text
        except httpx.TransportError:
            return False

    await_true(are_counted, UP_TIMEOUT_S, "the worker tells of a round", home.log)
    pids = {child.name: child.pid for child in status(home).children}
    niceness = {name: os.getpriority(os.PRIO_PROCESS, pid) for name, pid in pids.items()}
    # A test that runs under `nice` itself has both behind everybody.
    assert niceness["worker"] == max(5, niceness["serve"]), "taking in goes first"


def test_a_port_in_use_is_named_with_its_holder_before_anything_starts(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(home, "up", "--port", str(port), "--dashboard-port", "0")
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: port {port} on 127.0.0.1 (--port) cannot be used: in use by pid {os.getpid()}"
    )
    assert "Traceback" not in done.stderr
    assert not (home.root / "pg").exists()


def test_a_home_without_write_rights_is_named_with_what_to_do(home: Home) -> None:
    home.root.mkdir(mode=0o555)
    nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    arguments = [sys.executable, "-c", AS_NOBODY, str(nobody), "--home", str(home.root), "up", *ANY_PORT]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=environment(), timeout=UP_TIMEOUT_S
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"error: cannot write to {home.root} (--home): Permission denied; give uid {nobody} write rights there, or name "
        "another folder with --home or WATTLEDGER_HOME\n"
    )


def test_after_kill_9_of_the_supervisor_the_next_up_adopts_postgresql_and_down_ends_all(home: Home) -> None:
    with up(home) as first:
        read_until(first, "running;", home)
        postgres_pid = status(home).postgres_pid
        assert postgres_pid is not None
        first.kill()
        first.wait()

        def is_alone() -> bool:
            return not any(child.is_alive for child in status(home).children)

        await_true(is_alone, UP_TIMEOUT_S, "the children end with their supervisor", home.log)
        assert status(home).postgres_pid == postgres_pid
        with up(home) as second:
            assert "PostgreSQL was still running and is taken over" in read_until(second, "running;", home)
            assert status(home).postgres_pid == postgres_pid
            stopped = run(home, "down")
            assert stopped.returncode == 0
            assert stopped.stdout == (
                f"stopped in {home.root}: supervisor (pid {second.pid}), PostgreSQL (pid {postgres_pid})\n"
            )
            assert await_end(second, UP_TIMEOUT_S, home.log) == 0
    assert left_behind(home) == []
    assert run(home, "down").stdout == f"nothing was running in {home.root}\n"
