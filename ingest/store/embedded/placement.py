"""Where the embedded server's data and socket live, decided once per home and recorded in it.

Normally inside the home. Two facts of Linux move them out: an account that may not pass the home's parents cannot keep
data below them (root with a home under a 0700 folder), and a socket's path must be shorter than 108 bytes.
Refuses to widen any folder's mode to make a place fit.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ingest.store.embedded.account import ROOT_STATE, Account, make_root_state
from ingest.store.embedded.errors import FolderUnusableError

RECORD_NAME = "postgres.json"
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_LIMIT_BYTES = 107  # sun_path is 108 with its closing zero
LOCK_SUFFIX_BYTES = len(".lock")  # PostgreSQL puts a lock file beside the socket and checks that name too


@dataclass(frozen=True)
class Placement:
    """The folders of one embedded server, all resolved."""

    base: Path
    socket_dir: Path

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def start_lock(self) -> Path:
        return self.base / "start.lock"

    @property
    def attached_lock(self) -> Path:
        """Held by every living PostgreSQL process of this folder, also those in another container."""
        return self.base / "attached.lock"


def place(home: Path, account: Account) -> Placement:
    """Return the folders for a home, making what is missing; an earlier decision for this home stands."""
    home = home.resolve()
    base = recorded_base(home)
    if base is None or not base.is_dir():
        base = home / "pg" if account.can('cd "$1"', home) else _outside(home)
        _make_base(base)
    socket_dir = base / "run"
    if len(os.fsencode(socket_dir / SOCKET_NAME)) + LOCK_SUFFIX_BYTES > SOCKET_PATH_LIMIT_BYTES:
        socket_dir = _short_socket_dir(home)
    account.own(socket_dir)
    placement = Placement(base, socket_dir)
    _record(home, placement)
    return placement


def find_placement(home: Path) -> Placement | None:
    """Return the folders an earlier start recorded, None when PostgreSQL was never started for this home."""
    home = home.resolve()
    base = recorded_base(home)
    if base is None:
        return None
    written = json.loads((home / RECORD_NAME).read_text(encoding="utf-8"))
    return Placement(base, home / written["socket_dir"])


def recorded_base(home: Path) -> Path | None:
    record = home / RECORD_NAME
    try:
        written = json.loads(record.read_text(encoding="utf-8"))
        return Path(home / written["base"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderUnusableError(
            f"{record} cannot be read ({error}); it says where the database of {home} lies: restore it, or remove it to "
            "start with an empty one"
        ) from error


def _record(home: Path, placement: Placement) -> None:
    """Write the decision; paths inside the home stay relative, so that a home can be moved."""
    values = {
        "base": os.path.relpath(placement.base, home) if placement.base.is_relative_to(home) else str(placement.base),
        "socket_dir": (
            os.path.relpath(placement.socket_dir, home)
            if placement.socket_dir.is_relative_to(home)
            else str(placement.socket_dir)
        ),
    }
    text = json.dumps(values, indent=1) + "\n"
    record = home / RECORD_NAME
    if record.exists() and record.read_text(encoding="utf-8") == text:
        return
    written = record.with_name(f".{RECORD_NAME}.{os.getpid()}")
    written.write_text(text, encoding="utf-8")
    written.replace(record)


def _key(home: Path) -> str:
    return hashlib.sha256(os.fsencode(home)).hexdigest()[:16]


def _outside(home: Path) -> Path:
    """Name a folder of root's own for a home that the account cannot enter."""
    make_root_state()
    return ROOT_STATE / f"pg-{_key(home)}"


def _short_socket_dir(home: Path) -> Path:
    if os.geteuid() == 0:
        make_root_state()
        return ROOT_STATE / f"run-{_key(home)}"
    return Path("/tmp") / f"wattledger-{os.geteuid()}-{_key(home)}"  # noqa: S108 - 0700 and its owner is checked


def _make_base(base: Path) -> None:
    try:
        base.mkdir(exist_ok=True)
        base.chmod(0o711 if os.geteuid() == 0 else 0o700)  # the account passes through to its own 0700 folders
    except OSError as error:
        raise FolderUnusableError(
            f"cannot create {base}: {error.strerror}; choose another home with --home or WATTLEDGER_HOME"
        ) from error
