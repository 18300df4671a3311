"""The agent's loop: asks the probes at each tick, takes in what sources saw, and answers signals.

Nothing it does may wait for anything: driver calls, sources, storing and sending each happen in threads of their own, and the
loop takes what is there. It composes nothing (:mod:`collector.run` does) and interprets no measurement.
"""

from __future__ import annotations

import enum
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from collector.clock import US_PER_S, Clock, Instant
from collector.config import Settings
from collector.doorbell import Doorbell
from collector.errors import LibraryReplacedError
from collector.exact import Exact
from collector.governor import Governor
from collector.health import Health, cpu_s
from collector.memory import trim
from collector.probe import Row, Sweep
from collector.probe_thread import ProbeThread, undated
from collector.recorder import Recorder
from collector.release import Release
from collector.sampler import STEP_US, Cadence, Tick
from collector.service import ServiceManager
from collector.ship import Shipper
from collector.source_thread import SourceThreads
from collector.spool import Spool
from collector.wire import Stream
from collector.writer import Writer

_LOG = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_PATIENCE_SHARE: Final = 0.8  # of a period: the longest that the loop waits for the devices
_LONGEST_PATIENCE_S: Final = 2.0
# Together with what sending gets (collector.ship.DRAIN_S) less than the five seconds in which the agent must end.
_BESIDE_CLOSE_S: Final = 1.0
_SOURCES_CLOSE_S: Final = 0.5
_DEVICES_CLOSE_S: Final = 0.7
_STORE_CLOSE_S: Final = 2.5  # a disk that takes longer gets no time for sending: see collector.run
_HELD_CLOSE_S: Final = 0.2
_HELD_ASKED_US: Final = 2 * US_PER_S
"""How long before its health is told the spool is asked what it holds, at least."""
_LONGEST_WAIT_S: Final = 5.0
_MAX_DETAIL_CHARACTERS: Final = 250


class Ending(enum.Enum):
    """Why the loop ended."""

    STOPPED = "stopped"
    RELOAD = "reload"


class Beside(Protocol):
    """Something with a thread of its own: the listener for traces, the channel for orders."""

    def start(self) -> None:
        """Begin."""
        ...

    def close(self) -> None:
        """End, in bounded time."""
        ...


