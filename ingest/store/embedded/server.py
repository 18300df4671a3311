"""Starts, adopts and stops the PostgreSQL of one home.

The server outlives the process that started it: whoever starts next adopts it, and only an explicit `stop` ends it. There
is no exit hook, because a hook cannot run after kill -9 and must not run in a short command that merely adopted.
Refuses to remove a postmaster.pid while anything may still be attached to the data: two postmasters on one folder
destroy it.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ingest.store.embedded.account import Account, server_account
from ingest.store.embedded.binaries import Binaries, find_binaries
from ingest.store.embedded.errors import EmbeddedError, FolderBusyError, FolderUnusableError, ServerFailedError
from ingest.store.embedded.placement import SOCKET_NAME, Placement, find_placement, place
from ingest.store.embedded.process import ProcessId, processes_in, works_in
from ingest.store.embedded.roles import ensure_roles_and_database
from ingest.store.embedded.settings import server_settings
from ingest.store.engine import Database

READY_TIMEOUT_S = 120.0
"""Crash recovery replays up to max_wal_size; minutes on a slow disk, seconds on others."""
ORPHAN_PATIENCE_S = 5.0
"""Backends whose postmaster died leave by themselves when their query ends; after this they are told to (SIGQUIT)."""
ORPHAN_LIMIT_S = 15.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Started:
    """How `start` found the server."""

    adopted: bool
    duration_s: float


class EmbeddedServer:
    """The PostgreSQL of one home folder."""

    def __init__(self, placement: Placement, binaries: Binaries, account: Account, log: Path) -> None:
        self.placement = placement
        self.log = log
        self._binaries = binaries
        self._account = account

    @classmethod
    def in_home(cls, home: Path, env: Mapping[str, str] | None = None) -> "EmbeddedServer":
        """Prepare the server of an existing home folder, starting nothing; raises an EmbeddedError when it cannot be."""
        if not home.is_dir():
            raise FolderUnusableError(f"{home} is not a folder; create it first")
        account = server_account()
        binaries = find_binaries(os.environ if env is None else env, account)
        logs = home / "log"
        try:
            logs.mkdir(exist_ok=True)
            placement = place(home, account)
        except PermissionError as error:
            raise FolderUnusableError(
                f"{error.filename}: {error.strerror}; choose a home you may write to with --home or WATTLEDGER_HOME"
            ) from error
        return cls(placement, binaries, account, logs / "postgres.log")

    def database(self, name: str = "wattledger") -> Database:
        """Return how to connect to a database of this server."""
        return Database.on_socket(self.placement.socket_dir, name)

    def dsn(self, role: str = "postgres", database: str = "wattledger") -> str:
        """Return a libpq URI that logs in as the given PostgreSQL role over the socket."""
        return self.database(database).as_login(role)

    def is_ready(self) -> bool:
        """Say whether the server takes connections now."""
        asked = [self._binaries["pg_isready"], "-q", "-t", "3", "-h", str(self.placement.socket_dir), "-p", "5432"]
        done = subprocess.run([*asked, "-U", "postgres", "-d", "postgres"], check=False, cwd="/", env=program_env())
        return done.returncode == 0

    def postmaster(self) -> ProcessId | None:
        return postmaster_of(self.placement)

    def start(self) -> Started:
        """Start the server or adopt the one that runs; both callers of a race get the same one.

        Returns when roles and the database `wattledger` exist. Raises FolderBusyError, FolderUnusableError or ServerFailedError.
        """
        began = time.monotonic()
        with self._exclusive():
            postmaster = self.postmaster()
            adopted = postmaster is not None and self._await_ready(postmaster)
            if not adopted:
                self._initialise()
                self._check_version()
                self._launch(self._clear_remains())
            ensure_roles_and_database(self.dsn("postgres", "postgres"))
        return Started(adopted, time.monotonic() - began)

    def stop(self) -> bool:
        """Stop the server, open sessions included; False when none was running."""
        with self._exclusive():
            return stop_postmaster(self.placement)

    def destroy(self) -> None:
        """Stop the server and delete its data and socket folders for good."""
        with self._exclusive():
            stop_postmaster(self.placement)
            shutil.rmtree(self.placement.socket_dir, ignore_errors=True)  # its files vanish with the server as well
            shutil.rmtree(self.placement.base)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self.placement.start_lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _initialise(self) -> None:
        """Run initdb under another name and rename, so that a folder named `data` is always a whole one."""
        data, base = self.placement.data, self.placement.base
        for abandoned in base.glob("data.new-*"):
            # An initdb whose parent was killed may still write there; what it leaves goes at the start after this.
            shutil.rmtree(abandoned, ignore_errors=True)
        if data.exists():
            self._account.own(data)
            return
        fresh = Path(tempfile.mkdtemp(prefix="data.new-", dir=base))
        if not self._account.is_self:
            os.chown(fresh, self._account.uid, self._account.gid, follow_symlinks=False)
        command = [self._binaries["initdb"], "-D", str(fresh), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        done = subprocess.run(
            [*command, "--locale=C", "--no-instructions", "--no-sync"],
            check=False,
            cwd="/",
            env=program_env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **self._account.credentials(),
        )
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ServerFailedError(f"initdb failed in {base}: {done.stderr.strip()[-2000:]}")
        fresh.rename(data)

    def _check_version(self) -> None:
        kept = (self.placement.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if kept != str(self._binaries.major):
            raise FolderUnusableError(
                f"{self.placement.data} was written by PostgreSQL {kept}, the programs here are {self._binaries.major}; "
                f"run {kept}'s with WATTLEDGER_PG_BINDIR, or dump and restore into a new home"
            )

    def _clear_remains(self) -> int:
        """Wait out or end the orphans of a killed postmaster, then remove its pid file; returns the held attach lock.

        The lock is the proof against what /proc cannot show (another container on the same volume): every process of a
        server inherits it, and the kernel lets go of it with the last of them.
        """
        lock = os.open(self.placement.attached_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._await_detached(lock)
            remains = (self.placement.data / "postmaster.pid", *self.placement.socket_dir.glob(f"{SOCKET_NAME}*"))
            for remain in remains:  # nobody is attached, and the lock keeps it so
                remain.unlink(missing_ok=True)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _await_detached(self, lock: int) -> None:
        data = self.placement.data
        began = time.monotonic()
        while (orphans := processes_in(data)) or not _locked(lock):
            waited_s = time.monotonic() - began
            if waited_s > ORPHAN_LIMIT_S:
                named = ", ".join(str(orphan.pid) for orphan in orphans) or "processes that /proc does not show here"
                raise FolderBusyError(f"{data} is in use by {named}; stop them (another container?) and start again")
            if waited_s > ORPHAN_PATIENCE_S:
                for orphan in orphans:
                    orphan.signal(signal.SIGQUIT)
            time.sleep(_POLL_S)

    def _launch(self, attach_lock: int) -> None:
        """Start the postmaster detached: Ctrl-C in our terminal is not its business, and nobody has to reap it."""
        settings = server_settings(self.placement.socket_dir)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self._binaries["postgres"], "-D", str(self.placement.data), *options]
        rotate(self.log)
        try:
            with self.log.open("ab") as log:
                done = subprocess.run(
                    ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
                    check=True,
                    cwd="/",
                    env=program_env(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(attach_lock,),
                    **self._account.credentials(),
                )
        finally:
            os.close(attach_lock)
        postmaster = ProcessId.of(int(done.stdout))
        if postmaster is None or not self._await_ready(postmaster):
            raise ServerFailedError(f"PostgreSQL ended while starting; the end of {self.log}:\n{tail(self.log)}")

    def _await_ready(self, postmaster: ProcessId) -> bool:
        """Wait until it takes connections; False when it ends instead, as one does that was just told to stop."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.is_ready():
            if not postmaster.is_alive():
                return False
            if time.monotonic() > deadline:
                raise ServerFailedError(
                    f"PostgreSQL (pid {postmaster.pid}) took no connection in {READY_TIMEOUT_S:.0f} s; the end of "
                    f"{self.log}:\n{tail(self.log)}"
                )
            time.sleep(_POLL_S)
        return True


