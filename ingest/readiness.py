"""What keeps a process from taking data, by the name of what it depends on and since when; and what is amiss beside that.

A worker that is silent or a segment store that is out of reach makes no replica unready: data can be kept without them, and a
load balancer that took every replica away for it would turn a delay into an outage. They are told as ``degraded``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

Watch = Callable[[], Mapping[str, str]]
"""Returns what is wrong by dependency; empty = nothing."""
READY: Final = 200
NOT_READY: Final = 503


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Standing:
    """Remembers since when each dependency has been down; for any thread, where a race costs a moment of ``since``."""

    clock: Callable[[], datetime] = _now
    _since: dict[str, datetime] = field(default_factory=dict)

    def told(self, faults: Mapping[str, str], degraded: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer: ``faults`` make it 503, ``degraded`` do not.

        Each is {dependency, fault, since}; ``since``, RFC 3339, is when it was first seen down.
        """
        beside = degraded or {}
        now = self.clock()
        down = faults.keys() | beside.keys()
        self._since = {name: self._since.get(name, now) for name in down}
        body: dict[str, Any] = {"status": "not ready" if faults else "ready"}
        for key, found in (("faults", faults), ("degraded", beside)):
            if found:
                body[key] = [
                    {"dependency": name, "fault": fault, "since": self._since[name].isoformat().replace("+00:00", "Z")}
                    for name, fault in found.items()
                ]
        return NOT_READY if faults else READY, body
