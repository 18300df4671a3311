"""Laws of the agent: whatever happens in whatever order, a reading is stored once, a batch is sent until it is answered,
and an order does nothing without its signature."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.batch import Rows
from collector.commands.check import Bounds, RefusedError, check, parse
from collector.config import FIELDS, load
from collector.errors import ConfigError, SpoolError
from collector.probe import DeviceEvent, DeviceReading, Epoch, Sweep
from collector.recorder import Recorder
from collector.rows import fault_of
from collector.sampler import Tick
from collector.ship import Shipper
from collector.spool import Spool
from collector.wire import COLUMNS, Command, DeviceRef, Feed, Origin, Stream
from tests.fakes.bodies import Body, read_body
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.property

S = 1_000_000
DEVICES = {"nvml": (DeviceRef("GPU-1", "H100"), DeviceRef("GPU-2", "H100")), "dcgm": (DeviceRef("GPU-3", "A100"),)}
KEY = b"k" * 32

# What can happen to a recorder in a second.
HAPPENING = st.sampled_from(
    ["tick"] * 12
    + ["event", "reload", "step back", "step on", "disk full", "disk free", "released", "node row", "flush"]
)


class Spoolish(Spool):
    """A real spool whose disk can be full."""

    full = False

    def put(self, encode: Any, now_us: int) -> int:
        if self.full:
            raise SpoolError("disk full")
        return super().put(encode, now_us)


class World:
    def __init__(self, folder: str) -> None:
        self.clock = FixedClock()
        self.spool = Spoolish(Path(folder) / "spool.db", max_bytes=1 << 26)
        self.recorder = Recorder(
            self.spool, self.clock, node="n", period_us=S, row_us=10 * S, batch_us=10 * S, labels={}, boot_id="b"
        )
        self.epochs = Counter({"nvml": 0, "dcgm": 0})
        self.read = 0
        self.events = 0
        self.node_rows = 0

    def happen(self, what: str) -> None:
        match what:
            case "reload":
                self.epochs["nvml"] += 1
            case "step back" | "step on":
                self.clock.step(-3_600 if what == "step back" else 3_600)
                self.recorder.clock_stepped()
            case "disk full" | "disk free":
                self.spool.full = what == "disk full"
            case "flush":
                self.recorder.flush()
            case "node row":
                self.node_rows += 1
                self.recorder.observe({Stream.NODE: ({"meter": f"m{self.node_rows}"},)}, self.clock.wall_us)
            case _:
                self.tick(with_event=what == "event", released=what == "released")

    def tick(self, *, with_event: bool, released: bool) -> None:
        self.clock.advance(1.0)
        at_us = self.clock.wall_us
        tick = Tick(at_us, 0, 0)
        for probe, devices in DEVICES.items() if not released else ():
            epoch = Epoch("b", self.epochs[probe], Feed.NATIVE if probe == "nvml" else Feed.DCGM, Origin.LIVE)
            readings = tuple(DeviceReading(at, at_us, {"energy_mj": at_us // 1_000}) for at in range(len(devices)))
            events = (DeviceEvent(0, at_us, "xid", 79),) if with_event and probe == "nvml" else ()
            self.recorder.record(tick, Sweep(epoch, devices, readings, events), probe)
            self.read += len(readings)
            self.events += len(events)
        self.recorder.complete(tick)

    def bodies(self) -> list[Body]:
        found: list[Body] = []
        last = 0
        while (batch := self.spool.oldest(after=last)) is not None:
            last = batch.sequence
            found.append(read_body(batch.body))
        return found


@settings(max_examples=60, deadline=None)
@given(st.lists(HAPPENING, max_size=60))
def test_every_reading_event_and_row_is_stored_exactly_once_whatever_happens(story: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        for what in story:
            world.happen(what)
        world.spool.full = False
        world.recorder.flush()
        stored: Counter[str] = Counter()
        for body in world.bodies():
            devices = body.streams.get(Stream.DEVICE)
            if devices is not None:
                periodic = devices.filter(devices["reading"] == 0)
                stored["readings"] += int(periodic["samples"].sum())
                assert (periodic["span_us"] <= 10 * S).all()
                assert max(devices["device"].to_list()) < len(body.meta.devices)
            stored["events"] += len(body.streams.get(Stream.DEVICE_EVENT, ()))
            stored["node rows"] += len(body.streams.get(Stream.NODE, ()))
        assert stored["readings"] == world.read
        assert stored["events"] == world.events
        assert stored["node rows"] == world.node_rows
        assert world.recorder.state.dropped_rows == 0
        world.spool.close()


ANSWERS = st.sampled_from([200, 204, 204, 204, 302, 400, 401, 403, 413, 422, 429, 500, 503, "silence", "garbage"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(ANSWERS, st.just("put"), st.just("later")), max_size=60))
def test_a_batch_is_sent_until_it_is_answered_and_set_aside_only_when_it_is_refused(story: list[int | str]) -> None:
    answer: list[int | str] = [204]
    taken: Counter[bytes] = Counter()

    def server(request: httpx.Request) -> httpx.Response:
        if answer[0] == "silence":
            raise httpx.ReadTimeout("nothing")
        if answer[0] == "garbage":
            raise httpx.RemoteProtocolError("nonsense")
        code = int(answer[0])
        if code < 300:
            taken[request.read()] += 1
        return httpx.Response(code)

    with (
        tempfile.TemporaryDirectory() as folder,
        httpx.Client(transport=httpx.MockTransport(server), base_url="https://ledger.test") as client,
    ):
        clock = FixedClock()
        spool = Spool(Path(folder) / "spool.db", max_bytes=1 << 24)
        shipper = Shipper(client, spool, clock, token=lambda: None)
        put = 0
        for what in story:
            if what == "put":
                put = spool.put(lambda _uuid, sequence: b"%d" % sequence, clock.wall_us)
            elif what == "later":
                clock.advance(120.0)
            else:
                answer[0] = what
                assert shipper.step() >= 0
        answer[0] = 204
        while spool.oldest() is not None:
            clock.wait(shipper.step())
        refused = {b"%d" % sequence for sequence, _, _ in spool.refusals()}
        assert refused.isdisjoint(taken)
        assert refused | set(taken) == {b"%d" % number for number in range(1, put + 1)}
        assert set(taken.values()) <= {1}
        spool.close()


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
GOOD = asdict(
    Command(1, "n", "power_limit", {"device": "*", "watts": 300}, "0123456789abcdef", 1_000, 60_000_000)
)  # fmt: skip


@given(
    st.one_of(GARBAGE, st.fixed_dictionaries({key: st.one_of(st.just(value), GARBAGE) for key, value in GOOD.items()}))
)
def test_no_garbage_is_an_order(raw: object) -> None:
    with pytest.raises(RefusedError):
        check(parse(raw), key=KEY, node="n", now_us=2_000, seen=(), bounds=Bounds(100, 700))


@given(st.sampled_from(["node", "verb", "args", "nonce", "issued_at_us", "expires_at_us"]), st.data())
def test_whatever_is_changed_in_a_signed_order_it_is_no_order_any_more(field: str, data: st.DataObject) -> None:
    order = parse(GOOD)
    signed = replace(order, signature=order.sign(KEY))
    assert check(signed, key=KEY, node="n", now_us=2_000, seen=(), bounds=Bounds(100, 700)) is not None
    kind = type(GOOD[field])
    other = data.draw(
        {int: st.integers(0, 2**62), str: st.text(max_size=30), dict: st.dictionaries(st.text(max_size=8), st.integers(0, 999), max_size=3)}[kind].filter(lambda value: value != GOOD[field])
    )  # fmt: skip
    changed: dict[str, Any] = {field: other}
    with pytest.raises(RefusedError):
        check(replace(signed, **changed), key=KEY, node="n", now_us=2_000, seen=(), bounds=Bounds(100, 700))


@given(st.sampled_from(list(Stream)), st.dictionaries(st.text(max_size=12), GARBAGE, max_size=5), st.data())
def test_a_row_is_told_fit_only_if_it_can_be_encoded(
    stream: Stream, extra: dict[str, Any], data: st.DataObject
) -> None:
    names = [entry.name for entry in COLUMNS[stream]]
    row: dict[str, Any] = {
        entry.name: "x" if entry.type == "utf8" else 1 for entry in COLUMNS[stream] if not entry.nullable
    }
    row |= {data.draw(st.sampled_from(names)): value for value in extra.values()}
    if fault_of(stream, row) is None:
        rows = Rows(stream)
        rows.append(row)
        assert rows.columns().rows == 1


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(list(FIELDS)), GARBAGE, max_size=4))
def test_any_settings_are_taken_or_refused_and_nothing_else(flags: dict[str, object]) -> None:
    with suppress(ConfigError):
        load(None, {}, flags)
