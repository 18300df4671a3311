"""Remembers what an order changed and what was there before, durably and before it is changed.

In the spool's file, whose commits are on the disk when they return. It carries out nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from collector.spool import Spool

_CHANGE: Final = "power:"
_NONCE: Final = "nonce:"


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
        """Return the nonces of orders that were carried out or refused and have not expired."""
        return frozenset(self._spool.facts(_NONCE))

    def see(self, nonce: str, expires_at_us: int) -> None:
        """Remember an order's nonce until the order expires; on the disk when this returns."""
        self._spool.remember(_NONCE + nonce, str(expires_at_us))

    def forget_expired(self, now_us: int) -> None:
        """Let go of nonces of orders that would be refused as expired anyway."""
        for nonce, expires_at_us in self._spool.facts(_NONCE).items():
            if int(expires_at_us) <= now_us:
                self._spool.forget(_NONCE + nonce)
