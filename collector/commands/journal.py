"""Remembers what an order changed and what was there before, durably and before it is changed.

In the spool's file, whose commits are on the disk when they return. It carries out nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from collector.commands.check import LONGEST_US
from collector.spool import Spool

_CHANGE: Final = "power:"
_NONCE: Final = "nonce:"
_SINCE: Final = "journal_since_us"
NONCES_KEPT_US: Final = LONGEST_US
"""How long after its order's expiry a nonce is kept: so far may the clock be set back and no order be carried out twice."""


@dataclass(frozen=True, slots=True)
class Change:
    """One device's power limit, as an order set it and as it was before any order."""

    device_uuid: str
    nonce: str
    previous_mw: int
    applied_mw: int
    expires_at_us: int


class Journal:
    """The changes in force, one a device, and the orders seen."""

    def __init__(self, spool: Spool) -> None:
        """Keep them in this spool. Every method may raise SpoolError."""
        self._spool = spool

    def begin(self, now_us: int) -> None:
        """Note since when there is this journal, where that is not noted yet."""
        if self._spool.recall(_SINCE) is None:
            self._spool.remember(_SINCE, str(now_us))

    def knew(self, at_us: int) -> bool:
        """Say whether there was this journal at an instant already: what was changed since then is in it."""
        since_us = self._spool.recall(_SINCE)
        return since_us is not None and int(since_us) <= at_us

    def changes(self) -> dict[str, Change]:
        """Return what is to be undone some time, by device."""
        found: dict[str, Change] = {}
        for uuid, text in self._spool.facts(_CHANGE).items():
            try:
                found[uuid] = Change(**json.loads(text))
            except (ValueError, TypeError):
                self._spool.forget(_CHANGE + uuid)  # no journal of ours; undoing a guess would be worse than leaving it
        return found

    def note(self, change: Change) -> None:
        """Remember a change; on the disk when this returns."""
        self._spool.remember(_CHANGE + change.device_uuid, json.dumps(asdict(change), sort_keys=True))

    def close(self, device_uuid: str) -> None:
        """Forget a change: it was undone, or is no longer ours to undo."""
        self._spool.forget(_CHANGE + device_uuid)

    def seen(self) -> frozenset[str]:
        """Return the nonces of orders that were carried out or refused, until long after they have expired."""
        return frozenset(self._spool.facts(_NONCE))

    def see(self, nonce: str, expires_at_us: int) -> None:
        """Remember an order's nonce; on the disk when this returns."""
        self._spool.remember(_NONCE + nonce, str(expires_at_us))

    def forget_expired(self, now_us: int) -> None:
        """Let go of nonces of orders that would be refused as expired even by a clock that was set back since."""
        for nonce, expires_at_us in self._spool.facts(_NONCE).items():
            if int(expires_at_us) + NONCES_KEPT_US <= now_us:
                self._spool.forget(_NONCE + nonce)
