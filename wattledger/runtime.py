"""The composition root: from a home folder and the environment to databases, tokens and applications.

Everything the processes share is put together here and handed down; nothing below this module looks at the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.migrate import pending
from ingest.store.segments import Segments
from wattledger.errors import NotReadyError
from wattledger.home import Home

SEGMENTS_VARIABLE: Final = "WATTLEDGER_SEGMENTS"
BILLING_ZONE_VARIABLE: Final = "WATTLEDGER_BILLING_ZONE"


def code_version() -> str:
    """Return the version recorded with every ledger run."""
    return version("wattledger")


def database_of(home: Home, env: Mapping[str, str] | None = None) -> Database:
    """Return the database named by WATTLEDGER_DATABASE_URL, else the home's embedded one; starts nothing."""
    environment = os.environ if env is None else env
    named = Database.from_env(environment)
    if named is not None:
        return named
    if not home.root.is_dir():
        raise NotReadyError(
            f"there is nothing in {home.root} yet; start with `wattledger up` or `wattledger demo`, or name a database in "
            "WATTLEDGER_DATABASE_URL"
        )
    return EmbeddedServer.in_home(home.root, environment).database()


def ready_database(home: Home, env: Mapping[str, str] | None = None) -> Database:
    """Return the database, or raise NotReadyError when its schema is not this version's."""
    database = database_of(home, env)
    behind = pending(database.url)
    if behind:
        raise NotReadyError(
            f"the database {database.display_url} lacks {len(behind)} migrations ({behind[0]} first); "
            "run `wattledger migrate`"
        )
    return database


def billing_zone(env: Mapping[str, str] | None = None) -> str:
    """Return the IANA zone whose months are billed: WATTLEDGER_BILLING_ZONE, else UTC. Whether it can be is ``analytics.model.month``'s."""
    environment = os.environ if env is None else env
    return environment.get(BILLING_ZONE_VARIABLE) or "UTC"


def segments_of(home: Home, env: Mapping[str, str] | None = None) -> Segments:
    """Return where sealed hours lie: WATTLEDGER_SEGMENTS (a folder or a bucket's URL), else the home's folder."""
    environment = os.environ if env is None else env
    return Segments.at(environment.get(SEGMENTS_VARIABLE) or home.segments, home.root / "segment-cache")


@dataclass(frozen=True, slots=True)
class Secret:
    """A token kept in a file of the home, readable by its owner alone."""

    path: Path

    def read(self) -> str | None:
        try:
            return self.path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def write(self, value: str) -> None:
        """Write the secret so that it is never readable by others, not even for a moment."""
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(value + "\n")
        partial.replace(self.path)
