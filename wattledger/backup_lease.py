"""One backup of a target at a time, whichever machines they run on: a file in the target that its holder touches every few seconds.

    TARGET/.in-use          who holds it, since when; made with O_EXCL, which one of two has succeed on a local disk and on NFS

Who finds it touched lately is refused with who holds it. One not touched for five minutes, by the clock of the target's own file
system, belongs to somebody dead (or to a process of this machine that is gone) and is taken over. It locks nothing for readers: a
restore beside a prune finds a file missing, and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wattledger.backup_manifest import BackupError

LEASE: Final = ".in-use"
SILENT_AFTER_S: Final = 300.0
"""NFS shows other machines a file's time up to a minute late; a disk may stand still for longer than that."""
_BEAT_S: Final = 15.0
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a target, as long as nobody took it over."""

    path: Path
    token: str

    def check(self) -> None:
        """Raise BackupError where another took the target over: this process stood still for too long."""
        if _told(self.path).get("token") != self.token:
            raise BackupError(
                f"{self.path.parent} was taken over by another backup while this one stood still for {SILENT_AFTER_S / 60:.0f} minutes; "
                "nothing of this one counts, make it again"
            )

    def beat(self) -> None:
        """Say that its holder lives; never makes the file anew."""
        if _told(self.path).get("token") == self.token:
            os.utime(self.path)


@contextmanager
def held(target: Path, what: str, *, beat_s: float = _BEAT_S) -> Iterator[Lease]:
    """Hold a target while the block lasts; ``what`` is done, for whoever is refused. Raises BackupError, OSError."""
    lease = _taken(target, what)
    over = threading.Event()
    beats = threading.Thread(target=_beats, args=(lease, over, beat_s), name="backup-lease", daemon=True)
    beats.start()
    try:
        yield lease
    finally:
        over.set()
        beats.join()
        if _told(lease.path).get("token") == lease.token:
            lease.path.unlink(missing_ok=True)


def _beats(lease: Lease, over: threading.Event, beat_s: float) -> None:
    while not over.wait(beat_s):
        with contextlib.suppress(
            OSError
        ):  # a share that is away for a moment; whether it was too long, `check` finds out
            lease.beat()


def _taken(target: Path, what: str) -> Lease:
    path, token = target / LEASE, str(uuid.uuid4())
    mine = {"token": token, "what": what, "since": datetime.now(UTC).isoformat(timespec="seconds"), **_self()}
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            _displace(path)
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(mine, file)
            file.flush()
            os.fsync(file.fileno())
        return Lease(path, token)
    raise BackupError(f"{path} is taken and given back again and again; is another backup restarted all the time?")


def _displace(path: Path) -> None:
    """Move the lease of somebody dead out of the way; raises BackupError while its holder may live."""
    holder, silent_s = _told(path), _silent_s(path)
    if silent_s is None:  # given back just now
        return
    if silent_s < SILENT_AFTER_S and not _is_gone(holder):
        raise BackupError(
            f"{holder.get('what', 'something')} is using {path.parent}: process {holder.get('pid', '?')} on {holder.get('host', '?')}, since "
            f"{holder.get('since', '?')}, last heard of {silent_s:.0f} s ago; let it end, then try again. If that process is dead, "
            f"wait {SILENT_AFTER_S - silent_s:.0f} s or delete {path}"
        )
    aside = path.with_name(f"{LEASE}-{uuid.uuid4()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _told(aside) != holder:  # another was quicker, and this is its new one: it gets it back
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _told(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # half written: its holder is known by the time of the file alone
        return {}
    return said if isinstance(said, dict) else {}


def _silent_s(path: Path) -> float | None:
    """Return for how long a lease was not touched, by the clock of the file system it lies on; None where it is gone."""
    probe = path.with_name(f"{LEASE}-{uuid.uuid4()}")
    probe.write_bytes(b"now")
    try:
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    except FileNotFoundError:
        return None
    finally:
        probe.unlink(missing_ok=True)


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "place": _place(), "begun": _begun(os.getpid())}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Say whether a holder was a process of this very machine and container, and is one no more."""
    pid = holder.get("pid")
    return holder.get("place") == _place() != "" and isinstance(pid, int) and _begun(pid) != holder.get("begun")


def _place() -> str:
    """Name this boot of this machine, and the container: what a process number means something in."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _begun(pid: int) -> str:
    """Return when a process was started, in ticks since boot; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
