"""Reads the node's power from its management controller by IPMI DCMI, through FreeIPMI's or ipmitool's command.

A gauge of some hundred milliseconds to seconds, asked every half minute at most: the controller is slow and shared. A reading
of 0 W, or one the controller calls inactive, is no reading. Meter ``ipmi``.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.source.command import CommandError, find, output_of
from collector.source.rows import fitted
from collector.wire import Stream

LEAST_PERIOD_S: Final = 30.0
COMMANDS: Final = (
    ("ipmi-dcmi", "--get-system-power-statistics"),
    ("ipmitool", "dcmi", "power", "reading"),
)
_METER: Final = "ipmi"
_MW_PER_W: Final = 1_000
_MOST_BYTES: Final = 65_536
_LONGEST_PAUSE_S: Final = 3_600.0
_POWER: Final = re.compile(
    r"^\s*(?:Current Power|Instantaneous power reading)\s*:\s*(\d{1,7}) Watts", re.IGNORECASE | re.MULTILINE
)
_STATE: Final = re.compile(
    r"^\s*(?:Power Measurement|Power reading state is)\s*:\s*(\w+)", re.IGNORECASE | re.MULTILINE
)
_ACTIVE: Final = frozenset({"active", "activated", "available"})


def parse_power_mw(text: str) -> int | None:
    """Return the present power in either command's text; None where there is none to be had."""
    power, state = _POWER.search(text), _STATE.search(text)
    if power is None or int(power[1]) == 0 or (state is not None and state[1].lower() not in _ACTIVE):
        return None
    return int(power[1]) * _MW_PER_W


class IpmiSource:
    """The node's own power meter, by IPMI."""

    def __init__(
        self,
        *,
        period_s: float = 60.0,
        timeout_s: float = 10.0,
        commands: Sequence[Sequence[str]] = COMMANDS,
        run: Callable[[Sequence[str], float], str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet. Of ``commands`` the first that is installed is used; ``run`` takes a command and its seconds."""
        self.name = "ipmi"
        self.period_s = max(period_s, LEAST_PERIOD_S)
        self._timeout_s = timeout_s
        self._commands = commands
        self._run = run or (lambda command, limit_s: output_of(command, timeout_s=limit_s, max_bytes=_MOST_BYTES))
        self._searches = run is None
        self._monotonic = monotonic
        self._read_at_s: float | None = None
        self._not_before_s = float("-inf")
        self._failures = 0
        self._failure: str | None = None

    def read(self) -> Observation:
        """Return one row, or none where there is no command or no reading."""
        now_s = self._monotonic()
        command = self._command()
        if command is None or now_s < self._not_before_s:
            return Observation()
        errors: Counter[str] = Counter()
        try:
            power_mw = parse_power_mw(self._run(command, self._timeout_s))
        except CommandError as error:
            self._failed(now_s, str(error))
            return Observation(errors={f"{self.name}:{error.kind}": 1})
        if power_mw is None:
            self._failed(now_s, "the controller gives no power reading, or says that measuring is off")
            return Observation(errors={f"{self.name}:no_reading": 1})
        self._failures, self._failure = 0, None
        span_s = 0.0 if self._read_at_s is None else now_s - self._read_at_s
        self._read_at_s = now_s
        row: Row = {"meter": _METER, "span_us": round(span_s * US_PER_S), "power_mw": power_mw}
        return Observation({Stream.NODE: (fitted(Stream.NODE, row, errors, self.name),)}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say whether the controller gives the node's power."""
        subject = "node power by IPMI"
        if self._command() is None:
            remedy = "install freeipmi-tools or ipmitool, and let the agent open /dev/ipmi0"
            return (Sight(subject, seen=False, detail="neither ipmi-dcmi nor ipmitool is installed", remedy=remedy),)
        if self._read_at_s is None and self._failure is None:
            self.read()
        if self._failure is not None:
            remedy = "let the agent open /dev/ipmi0 (root), and activate DCMI power measurement in the controller"
            return (Sight(subject, seen=False, detail=self._failure, remedy=remedy),)
        return (Sight(subject, seen=True, detail=f"meter {_METER}, every {self.period_s:.0f} s"),)

    def close(self) -> None:
        """Do nothing: no process outlives a reading."""

    def _command(self) -> Sequence[str] | None:
        for command in self._commands:
            path = find(command[0]) if self._searches else command[0]
            if path is not None:
                return (path, *command[1:])
        return None

    def _failed(self, now_s: float, why: str) -> None:
        """Ask a controller that does not answer ever less often: it may be one that hangs by being asked."""
        self._failure = why
        self._failures += 1
        self._not_before_s = now_s + min(self.period_s * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
