"""The devices of a node by position, and what happened to each of them.

The table only grows: a position keeps its meaning for the life of the probe, whatever is lost, reset or cut up anew. It
asks no driver; what has to be asked on behalf of a device that is let go of is put off as an action.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from collector.clock import US_PER_S, Clock
from collector.probe import DeviceEvent, DeviceReading, EventKind, ProcessReading, Row
from collector.probe.nvml_device import NvmlDevice
from collector.probe.nvml_events import DriverEvent
from collector.probe.nvml_mig import InstanceFound, MigInstance
from collector.probe.nvml_tasks import Identified, Visited
from collector.probe.nvml_visit import Visit, share_of
from collector.wire import DeviceRef, Stream

_LOOK_FOR_LOST_US: Final = 30 * US_PER_S
_FIRST_PAUSE_US: Final = 30 * US_PER_S
_LONGEST_PAUSE_US: Final = 600 * US_PER_S
_FORGIVEN_AFTER_US: Final = 3_600 * US_PER_S


@dataclass(slots=True)
class Slot:
    """One position of the device table; ``device`` is None while the device cannot be reached."""

    ref: DeviceRef
    device: NvmlDevice | MigInstance | None = None
    board: int | None = None
    """The position of the board of a MIG instance."""
    failures: int = 0
    trouble: Literal["lost", "hung"] | None = None
    hangs: bool = False
    """A call about it has not come back: nobody else may ask."""
    pause_us: int = _FIRST_PAUSE_US
    hung_at_us: int | None = None
    look_again_us: int = 0
    last_energy_mj: int | None = None
    recovery_action: int | None = None
    told: set[str] = field(default_factory=set)
    """What it does not support and was told: once, however often it is lost and found."""
    instances: frozenset[str] | None = None
    """The MIG instances a board had when it was last looked through; None before it ever was read."""
    processes: tuple[ProcessReading, ...] = ()

    def may_be_visited(self, monotonic_us: int) -> bool:
        """Say whether a board may be asked now."""
        if self.board is not None or self.hangs:
            return False
        return self.device is not None or monotonic_us >= self.look_again_us


class Table:
    """All positions, and what there is to tell since it was last taken."""

    def __init__(self, clock: Clock, *, gpm: bool) -> None:
        """Start empty."""
        self.slots: list[Slot] = []
        self._clock = clock
        self._gpm = gpm
        self._positions: dict[str, int] = {}
        self._events: list[DeviceEvent] = []
        self._rows: defaultdict[Stream, list[Row]] = defaultdict(list)
        self._actions: list[Callable[[], None]] = []

    @property
    def refs(self) -> tuple[DeviceRef, ...]:
        """The device table of a sweep."""
        return tuple(slot.ref for slot in self.slots)

    @property
    def processes(self) -> tuple[ProcessReading, ...]:
        """The processes of all devices that can be read."""
        return tuple(entry for slot in tuple(self.slots) if slot.device is not None for entry in slot.processes)

    def take(self) -> tuple[dict[Stream, tuple[Row, ...]], tuple[DeviceEvent, ...]]:
        """Return the rows and events since the last call."""
        rows = {stream: tuple(entries) for stream, entries in self._rows.items()}
        events = tuple(self._events)
        self._rows.clear()
        self._events.clear()
        return rows, events

    def put_off(self, action: Callable[[], None]) -> None:
        """Have something done with the next tasks of a reader."""
        self._actions.append(action)

    def take_actions(self) -> list[Callable[[], None]]:
        """Return what was put off, to be done in a reader's thread."""
        actions, self._actions = self._actions, []
        return actions

    def add(self, found: Identified) -> None:
        """Open the device found, at its old position or a new one."""
        position = self._positions.get(found.ref.uuid)
        if position is None:
            position = self._append(Slot(found.ref))
        slot = self.slots[position]
        if slot.hangs:
            return
        slot.device = NvmlDevice(found.handle, slot.ref.uuid, slot.ref.model, gpm=self._gpm, share=share_of(position))
        slot.failures = 0

    def visited(self, position: int, answer: Visited, errors: Counter[str]) -> DeviceReading:
        """Take in what a device said."""
        slot, visit = self.slots[position], answer.visit
        slot.failures = 0
        if slot.board is None:
            slot.device = answer.device  # an instance may have been given another handle since it was asked
        at_us = visit.at.wall_us
        errors.update(visit.errors)
        if slot.trouble is not None:
            slot.trouble = None
            self._event(position, "recovered", at_us=at_us)
        energy_mj = visit.values.get("energy_mj")
        if energy_mj is not None:
            if slot.last_energy_mj is not None and energy_mj < slot.last_energy_mj:
                self._event(position, "counter_reset", at_us=at_us, detail=f"from {slot.last_energy_mj} mJ")
            slot.last_energy_mj = int(energy_mj)
        for column in visit.newly_unsupported:
            if column not in slot.told:
                slot.told.add(column)
                self._event(position, "not_supported", at_us=at_us, detail=column)
        if visit.processes is not None:
            slot.processes = visit.processes
        for stream, row in visit.rows:
            self._rows[stream].append(row)
            if stream is Stream.DEVICE_HEALTH:
                self._notice_recovery_action(position, row, at_us)
        if isinstance(answer.device, NvmlDevice):
            self._rearrange(position, answer.device, visit)
        return DeviceReading(position, at_us, visit.values)

    def happened(self, events: Sequence[DriverEvent]) -> None:
        """Take in the driver's own events."""
        for event in events:
            for position, slot in enumerate(self.slots):
                device = slot.device
                if not isinstance(device, NvmlDevice) or event.handle_value is None:
                    continue
                if device.handle_value == event.handle_value:
                    if event.kind == "recovery_action":
                        device.hurry_health()  # which tells it, with its number
                    else:
                        self._event(position, "xid", code=event.code, detail=self._instance(position, event))

    def lost(self, position: int, code: int) -> None:
        """Let go of a device and look for it again later."""
        slot = self.slots[position]
        self._detach(position)
        slot.look_again_us = self._clock.now().monotonic_us + _LOOK_FOR_LOST_US
        if slot.trouble != "lost":
            slot.trouble = "lost"
            self._event(position, "lost", code=code)

    def hung(self, position: int) -> None:
        """Leave a device to the thread that hangs in a call about it."""
        slot = self.slots[position]
        slot.device = None  # not to be closed: the thread may still use it
        self._detach(position)
        slot.hangs = True
        now_us = self._clock.now().monotonic_us
        if slot.hung_at_us is None or now_us - slot.hung_at_us > _FORGIVEN_AFTER_US:
            slot.pause_us = _FIRST_PAUSE_US
        slot.hung_at_us = now_us
        if slot.trouble is None:
            slot.trouble = "hung"
            self._event(position, "hung", detail="a driver call does not return")

    def came_back(self, position: int) -> None:
        """Note that the call returned. Who hung once may again, so each time it is left alone for longer."""
        slot = self.slots[position]
        slot.hangs = False
        if slot.board is not None:
            return  # found again with its board
        slot.look_again_us = self._clock.now().monotonic_us + slot.pause_us
        slot.pause_us = min(2 * slot.pause_us, _LONGEST_PAUSE_US)

    def instance_failed(self, position: int, instance: MigInstance) -> None:
        """Let go of a MIG instance; whether it is gone is seen when its board is looked through."""
        slot = self.slots[position]
        if slot.device is not instance:
            return  # already replaced, or let go of with its board
        board = slot.board
        self._detach(position)
        if board is not None and isinstance(device := self.slots[board].device, NvmlDevice):
            device.hurry_instances()

    def driver_reloaded(self) -> None:
        """Begin anew: counters start over."""
        for position, slot in enumerate(self.slots):
            slot.last_energy_mj = None
            if slot.device is not None:
                self._event(position, "driver_reload")

    def close_all(self) -> None:
        """Let go of all devices."""
        for position in range(len(self.slots)):
            self._detach(position)

    def _append(self, slot: Slot) -> int:
        self._positions[slot.ref.uuid] = len(self.slots)
        self.slots.append(slot)
        return len(self.slots) - 1

    def _detach(self, position: int) -> None:
        slot = self.slots[position]
        device, slot.device = slot.device, None
        slot.processes = ()
        if device is not None:
            self._actions.append(device.close)
        for other, entry in enumerate(self.slots):
            if entry.board == position:
                self._detach(other)

    def _notice_recovery_action(self, position: int, row: Row, at_us: int) -> None:
        slot, action = self.slots[position], row.get("recovery_action")
        if isinstance(action, int) and action != slot.recovery_action:
            if action or slot.recovery_action:
                self._event(position, "recovery_action", code=action, at_us=at_us)
            slot.recovery_action = action

    def _rearrange(self, position: int, board: NvmlDevice, visit: Visit) -> None:
        """Follow what became of the MIG instances of a board."""
        slot = self.slots[position]
        if visit.instances is None:
            slot.instances = frozenset() if slot.instances is None and not board.mig_enabled else slot.instances
            return
        before = slot.instances
        slot.instances = frozenset(found.ref.uuid for found in visit.instances)
        for found in visit.instances:
            self._open_instance(position, board, found)
        if before is None or before == slot.instances:
            return
        for uuid in sorted(before - slot.instances):
            self._detach(self._positions[uuid])
            self._event(self._positions[uuid], "removed", at_us=visit.at.wall_us)
        profiles = Counter(found.ref.mig_profile for found in visit.instances)
        detail = ", ".join(f"{count} x {profile}" for profile, count in sorted(profiles.items(), key=str)) or "none"
        self._event(position, "mig_reconfigured", at_us=visit.at.wall_us, detail=f"instances now: {detail}")

    def _open_instance(self, board_position: int, board: NvmlDevice, found: InstanceFound) -> None:
        position = self._positions.get(found.ref.uuid)
        if position is None:
            position = self._append(Slot(found.ref, board=board_position))
        slot = self.slots[position]
        if slot.hangs:
            return
        if (
            isinstance(slot.device, MigInstance)
            and slot.device.handle_value == found.handle_value
            and slot.ref == found.ref
        ):
            return
        self._detach(position)
        slot.ref = found.ref
        slot.device = MigInstance(found, board.handle, gpm=self._gpm, share=share_of(position))

    def _instance(self, board: int, event: DriverEvent) -> str | None:
        if event.gpu_instance is None:
            return None
        uuids = [
            slot.ref.uuid
            for slot in self.slots
            if slot.board == board
            and isinstance(slot.device, MigInstance)
            and slot.device.gpu_instance == event.gpu_instance
        ]
        return " ".join([f"gpu instance {event.gpu_instance}", *uuids])

    def _event(
        self,
        position: int,
        kind: EventKind,
        *,
        code: int | None = None,
        at_us: int | None = None,
        detail: str | None = None,
    ) -> None:
        at_us = self._clock.now().wall_us if at_us is None else at_us
        self._events.append(DeviceEvent(position, at_us, kind, code, detail))
        device = self.slots[position].device
        if isinstance(device, NvmlDevice) and kind != "not_supported":
            device.hurry_health()
