"""The brake: a flag file in the state folder that every executor checks right before each act.

It needs no database, no restart and no network, so that it works when they do not. A folder that cannot be looked into counts
as paused.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

FLAG: Final = "actions.paused"


@dataclass(frozen=True, slots=True)
class Pause:
    """Why actions are stopped."""

    by: str
    reason: str
    at: str


def pause(state_dir: Path, *, by: str, reason: str, now: datetime) -> Pause:
    """Stop all actions of every executor on this state folder; holds over restarts until :func:`resume`."""
    flag = Pause(by, reason, now.isoformat())
    state_dir.mkdir(parents=True, exist_ok=True)
    draft = state_dir / f".{FLAG}.{os.getpid()}"
    draft.write_text(json.dumps(asdict(flag)))
    draft.replace(state_dir / FLAG)
    return flag


def resume(state_dir: Path) -> bool:
    """Let actions go on; return False if they were not paused."""
    try:
        (state_dir / FLAG).unlink()
    except FileNotFoundError:
        return False
    return True


def paused(state_dir: Path) -> Pause | None:
    """Return why actions are paused, or None. An empty flag (``touch``) and an unreadable one pause as well."""
    try:
        text = (state_dir / FLAG).read_text()
    except FileNotFoundError:
        if not state_dir.is_dir():
            return Pause("unknown", f"the state folder {state_dir} is missing", "unknown")
        return None
    except OSError as error:
        return Pause("unknown", f"the flag file cannot be read: {error.strerror}", "unknown")
    try:
        return Pause(**json.loads(text))
    except (ValueError, TypeError):
        return Pause("unknown", "a flag file made by hand", "unknown")
