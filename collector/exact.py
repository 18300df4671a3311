"""Reads the counters at the instant an allocation begins or ends, which is what makes the split between two jobs exact.

An event that is found long after it happened gets no counter: the reading of now is not the reading of then, and the
server interpolates between the readings around it. It decides nothing about who holds a device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from collector.errors import LibraryReplacedError
from collector.probe import Row, Sweep
from collector.probe_thread import ProbeThread
from collector.recorder import Recorder
from collector.source_thread import Seen
from collector.wire import Reading, Stream

_LOG = logging.getLogger(__name__)

PATIENCE_S: Final = 0.5
SAME_INSTANT_US: Final = 200_000
"""A reading speaks for an event at most this far from it: what a hook's event takes to get here, 20 ms, with room for a busy
node. At 700 W it is 140 J off at the most; the exact row beside it carries its own instant."""
_START: Final = 1


class Exact:
    """The exact readings of one agent."""

    def __init__(self, devices: Sequence[ProbeThread], recorder: Recorder) -> None:
        """Read from these probes, record there."""
        self._devices = devices
        self._recorder = recorder

    def complete(self, found: Sequence[Seen]) -> list[Mapping[Stream, tuple[Row, ...]]]:
        """Return the rows of each observation with the counter in each allocation event.

        However many events there are, each device is read once, and its exact row is recorded beside them.
        """
        why = {
            uuid: Reading.ALLOCATION_START if event.get("action") == _START else Reading.ALLOCATION_END
            for seen in found
            for event in seen.observation.rows.get(Stream.ALLOCATION, ())
            if isinstance(uuid := event.get("device_uuid"), str)
        }
        counters = self._counters(why) if why else {}
        return [_completed(seen, counters) for seen in found]

    def _counters(self, why: Mapping[str, Reading]) -> dict[str, tuple[int, int]]:
        """Return instant and counter by device, as far as they are read in time."""
        counters: dict[str, tuple[int, int]] = {}
        for device in self._devices:
            mine = {uuid: reason for uuid, reason in why.items() if self._recorder.knows(uuid) == device.name}
            if not mine:
                continue
            sweep = self._read(device, tuple(mine))
            if sweep is None:
                continue
            # A MIG instance has no counter of its own: what was read is its board.
            parents = {ref.uuid: ref.parent_uuid for ref in sweep.devices if ref.uuid in mine and ref.parent_uuid}
            boards = {parent: mine[uuid] for uuid, parent in parents.items()}
            self._recorder.record_exact(sweep, {**boards, **mine}, device.name)
            for reading in sweep.readings:
                energy_mj = reading.values.get("energy_mj")
                if energy_mj is not None:
                    counters[sweep.devices[reading.device].uuid] = (reading.at_us, int(energy_mj))
            counters |= {uuid: counters[parent] for uuid, parent in parents.items() if parent in counters}
        return counters

    @staticmethod
    def _read(device: ProbeThread, uuids: tuple[str, ...]) -> Sweep | None:
        try:
            return device.exact(uuids, PATIENCE_S)
        except LibraryReplacedError:
            raise
        except Exception:  # noqa: BLE001  what a probe may not raise must not cost the event itself
            _LOG.exception("an exact reading failed; the event goes without")
            return None


def _completed(seen: Seen, counters: Mapping[str, tuple[int, int]]) -> Mapping[Stream, tuple[Row, ...]]:
    rows = seen.observation.rows
    events = rows.get(Stream.ALLOCATION)
    if not events:
        return rows
    return {**rows, Stream.ALLOCATION: tuple(_with_counter(event, counters, seen.at_us) for event in events)}


def _with_counter(event: Row, counters: Mapping[str, tuple[int, int]], seen_at_us: int) -> Row:
    found = counters.get(str(event.get("device_uuid")))
    at_us = event.get("at_us") or seen_at_us
    if found is None or event.get("energy_mj") is not None or abs(found[0] - int(at_us)) > SAME_INSTANT_US:
        return event
    return {**event, "energy_mj": found[1]}