class Agent:
    """One agent; :meth:`run` measures until it is told to stop or, when replaying, the trace is over."""

    def __init__(  # noqa: PLR0913  what an agent is made of
        self,
        settings: Settings,
        devices: Sequence[ProbeThread],
        sources: SourceThreads,
        spool: Spool,
        clock: Clock,
        shipper: Shipper | None,
        *,
        boot_id: str,
        doorbell: Doorbell | None = None,
        service: ServiceManager | None = None,
        reload: Callable[[], bool] = lambda: False,
        owing: Sequence[ProbeThread] = (),
        release: Release | None = None,
        writer: Writer | None = None,
    ) -> None:
        """Compose what was made elsewhere; ``reload`` reads the settings anew and says whether they are others now.

        ``owing``: of an agent before this one, with probes this one has none of; they may still hold a driver.
        ``release``: whether devices are let go, where that began before this agent. ``writer``: of the agent before this one,
        for the same spool.
        """
        self.health = Health(clock.now())
        self.recorder = Recorder(
            spool,
            clock,
            node=settings.node,
            period_us=settings.sample_us,
            row_us=settings.row_us,
            batch_us=settings.batch_us,
            labels=settings.label_pairs,
            boot_id=boot_id,
            writer=writer,
        )
        self._settings = settings
        self._devices = tuple(devices)
        self._sources = sources
        self._spool = spool
        self._clock = clock
        self._shipper = shipper
        self._doorbell = doorbell
        self._service = service or ServiceManager({}, 0)
        self._reload = reload
        self._release = release or Release(settings.release_file)
        self._released: str | None = None
        self._owing = tuple(owing)
        self._holding: list[ProbeThread] = []
        self._governor = Governor(
            cap_ratio=settings.cpu_cap_percent / 100,
            sample_us=settings.sample_us,
            row_us=settings.row_us,
            give_way=shipper.slow_down if shipper else lambda: False,
        )
        self._exact = Exact(self._devices, self.recorder)
        self.beside: list[Beside] = []
        """What runs beside the loop and needs the agent to tell what happens; started and closed with it."""
        self._told: SimpleQueue[Row] = SimpleQueue()
        self._held_asked = False
        self.stored = True
        """Whether the disk took everything at the end; False where it keeps somebody waiting."""
        self.hands_on = False
        """Whether it ended for another agent, which goes on with the spool and its writer."""
        self._skew_told_us = 0
        self._health_at_us = clock.now().monotonic_us + round(settings.health_s * US_PER_S)
        self._cadence = Cadence(settings.sample_us, clock.now())
        self._read_once = False
        self._ending: Ending | None = None

    @property
    def released(self) -> bool:
        """Whether the devices are let go for maintenance."""
        return self._released is not None

    def tell(
        self, kind: str, subject: str | None = None, *, code: int | None = None, detail: str | None = None
    ) -> None:
        """Note an event of the node; from any thread. It travels with the next batch."""
        short = None if detail is None else detail[:_MAX_DETAIL_CHARACTERS]
        row: Row = {"at_us": self._clock.now().wall_us, "kind": kind, "subject": subject, "code": code, "detail": short}
        self._told.put(row)

    def run(self, stop: threading.Event) -> Ending:
        """Measure on the cadence; flush what is begun at the end. Raises LibraryReplacedError."""
        self.tell("agent_started")
        self.recorder.writer.start()
        self._sources.start()
        # Before anything beside the loop can open a driver that somebody waits for.
        self._follow_release()
        for helper in self.beside:
            helper.start()
        self._service.ready()
        try:
            while self._goes_on(stop):
                # Not longer, however slow the cadence: the service manager wants a sign of life.
                self._clock.wait(min(_LONGEST_WAIT_S, self._cadence.wait_s(self._clock.now())))
                if self._goes_on(stop):
                    self._turn()
        finally:
            self._close()
        return self._ending or Ending.STOPPED

    def _goes_on(self, stop: threading.Event) -> bool:
        over = bool(self._devices) and all(device.finished for device in self._devices)
        return self._ending is None and not over and not stop.is_set()

    def _turn(self) -> None:
        """Do what is due now; the one place where an unforeseen fault is survived."""
        try:
            self._answer_signals()
            self._take_in()
            now = self._clock.now()
            self._service.alive(now.monotonic_us)
            self._follow_release()
            tick = self._cadence.reached(now)
            if tick is None:
                return
            if tick.clock_step_us:
                self._clock_stepped(tick.clock_step_us)
                return
            self._read_devices(tick, now)
            self._read_once = True
            self.recorder.complete(tick)
            self._look_at_itself(now)
        except LibraryReplacedError:
            raise
        except Exception:  # noqa: BLE001  the outermost loop of the process
            self.health.probe_errors["loop"] += 1
            _LOG.exception("one turn of the loop failed; going on")

    def _answer_signals(self) -> None:
        while self._doorbell and (number := self._doorbell.take_signal()) is not None:
            try:
                self._answer_signal(number)
            except BaseException:
                self._doorbell.ring()  # those behind it are for the next turn, and that is to come at once
                raise

    def _answer_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._ending = Ending.STOPPED
            self._service.stopping()
        elif number == signal.SIGUSR1:
            self._release.toggle()
            self._follow_release()
        elif number == signal.SIGHUP and self._ending is None:
            self._service.reloading(self._clock.now().monotonic_us)
            try:
                if self._reload():
                    self._ending = Ending.RELOAD
            except Exception as error:
                self.tell("settings_refused", detail=f"{type(error).__name__}: {error}")
                raise
            finally:
                # Else the agent that is made from them says so, or the one from the settings before.
                if self._ending is not Ending.RELOAD:
                    self._service.ready()

    def _take_in(self) -> None:
        """Take over what sources and other threads have to say, once it is known which devices there are."""
        if not self._read_once:
            return
        found = self._sources.take()
        for seen, rows in zip(found, self._exact.complete(found), strict=True):
            self.health.probe_errors.update(seen.observation.errors)
            self.recorder.observe(rows, seen.at_us, seen.since_us)
        self.health.probe_errors.update(self._sources.take_errors())
        for name, since_s in self._sources.take_overdue():
            self.tell(
                "source_overdue", name, detail=f"reading for {since_s:.0f} s; its rows are missing until it is back"
            )
        told = self._take_told()
        if told:
            self.recorder.observe({Stream.NODE_EVENT: told}, self._clock.now().wall_us)

    def _take_told(self) -> list[Row]:
        told: list[Row] = []
        while True:
            try:
                row = self._told.get_nowait()
            except Empty:
                return told
            self.health.events[str(row["kind"])] += 1
            _LOG.info("%s %s %s", row["kind"], row["subject"] or "", row["detail"] or "")
            told.append(row)

    def _clock_stepped(self, step_us: int) -> None:
        self.health.clock_stepped(step_us)
        _LOG.warning("the wall clock stepped by %.3f s", step_us / US_PER_S)
        for device in self._devices:
            device.discard()
        self.recorder.clock_stepped()
        self.tell("clock_step", code=step_us, detail=f"the wall clock was set by {step_us / US_PER_S:+.3f} s")

    def _read_devices(self, tick: Tick, began: Instant) -> None:
        asked = {device.name: device.ask() for device in self._devices}
        patience_s = min(_LONGEST_PATIENCE_S, _PATIENCE_SHARE * self._governor.period_us / US_PER_S)
        until_s = time.monotonic() + patience_s
        sweeps: list[tuple[str, Sweep]] = []
        for device in self._devices:
            # One that did not come back since the last tick has had its time.
            left_s = until_s - time.monotonic() if asked[device.name] else 0.0
            sweep = device.sweep(max(0.0, left_s))
            if sweep is not None:
                sweeps.append((device.name, sweep))
            elif device.overdue:
                self.health.probe_errors[f"{device.name}:overdue"] += 1
        # Where the clock was set while they were read, nobody knows by which one they are dated.
        stepped = abs(self._clock.now().offset_us - began.offset_us) > STEP_US
        for name, found in sweeps:
            sweep = undated(found) if stepped else found
            self._note(sweep)
            self.recorder.record(tick, sweep, name)

    def _note(self, sweep: Sweep) -> None:
        self.health.probe_errors.update(sweep.errors)
        for event in sweep.events:
            uuid_of = sweep.devices[event.device].uuid
            _LOG.warning("device %s: %s code=%s %s", uuid_of, event.kind, event.code, event.detail or "")

    def _follow_release(self) -> None:
        wanted = self._release.wanted()
        for device in [device for device in self._holding if device.let_go()]:
            self._holding.remove(device)
            if wanted is not None:
                self.tell("released", device.name, code=1, detail=f"for {wanted}, as a driver call came back at last")
        if bool(wanted) == bool(self._released):
            return
        self._holding.clear()
        self._released = wanted
        for device in self._devices:
            if wanted is None:
                device.released = False
                self.tell("reopened", device.name, detail="devices are found again by UUID")
            else:
                self._read_last(device)
                if device.release():
                    self.tell("released", device.name, code=1, detail=f"for {wanted}")
                else:
                    self._is_held(device, wanted)
        for device in self._owing:
            if wanted is not None and not device.gone:
                self._is_held(device, wanted)

    def _is_held(self, device: ProbeThread, wanted: str) -> None:
        # Whoever waits to reset a GPU goes by ``released``: that is told once it is true.
        self._holding.append(device)
        self.tell("driver_held", device.name, detail=f"{wanted} waits: a driver call does not come back")

    def _read_last(self, device: ProbeThread) -> None:
        """Take what the reading under way tells of events, so that none is lost to the release."""
        with suppress(LibraryReplacedError):  # the next opening finds it out again
            sweep = device.sweep(0.0)
            if sweep is not None:
                self._note(sweep)
                self.recorder.record_exact(sweep, {}, device.name)

    def _look_at_itself(self, now: Instant) -> None:
        if self._governor.note(now.monotonic_us, cpu_s()):
            self._change_cadence(now)
        self._tell_skew()
        for path in self._spool.take_damaged():
            self.tell("spool_damaged", str(path), detail="it is kept there and a new one was started")
        if not self._held_asked and now.monotonic_us >= self._health_at_us - max(
            _HELD_ASKED_US, 2 * self._governor.period_us
        ):
            self._held_asked = True
            self.recorder.writer.ask_held()
        if now.monotonic_us >= self._health_at_us:
            period_us = round(self._settings.health_s * US_PER_S)
            # After a machine that slept, once and not once for each minute.
            self._health_at_us = max(self._health_at_us + period_us, now.monotonic_us)
            self._report(now)

    def _change_cadence(self, now: Instant) -> None:
        period_us, ratio = self._governor.period_us, self._governor.last_ratio or 0.0
        self.recorder.change_period(period_us)
        self._cadence = Cadence(period_us, now)
        kind = "cadence_lowered" if ratio > self._governor.cap_ratio else "cadence_raised"
        self.tell(
            kind, code=period_us, detail=f"{ratio:.2%} of a core was used; a reading each {period_us / US_PER_S:g} s"
        )

    def _tell_skew(self) -> None:
        skew_us = self._shipper.state.clock_skew_us if self._shipper else None
        if skew_us is None:
            return
        self.recorder.clock_offset_us = skew_us
        # Told when it matters and when that changes; the server measures it with each body anyway.
        if abs(skew_us - self._skew_told_us) >= _TOLD_SKEW_US:
            self._skew_told_us = skew_us
            self.tell("clock_skew", code=skew_us, detail=f"this clock is {skew_us / US_PER_S:+.1f} s from the server's")

    def _report(self, now: Instant) -> None:
        row = self.health.row(
            now,
            self.recorder.state,
            self.recorder.writer.held,
            self._shipper.state if self._shipper else None,
            sample_us=self._governor.period_us,
            released=self._released is not None,
            durable=self._spool.durable,
        )
        self._held_asked = False
        self.recorder.observe({Stream.AGENT: (row,)}, now.wall_us)
        _LOG.info("%s", self.health.line(row))
        trim()

    def _close(self) -> None:
        """Let go of everything in bounded time, and store what there is. The spool and the sending are closed elsewhere."""
        self.recorder.writer.ask_held()
        # Orders are undone through the driver, which may hang: in a thread that may be left behind.
        closing = threading.Thread(target=self._close_beside, name="close", daemon=True)
        closing.start()
        closing.join(_BESIDE_CLOSE_S)
        self.tell("agent_stopped", detail=self._ending.value if self._ending else None)
        for device in self._devices:
            device.begin_close()
        self._sources.close(_SOURCES_CLOSE_S)
        until_s = time.monotonic() + _DEVICES_CLOSE_S
        for device in self._devices:
            if not device.closed(max(0.0, until_s - time.monotonic())):
                self.tell("driver_held", device.name, detail="at the end: a driver call does not come back")
        self._read_once = True
        try:
            self._take_in()
            self.recorder.writer.wait_held(_HELD_CLOSE_S)
            self._report(self._clock.now())
        except Exception:  # noqa: BLE001  the rows before must be stored whatever happens here
            _LOG.exception("the last words of the agent failed")
        self.recorder.flush()
        if self._ending is Ending.RELOAD:
            # What the disk does not take in that time waits for it with the next agent.
            self.recorder.writer.wait_stored(_HELD_CLOSE_S)
            self.hands_on = True
            return
        self.stored = self.recorder.writer.close(_STORE_CLOSE_S)
        if not self.stored:
            _LOG.error("%d rows are lost: the disk did not take them in time", self.recorder.writer.waiting_rows)

    def _close_beside(self) -> None:
        for helper in self.beside:
            try:
                helper.close()
            except Exception:  # noqa: BLE001  the others must be closed whatever happens here
                _LOG.exception("%s could not be closed", type(helper).__name__)


_TOLD_SKEW_US: Final = 2 * US_PER_S
