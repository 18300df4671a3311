"""Which pg_dump, pg_restore and psql to run, and how they reach a database without its password on their command line.

Programs of the server's own major version come first: a dump of a newer pg_dump may not go back into the older server.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from ingest.store.embedded import EmbeddedError
from ingest.store.embedded.account import server_account
from ingest.store.embedded.binaries import BINDIR_VARIABLE, find_binaries
from ingest.store.embedded.server import program_env
from ingest.store.engine import Database
from wattledger.backup_manifest import BackupError

_NEEDED: Final = ("pg_dump", "pg_restore", "psql")
_DEBIAN: Final = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's client programs of one version."""

    folder: Path
    major: int

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def find_programs(server_major: int, env: Mapping[str, str]) -> Programs:
    """Return the programs for a server: of its major version, else of the next newer one; raises BackupError."""
    found = [Programs(folder, major) for folder in _folders(env) if (major := _major(folder)) is not None]
    fitting = sorted((each for each in found if each.major >= server_major), key=lambda each: each.major)
    if not fitting:
        have = ", ".join(f"{each.major} in {each.folder}" for each in found) or "none"
        raise BackupError(
            f"the server is PostgreSQL {server_major}, and of pg_dump, pg_restore and psql there is {have}; install "
            f"postgresql-client-{server_major} or name its folder in {BINDIR_VARIABLE}"
        )
    return fitting[0]


def reach(database: Database) -> tuple[str, dict[str, str]]:
    """Return the connection string for the programs, without its password, and their environment, which has it."""
    parts = {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(database.url).items()}
    env = program_env()
    if not database.roles_log_in:  # of the user's own settings a server by URL may need the files
        env |= {name: value for name, value in os.environ.items() if name.startswith("PG") or name == "HOME"}
    password = parts.pop("password", None)
    if password is not None:
        env["PGPASSWORD"] = password
    if "sslpassword" in parts:
        raise BackupError("pg_dump would show the password of the client key to everybody here; use a key without one")
    return psycopg.conninfo.make_conninfo(**parts), env


def _folders(env: Mapping[str, str]) -> Iterator[Path]:
    with suppress(EmbeddedError):  # a machine that only has a client is enough for a server by URL
        yield find_binaries(env, server_account()).bindir
    on_path = shutil.which("pg_dump", path=env.get("PATH"))
    if on_path is not None:
        yield Path(on_path).parent
    if _DEBIAN.is_dir():
        yield from sorted(_DEBIAN.glob("*/bin"))


def _major(folder: Path) -> int | None:
    if not all((folder / name).exists() for name in _NEEDED):
        return None
    said = subprocess.run(
        [folder / "pg_dump", "--version"], check=False, capture_output=True, text=True, cwd="/", env=program_env()
    )
    match = re.search(r"\) (\d+)", said.stdout)
    return None if match is None else int(match.group(1))
