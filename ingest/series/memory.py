"""What is remembered of the nodes that series speak of, between requests: their devices, cadence, and counters to compare with.

All of it can be learned again, and a second server learns it for itself, but for the spacing, which servers tell each other
(:class:`Spacing`): nothing here decides what a row is worth, but for the two columns of a host that no single series holds
(:mod:`ingest.series.host`). Bounded; the longest silent go first.
"""

from __future__ import annotations

import uuid
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from collector.wire import MAX_DEVICES_PER_BATCH, UNKNOWN_MODEL, DeviceRef, Origin, Stream

MAX_NODES: Final = 20_000
MAX_SUBJECTS: Final = 8_192
"""Rows-to-be of one node that are told apart; a node exporter has some hundred."""
MAX_ITEMS: Final = 1_000_000
MAX_NEW_AN_HOUR: Final = 200_000
"""Things of one site not heard of before, by this process: a fleet of 10,000 GPUs has half as many devices, ports and meters."""
MAX_NEW_OF_A_NODE: Final = 4_096
"""The same, told with a token that is bound to one node: what one node makes up takes nothing from the others."""
DEFAULT_CADENCE_US: Final = 15_000_000
"""Until a node's spacing is known: that of Prometheus' own example, and of most."""
_STEPS_S: Final = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900)
_CONFIRMATIONS: Final = 3
_FORGOTTEN_AFTER_US: Final = 600_000_000
"""A device is named in its node's bodies this long after it was told last: what is named counts as seen there."""
_HOUR_US: Final = 3_600_000_000
_SPOOLS: Final = uuid.UUID("6d0f7a3e-2c3b-5e0e-9a55-7d0c6b6f1f11")


class Spacing(Protocol):
    """What servers tell each other of the spacing of nodes' samples: :class:`ingest.store.series_nodes.Spacings`."""

    def known(self, site_id: int, nodes: Collection[tuple[str, Origin]]) -> Mapping[tuple[str, Origin], int]: ...

    def learned(self, site_id: int, spacings: Sequence[tuple[tuple[str, Origin], int, int]]) -> None: ...


@dataclass(slots=True)
class Cadence:
    """The spacing of a node's samples, as one of the usual steps: it changes only once three in a row say so.

    The pieces of one instant must agree on it, wherever they are read.
    """

    us: int = DEFAULT_CADENCE_US
    told_us: int = 0
    """The spacing that other servers know of; 0 = none."""
    last_us: int = 0
    _candidate_us: int = 0
    _seen: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether it was seen, here or by another server, and is not merely the usual."""
        return self.told_us > 0 or self._seen >= _CONFIRMATIONS

    @property
    def is_news(self) -> bool:
        """Whether other servers should hear of it."""
        return self._seen >= _CONFIRMATIONS and self.told_us != self.us

    def saw(self, at_us: int) -> None:
        """Take in an instant; those that are not later than the last say nothing."""
        if at_us <= self.last_us:
            return
        delta_s, self.last_us = (at_us - self.last_us) / 1e6, at_us
        step_us = min(_STEPS_S, key=lambda step_s: abs(step_s - delta_s)) * 1_000_000
        if step_us != self._candidate_us:
            self._candidate_us, self._seen = step_us, 0
        self._seen += 1
        if self._seen >= _CONFIRMATIONS:
            self.us = step_us


@dataclass(slots=True)
class Known:
    """One node as its series tell of it."""

    spool: str
    """Names its bodies in the registry's memory; their rows are not counted by it."""
    cadence: Cadence = field(default_factory=Cadence)
    latest_us: dict[tuple[Stream, tuple[str, ...]], int] = field(default_factory=dict)
    """The last instant of each row-to-be."""
    devices: tuple[DeviceRef, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    told_us: dict[str, int] = field(default_factory=dict)
    memory_total_bytes: float | None = None
    processors: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By processor, when its idle time was told last and what it was, in seconds."""
    counts_ns: bool = False
    """Whether its exporter's ``*_VIOLATION`` counters were seen to count nanoseconds."""
    violations: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)

    def name(self, devices: Sequence[DeviceRef], now_us: int) -> bool:
        """Have these devices in the node's table, boards before instances; False where there are too many.

        The table stays the same object while the devices do, which is what the registry recognises.
        """
        for device in devices:
            self.told_us[device.uuid] = now_us
        new = [device for device in devices if device.uuid not in self.positions]
        self._describe(devices)
        if not new:
            return True
        kept = [ref for ref in self.devices if self.told_us[ref.uuid] >= now_us - _FORGOTTEN_AFTER_US]
        if len(kept) + len(new) > MAX_DEVICES_PER_BATCH:
            self.told_us = {ref.uuid: self.told_us[ref.uuid] for ref in self.devices}
            return False
        self.devices = (*kept, *new)
        self.positions = {ref.uuid: position for position, ref in enumerate(self.devices)}
        self.told_us = {ref.uuid: self.told_us[ref.uuid] for ref in self.devices}
        return True

    def _describe(self, devices: Sequence[DeviceRef]) -> None:
        """Take a description in the place of none: another scraper may tell more of a device."""
        for device in devices:
            position = self.positions.get(device.uuid)
            if position is None or device.model == UNKNOWN_MODEL or self.devices[position].model != UNKNOWN_MODEL:
                continue
            self.devices = (*self.devices[:position], device, *self.devices[position + 1 :])

    def is_late(self, stream: Stream, subject: tuple[str, ...], at_us: int) -> bool:
        """Whether a later row of the same thing was told before; takes the instant in."""
        latest_us = self.latest_us.get((stream, subject), 0)
        if at_us >= latest_us:
            self.latest_us[stream, subject] = at_us
        return at_us < latest_us

    @property
    def size(self) -> int:
        """Return how many things are remembered."""
        return len(self.latest_us) + len(self.devices) + len(self.processors) + len(self.violations)


