"""A simulated fleet as its ingest sees it: batches in the order in which they arrive, and LLM spans.

Everything is a pure function of the spec and the interval: two neighbouring intervals give what the whole gives. It sends
nothing (:mod:`wattledger.simulate.feed` does) and knows no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wattledger.simulate.blocks import Blocks
from wattledger.simulate.encode import encode_slots
from wattledger.simulate.jobs import Job, Schedule
from wattledger.simulate.llm import ApiCall, calls_ended_between
from wattledger.simulate.otlp import Export, export_requests
from wattledger.simulate.plants import Plant, late_deliveries, plants_between
from wattledger.simulate.seeds import unit
from wattledger.simulate.spec import BLOCK_S, CONTAINER_S, DELIVERY_DRAW, US_PER_S, FleetSpec, PlantKind
from wattledger.simulate.truth import Truth, make_truth

LIVE_BATCH_S: Final = 10
_LONGEST_DELAY: Final = 4
_SPANS_PER_REQUEST: Final = 400


@dataclass(frozen=True, slots=True)
class SimBatch:
    """One body on its way. ``arrives_at_us`` is when it reaches ingest in simulated time; ``copy`` counts resendings.

    ``skew_us`` is how far the sender's clock is ahead: it belongs into the Sent-At header, nowhere else.
    """

    node: str
    spool: str
    sequence: int
    body: bytes
    rows: int
    window_start_us: int
    window_end_us: int
    arrives_at_us: int
    copy: int = 0
    late: bool = False
    skew_us: int = 0


@dataclass(frozen=True, slots=True)
class _Delivery:
    arrives_at_us: int
    node: int
    window_start_us: int
    window_end_us: int
    copy: int = 0
    late: bool = False
    skew_us: int = 0


class Fleet:
    """One simulated fleet. Making instants far from the last ones asked for costs time, never another result."""

    def __init__(self, spec: FleetSpec) -> None:
        """Prepare; nothing is made yet."""
        self.spec = spec
        self.schedule = Schedule(spec)
        self.blocks = Blocks(spec, self.schedule)

    def batches(self, start_us: int, end_us: int, batch_seconds: int = CONTAINER_S) -> Iterator[SimBatch]:
        """Yield the batches that arrive during [start, end), in order of arrival, late and repeated ones included.

        A window of samples arrives when it ends, unless delivery was disturbed. Both instants must lie on the grid of
        ``batch_seconds``; the length may change only at a :func:`container_s` boundary, or disturbed batches get lost.
        """
        width_us = batch_seconds * US_PER_S
        self._check(start_us, end_us, batch_seconds)
        for window_us in range(start_us, end_us, width_us):
            due = [
                delivery
                for back in range(_LONGEST_DELAY + 1)
                for delivery in self._deliveries(window_us - back * width_us, batch_seconds)
                if window_us < delivery.arrives_at_us <= window_us + width_us
            ]
            due += self._late(window_us, window_us + width_us)
            due.sort(
                key=lambda delivery: (delivery.arrives_at_us, delivery.window_start_us, delivery.node, delivery.copy)
            )
            for delivery in due:
                yield from self._encoded(delivery)

    def traces(self, start_us: int, end_us: int) -> Iterator[Export]:
        """Yield OTLP export requests (protobuf) with the spans of LLM calls that ended during [start, end)."""
        yield from export_requests(self.spec, calls_ended_between(self.spec, start_us, end_us), _SPANS_PER_REQUEST)

    def calls(self, start_us: int, end_us: int) -> list[ApiCall]:
        """Return the LLM calls whose spans :meth:`traces` would yield."""
        return calls_ended_between(self.spec, start_us, end_us)

    def jobs(self, start_us: int, end_us: int) -> list[Job]:
        """Return the jobs that hold a device at some time in [start, end)."""
        return self.schedule.between(start_us, end_us)

    def plants(self, start_us: int, end_us: int) -> tuple[Plant, ...]:
        """Return the planted events that touch [start, end)."""
        return tuple(event for event in plants_between(self.spec, start_us, end_us) if event.overlaps(start_us, end_us))

    def truth(self, start_us: int, end_us: int) -> Truth:
        """Return what the books must say of [start, end); see :mod:`wattledger.simulate.truth`. Memory: 8 bytes a row."""
        return make_truth(self.spec, self.blocks, self.schedule, start_us, end_us)

    def _check(self, start_us: int, end_us: int, batch_seconds: int) -> None:
        spec = self.spec
        if batch_seconds < spec.cadence_s or batch_seconds % spec.cadence_s or BLOCK_S % batch_seconds:
            raise ValueError(f"batch_seconds {batch_seconds} must be a multiple of {spec.cadence_s} that divides 3600")
        if start_us < spec.start_at_us:
            raise ValueError(f"the fleet begins at {spec.start_at_us}, later than {start_us}")
        for name, at_us in (("start_us", start_us), ("end_us", end_us)):
            if (at_us - spec.start_at_us) % (batch_seconds * US_PER_S):
                raise ValueError(f"{name} {at_us} must lie a multiple of {batch_seconds} s after the fleet's start")

    def _deliveries(self, window_us: int, batch_seconds: int) -> Iterator[_Delivery]:
        """Yield how the window of each node reaches ingest, however late; nothing where it is held back."""
        spec = self.spec
        if window_us < spec.start_at_us:
            return
        end_us = window_us + batch_seconds * US_PER_S
        disturbed = plants_between(spec, window_us, end_us)
        held = {e.nodes[0] for e in disturbed if e.kind is PlantKind.LATE_BATCHES and e.overlaps(window_us, end_us)}
        skewed = {
            e.nodes[0]: int(e.detail["skew_us"])
            for e in disturbed
            if e.kind is PlantKind.CLOCK_SKEW and e.overlaps(window_us, end_us)
        }
        # A disturbed batch stays inside its container, so that the batch length may change at container boundaries.
        container_us = container_s(batch_seconds) * US_PER_S
        room_us = container_us - (end_us - spec.start_at_us) % container_us
        room = 0 if room_us == container_us else room_us // (batch_seconds * US_PER_S)
        slot = (window_us - spec.start_at_us) // spec.cadence_us
        for node in range(spec.nodes):
            if node in held:
                continue
            fate = unit(spec.seed, DELIVERY_DRAW, node, slot, batch_seconds)
            skew_us = skewed.get(node, 0)
            late_by = 0
            if fate < spec.reorder_ratio:
                late_by = min(room, 1 + int(fate / spec.reorder_ratio * (_LONGEST_DELAY - 1)))
            yield _Delivery(end_us + late_by * batch_seconds * US_PER_S, node, window_us, end_us, skew_us=skew_us)
            if fate > 1 - spec.duplicate_ratio:
                again = min(room, 1 + int((1 - fate) / spec.duplicate_ratio * _LONGEST_DELAY))
                arrives = end_us + again * batch_seconds * US_PER_S
                yield _Delivery(arrives, node, window_us, end_us, copy=1, skew_us=skew_us)

    def _late(self, start_us: int, end_us: int) -> list[_Delivery]:
        """Return the held-back windows that arrive in (start, end]: in ten-minute batches, the first of them twice."""
        width_us = CONTAINER_S * US_PER_S
        found = []
        for event in late_deliveries(self.spec, start_us, end_us):
            arrives_us = int(event.detail["arrives_at_us"])
            for number, window_us in enumerate(range(event.start_us, event.end_us, width_us)):
                found.append(_Delivery(arrives_us, event.nodes[0], window_us, window_us + width_us, late=True))
                if number == 0:
                    found.append(
                        _Delivery(arrives_us, event.nodes[0], window_us, window_us + width_us, copy=1, late=True)
                    )
        return found

    def _encoded(self, delivery: _Delivery) -> Iterator[SimBatch]:
        spec = self.spec
        block = self.blocks.get(spec.block_of(delivery.window_start_us))
        first = (delivery.window_start_us - spec.start_at_us) // spec.cadence_us
        end = (delivery.window_end_us - spec.start_at_us) // spec.cadence_us
        for encoded in encode_slots(spec, block, delivery.node, first, end):
            yield SimBatch(
                node=spec.node_name(delivery.node),
                spool=spec.spool(delivery.node),
                sequence=encoded.sequence,
                body=encoded.body,
                rows=encoded.rows,
                window_start_us=delivery.window_start_us,
                window_end_us=delivery.window_end_us,
                arrives_at_us=delivery.arrives_at_us,
                copy=delivery.copy,
                late=delivery.late,
                skew_us=delivery.skew_us,
            )


def container_s(batch_seconds: int) -> int:
    """Return the span, counted from the fleet's start, within which one batch length must be kept."""
    return CONTAINER_S if batch_seconds < CONTAINER_S else BLOCK_S
