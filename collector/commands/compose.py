"""Puts the command channel together from the settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from collector.clock import Clock
from collector.commands.channel import CommandChannel, read_key
from collector.commands.check import Bounds
from collector.commands.expiry import Expiry
from collector.commands.journal import Journal
from collector.commands.orders import Orders
from collector.commands.power import NvmlPower
from collector.config import Settings
from collector.http import httpx
from collector.spool import Spool


class Host(Protocol):
    """What the channel needs of the agent."""

    @property
    def released(self) -> bool:
        """Whether the devices are let go for maintenance."""
        ...

    def tell(
        self, kind: str, subject: str | None = None, *, code: int | None = None, detail: str | None = None
    ) -> None:
        """Tell an event of the node."""
        ...


def make_channel(
    settings: Settings,
    open_client: Callable[[Settings], AbstractContextManager[httpx.Client]],
    agent: Host,
    spool: Spool,
    clock: Clock,
) -> CommandChannel:
    """Return the channel, not started. Raises AgentError where there is no key that only this user may read."""

    def now_us() -> int:
        return clock.now().wall_us

    key = read_key(Path(settings.command_key_file))
    journal = Journal(spool)
    orders = _orders(journal, agent, now_us)
    return CommandChannel(
        open_client(settings),
        journal,
        orders,
        Expiry(orders, agent.tell),
        agent.tell,
        now_us,
        node=settings.node,
        key=key,
        token=settings.token,
        bounds=Bounds(settings.power_limit_min_w, settings.power_limit_max_w),
        period_s=settings.command_poll_s,
    )


def make_undoing(agent: Host, spool: Spool, clock: Clock) -> Expiry:
    """Return what undoes the orders that the journal still holds, where no new ones are wanted; not started."""
    return Expiry(_orders(Journal(spool), agent, lambda: clock.now().wall_us), agent.tell, no_more=True)


def _orders(journal: Journal, agent: Host, now_us: Callable[[], int]) -> Orders:
    return Orders(journal, NvmlPower(lambda: agent.released), agent.tell, now_us)
