"""What is running in a home, as recorded by its supervisor and checked against /proc; and how to stop it from outside.

Refuses to signal by pid alone: a process is ours when pid and start time (same boot) match, or when it carries the token
that only the supervisor's descendants have in their environment.
"""

import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.store.embedded.placement import find_placement
from ingest.store.embedded.process import ProcessId, boot_id, carriers_of
from ingest.store.embedded.server import postmaster_of, stop_recorded
from wattledger.home import Home

TOKEN_VARIABLE = "WATTLEDGER_SUPERVISED"  # noqa: S105 - a mark, not a secret
SUPERVISOR_STOP_TIMEOUT_S = 90.0
"""More than the sum of what the supervisor itself grants its children and PostgreSQL in the usual case."""
LEFTOVER_GRACE_S = 5.0
_POLL_S = 0.05


class StandingError(RuntimeError):
    """What runs in the home could not be told or stopped; the message says why."""


@dataclass(frozen=True)
class ChildStatus:
    """One child as recorded, and whether it is alive now."""

    name: str
    pid: int
    is_alive: bool
    log: Path


@dataclass(frozen=True)
class Status:
    """What runs in a home right now."""

    supervisor_pid: int | None
    postgres_pid: int | None
    children: tuple[ChildStatus, ...]
    ports: dict[str, int]
    """By flag, of the last `up`."""
    database_url: str | None
    """Without its password."""
    hosts: dict[str, str] = field(default_factory=dict)
    """The address listened on, by the flag of its port."""

    @property
    def is_up(self) -> bool:
        return self.supervisor_pid is not None


@dataclass(frozen=True)
class Downed:
    """What `down` ended; all empty when nothing ran."""

    supervisor_pid: int | None
    leftover_pids: tuple[int, ...]
    postgres_pid: int | None

    @property
    def is_anything(self) -> bool:
        return self.supervisor_pid is not None or bool(self.leftover_pids) or self.postgres_pid is not None


def status(home: Home) -> Status:
    """Return what runs in the home; reads only."""
    state = read_state(home)
    same_boot = state.get("boot_id") == boot_id()
    children = tuple(
        ChildStatus(
            child["name"],
            child["pid"],
            same_boot and ProcessId(child["pid"], child["start_ticks"]).is_alive(),
            Path(child["log"]),
        )
        for child in state.get("children", [])
    )
    placement = find_placement(home.root)
    postmaster = None if placement is None else postmaster_of(placement)
    supervisor = supervisor_of(home)
    return Status(
        None if supervisor is None else supervisor.pid,
        None if postmaster is None else postmaster.pid,
        children,
        dict(state.get("ports", {})),
        state.get("database_url"),
        dict(state.get("hosts", {})),
    )


def down(home: Home) -> Downed:
    """Stop the supervisor of the home, what it left behind, and its PostgreSQL; returns what was ended."""
    try:
        state = read_state(home)
        supervisor = supervisor_of(home)
        if supervisor is not None:
            _stop_supervisor(supervisor)
        leftovers = end_carriers(state.get("token"))
        postgres_pid = stop_recorded(home.root)
    except PermissionError as error:
        raise StandingError(
            f"not allowed to stop what runs in {home.root}: {error}; run this as the user who started it"
        ) from error
    if supervisor is not None and postgres_pid is None:
        postgres_pid = state.get("postgres_pid")  # the supervisor stopped it on its way out
    home.supervisor_state.unlink(missing_ok=True)
    return Downed(None if supervisor is None else supervisor.pid, leftovers, postgres_pid)


def supervisor_of(home: Home) -> ProcessId | None:
    """Return the living supervisor of the home: the holder of its lock."""
    try:
        with home.supervisor_lock.open("r", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _named_in(lock.read())
    except FileNotFoundError:
        pass
    return None


def _named_in(text: str) -> ProcessId | None:
    """Read a lock's content; empty for the instant between taking the lock and writing the name."""
    fields = text.split()
    if len(fields) != 2:
        raise StandingError("an `up` of this home is starting this very moment; try again")
    return ProcessId(int(fields[0]), int(fields[1]))


def _stop_supervisor(supervisor: ProcessId) -> None:
    supervisor.signal(signal.SIGTERM)
    deadline = time.monotonic() + SUPERVISOR_STOP_TIMEOUT_S
    while supervisor.is_alive():
        if time.monotonic() > deadline:
            supervisor.signal(signal.SIGKILL)  # its children die with it; leftovers and PostgreSQL are stopped next
            deadline = float("inf")
        time.sleep(_POLL_S)


def end_carriers(token: str | None) -> tuple[int, ...]:
    """End every process that descends from the supervisor with this token; returns their pids."""
    if not token:
        return ()
    ended: dict[int, None] = {}
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    asked: set[ProcessId] = set()
    while carriers := [process for process in carriers_of(TOKEN_VARIABLE, token) if process.pid != os.getpid()]:
        for process in carriers:
            ended[process.pid] = None
            if time.monotonic() > deadline:
                process.signal(signal.SIGKILL)
            elif process not in asked:
                asked.add(process)
                process.signal(signal.SIGTERM)
        time.sleep(_POLL_S)
    return tuple(ended)


def read_state(home: Home) -> dict[str, Any]:
    """Return what the last supervisor recorded; empty when there was none or it ended properly."""
    try:
        state = json.loads(home.supervisor_state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StandingError(
            f"{home.supervisor_state} is damaged ({error}); remove it and run `wattledger down`"
        ) from error
    if not isinstance(state, dict):
        raise StandingError(f"{home.supervisor_state} is not a JSON object; remove it and run `wattledger down`")
    return state


def write_state(home: Home, state: dict[str, Any]) -> None:
    """Replace the record at once, readable by its owner only."""
    written = home.supervisor_state.with_name(f".{home.supervisor_state.name}.{os.getpid()}")
    written.touch(mode=0o600)
    written.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    written.replace(home.supervisor_state)
