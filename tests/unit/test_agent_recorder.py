"""From sweeps to stored batches: what travels together, what never does, and what happens when the disk fails."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.ipc
import pytest
import zstandard

from collector import wire
from collector.batch import RowError
from collector.errors import SpoolError
from collector.probe import DeviceEvent, DeviceReading, Epoch, Row, Sweep
from collector.recorder import MAX_UNREAD_DEVICES, Recorder
from collector.sampler import Tick
from collector.spool import Spool
from collector.wire import BatchMeta, DeviceRef, Feed, Origin, Stream
from collector.writer import MAX_PENDING_ROWS
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

S = 1_000_000
DEVICES = (DeviceRef("GPU-1", "H100"), DeviceRef("GPU-2", "H100"))
EPOCH = Epoch("boot", 0, Feed.NATIVE, Origin.LIVE)


class Bench:
    """A recorder over a real spool, and the batches it stored, decoded."""

    def __init__(self, path: Path, *, batch_s: int = 10) -> None:
        self.clock = FixedClock()
        self.spool = Spool(path / "spool.db", max_bytes=1 << 24)
        self.recorder = Recorder(
            self.spool,
            self.clock,
            node="gpu-01",
            period_us=S,
            row_us=10 * S,
            batch_us=batch_s * S,
            labels={"rack": "r12"},
        )

    def second(self, *events: DeviceEvent, epoch: Epoch = EPOCH, devices: tuple[int, ...] = (0, 1)) -> None:
        self.clock.advance(1.0)
        at_us = self.clock.wall_us
        mj = self.clock.monotonic_us // 1_000
        readings = tuple(DeviceReading(device, at_us, {"energy_mj": mj, "temp_c": 50}) for device in devices)
        tick = Tick(at_us, 0, 0)
        self.recorder.record(tick, Sweep(epoch, DEVICES, readings, events))
        self.recorder.complete(tick)

    def event(self, kind: Any, device: int = 0, code: int | None = None, detail: str | None = None) -> DeviceEvent:
        return DeviceEvent(device, self.clock.wall_us + S, kind, code, detail)

    def batches(self) -> list[tuple[BatchMeta, dict[Stream, list[dict[str, Any]]]]]:
        found = []
        last = 0
        while (batch := self.spool.oldest(after=last)) is not None:
            last = batch.sequence
            found.append(decoded(batch.body))
        return found


def decoded(body: bytes) -> tuple[BatchMeta, dict[Stream, list[dict[str, Any]]]]:
    raw = io.BytesIO(zstandard.decompress(body))
    streams: dict[Stream, list[dict[str, Any]]] = {}
    meta: BatchMeta | None = None
    while raw.tell() < len(raw.getvalue()):
        table = pyarrow.ipc.open_stream(raw).read_all()
        if wire.META_KEY.encode() in table.schema.metadata:
            meta = BatchMeta.from_json(table.schema.metadata[wire.META_KEY.encode()])
        streams[Stream(table.schema.metadata[wire.STREAM_KEY.encode()].decode())] = table.to_pylist()
    assert meta is not None
    return meta, streams


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.spool.close()


def test_a_full_row_of_each_device_becomes_a_batch_with_its_own_id(bench: Bench) -> None:
    for _ in range(20):
        bench.second()
    (first, rows), (second, _) = bench.batches()
    assert (first.spool, first.sequence, second.sequence) == (bench.spool.uuid, 1, 2)
    assert (first.node, first.boot_id, first.feed, first.origin) == ("gpu-01", "boot", Feed.NATIVE, Origin.LIVE)
    assert first.devices == DEVICES
    assert first.cadence_us == 10 * S
    assert first.labels == {"rack": "r12"}
    assert [(row["device"], row["samples"], row["reading"]) for row in rows[Stream.DEVICE]] == [(0, 10, 0), (1, 10, 0)]


def test_a_batch_can_hold_a_minute_of_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_s=60)
    for _ in range(60):
        bench.second()
    ((_, rows),) = bench.batches()
    assert len(rows[Stream.DEVICE]) == 12
    bench.spool.close()


def test_an_event_carries_the_counter_and_brings_an_exact_reading(bench: Bench) -> None:
    for _ in range(3):
        bench.second()
    bench.second(bench.event("xid", device=1, code=79))
    for _ in range(6):
        bench.second()
    ((_, streams),) = bench.batches()
    (event,) = streams[Stream.DEVICE_EVENT]
    # The fourth second: the counter is the monotonic clock in ms, 5,004 s.
    assert (event["kind"], event["code"], event["device"], event["energy_mj"]) == ("xid", 79, 1, 5_004_000)
    exact = [row for row in streams[Stream.DEVICE] if row["reading"] == 3]
    assert [(row["device"], row["energy_mj"], row["span_us"]) for row in exact] == [(1, 5_004_000, 0)]
    assert exact[0]["at_us"] == event["at_us"]


def test_an_event_at_a_row_s_end_has_its_exact_reading_in_that_row(bench: Bench) -> None:
    for _ in range(9):
        bench.second()
    bench.second(bench.event("xid", code=31))
    ((_, streams),) = bench.batches()
    assert [(row["device"], row["reading"]) for row in streams[Stream.DEVICE]] == [(0, 0), (1, 0)]
    assert streams[Stream.DEVICE_EVENT][0]["at_us"] == streams[Stream.DEVICE][0]["at_us"]


def test_a_lost_device_is_an_event_without_a_counter(bench: Bench) -> None:
    bench.second(bench.event("lost", device=1, code=15), devices=(0,))
    bench.recorder.flush()
    ((_, streams),) = bench.batches()
    assert streams[Stream.DEVICE_EVENT][0]["energy_mj"] is None
    assert [row["device"] for row in streams[Stream.DEVICE]] == [0]


def test_a_batch_never_spans_an_epoch(bench: Bench) -> None:
    for _ in range(4):
        bench.second()
    reloaded = Epoch("boot", 1, Feed.NATIVE, Origin.LIVE)
    for _ in range(6):
        bench.second(epoch=reloaded)
    (before, first), (after, second) = bench.batches()
    assert (before.driver_epoch, after.driver_epoch) == (0, 1)
    assert [row["samples"] for row in first[Stream.DEVICE]] == [4, 4]
    assert [(row["samples"], row["samples_missed"], row["span_us"]) for row in second[Stream.DEVICE]] == 2 * [
        (6, 0, 5 * S)
    ]


def test_a_clock_step_ends_rows_and_batch(bench: Bench) -> None:
    for _ in range(4):
        bench.second()
    bench.clock.step(-3_600)
    bench.recorder.clock_stepped()
    for _ in range(6):
        bench.second()
    (before, first), (after, second) = bench.batches()
    assert first[Stream.DEVICE][0]["samples"] == 4
    assert second[Stream.DEVICE][0]["span_us"] == 5 * S
    # The pair of clocks in each batch tells the step apart from drift.
    step_us = (after.created_at_us - after.monotonic_us) - (before.created_at_us - before.monotonic_us)
    assert step_us in (0, -3_600 * S)


def test_a_flush_stores_the_partial_row(bench: Bench) -> None:
    for _ in range(3):
        bench.second()
    assert bench.batches() == []
    bench.recorder.flush()
    ((_, streams),) = bench.batches()
    assert [row["samples"] for row in streams[Stream.DEVICE]] == [3, 3]
    bench.recorder.flush()
    assert len(bench.batches()) == 1


def test_while_the_disk_fails_rows_wait_and_then_travel_in_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise SpoolError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(bench.spool, "put", full)
        for _ in range(20):
            bench.second()
    assert bench.recorder.state.spool_failures == 2
    for _ in range(10):
        bench.second()
    ((_, streams),) = bench.batches()
    instants = [row["at_us"] for row in streams[Stream.DEVICE]]
    assert len(instants) == 6
    assert instants == sorted(instants)
    assert bench.recorder.state.dropped_rows == 0


def test_rows_that_wait_too_long_are_dropped_oldest_first_and_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise SpoolError("disk full")

    monkeypatch.setattr(bench.spool, "put", full)
    event = bench.event("xid", code=1)
    for _ in range(MAX_PENDING_ROWS // 2 + 5):
        bench.second(event, devices=(0,))
    assert bench.recorder.writer.waiting_rows == MAX_PENDING_ROWS
    assert bench.recorder.state.dropped_rows > 0


def test_a_row_that_fits_no_column_is_dropped_and_the_next_batch_goes_on(bench: Bench) -> None:
    bench.second()
    lane = next(iter(bench.recorder._lanes.values()))
    bench.recorder._keep(lane, Stream.DEVICE, [{"at_us": 1, "device": 0, "nonsense": 5}])
    bench.recorder._keep(lane, Stream.DEVICE_EVENT, [{"at_us": 1, "device": 0, "kind": "xid", "code": 1 << 63}])
    for _ in range(9):
        bench.second()
    ((_, streams),) = bench.batches()
    assert [row["device"] for row in streams[Stream.DEVICE]] == [0, 1]
    assert Stream.DEVICE_EVENT not in streams
    assert bench.recorder.state.dropped_rows == 2
    assert bench.recorder.writer.waiting_rows == 0
    for _ in range(10):
        bench.second()
    assert len(bench.batches()) == 2


def test_of_a_batch_that_cannot_be_encoded_at_all_nothing_is_left_to_hold_up_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> bytes:
            raise RowError("no")

        patch.setattr(bench.recorder.writer, "_encode", refuse)
        for _ in range(10):
            bench.second()
    assert bench.recorder.state.dropped_rows == 2
    for _ in range(10):
        bench.second()
    assert len(bench.batches()) == 1


@pytest.mark.parametrize("code", [1 << 63, (1 << 64) - 1])
def test_an_event_whose_code_no_column_holds_is_told_and_costs_no_other_row(code: int, bench: Bench) -> None:
    bench.second(bench.event("xid", code=code, detail="GPC 1"), bench.event("xid", device=1, code=79))
    for _ in range(9):
        bench.second()
    ((_, streams),) = bench.batches()
    events = [(row["device"], row["kind"], row["code"], row["detail"]) for row in streams[Stream.DEVICE_EVENT]]
    assert events == [(0, "xid", None, f"code {code:#x}; GPC 1"), (1, "xid", 79, None)]
    assert len(streams[Stream.DEVICE]) == 4  # two exact readings, two rows
    assert bench.recorder.state.dropped_rows == 0


def test_an_event_that_fits_nowhere_is_left_out_alone_and_counted(bench: Bench) -> None:
    bench.second(DeviceEvent(0, 1 << 70, "xid", 1, None), bench.event("xid", device=1, code=79))
    for _ in range(9):
        bench.second()
    ((_, streams),) = bench.batches()
    assert [row["device"] for row in streams[Stream.DEVICE_EVENT]] == [1]
    assert list(bench.recorder.state.refused_rows.values()) == [1]


def test_a_device_whose_name_no_batch_may_hold_is_named_as_far_as_it_can_be(bench: Bench) -> None:
    odd = (replace(DEVICES[0], model="NVIDIA\x00 A\n" + "x" * 300), replace(DEVICES[1], model="", pci_bus_id="\x7f"))
    bench.clock.advance(1.0)
    readings = tuple(DeviceReading(device, bench.clock.wall_us, {"energy_mj": 1}) for device in (0, 1))
    bench.recorder.record(Tick(bench.clock.wall_us, 0, 0), Sweep(EPOCH, odd, readings, ()))
    bench.recorder.flush()
    ((meta, _),) = bench.batches()  # a receiver's own check: it refuses what does not fit
    assert [device.model for device in meta.devices] == ["NVIDIA\ufffd A\ufffd" + "x" * 245, "unknown"]
    assert meta.devices[1].pci_bus_id == "\ufffd"


def test_no_number_is_too_large_to_be_refused(bench: Bench) -> None:
    rows: list[Row] = [{"meter": "host", "cpu_util_ratio": 10**400}, {"meter": "host", "cpu_util_ratio": 0.5}]
    bench.recorder.observe({Stream.NODE: rows}, 1)
    bench.recorder.flush()
    ((_, streams),) = bench.batches()
    assert [row["cpu_util_ratio"] for row in streams[Stream.NODE]] == [0.5]


def an_end(device_uuid: str, job: str) -> Row:
    return {
        "device_uuid": device_uuid,
        "action": 2,
        "cluster": "c",
        "native_job_id": job,
        "job_started_at_us": 5,
        "evidence": "hook",
    }


def test_an_end_on_a_device_nobody_has_read_yet_travels_with_the_device_s_name_alone(bench: Bench) -> None:
    ends = (an_end("GPU-1", "7"), an_end("MIG-8", "8"), an_end("GPU-1", "9"))
    bench.recorder.observe({Stream.ALLOCATION: ends, Stream.DEVICE_HEALTH: ({"device_uuid": "GPU-1"},)}, 1_000_000)
    for _ in range(10):
        bench.second()
    bench.recorder.observe({Stream.ALLOCATION: (an_end("GPU-1", "10"),)}, 2_000_000)
    bench.recorder.flush()
    found = [
        (meta.devices[row["device"]].uuid, meta.devices[row["device"]].kind, row["native_job_id"], len(meta.devices))
        for meta, streams in bench.batches()
        for row in streams.get(Stream.ALLOCATION, [])
    ]
    assert found == [
        ("GPU-1", "gpu", "7", 2),
        ("MIG-8", "mig", "8", 2),
        ("GPU-1", "gpu", "9", 2),
        ("GPU-1", "gpu", "10", 2),
    ]
    assert dict(bench.recorder.state.refused_rows) == {"device_health:of an unknown device": 1}
    # What nobody has read is neither a device of this node yet nor to be read at an event.
    assert bench.recorder.devices() == DEVICES
    assert bench.recorder.knows("MIG-8") is None


def test_names_that_no_device_has_are_bounded(bench: Bench) -> None:
    ends = tuple(an_end(f"GPU-{number}", "7") for number in range(MAX_UNREAD_DEVICES + 3))
    bench.recorder.observe({Stream.ALLOCATION: ends}, 1_000_000)
    bench.recorder.flush()
    ((meta, streams),) = bench.batches()
    assert (len(meta.devices), len(streams[Stream.ALLOCATION])) == (MAX_UNREAD_DEVICES, MAX_UNREAD_DEVICES)
    assert dict(bench.recorder.state.refused_rows) == {"allocation_events:of an unknown device": 3}


def test_the_body_is_what_polars_reads(bench: Bench) -> None:
    for _ in range(10):
        bench.second()
    batch = bench.spool.oldest()
    assert batch is not None
    frame = pl.read_ipc_stream(io.BytesIO(zstandard.decompress(batch.body)))
    assert frame["energy_mj"].to_list() == [5_010_000, 5_010_000]
