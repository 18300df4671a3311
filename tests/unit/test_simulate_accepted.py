"""Ingest finds nothing to refuse or repair in what the simulator sends, events of reloads and lost devices included."""

from collector.wire import Stream
from ingest.accept import BodyFacts, accept
from ingest.receivers.arrow_check import CheckedStream
from ingest.receivers.native import Reader, decode
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import BLOCK_US, US_PER_S, FleetSpec

START_US = 1_790_000_400 * US_PER_S
SPEC = FleetSpec(start_at_us=START_US, nodes=8, devices_per_node=2, cadence_s=60)


def test_a_day_of_bodies_passes_every_check_of_ingest_without_a_refusal() -> None:
    reader, end_us = Reader(), START_US + 24 * BLOCK_US
    facts = [BodyFacts(1, (1, 2))]
    seen: dict[Stream, int] = {}
    for batch in Fleet(SPEC).batches(START_US, end_us, 3600):
        body = reader.read(batch.body)
        assert body.unknown_columns == ()
        streams: list[CheckedStream] = list(body.streams)
        for checked in streams:
            stream = checked.schema.stream
            rows = decode([checked])
            taken = accept(stream, rows.with_columns(body=0), facts, end_us)
            assert taken.refusals == ()
            assert taken.rows.height == rows.height
            seen[stream] = seen.get(stream, 0) + rows.height
    assert set(seen) == {Stream.DEVICE, Stream.NODE, Stream.ALLOCATION, Stream.DEVICE_EVENT}
