"""Turns sweeps and observations into batches in the spool: rows by the sampler, everything else beside them.

One batch never spans an epoch, so each probe fills batches of its own; rows of the node travel with the first native
probe's, or alone where there is none. It reads no device, sends nothing, and waits for no disk: storing is
:mod:`collector.writer`'s.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from collector import wire
from collector.batch import Rows, encode_body
from collector.clock import Clock
from collector.probe import DeviceEvent, Epoch, Row, Sweep
from collector.rows import fault_of, fits_i64, fitting
from collector.sampler import RowBuilder, Tick, exact_row
from collector.spool import Spool
from collector.wire import DEVICE_STREAMS, UNKNOWN_MODEL, BatchMeta, DeviceRef, Feed, Origin, Reading, Stream
from collector.writer import Pending, RecorderState, Writer

_LOG = logging.getLogger(__name__)

NODE_LANE: Final = "node"
UNREAD_LANE: Final = "unread"
MAX_UNREAD_DEVICES: Final = 256


@dataclass(slots=True)
class _Lane:
    """What is known of one probe: its rows that are begun, its epoch, its device table."""

    name: str
    builder: RowBuilder
    epoch: Epoch | None = None
    devices: tuple[DeviceRef, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    seen: tuple[DeviceRef, ...] = ()
    """The device table as the probe gave it."""

    def know(self, sweep: Sweep) -> None:
        if sweep.devices is not self.seen:
            if sweep.devices != self.seen:
                self.devices = tuple(fitting(device) for device in sweep.devices)
                self.positions = {device.uuid: position for position, device in enumerate(sweep.devices)}
            self.seen = sweep.devices


class Recorder:
    """The way from a sweep or an observation to a durable batch."""

    def __init__(  # noqa: PLR0913  what every batch says of its sender
        self,
        spool: Spool,
        clock: Clock,
        *,
        node: str,
        period_us: int,
        row_us: int,
        batch_us: int,
        labels: dict[str, str],
        boot_id: str = "unknown",
        writer: Writer | None = None,
    ) -> None:
        """Write batches of ``batch_us`` worth of rows for ``node``; ``boot_id`` is for a node without a device.

        ``writer``: of the recorder before this one, for the same spool, with the rows that still wait.
        """
        self.state = RecorderState()
        self.clock_offset_us: int | None = None
        """By how much this clock is ahead of the server's, where that was measured; travels in each batch."""
        self._spool = spool
        self._clock = clock
        self._node = node
        self._period_us = period_us
        self._row_us = row_us
        self._batch_us = batch_us
        self._labels = labels
        self._version = agent_version()
        self._lanes: dict[str, _Lane] = {}
        self._node_epoch = Epoch(boot_id, 0, Feed.NATIVE, Origin.LIVE)
        self._unread = _Lane(UNREAD_LANE, RowBuilder(period_us=period_us, row_us=row_us), epoch=self._node_epoch)
        self.writer = writer or Writer(spool, clock, self._body, self.state)
        if writer is not None:
            writer.serve(clock, self._body, self.state)
        self._last_due_us = 0

    def record(self, tick: Tick, sweep: Sweep, probe: str = "nvml") -> None:
        """Add one sweep of a probe; :meth:`complete` ends the tick."""
        lane = self._lane_of(probe, sweep)
        self._last_due_us = tick.due_us
        self.state.samples += len(sweep.readings)
        rows = lane.builder.add(tick.due_us, sweep.readings)
        if sweep.events:
            self._add_events(lane, sweep, rows)
        if rows:
            self._keep(lane, Stream.DEVICE, rows)
        if sweep.rows:
            self.observe(sweep.rows, self._clock.now().wall_us)

    def complete(self, tick: Tick) -> None:
        """End a tick of which every probe was recorded: store the batches that are complete."""
        self.state.samples_missed += tick.missed
        self._last_due_us = tick.due_us
        if tick.due_us % self._batch_us == 0:
            self.writer.store()

    def record_exact(self, sweep: Sweep, why: Mapping[str, Reading], probe: str = "nvml") -> None:
        """Add readings taken at an event, one exact row for each device that ``why`` names by UUID."""
        lane = self._lane_of(probe, sweep)
        rows = [
            exact_row(reading, why[uuid])
            for reading in sweep.readings
            if (uuid := sweep.devices[reading.device].uuid) in why
        ]
        if sweep.events:
            self._add_events(lane, sweep, rows)
        self._keep(lane, Stream.DEVICE, rows)

    def observe(self, rows: Mapping[Stream, Iterable[Row]], at_us: int, since_us: int = 0) -> None:
        """Add rows of any streams; those without an instant or span of their own get these.

        Rows of streams with a ``device`` column name it by ``device_uuid``. What does not fit its stream, or belongs to a
        device nobody has read, is left out and counted. But for begins and ends of allocations: those are told once, and after
        a reboot the ends of all holdings may be known before the driver is there.
        """
        for stream, given in rows.items():
            spans = stream in _SPANNED
            for row in given:
                row = dict(row)  # noqa: PLW2901  what a source handed over stays its own
                row.setdefault("at_us", at_us)
                if spans:
                    row.setdefault("span_us", since_us)
                lane = self._place(stream, row)
                fault = "of an unknown device" if lane is None else fault_of(stream, row)
                if lane is None or fault:
                    self._refuse(stream, fault or "")
                else:
                    self._keep(lane, stream, (row,))

    def knows(self, device_uuid: str) -> str | None:
        """Return the probe that reads a device, None for a device nobody has read."""
        return next((lane.name for lane in self._lanes.values() if device_uuid in lane.positions), None)

    def devices(self) -> tuple[DeviceRef, ...]:
        """Return every device that was read, each once; from any thread."""
        found = {device.uuid: device for lane in tuple(self._lanes.values()) for device in lane.devices}
        return tuple(found.values())

    def change_period(self, period_us: int) -> None:
        """Go on with another cadence; rows that are begun end early, so that none mixes two."""
        self._period_us = period_us
        for lane in self._lanes.values():
            self._keep(lane, Stream.DEVICE, lane.builder.flush(self._last_due_us))
            lane.builder.change_period(period_us)

    def clock_stepped(self) -> None:
        """End all rows: none may span two ideas of what time it is."""
        self.flush()
        for lane in self._lanes.values():
            lane.builder.forget()

    def flush(self) -> None:
        """Have everything stored that there is, partial rows included."""
        for lane in self._lanes.values():
            self._end_rows(lane)
        self.writer.store()

    def _lane_of(self, probe: str, sweep: Sweep) -> _Lane:
        lane = self._lanes.get(probe)
        if lane is None:
            lane = self._lanes[probe] = _Lane(probe, RowBuilder(period_us=self._period_us, row_us=self._row_us))
        if sweep.epoch != lane.epoch:
            if lane.epoch is not None:
                self._end_rows(lane)
                self.writer.store()
            lane.builder.forget()
            lane.epoch = sweep.epoch
        lane.know(sweep)
        return lane

    def _end_rows(self, lane: _Lane) -> None:
        self._keep(lane, Stream.DEVICE, lane.builder.flush(self._last_due_us))

    def _add_events(self, lane: _Lane, sweep: Sweep, rows: list[Row]) -> None:
        readings = {reading.device: reading for reading in sweep.readings}
        ended_now = {(row["device"], row["at_us"]) for row in rows}
        for device in sorted({event.device for event in sweep.events}):
            reading = readings.get(device)
            # Where a row ends with this very reading, that row is the exact reading already.
            if reading is not None and (device, reading.at_us) not in ended_now:
                rows.append(exact_row(reading, Reading.DEVICE_EVENT))
        for event in sweep.events:
            row = _event_row(event, readings[event.device].values if event.device in readings else {})
            fault = fault_of(Stream.DEVICE_EVENT, row)
            if fault:
                self._refuse(Stream.DEVICE_EVENT, fault)
            else:
                self._keep(lane, Stream.DEVICE_EVENT, (row,))

    def _place(self, stream: Stream, row: Row) -> _Lane | None:
        """Return the lane a row belongs to and put its device's position in; None for an unknown device."""
        if stream not in DEVICE_STREAMS:
            native = (lane for lane in self._lanes.values() if lane.epoch and lane.epoch.feed is Feed.NATIVE)
            return next(native, None) or self._node_lane()
        uuid = row.pop("device_uuid", None)
        for lane in self._lanes.values():
            position = lane.positions.get(uuid) if isinstance(uuid, str) else None
            if position is not None:
                row["device"] = position
                return lane
        if stream is Stream.ALLOCATION and isinstance(uuid, str) and uuid:
            return self._place_unread(uuid, row)
        return None

    def _place_unread(self, uuid: str, row: Row) -> _Lane | None:
        """Put the row's device into the table of those nobody has read; None where that is full."""
        lane = self._unread
        position = lane.positions.get(uuid)
        if position is None:
            position = len(lane.devices)
            if position >= MAX_UNREAD_DEVICES or len(uuid) > wire.MAX_META_CHARACTERS or not uuid.isprintable():
                return None
            lane.positions[uuid] = position
            lane.devices = (
                *lane.devices,
                DeviceRef(uuid, UNKNOWN_MODEL, kind="mig" if uuid.startswith("MIG-") else "gpu"),
            )
        row["device"] = position
        return lane

    def _node_lane(self) -> _Lane:
        builder = RowBuilder(period_us=self._period_us, row_us=self._row_us)
        return _Lane(NODE_LANE, builder, epoch=self._node_epoch)

    def _refuse(self, stream: Stream, fault: str) -> None:
        self.state.refused_rows[f"{stream.value}:{fault}"[:_MAX_KIND_CHARACTERS]] += 1
        if self.state.refused_rows.total() <= _LOGGED_REFUSALS:
            _LOG.warning("a row of %s is left out: %s", stream.value, fault)

    def _keep(self, lane: _Lane, stream: Stream, rows: Iterable[Row]) -> None:
        rows = tuple(rows)
        if not rows:
            return
        assert lane.epoch is not None  # noqa: S101  set before anything is kept
        noted = lane.name not in (NODE_LANE, UNREAD_LANE)  # those have no driver
        self.writer.keep(lane.name, lane.epoch, lane.devices, stream, rows, noted=noted)

    def _body(self, pending: Pending, spool: str, sequence: int) -> bytes:
        now = self._clock.now()
        meta = BatchMeta(
            spool=spool,
            sequence=sequence,
            node=self._node,
            boot_id=pending.epoch.boot_id,
            driver_epoch=pending.epoch.driver_epoch,
            feed=pending.epoch.feed,
            origin=pending.epoch.origin,
            cadence_us=self._row_us,
            agent_version=self._version,
            created_at_us=now.wall_us,
            monotonic_us=now.monotonic_us,
            clock_offset_us=self.clock_offset_us,
            devices=pending.devices,
            durable=self._spool.durable,
            labels=self._labels,
        )
        streams: dict[Stream, Rows] = {}
        for stream in Stream:  # in the order of the contract, whatever came first
            if rows := pending.streams.get(stream):
                streams[stream] = Rows(stream)
                for row in rows:
                    streams[stream].append(row)
        return encode_body(meta, streams)


_MAX_KIND_CHARACTERS: Final = 80
_LOGGED_REFUSALS: Final = 20
_SPANNED: Final = frozenset(
    stream for stream, columns in wire.COLUMNS.items() if any(entry.name == "span_us" for entry in columns)
)


@cache
def agent_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("wattledger")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def _event_row(event: DeviceEvent, values: dict[str, int | float | None]) -> Row:
    detail, code = event.detail, event.code
    if code is not None and not fits_i64(code):  # the event counts, whatever the driver put there
        detail, code = f"code {code:#x}" + (f"; {detail}" if detail else ""), None
    if detail is not None:
        detail = detail[: wire.MAX_STRING_BYTES // 4]  # 4 bytes a character at most
    return {
        "at_us": event.at_us,
        "device": event.device,
        "kind": event.kind,
        "code": code,
        "energy_mj": values.get("energy_mj"),
        "detail": detail,
    }
