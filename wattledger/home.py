"""The one folder all state lives in, and the names of what is in it.

Resolving only computes; `create` makes the folder and proves that it can be written to. Refuses to repair modes or owners:
a folder somebody made is theirs, and the message says what is wrong with it.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.store.embedded.account import ROOT_STATE

HOME_VARIABLE = "WATTLEDGER_HOME"


class HomeError(RuntimeError):
    """The home cannot be used as it is; the message names the folder and says what to do."""


@dataclass(frozen=True)
class Home:
    """The state folder of one installation; `origin` says what named it: the flag, the variable or the default."""

    root: Path
    origin: str

    @property
    def log(self) -> Path:
        """One log per process."""
        return self.root / "log"

    @property
    def spool(self) -> Path:
        """Batches on their way, for agents and simulators started from here."""
        return self.root / "spool"

    @property
    def segments(self) -> Path:
        """Sealed hours, unless they go to object storage."""
        return self.root / "segments"

    @property
    def secrets(self) -> Path:
        """Tokens made by `up` for its own children; mode 0700."""
        return self.root / "secrets"

    @property
    def supervisor_lock(self) -> Path:
        """Held (flock) by the one `up` of this home; names it."""
        return self.root / "supervisor.lock"

    @property
    def supervisor_state(self) -> Path:
        """What the running `up` started, so that another terminal can stop it."""
        return self.root / "supervisor.json"

    def create(self) -> "Home":
        """Make the folder and its fixed parts where missing; raises HomeError with what to change."""
        self._make_root()
        for folder, mode in ((self.log, 0o755), (self.spool, 0o700), (self.segments, 0o755), (self.secrets, 0o700)):
            try:
                folder.mkdir(mode=mode, exist_ok=True)
            except OSError as error:
                raise self._unusable(f"cannot create {folder}", error) from error
        return self

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True)
        except FileExistsError:
            if not self.root.is_dir():
                raise HomeError(
                    f"{self.root} ({self.origin}) is not a folder; name another with --home or {HOME_VARIABLE}"
                ) from None
        except OSError as error:  # a parent that is a file, no rights, a read-only file system
            raise self._unusable(f"cannot create {self.root}", error) from error
        else:
            # Root's PostgreSQL runs under an account of its own that has to pass through; nobody else has to.
            self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
        try:
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise self._unusable(f"cannot write to {self.root}", error) from error

    def _unusable(self, what: str, error: OSError) -> HomeError:
        return HomeError(
            f"{what} ({self.origin}): {error.strerror}; give uid {os.geteuid()} write rights there, or name another "
            f"folder with --home or {HOME_VARIABLE}"
        )


def resolve_home(env: Mapping[str, str], flag: str | os.PathLike[str] | None = None) -> Home:
    """Return the home the flag, else WATTLEDGER_HOME, else the default names; touches no disk beyond symlinks."""
    if flag is not None:
        return Home(_absolute(flag), "--home")
    if env.get(HOME_VARIABLE):
        return Home(_absolute(env[HOME_VARIABLE]), HOME_VARIABLE)
    if os.geteuid() == 0:
        return Home(ROOT_STATE / "default", "the default for root")
    data = env.get("XDG_DATA_HOME", "")
    if data.startswith("/"):  # the XDG specification has relative values ignored
        return Home(_absolute(data) / "wattledger", "XDG_DATA_HOME")
    own = Path(env["HOME"]) if env.get("HOME") else Path.home()
    return Home(_absolute(own) / ".local/share/wattledger", "the default")


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser().resolve()
