"""Turns sweeps into batches in the spool: rows by the sampler, events beside them, one epoch per batch.

It keeps what the spool cannot take just now (a full disk, say) in memory, bounded, and counts what it has to drop. It
reads no device and sends nothing.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from collector import wire
from collector.batch import RowError, Rows, encode_body
from collector.clock import Clock
from collector.errors import SpoolError
from collector.probe import DeviceEvent, Epoch, Sweep
from collector.sampler import Row, RowBuilder, Tick, exact_row
from collector.spool import Spool
from collector.wire import BatchMeta, DeviceRef, Reading, Stream

_LOG = logging.getLogger(__name__)

MAX_PENDING_ROWS: Final = 10_000
"""Rows kept in memory while the spool fails: a few MB, three hours of 8 devices."""


@dataclass(slots=True)
class _Pending:
    """Rows of one epoch that are not in the spool yet."""

    epoch: Epoch
    devices: tuple[DeviceRef, ...]
    rows: deque[Row] = field(default_factory=deque)
    events: deque[Row] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.rows) + len(self.events)


@dataclass(slots=True)
class RecorderState:
    """Counts since the start, for the agent's own health."""

    samples: int = 0
    samples_missed: int = 0
    batches: int = 0
    dropped_rows: int = 0
    spool_failures: int = 0


class Recorder:
    """The way from a sweep to a durable batch."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        *,
        node: str,
        period_us: int,
        row_us: int,
        batch_us: int,
        labels: dict[str, str],
    ) -> None:
        """Write batches of ``batch_us`` worth of rows for ``node``."""
        self.state = RecorderState()
        self._spool = spool
        self._clock = clock
        self._node = node
        self._row_us = row_us
        self._batch_us = batch_us
        self._labels = labels
        self._version = agent_version()
        self._builder = RowBuilder(period_us=period_us, row_us=row_us)
        self._pending: deque[_Pending] = deque()
        self._epoch: Epoch | None = None
        self._devices: tuple[DeviceRef, ...] = ()
        self._last_due_us = 0

    def record(self, tick: Tick, sweep: Sweep) -> None:
        """Add one sweep; store a batch where one is complete."""
        self.state.samples_missed += tick.missed
        if sweep.epoch != self._epoch:
            self._end_epoch()
            self._epoch = sweep.epoch
        self._devices = sweep.devices
        self._last_due_us = tick.due_us
        self.state.samples += len(sweep.readings)
        rows = self._builder.add(tick.due_us, sweep.readings)
        readings = {reading.device: reading for reading in sweep.readings}
        ended_now = {(row["device"], row["at_us"]) for row in rows}
        for device in sorted({event.device for event in sweep.events}):
            reading = readings.get(device)
            # Where a row ends with this very reading, that row is the exact reading already.
            if reading is not None and (device, reading.at_us) not in ended_now:
                rows.append(exact_row(reading, Reading.DEVICE_EVENT))
        events = [
            _event_row(event, readings[event.device].values if event.device in readings else {})
            for event in sweep.events
        ]
        self._keep(rows, events)
        if tick.due_us % self._batch_us == 0:
            self._store()

    def clock_stepped(self) -> None:
        """End all rows: none may span two ideas of what time it is."""
        self._end_epoch()

    def flush(self) -> None:
        """Store everything there is, partial rows included."""
        self._keep(self._builder.flush(self._last_due_us), [])
        self._store()

    def _end_epoch(self) -> None:
        if self._epoch is not None:
            self.flush()
        self._builder.forget()

    def _keep(self, rows: list[Row], events: list[Row]) -> None:
        if not rows and not events:
            return
        assert self._epoch is not None  # noqa: S101  set before anything is kept
        last = self._pending[-1] if self._pending else None
        if last is None or last.epoch != self._epoch:
            last = _Pending(self._epoch, self._devices)
            self._pending.append(last)
        last.devices = self._devices
        last.rows.extend(rows)
        last.events.extend(events)
        excess = sum(map(len, self._pending)) - MAX_PENDING_ROWS
        while excess > 0:
            oldest = self._pending[0]
            (oldest.rows or oldest.events).popleft()
            self.state.dropped_rows += 1
            excess -= 1
            if not oldest:
                self._pending.popleft()

    def _store(self) -> None:
        while self._pending:
            pending = self._pending[0]
            try:
                self._spool.put(partial(self._body, pending), self._clock.now().wall_us)
            except SpoolError as error:
                self.state.spool_failures += 1
                _LOG.error("batch kept in memory, %d rows wait: %s", sum(map(len, self._pending)), error)
                return
            except RowError as error:
                # Trying again would fail again and hold up all that comes after.
                self.state.dropped_rows += len(pending)
                _LOG.error("%d rows dropped, they do not fit the wire: %s", len(pending), error)
            else:
                self.state.batches += 1
            self._pending.popleft()

    def _body(self, pending: _Pending, spool: str, sequence: int) -> bytes:
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
            clock_offset_us=None,  # only a time server could tell; ingest measures the skew at the door
            devices=pending.devices,
            durable=self._spool.durable,
            labels=self._labels,
        )
        streams = {Stream.DEVICE: Rows(Stream.DEVICE), Stream.DEVICE_EVENT: Rows(Stream.DEVICE_EVENT)}
        for stream, rows in ((Stream.DEVICE, pending.rows), (Stream.DEVICE_EVENT, pending.events)):
            for row in rows:
                streams[stream].append(row)
        return encode_body(meta, streams)


def agent_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("wattledger")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def _event_row(event: DeviceEvent, values: dict[str, int | float | None]) -> Row:
    detail = (
        None if event.detail is None else event.detail[: wire.MAX_STRING_BYTES // 4]
    )  # 4 bytes per character at most
    return {
        "at_us": event.at_us,
        "device": event.device,
        "kind": event.kind,
        "code": event.code,
        "energy_mj": values.get("energy_mj"),
        "detail": detail,
    }
