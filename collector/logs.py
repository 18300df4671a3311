"""What of the agent's process is logged: the agent at the level that is set, libraries only where something is wrong.

At ``debug`` the libraries under the agent write down the heads of what they send and receive, tokens of sessions among them.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

_OURS: Final = "collector"


def start(level: str) -> None:
    """Log to the standard error stream."""
    # The journal adds the time.
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    set_level(level)


def set_level(level: str) -> None:
    """Log the agent at a level (debug, info, warning, error), and others at it or at warning, whichever is the higher."""
    ours = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger(_OURS).setLevel(ours)
    logging.getLogger().setLevel(max(ours, logging.WARNING))
