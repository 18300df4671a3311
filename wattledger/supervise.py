"""The one supervisor behind `wattledger up`: PostgreSQL and named children, started in order, kept alive, stopped in reverse.

Children die with it, whatever kills it; PostgreSQL does not (it must never be cut off in the middle) and is adopted by the
next start. Refuses to run twice on one home, to keep restarting what keeps crashing, and to know what a child does.
"""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from ingest.store.embedded import EmbeddedServer
from ingest.store.embedded.process import ProcessId, boot_id
from ingest.store.embedded.server import rotate, tail
from ingest.store.engine import Database
from wattledger import leash
from wattledger.home import Home
from wattledger.ports import PortError, free_port_or_explain
from wattledger.standing import (
    TOKEN_VARIABLE,
    Downed,
    StandingError,
    Status,
    down,
    end_carriers,
    read_state,
    status,
    supervisor_of,
    write_state,
)

__all__ = [
    "AlreadyUpError",
    "Child",
    "ChildFailedError",
    "Downed",
    "PortError",
    "RestartPolicy",
    "StandingError",
    "Status",
    "Supervisor",
    "down",
    "free_port_or_explain",
    "status",
    "supervise",
]

_POLL_S = 0.2
_TAKE_TRIES = 10


class AlreadyUpError(RuntimeError):
    """Another supervisor holds the home."""


class ChildFailedError(RuntimeError):
    """A child did not become ready, or crashed too often; the message carries the end of its log."""