class Memory:
    """Nodes by site, name and origin; and how many things not heard of before may still be named this hour."""

    def __init__(
        self,
        spacing: Spacing | None = None,
        *,
        max_nodes: int = MAX_NODES,
        max_items: int = MAX_ITEMS,
        max_new_an_hour: int = MAX_NEW_AN_HOUR,
    ) -> None:
        self._spacing = spacing
        self._max_nodes, self._max_items, self._max_new = max_nodes, max_items, max_new_an_hour
        self._nodes: OrderedDict[tuple[int, str, Origin], Known] = OrderedDict()
        self._sizes: dict[tuple[int, str, Origin], int] = {}
        self._items = 0
        self._hour = 0
        self._new: Counter[tuple[int, str | None]] = Counter()

    def ask(self, site_id: int, nodes: Collection[tuple[str, Origin]]) -> None:
        """Begin with the spacing that other servers know of these nodes; raises UnavailableError."""
        if self._spacing is None:
            return
        unsettled = [
            node
            for node in nodes
            if (known := self._nodes.get((site_id, *node))) is None or not known.cadence.is_settled
        ]
        if unsettled:
            for node, us in self._spacing.known(site_id, unsettled).items():
                cadence = self.of(site_id, *node).cadence
                cadence.us = cadence.told_us = us

    def tell(self, site_id: int, nodes: Collection[tuple[str, Origin]]) -> None:
        """Have other servers hear of spacings that were learned here; raises UnavailableError, and then it is told next time."""
        if self._spacing is None:
            return
        new = {node: self.of(site_id, *node).cadence for node in nodes}
        new = {node: cadence for node, cadence in new.items() if cadence.is_news}
        if new:
            self._spacing.learned(site_id, [(node, cadence.us, cadence.last_us) for node, cadence in new.items()])
            for cadence in new.values():
                cadence.told_us = cadence.us

    def of(self, site_id: int, node: str, origin: Origin) -> Known:
        """Return what is known of a node."""
        key = (site_id, node, origin)
        known = self._nodes.get(key)
        if known is None:
            spool = str(uuid.uuid5(_SPOOLS, f"{site_id}/{int(origin)}/{node}"))
            known = self._nodes[key] = Known(spool)
        self._nodes.move_to_end(key)
        # As it was when it was last left: what this request adds counts when the node is asked for again.
        self._items += known.size - self._sizes.get(key, 0)
        self._sizes[key] = known.size
        while len(self._nodes) > 1 and (len(self._nodes) > self._max_nodes or self._items > self._max_items):
            dropped, _ = self._nodes.popitem(last=False)
            self._items -= self._sizes.pop(dropped)
        return known

    def admits(
        self,
        known: Known,
        stream: Stream,
        subject: tuple[str, ...],
        now_us: int,
        sender: tuple[int, str | None] = (0, None),
    ) -> bool:
        """Whether a thing may be spoken of: one heard of before, or one of the new ones that an hour has room for.

        ``sender``: its site, and its node where its token is bound to one. Each is a row of the database for good, so a label that changes with every sample must not make them without end.
        """
        if (stream, subject) in known.latest_us:
            return True
        hour = now_us // _HOUR_US
        if hour != self._hour:
            self._hour, self._new = hour, Counter()
        most = self._max_new if sender[1] is None else min(self._max_new, MAX_NEW_OF_A_NODE)
        if self._new[sender] >= most or known.size >= MAX_SUBJECTS:
            return False
        self._new[sender] += 1
        known.latest_us[stream, subject] = 0
        return True

    def __len__(self) -> int:
        return len(self._nodes)
