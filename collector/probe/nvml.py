"""Reads NVIDIA devices through NVML and survives what happens to them.

One sweep asks each device in turn, in a reader thread. A device whose driver call does not come back is told once and left
alone until it does, a lost one is told once and looked for again; a driver that was unloaded, reloaded or never there
leaves empty sweeps until it answers, and then a new driver epoch begins with devices found again by UUID, never by
index. So does one after it was closed, unless it is proven that no counter started over meanwhile. It does not attribute devices to jobs and does not aggregate.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import pynvml

from collector.clock import US_PER_S, Clock
from collector.errors import LibraryReplacedError
from collector.probe import DeviceReading, Epoch, ProcessReading, Sight, Sweep
from collector.probe.nvml_codes import DRIVER_CODES, LOST_CODES, NO_DRIVER_CODES
from collector.probe.nvml_continuity import Counted, went_on
from collector.probe.nvml_device import NvmlDevice
from collector.probe.nvml_events import EventSet
from collector.probe.nvml_mig import MigInstance
from collector.probe.nvml_reader import NoAnswer, Reader, Task
from collector.probe.nvml_sights import DriverState, describe
from collector.probe.nvml_table import Table
from collector.probe.nvml_tasks import (
    Answer,
    Done,
    Failure,
    Happened,
    Identified,
    Opened,
    Visited,
    close_library,
    create_event_set,
    identify,
    open_library,
    read_exactly,
    renew_event_set,
    run_all,
    take_events,
    visit_board,
)
from collector.probe.nvml_visit import share_of
from collector.wire import Feed, Origin

_LOG = logging.getLogger(__name__)

PATIENCE_S: Final = 0.5
"""How long one device may take: half a tick, so that the tick in which a call hangs is still kept for the others."""
_FIRST_OPEN_PATIENCE: Final = 8
"""So much longer may the first initialisation take, which wakes each GPU where there is no persistence mode; a later one, or one
longer still, is waited for from sweep to sweep."""
_FIRST_BACKOFF_US: Final = US_PER_S
_LONGEST_BACKOFF_US: Final = 60 * US_PER_S
_FAILURES_BEFORE_LOST: Final = 3
_MAX_DEVICES: Final = 256
_RENEW_EVENTS_US: Final = 10 * US_PER_S


class _DriverGoneError(Exception):
    """The driver, not one device, stopped answering; carries NVML's code."""


