"""Carries out checked orders and undoes them: at their expiry, when the agent stops, and, after a crash, when it starts.

Before a limit is set, the one that was found is journalled. Undoing puts it back only where the limit is still the one that
was set here: where somebody else has changed it meanwhile it is theirs, is left, and that is told. An order on a device that
one is in force on takes its place and inherits what was there before both. Where the journal was lost and an order finds its
own limit in force, that limit is no doubt its own: what is put back is the board's default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from collector.commands.check import ALL_DEVICES, MW_PER_W, PowerOrder, RefusedError
from collector.commands.journal import Change, Journal
from collector.commands.power import PowerControl, PowerError, PowerLimit


class Tell(Protocol):
    """How events of the node are told."""

    def __call__(
        self, kind: str, subject: str | None = None, *, code: int | None = None, detail: str | None = None
    ) -> None:
        """Tell one."""
        ...


class Orders:
    """The orders of one node; to be used from one thread at a time."""

    def __init__(self, journal: Journal, power: PowerControl, tell: Tell, now_us: Callable[[], int]) -> None:
        """Begin with what the journal holds from before."""
        self._journal = journal
        self._power = power
        self._tell = tell
        self._now_us = now_us
        self._stuck: dict[str, tuple[str, str]] = {}
        """Nonce and reason of what could not be undone, by device: due whenever it expires, and told once."""

    @property
    def in_force(self) -> bool:
        """Whether there is anything to be undone. Raises JournalError."""
        return bool(self._journal.changes())

    def carry_out(self, order: PowerOrder) -> None:
        """Set the limit of the order's devices. Raises RefusedError where none was set, JournalError where it cannot be journalled."""
        try:
            there = self._power.devices()
        except PowerError as error:
            raise RefusedError(str(error)) from error
        wanted = there if order.device == ALL_DEVICES else (order.device,)
        if not wanted or not set(wanted) <= set(there):
            raise RefusedError(f"this node has no device {order.device}")
        faults = [fault for uuid in wanted if (fault := self._limit(uuid, order))]
        if len(faults) == len(wanted):
            raise RefusedError(faults[0])
        for fault in faults:
            self._tell("order_failed", detail=fault)

    def undo_due(self, *, again: bool = True) -> None:
        """Undo what has expired and, with ``again``, what could not be undone before: that stays in the journal. Raises JournalError."""
        now_us = self._now_us()
        self._journal.begin(now_us)
        for path, mended in self._journal.take_damaged():
            lost = "limits of orders in force stay until the server hands them out again; compare them with the boards' defaults"
            detail = "its copy told the same, nothing is lost" if mended else lost
            self._tell("orders_journal_damaged", str(path), detail=detail)
        for change in self._journal.changes().values():
            nonce, why = self._stuck.get(change.device_uuid, ("", ""))
            if nonce == change.nonce:
                if again:
                    self._undo(change, why)
            elif change.expires_at_us <= now_us:
                self._undo(change, "it expired")
        self._journal.forget_expired(now_us)

    def undo_all(self, why: str) -> None:
        """Undo everything. Raises JournalError."""
        for change in self._journal.changes().values():
            self._undo(change, why)

    def _limit(self, uuid: str, order: PowerOrder) -> str | None:
        try:
            found = self._power.limit(uuid)
        except PowerError as error:
            return f"{uuid}: {error}"
        if not found.min_mw <= order.limit_mw <= found.max_mw:
            allowed = f"[{found.min_mw // MW_PER_W}, {found.max_mw // MW_PER_W}] W"
            return f"{uuid}: its board allows {allowed}"
        previous_mw = self._previous_mw(uuid, order, found)
        change = Change(uuid, order.nonce, previous_mw, order.limit_mw, order.expires_at_us)
        self._journal.note(change)
        try:
            self._power.set_limit(uuid, order.limit_mw)
            now_mw = self._power.limit(uuid).now_mw
        except PowerError as error:
            # Whether it was set is not known; the journal stays, and undoing will look.
            self._undo(change, "setting it failed")
            return f"{uuid}: {error}"
        if now_mw != order.limit_mw:  # a board may round
            self._journal.note(replace(change, applied_mw=now_mw))
        self._tell("order_applied", uuid, code=now_mw, detail=f"power limit in mW, {previous_mw} before; {order.nonce}")
        return None

    def _previous_mw(self, uuid: str, order: PowerOrder, found: PowerLimit) -> int:
        before = self._journal.changes().get(uuid)
        if before is not None:
            return before.previous_mw if before.applied_mw == found.now_mw else found.now_mw
        if found.now_mw != order.limit_mw or self._journal.knew(order.issued_at_us):
            return found.now_mw
        # Set by this very order before the journal was lost. To take it for what was there before would cap the board for good.
        previous_mw = found.now_mw if found.default_mw is None else found.default_mw
        detail = "the journal was lost while an order was in force: this, the default as far as the board has one, is put back"
        self._tell("order_previous_unknown", uuid, code=previous_mw, detail=detail)
        return previous_mw

    def _undo(self, change: Change, why: str) -> None:
        uuid = change.device_uuid
        try:
            now_mw = self._power.limit(uuid).now_mw
            if now_mw == change.applied_mw and now_mw != change.previous_mw:
                self._power.set_limit(uuid, change.previous_mw)
        except PowerError as error:
            if self._stuck.get(uuid, ("", ""))[0] != change.nonce:
                self._stuck[uuid] = change.nonce, why
                self._tell(
                    "order_not_undone", uuid, code=change.previous_mw, detail=f"tried again until it can be: {error}"
                )
            return
        self._stuck.pop(uuid, None)
        if now_mw == change.applied_mw:
            self._tell("order_undone", uuid, code=change.previous_mw, detail=f"{why}; {change.nonce}")
        elif now_mw != change.previous_mw:
            detail = f"set to {change.applied_mw} mW here, found at {now_mw}: left as it is; {change.nonce}"
            self._tell("order_contested", uuid, code=now_mw, detail=detail)
        self._journal.close(uuid)
