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
from collector.probe.nvml_continuity import Counted, is_same
from collector.probe.nvml_device import NvmlDevice
from collector.probe.nvml_events import DriverEvent
from collector.probe.nvml_mig import InstanceFound, MigInstance
from collector.probe.nvml_tasks import Failure, Identified, Visited
from collector.probe.nvml_visit import Visit, share_of
from collector.wire import DeviceRef, Stream

_LOOK_FOR_LOST_US: Final = 30 * US_PER_S
_HUNG_AFTER_US: Final = 5 * US_PER_S
"""Drivers stall for a second or two while large jobs begin or end: that is late, and no event."""
_LONGEST_PAUSE_US: Final = 60 * US_PER_S
_MAX_POSITIONS: Final = 1_024
"""Positions are never given up; a board that is cut anew for ever must not fill the memory and the wire."""


@dataclass(slots=True)
class Slot:
    """One position of the device table; ``device`` is None while the device cannot be reached."""

    ref: DeviceRef
    device: NvmlDevice | MigInstance | None = None
    handle_value: int | None = None
    """Kept when the device is lost: the event that tells why may come after."""
    board: int | None = None
    """The position of the board of a MIG instance."""
    failures: int = 0
    trouble: Literal["lost", "hung"] | None = None
    hangs_since_us: int | None = None
    """Since when a call about it has not come back: the thread that waits has the device, and nobody else may ask."""
    look_again_us: int = 0
    last_energy: Counted | None = None
    recovery_action: int | None = None
    told: set[str] = field(default_factory=set)
    """What it does not support and was told: once, however often it is lost and found."""
    instances: frozenset[str] | None = None
    """The MIG instances a board had when it was last looked through; None before it ever was read."""
    processes: tuple[ProcessReading, ...] = ()

    def may_be_visited(self, monotonic_us: int) -> bool:
        """Say whether a board may be asked now."""
        return self.board is None and self.hangs_since_us is None and monotonic_us >= self.look_again_us


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
        self._doubt = False

    @property
    def refs(self) -> tuple[DeviceRef, ...]:
        """The device table of a sweep."""
        return tuple(slot.ref for slot in self.slots)

    @property
    def processes(self) -> tuple[ProcessReading, ...]:
        """The processes of all devices that can be read, those that are merely late among them."""
        return tuple(entry for slot in tuple(self.slots) for entry in slot.processes)

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
        if slot.hangs_since_us is not None:
            return
        slot.look_again_us = 0
        slot.device = NvmlDevice(found.handle, slot.ref.uuid, slot.ref.model, gpm=self._gpm, share=share_of(position))
        slot.handle_value = slot.device.handle_value
        slot.failures = 0

    def instances_of(self, board: int) -> list[tuple[int, MigInstance]]:
        """Return the MIG instances of a board that can be read, with their positions."""
        return [
            (position, slot.device)
            for position, slot in enumerate(self.slots)
            if slot.board == board and isinstance(slot.device, MigInstance)
        ]

    def visited(self, position: int, answer: Visited, errors: Counter[str]) -> DeviceReading:
        """Take in what a device said; of the instances of a board, each is taken in by itself."""
        slot, visit = self.slots[position], answer.visit
        slot.failures = 0
        if slot.board is None:
            slot.device = answer.device  # an instance may have been given another handle since it was asked
            slot.handle_value = answer.device.handle_value
        at_us = visit.at.wall_us
        errors.update(visit.errors)
        was_lost = slot.trouble == "lost"
        if slot.trouble is not None:
            slot.trouble = None
            self._event(position, "recovered", at_us=at_us)
        energy_mj = visit.values.get("energy_mj")
        if energy_mj is not None:
            counted = Counted(int(energy_mj), visit.at.monotonic_us)
            if was_lost and slot.last_energy is not None and not is_same(slot.last_energy, counted):
                self._doubt = True  # it took a reset to bring it back
            if slot.last_energy is not None and energy_mj < slot.last_energy.energy_mj:
                self._event(position, "counter_reset", at_us=at_us, detail=f"from {slot.last_energy.energy_mj} mJ")
            slot.last_energy = counted
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
            self._rearrange(position, answer.device, visit, errors)
        return DeviceReading(position, at_us, visit.values)

    def happened(self, events: Sequence[DriverEvent]) -> None:
        """Take in the driver's own events."""
        for event in events:
            for position, slot in enumerate(self.slots):
                if slot.board is not None or slot.handle_value != event.handle_value or event.handle_value is None:
                    continue
                if event.kind == "xid":
                    self._event(position, "xid", code=event.code, detail=self._instance(position, event))
                elif isinstance(slot.device, NvmlDevice):
                    slot.device.hurry_health()  # which tells what the driver asks for

    def register_again(self) -> None:
        """Have all boards registered with a new event set."""
        for slot in self.slots:
            if isinstance(slot.device, NvmlDevice):
                slot.device.registered = False

    def lost(self, position: int, code: int) -> None:
        """Let go of a device and look for it again later."""
        slot = self.slots[position]
        self._detach(position)
        slot.look_again_us = self._clock.now().monotonic_us + _LOOK_FOR_LOST_US
        if slot.trouble != "lost":
            slot.trouble = "lost"
            self._event(position, "lost", code=code)

    def hangs(self, position: int) -> None:
        """Leave a device, and with it the instances of a board, to the thread that waits in a call about it."""
        slot = self.slots[position]
        slot.device = None
        slot.hangs_since_us = self._clock.now().monotonic_us

    def tell_hung(self) -> None:
        """Tell each device once about which a call has not come back for long."""
        for position, slot in enumerate(self.slots):
            if slot.hangs_since_us is None or slot.trouble is not None:
                continue
            if self._clock.now().monotonic_us - slot.hangs_since_us < _HUNG_AFTER_US:
                continue
            slot.trouble = "hung"
            for entry in self.slots:
                if entry is slot or entry.board == position:
                    entry.processes = ()
            self._event(position, "hung", detail="a driver call does not return")

    def came_back(self, position: int, device: NvmlDevice | None) -> None:
        """Note that the call returned, and take the device back, if it is still good.

        It is left alone for as long as the call took, so that who hangs at each visit costs the others little.
        """
        slot = self.slots[position]
        now_us = self._clock.now().monotonic_us
        if slot.hangs_since_us is not None:
            slot.look_again_us = now_us + min(now_us - slot.hangs_since_us, _LONGEST_PAUSE_US)
        slot.hangs_since_us = None
        slot.device = device
        if device is None:
            self._detach(position)

    def instance_failed(self, position: int, failure: Failure) -> None:
        """Let go of a MIG instance; whether it is gone is seen when its board is looked through."""
        slot = self.slots[position]
        if slot.device is not failure.device:
            return  # already replaced, or let go of with its board
        board = slot.board
        self._detach(position)
        if board is not None and isinstance(device := self.slots[board].device, NvmlDevice):
            device.hurry_instances()

    def driver_reloaded(self) -> None:
        """Begin anew: counters start over."""
        for position, slot in enumerate(self.slots):
            slot.last_energy = None
            if slot.device is not None:
                self._event(position, "driver_reload")

    def counters(self) -> dict[str, Counted]:
        """Return the energy counters of the boards that can be read, as they were read last."""
        return {
            slot.ref.uuid: slot.last_energy
            for slot in self.slots
            if slot.device is not None and slot.last_energy is not None
        }

    def take_doubt(self) -> bool:
        """Say whether the counter of a device that was lost may have started over since the last call."""
        doubt, self._doubt = self._doubt, False
        return doubt

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
        board = slot if slot.board is None else self.slots[slot.board]
        if device is not None and board.hangs_since_us is None:  # else the thread that waits may still use it
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

    def _rearrange(self, position: int, board: NvmlDevice, visit: Visit, errors: Counter[str]) -> None:
        """Follow what became of the MIG instances of a board."""
        slot = self.slots[position]
        if visit.instances is None:
            slot.instances = frozenset() if slot.instances is None and not board.mig_enabled else slot.instances
            return
        before = slot.instances
        slot.instances = frozenset(found.ref.uuid for found in visit.instances)
        for found in visit.instances:
            if found.ref.uuid not in self._positions and len(self.slots) >= _MAX_POSITIONS:
                errors["instances:too_many"] += 1
            else:
                self._open_instance(position, board, found)
        if before is None or before == slot.instances:
            return
        for uuid in sorted((before - slot.instances) & self._positions.keys()):
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