class NvmlProbe:
    """All NVIDIA devices of this node."""

    def __init__(
        self, clock: Clock, *, boot_id: str, driver_epoch: int, gpm: bool = True, patience_s: float = PATIENCE_S
    ) -> None:
        """Open nothing yet: the first :meth:`read` does. ``driver_epoch`` is the number of the epoch that begins then."""
        self._clock = clock
        self._boot_id = boot_id
        self._driver_epoch = driver_epoch
        self._gpm = gpm
        self._table = Table(clock, gpm=gpm)
        self._errors: Counter[str] = Counter()
        self._patience_s = patience_s
        self._reader: Reader[Answer] = Reader(patience_s)
        self._open = False
        self._opening = 0
        """Counts the openings: what comes back late from an earlier one is nobody's any more."""
        self._opened_before = False
        self._init_overdue = False
        self._late_init: Answer | None = None
        self._shutdown_owed = False
        self._new_epoch_on_open = False
        self._left: dict[str, Counted] | None = None
        """The counters when the driver was let go of; None where it was not."""
        self._event_set: EventSet | None = None
        self._events_hang = False
        self._renew_events_us: int | None = None
        self._driver_version: str | None = None
        self._retry_at_us = 0
        self._backoff_us = _FIRST_BACKOFF_US
        self._unavailable_code: int | None = None
        self._count = 0
        self._unidentified: dict[int, int | None] = {}
        """Devices, by the driver's index, that did not say what they are when it was opened, with NVML's code if they gave one."""

    @property
    def unavailable_code(self) -> int | None:
        """NVML's code while there is no driver to talk to; None while there is one."""
        return self._unavailable_code

    @property
    def released(self) -> bool:
        """Whether the driver is let go of. After :meth:`close` it may not be while a driver call hangs: close again."""
        return not (self._open or self._shutdown_owed or self._init_overdue)

    def read(self) -> Sweep:
        """Read every device that can be reached. Raises LibraryReplacedError where only a new process can go on."""
        self._take_late_answers()
        readings: list[DeviceReading] = []
        if self._ensure_open():
            try:
                readings = self._visit_devices()
                self._follow_counters(readings)
            except _DriverGoneError as gone:
                self._driver_gone(gone.args[0])
        self._table.tell_hung()
        rows, events = self._table.take()
        errors, self._errors = self._errors, Counter()
        return Sweep(self._epoch, self._table.refs, tuple(readings), events, dict(errors), rows)

    def processes(self) -> tuple[ProcessReading, ...]:
        """Return who used the devices when the driver was last asked: in :meth:`read`, every five seconds.

        Costs nothing, asks no driver, and may be called from any thread. A device that cannot be read has no entries.
        """
        return self._table.processes

    def read_exact(self, device_uuids: Collection[str]) -> Sweep:
        """Read the counters and gauges of these devices now, as far as one driver call a device gives them.

        For the instant at which something begins or ends on them. To be called by the thread that calls :meth:`read`. A device
        that is unknown or does not answer has no reading. For a MIG instance, which has no counter of its own, its board is read.
        The sweep carries no events and no rows: what happened to a device is found out and told by the next :meth:`read`.
        """
        boards = {slot.ref.parent_uuid or slot.ref.uuid for slot in self._table.slots if slot.ref.uuid in device_uuids}
        tasks: list[Task[Answer]] = [
            (("visit", self._opening, position), partial(read_exactly, slot.device, self._clock))
            for position, slot in enumerate(self._table.slots)
            if isinstance(slot.device, NvmlDevice) and slot.ref.uuid in boards
        ]
        readings: list[DeviceReading] = []
        errors: Counter[str] = Counter()
        for (key, _), answer in zip(tasks, self._reader.run(tasks), strict=True):
            position = key[2]
            if isinstance(answer, Visited):
                errors.update(answer.visit.errors)
                readings.append(DeviceReading(position, answer.visit.at.wall_us, answer.visit.values))
            elif isinstance(answer, Failure):
                errors[f"exact:{answer.code}"] += 1
            elif answer is NoAnswer.OVERDUE:
                errors["exact:late"] += 1
                self._table.hangs(position)
        return Sweep(self._epoch, self._table.refs, tuple(readings), errors=dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say what can be seen of the devices and what not, and which right or driver would add it; after some sweeps."""
        driver = DriverState(
            self._unavailable_code,
            self._open,
            self._driver_version,
            self._event_set is not None,
            self._count,
            self._unidentified,
        )
        return describe(self._table.slots, driver)

    def close(self) -> None:
        """Shut NVML down, so that the driver may be unloaded or a GPU reset; the next read opens it again, by UUID.

        While a driver call hangs that must not be done beside it: then it is owed, and done by the next call of this that finds
        the call returned (:attr:`released`).
        """
        self._take_late_answers()
        owed_before = self._shutdown_owed
        if self._open or isinstance(self._late_init, Opened):
            if self._left is None:  # else what was opened since was closed before it was read
                self._left = self._table.counters()
            self._open = False
            self._late_init = None
            self._table.close_all()
            self._shutdown_owed = True
        if self._shutdown_owed and not self._reader.hanging:
            actions, event_set, self._event_set = self._table.take_actions(), self._event_set, None
            answer = self._ask("close", partial(close_library, actions, event_set))
            self._shutdown_owed = answer is NoAnswer.OVERDUE
        if self._shutdown_owed and not owed_before:
            _LOG.warning("a driver call hangs: NVML stays open until it returns")
        self._reader.stop()

    def _follow_counters(self, readings: list[DeviceReading]) -> None:
        """Begin a new epoch where the driver may have been reloaded, or a GPU reset, since its counter was read last."""
        doubt = self._table.take_doubt()
        left, self._left = self._left, None
        if left is not None:
            read = {self._table.slots[reading.device].ref.uuid for reading in readings}
            now = {uuid: counted for uuid, counted in self._table.counters().items() if uuid in read}
            doubt |= not went_on(left, now)
        if doubt:
            self._driver_epoch += 1

    @property
    def _epoch(self) -> Epoch:
        return Epoch(self._boot_id, self._driver_epoch, Feed.NATIVE, Origin.LIVE)

    def _ask(self, what: str, task: Callable[[], Answer], patience_s: float | None = None) -> Answer | NoAnswer:
        (answer,) = self._reader.run([((what, self._opening, 0), task)], patience_s=patience_s)
        return answer

    def _take_late_answers(self) -> None:
        for (what, opening, position), answer in self._reader.returned():
            if what == "visit":
                self._take_back(position, answer if opening == self._opening and self._open else None)
            elif what == "init":
                self._init_overdue = False
                self._late_init = answer
            elif what == "close":
                self._shutdown_owed = False
            elif what == "events":
                self._events_hang = False
                if isinstance(answer, Happened):
                    self._take_events(answer)
            elif what == "index" and opening == self._opening and self._open and isinstance(answer, Identified):
                self._unidentified.pop(position, None)
                self._table.add(answer)

    def _take_back(self, position: int, answer: Answer | None) -> None:
        """Go on with a device whose call came back late. What it said is taken in but for the reading, which is old by now."""
        device = answer.device if isinstance(answer, Visited | Failure) else None
        self._table.came_back(position, device if isinstance(device, NvmlDevice) else None)
        if isinstance(answer, Visited):
            answer.visit.at = self._clock.now()
            self._take_visit(position, answer)

    def _take_events(self, answer: Happened) -> None:
        self._errors.update(answer.errors)
        self._table.happened(answer.events)
        if answer.spoiled and self._renew_events_us is None:
            # A lost device among those registered answers for all of them. Soon it is seen to be lost, and not registered again.
            self._renew_events_us = self._clock.now().monotonic_us + _RENEW_EVENTS_US

    def _take_visit(self, position: int, answer: Visited) -> list[DeviceReading]:
        readings = [self._table.visited(position, answer, self._errors)]
        for instance, outcome in answer.instances:
            if isinstance(outcome, Visited):
                readings.append(self._table.visited(instance, outcome, self._errors))
            else:
                self._errors[f"instance:{outcome.code}"] += 1
                self._table.instance_failed(instance, outcome)
        return readings

    def _ensure_open(self) -> bool:
        if self._open:
            return True
        now_us = self._clock.now().monotonic_us
        if self._init_overdue or (self._late_init is None and now_us < self._retry_at_us):
            return False
        answer: Answer | NoAnswer | None
        answer, self._late_init = self._late_init, None
        if answer is None:
            answer = self._initialise()
        if isinstance(answer, Failure):
            if answer.code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH and self._opened_before:
                # The library on disk is a new one, but this process keeps the old one mapped and cannot swap it.
                raise LibraryReplacedError("the NVIDIA driver was upgraded; restart to load its new library")
            if answer.code not in NO_DRIVER_CODES:
                self._errors[f"init:{answer.code}"] += 1
            self._unavailable(answer.code, now_us)
        if not isinstance(answer, Opened):
            return False
        self._driver_version = answer.driver_version
        self._open, self._shutdown_owed = True, False
        refused = self._find_devices(answer.devices)
        if refused is not None:
            self.close()
            self._unavailable(refused, now_us)
            return False
        self._opened()
        return True

    def _initialise(self) -> Answer | NoAnswer:
        if self._shutdown_owed and not self._reader.hanging:
            self.close()
        self._opening += 1
        first = self._opening == 1
        task = partial(open_library, initialised=self._shutdown_owed)
        answer = self._ask("init", task, self._patience_s * _FIRST_OPEN_PATIENCE if first else None)
        if isinstance(answer, NoAnswer):
            self._init_overdue = answer is NoAnswer.OVERDUE
            self._errors["init:broken" if answer is NoAnswer.RAISED else "init:late"] += 1
        return answer

    def _opened(self) -> None:
        self._opened_before = True
        self._backoff_us = _FIRST_BACKOFF_US
        if self._unavailable_code is not None:
            _LOG.info("NVML answers again: %d devices", sum(slot.device is not None for slot in self._table.slots))
        self._unavailable_code = None
        if self._new_epoch_on_open:
            self._new_epoch_on_open = False
            self._driver_epoch += 1
            self._left = None  # all that was before is over anyway
            self._table.driver_reloaded()

    def _unavailable(self, code: int, now_us: int) -> None:
        if code != self._unavailable_code:
            _LOG.warning("no NVIDIA driver to read: %s; trying again", pynvml.NVMLError(code))
        self._unavailable_code = code
        self._retry_at_us = now_us + self._backoff_us
        self._backoff_us = min(2 * self._backoff_us, _LONGEST_BACKOFF_US)

    def _driver_gone(self, code: int) -> None:
        self._errors[f"driver:{code}"] += 1
        self.close()
        self._new_epoch_on_open = True
        self._unavailable(code, self._clock.now().monotonic_us)

    def _find_devices(self, count: int) -> int | None:
        """Give the devices of the table their handles, and append those not seen before; return a code of the driver's."""
        tasks: list[Task[Answer]] = [
            (("index", self._opening, index), partial(identify, index)) for index in range(min(count, _MAX_DEVICES))
        ]
        if self._event_set is None:  # it outlives a closing during which a call hung
            tasks.append((("event set", self._opening, 0), create_event_set))
        self._count, self._unidentified = count, {}
        for ((what, _, position), _), answer in zip(tasks, self._reader.run(tasks), strict=True):
            if what == "index" and not isinstance(answer, Identified):
                self._unidentified[position] = answer.code if isinstance(answer, Failure) else None
            if isinstance(answer, Identified):
                self._table.add(answer)
            elif isinstance(answer, Done):
                self._event_set = answer.event_set
            elif isinstance(answer, Failure):
                if answer.code in DRIVER_CODES:
                    return answer.code
                self._errors[f"open:{answer.code}"] += 1  # a lost device has no UUID to be known by; the others go on
            else:
                self._errors["open:late"] += 1
        return None

    def _visit_devices(self) -> list[DeviceReading]:
        readings: list[DeviceReading] = []
        failed: list[int] = []
        tasks = self._tasks()
        answers = self._reader.run(tasks)
        for ((what, _, position), _), answer in zip(tasks, answers, strict=True):
            if answer is NoAnswer.OVERDUE:
                self._overdue(what, position)
        for ((what, _, position), _), answer in zip(tasks, answers, strict=True):
            if isinstance(answer, Visited):
                readings += self._take_visit(position, answer)
            elif isinstance(answer, Happened):
                self._take_events(answer)
            elif isinstance(answer, Done) and what == "event set":
                self._event_set = answer.event_set
                self._table.register_again()
            elif isinstance(answer, Failure):
                if answer.code in DRIVER_CODES:
                    raise _DriverGoneError(answer.code)
                if what == "visit" and self._failed(position, answer):
                    failed.append(answer.code)
            elif answer is NoAnswer.RAISED:
                self._errors[f"{what}:broken"] += 1
        if failed and not readings:
            # A reloaded driver answers the handles of the one before with all sorts of codes, for every device at once.
            raise _DriverGoneError(failed[0])
        return readings

    def _overdue(self, what: str, position: int) -> None:
        if what == "visit":
            self._errors["device:late"] += 1
            self._table.hangs(position)
        elif what in ("events", "event set"):
            self._errors["events:late"] += 1
            self._events_hang = True  # meanwhile the kernel log tells XIDs

    def _tasks(self) -> list[Task[Answer]]:
        now_us = self._clock.now().monotonic_us
        tasks: list[Task[Answer]] = []
        actions = self._table.take_actions()
        if actions:
            tasks.append((("actions", self._opening, 0), partial(run_all, actions)))
        for position, slot in enumerate(self._table.slots):
            key = ("visit", self._opening, position)
            if slot.may_be_visited(now_us) and not isinstance(slot.device, MigInstance):
                visit = partial(
                    visit_board,
                    slot.ref,
                    slot.device,
                    self._table.instances_of(position) if slot.device is not None and slot.device.mig_enabled else (),
                    event_set=self._event_set,
                    clock=self._clock,
                    gpm=self._gpm,
                    share=share_of(position),
                )
                tasks.append((key, visit))
        if self._event_set is None or self._events_hang:
            return tasks
        if self._renew_events_us is not None and now_us >= self._renew_events_us:
            self._renew_events_us = None
            event_set, self._event_set = self._event_set, None
            tasks.append((("event set", self._opening, 0), partial(renew_event_set, event_set)))
        else:
            tasks.append((("events", self._opening, 0), partial(take_events, self._event_set)))
        return tasks

    def _failed(self, position: int, failure: Failure) -> bool:
        """Note what a device answered instead of a reading; return whether it may be the driver that is gone."""
        slot = self._table.slots[position]
        if failure.code in LOST_CODES or failure.device is None:
            self._table.lost(position, failure.code)
            return False
        slot.device = failure.device
        self._errors[f"device:{failure.code}"] += 1
        slot.failures += 1
        if slot.failures >= _FAILURES_BEFORE_LOST:
            self._table.lost(position, failure.code)
        return True
