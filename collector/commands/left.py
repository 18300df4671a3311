"""Says where the journal of orders is and whether there is one, without reading it: most nodes never get an order."""

from __future__ import annotations

from typing import Final

from collector.spool import Spool

SUFFIX: Final = ".orders"
"""Of the journal's file, beside the spool's."""
COPY_SUFFIX: Final = ".orders.copy"
"""Of its copy, for the day a block of the disk does not give back what was written."""
CHANGE_FACT: Final = "power:"
"""Where releases before this kept changes: facts of the spool."""


def orders_may_be_left(spool: Spool, *, in_spool: bool = True) -> bool:
    """Say whether an agent before this one may have left limits to be put back. Raises SpoolError.

    Without ``in_spool`` the spool itself, which may keep everybody waiting, is not asked: only a start finds any there.
    """
    files = (spool.path.with_name(spool.path.name + suffix) for suffix in (SUFFIX, COPY_SUFFIX))
    return any(file.exists() for file in files) or (in_spool and bool(spool.facts(CHANGE_FACT)))