def postmaster_of(placement: Placement) -> ProcessId | None:
    """Return the living postmaster of the data folder; a zombie or a stranger with its old pid is none."""
    try:
        pid = int((placement.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return ProcessId.of(pid) if works_in(pid, placement.data) else None


def stop_postmaster(placement: Placement) -> bool:
    """End the postmaster of these folders: fast shutdown, then an immediate one; needs no PostgreSQL programs."""
    postmaster = postmaster_of(placement)
    deadline = time.monotonic() + ORPHAN_PATIENCE_S
    while postmaster is None and processes_in(placement.data):  # it is about to write its pid file, or orphans leave
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
        postmaster = postmaster_of(placement)
    if postmaster is None:
        return False
    for number in (signal.SIGINT, signal.SIGQUIT):
        postmaster.signal(number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if not postmaster.is_alive():
                return True
            time.sleep(_POLL_S)
    raise EmbeddedError(f"PostgreSQL (pid {postmaster.pid}) did not end within {2 * STOP_TIMEOUT_S:.0f} s")


def stop_recorded(home: Path) -> int | None:
    """Stop the server an earlier start recorded for the home; returns its pid, None when none was running."""
    placement = find_placement(home)
    if placement is None or not placement.base.is_dir():
        return None
    with placement.start_lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        postmaster = postmaster_of(placement)
        return postmaster.pid if postmaster is not None and stop_postmaster(placement) else None


def tail(log: Path, size_bytes: int = 2000) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size_bytes))
            return file.read().decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return "(no log)"


def program_env() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: none of the user's PG… settings, locale or tokens."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", **kept}


_LOG_LIMIT_BYTES = 16 << 20


def rotate(log: Path) -> None:
    """Keep one older log; the server's own log grows by a few lines per checkpoint."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
