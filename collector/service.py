"""Tells systemd how the agent is: started, alive, stopping. Does nothing where no service manager asked for it.

The protocol is one datagram to a socket named in the environment (sd_notify(3)); a library for it would be a dependency.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from collector.clock import US_PER_S

_PINGS_PER_TIMEOUT: Final = 4


class ServiceManager:
    """The service manager of this process, if it has one that listens."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """Look into the environment for who listens (NOTIFY_SOCKET) and how often to report (WATCHDOG_USEC, WATCHDOG_PID)."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        timeout = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        self._ping_us = int(timeout) // _PINGS_PER_TIMEOUT if mine and timeout.isdecimal() else 0
        self._ping_at_us = 0

    def ready(self) -> None:
        """The agent measures."""
        self._tell("READY=1")

    def reloading(self, monotonic_us: int) -> None:
        """The agent reads its settings anew; :meth:`ready` ends this."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}")

    def stopping(self) -> None:
        """The agent was told to stop."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """Say in a line what the agent does, for ``systemctl status``."""
        self._tell(f"STATUS={text}")

    def alive(self, monotonic_us: int) -> None:
        """The loop turns; told no more often than asked for."""
        if self._ping_us and monotonic_us >= self._ping_at_us:
            self._ping_at_us = monotonic_us + self._ping_us
            self._tell("WATCHDOG=1")

    @property
    def watchdog_s(self) -> float | None:
        """Seconds between signs of life, None where nobody asked for any."""
        return self._ping_us / US_PER_S if self._ping_us else None

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        # A manager that does not listen is no reason to stop measuring; it will do what it does about a silent service.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1.0)
            channel.sendto(state.encode(), self._address)
