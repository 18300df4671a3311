"""Whom PostgreSQL runs as: ourselves, or the dedicated account `wattledger` when we are root, which it refuses.

Refuses to borrow another service's account (`nobody` owns whatever else runs as nobody) and to touch any mode.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ingest.store.embedded.errors import FolderUnusableError, NoAccountError

ACCOUNT_NAME = "wattledger"
ROOT_STATE = Path("/var/lib/wattledger")
"""Root's folder of ours: homes by default, data whose home the account cannot reach, copies of the binaries."""


class Credentials(TypedDict, total=False):
    """What `subprocess` needs to become the account; empty when we are it."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """The user PostgreSQL runs as."""

    uid: int
    gid: int
    name: str

    @property
    def is_self(self) -> bool:
        return self.uid == os.geteuid()

    def credentials(self) -> Credentials:
        return {} if self.is_self else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, folder: Path) -> None:
        """Make a folder of ours, mode 0700, that belongs to the account; refuse one that belongs to somebody else."""
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            self._check_owner(folder)
            folder.chmod(0o700)
        except OSError as error:
            raise FolderUnusableError(
                f"cannot create {folder}: {error.strerror}; choose another home with --home or WATTLEDGER_HOME"
            ) from error
        else:
            if not self.is_self:
                os.chown(folder, self.uid, self.gid, follow_symlinks=False)

    def _check_owner(self, folder: Path) -> None:
        found = folder.lstat()
        # root made it and was killed before it could give it away
        if found.st_uid == os.geteuid() == 0 and folder.is_dir() and not any(folder.iterdir()):
            os.chown(folder, self.uid, self.gid, follow_symlinks=False)
        elif folder.is_symlink() or not folder.is_dir():
            raise FolderUnusableError(f"{folder} is not a folder of its own; remove it or choose another home")
        elif found.st_uid != self.uid:
            raise FolderUnusableError(
                f"{folder} belongs to uid {found.st_uid}, PostgreSQL would run as {self.name} (uid {self.uid}); "
                "start Wattledger as the folder's owner or choose another home"
            )

    def can(self, script: str, *arguments: str | Path) -> bool:
        """Say whether a shell script succeeds as the account: the kernel's own answer, with ACLs and mount options."""
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *map(str, arguments)],
            check=False,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.credentials(),
        )
        return done.returncode == 0


def server_account() -> Account:
    """Return the account to run PostgreSQL as; as root creates it when the system lacks it.

    Raises NoAccountError when we are root and it can neither be found nor made.
    """
    if os.geteuid() != 0:
        # A uid without a name is common in containers, and PostgreSQL's tools refuse it themselves.
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError as error:
            raise NoAccountError(
                f"uid {os.geteuid()} has no entry in /etc/passwd and PostgreSQL refuses to run so; add one, or set "
                "WATTLEDGER_DATABASE_URL to use a server elsewhere"
            ) from error
        return Account(os.geteuid(), os.getegid(), name)
    found = _look_up() or _create()
    return Account(found.pw_uid, found.pw_gid, found.pw_name)


def _look_up() -> pwd.struct_passwd | None:
    try:
        found = pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        return None
    if found.pw_uid == 0:
        raise NoAccountError(
            f"the account {ACCOUNT_NAME!r} is root under another name; PostgreSQL refuses to run as root"
        )
    return found


def _create() -> pwd.struct_passwd:
    make_root_state()
    with (ROOT_STATE / ".account.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _look_up()
        if found is not None:
            return found
        useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        advice = (
            f"create a system account named {ACCOUNT_NAME!r}, start Wattledger as an ordinary user, or set "
            "WATTLEDGER_DATABASE_URL to use a server elsewhere"
        )
        if useradd is None:
            raise NoAccountError(f"PostgreSQL refuses to run as root and this system has no useradd; {advice}")
        command = [useradd, "--system", "--user-group", "--no-create-home", "--home-dir", str(ROOT_STATE)]
        done = subprocess.run(
            [*command, "--shell", "/usr/sbin/nologin", ACCOUNT_NAME], check=False, capture_output=True, text=True
        )
        found = _look_up()
        if found is None:
            raise NoAccountError(f"useradd could not create {ACCOUNT_NAME!r}: {done.stderr.strip()}; {advice}")
        return found


def make_root_state() -> None:
    """Make root's folder, passable for everyone: what is private in it has its own mode."""
    if not ROOT_STATE.is_dir():
        try:
            ROOT_STATE.mkdir(parents=True, exist_ok=True)
            ROOT_STATE.chmod(0o755)  # whatever the umask: the account has to pass through
        except OSError as error:
            raise FolderUnusableError(
                f"cannot create {ROOT_STATE}: {error.strerror}; root keeps its state there"
            ) from error