class StopRequested(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP arrived; no Exception, so that nothing on the way handles it as an error."""


@dataclass(frozen=True)
class Child:
    """One process to run."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """On top of the supervisor's own; may hold tokens."""
    is_ready: Callable[[], bool] | None = None
    """Asked until it says yes before the next child starts; None: ready once started."""
    ready_timeout_s: float = 60.0
    stop_timeout_s: float = 15.0


@dataclass(frozen=True)
class RestartPolicy:
    """How often a crashed child is started again: `limit` times within `window_s`, waiting longer each time."""

    limit: int = 5
    window_s: float = 300.0
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0

    def delay_s(self, crashes: int) -> float:
        """Return the wait before restart number `crashes`, with jitter so that children do not march in step."""
        longest_s = min(self.longest_delay_s, self.first_delay_s * 2.0 ** (crashes - 1))
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


@dataclass
class _Crashes:
    """Counts the crashes of one thing within the policy's window."""

    policy: RestartPolicy
    at_s: list[float] = field(default_factory=list)

    def add(self, what: str, log: Path) -> int:
        """Count one more; raises ChildFailedError when that is too many."""
        now_s = time.monotonic()
        self.at_s = [at_s for at_s in self.at_s if now_s - at_s < self.policy.window_s] + [now_s]
        if len(self.at_s) > self.policy.limit:
            raise ChildFailedError(
                f"{what}, {len(self.at_s)} times within {self.policy.window_s:.0f} s; stopping. {_log_end(log)}"
            )
        return len(self.at_s)


@dataclass
class _Running:
    child: Child
    log: Path
    process: subprocess.Popen[bytes]
    identity: ProcessId | None
    crashes: _Crashes
    restart_at_s: float | None = None


class Supervisor:
    """Use as a context manager in the main thread: entering takes the home, leaving stops all that was started.

    A stop signal raises StopRequested wherever the main thread is; leaving the block swallows it. A second signal while
    stopping cuts the waiting short.
    """

    def __init__(
        self,
        home: Home,
        *,
        announce: Callable[[str], None] = print,
        policy: RestartPolicy | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self._announce = announce
        self._policy = policy or RestartPolicy()
        self._env = dict(os.environ if env is None else env)
        self._token = uuid.uuid4().hex
        self._running: list[_Running] = []
        self._server: EmbeddedServer | None = None
        self._database: Database | None = None
        self._ports: dict[str, int] = {}
        self._hosts: dict[str, str] = {}
        self._lock: IO[str] | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._is_stopping = False
        self._is_hurried = False

    def __enter__(self) -> Self:
        self.home.create()
        self._lock = self._take_home()
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
            # Grandchildren of a supervisor that was killed: the kernel ended only its direct children.
            end_carriers(read_state(self.home).get("token"))
            self._record()
        except BaseException:
            self._restore_handlers()
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._is_stopping = True
        try:
            for running in reversed(self._running):
                self._stop(running)
            end_carriers(self._token)
            if self._server is not None:
                self._server.stop()
            self.home.supervisor_state.unlink(missing_ok=True)
        finally:
            self._restore_handlers()
            if self._lock is not None:
                self._lock.close()
        return kind is StopRequested

    def take_ports(self, ports: Mapping[str, int], host: str = "127.0.0.1") -> dict[str, int]:
        """Check every port, by flag, before anything starts; 0 becomes a free one. Raises PortError."""
        taken = {flag: free_port_or_explain(port, flag, host) for flag, port in ports.items()}
        self._ports |= taken
        self._hosts |= dict.fromkeys(taken, host)
        self._record()
        return taken

    def start_postgres(self) -> Database:
        """Start or adopt the home's PostgreSQL, which is then kept alive and stopped with the rest."""
        self._server = EmbeddedServer.in_home(self.home.root, self._env)
        started = self._server.start()
        if started.adopted:
            self._announce("PostgreSQL was still running and is taken over")
        self._database = self._server.database()
        self._record()
        return self._database

    def use_database(self, database: Database) -> None:
        """Note a database run by somebody else, for `status`."""
        self._database = database
        self._record()

    def start(self, *children: Child) -> None:
        """Start children at once and wait until all are ready; raises ChildFailedError when one ends or takes too long.

        What needs another to be ready is started by a call of its own, after it.
        """
        started = [self._started(child) for child in children]
        self._record()
        began_s = time.monotonic()
        for running in started:
            _await_ready(running, began_s)

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Keep everything alive until a stop signal, or until `until` says so; raises ChildFailedError."""
        server_crashes = _Crashes(self._policy)
        while until is None or not until():
            for running in self._running:
                self._tend(running)
            if self._server is not None and self._server.postmaster() is None:
                server_crashes.add("PostgreSQL ended", self._server.log)
                self._announce("PostgreSQL ended; starting it again")
                self._server.start()
                self._record()
            time.sleep(_POLL_S)

    def _take_home(self) -> IO[str]:
        lock = self.home.supervisor_lock.open("a+", encoding="ascii")
        for _ in range(_TAKE_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = supervisor_of(self.home)
                if holder is not None and holder.is_alive():
                    lock.close()
                    raise AlreadyUpError(
                        f"Wattledger is already up in {self.home.root} (pid {holder.pid}); stop it with "
                        f"`wattledger down --home {self.home.root}` or choose another home"
                    ) from None
                time.sleep(_POLL_S)  # `status` of another terminal looked at the lock at this very moment
        else:
            lock.close()
            raise AlreadyUpError(f"{self.home.supervisor_lock} stays locked by a process that is no supervisor")
        identity = ProcessId.of(os.getpid())
        lock.truncate(0)
        lock.write(f"{os.getpid()} {0 if identity is None else identity.start_ticks}\n")
        lock.flush()
        return lock

    def _started(self, child: Child) -> _Running:
        log = self.home.log / f"{child.name}.log"
        process, identity = self._spawn(child, log)
        running = _Running(child, log, process, identity, _Crashes(self._policy))
        self._running.append(running)
        return running

    def _spawn(self, child: Child, log: Path) -> tuple[subprocess.Popen[bytes], ProcessId | None]:
        rotate(log)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *child.argv],
                env={**self._env, **child.env, TOKEN_VARIABLE: self._token},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, which stops them in order
            )
        return process, ProcessId.of(process.pid)

    def _tend(self, running: _Running) -> None:
        """Notice a crash and restart when its wait is over."""
        now_s = time.monotonic()
        if running.restart_at_s is not None:
            if now_s >= running.restart_at_s:
                running.restart_at_s = None
                running.process, running.identity = self._spawn(running.child, running.log)
                self._record()
            return
        if running.process.poll() is None:
            return
        ended = f"{running.child.name} {_ended(running.process)}"
        crashes = running.crashes.add(ended, running.log)
        delay_s = self._policy.delay_s(crashes)
        self._announce(f"{ended}; restart {crashes} of {self._policy.limit} in {delay_s:.1f} s; log: {running.log}")
        running.restart_at_s = now_s + delay_s

    def _stop(self, running: _Running) -> None:
        process = running.process
        if process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)  # not reaped yet, so its pid and group are still its own
        deadline = time.monotonic() + running.child.stop_timeout_s
        while process.poll() is None:
            if self._is_hurried or time.monotonic() > deadline:
                self._announce(f"{running.child.name} does not stop; killing it")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return
            time.sleep(_POLL_S / 4)

    def _record(self) -> None:
        postmaster = None if self._server is None else self._server.postmaster()
        write_state(
            self.home,
            {
                "boot_id": boot_id(),
                "token": self._token,
                "database_url": None if self._database is None else self._database.display_url,
                "postgres_pid": None if postmaster is None else postmaster.pid,
                "ports": self._ports,
                "hosts": self._hosts,
                "children": [
                    {
                        "name": running.child.name,
                        "pid": running.identity.pid,
                        "start_ticks": running.identity.start_ticks,
                        "log": str(running.log),
                    }
                    for running in self._running
                    if running.identity is not None
                ],
            },
        )

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._is_stopping:
            self._is_hurried = True
            return
        self._is_stopping = True
        raise StopRequested(signal.Signals(number).name)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)


def supervise(
    home: Home,
    children: Callable[[Database, Mapping[str, int]], Sequence[Child]],
    *,
    ports: Mapping[str, int] | None = None,
    host: str = "127.0.0.1",
    prepare: Callable[[Database], None] | None = None,
    when_ready: Callable[[Database, Mapping[str, int]], bool] | None = None,
    announce: Callable[[str], None] = print,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a whole installation until a stop signal: home, ports, database, `prepare`, children in order.

    `ports` are by flag. `prepare` migrates. `children` gets the database and the ports as bound. `when_ready` runs with all
    children ready; the installation goes on while it returned True (absent: goes on). Raises AlreadyUpError,
    PortError, ChildFailedError, HomeError or an EmbeddedError, everything being stopped again.
    """
    environment = dict(os.environ if env is None else env)
    try:
        with Supervisor(home, announce=announce, env=environment) as supervisor:
            bound = supervisor.take_ports(ports or {}, host)
            database = Database.from_env(environment)
            if database is None:
                database = supervisor.start_postgres()
            else:
                supervisor.use_database(database)
            if prepare is not None:
                prepare(database)
            for child in children(database, bound):
                supervisor.start(child)
            if when_ready is None or when_ready(database, bound):
                supervisor.run()
    except StopRequested:
        return  # it came while the home was being taken: there was nothing to stop yet


def _await_ready(running: _Running, began_s: float) -> None:
    child = running.child
    while child.is_ready is not None and not child.is_ready():
        if running.process.poll() is not None:
            ended = _ended(running.process)
            raise ChildFailedError(f"{child.name} {ended} before it was ready; {_log_end(running.log)}")
        if time.monotonic() > began_s + child.ready_timeout_s:
            raise ChildFailedError(
                f"{child.name} was not ready after {child.ready_timeout_s:.0f} s; {_log_end(running.log)}"
            )
        time.sleep(_POLL_S / 4)


def _ended(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exited with {code}"


def _log_end(log: Path) -> str:
    return f"the end of {log}:\n{tail(log)}"
