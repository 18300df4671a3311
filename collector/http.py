"""httpx without its own command line, which it imports where click and rich are installed: 6 MB on every node for nothing.

The modules of the agent take ``httpx`` from here. It changes nothing else of httpx.
"""

from __future__ import annotations

import sys
from typing import Final

_COMMAND_LINE: Final = "httpx._main"

if "httpx" not in sys.modules:
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]  # the documented way to make an import fail; httpx expects it may
    import httpx

    del sys.modules[_COMMAND_LINE]
else:
    import httpx

__all__ = ["httpx"]
