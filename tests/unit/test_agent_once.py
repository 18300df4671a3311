"""The page an operator sees first: aligned, at most 80 columns, with what to do about what is missing."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence

import pytest

from collector.config import Settings
from collector.look import Looked, look
from collector.once import WIDTH, Style, pretty
from collector.probe import Observation, Sight
from collector.wire import DeviceRef, Stream
from tests.fakes.agent import ListedSource, ScriptedProbe
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

LONG = "a reason that goes on and on, as reasons do when a driver, a right, a container and a kernel have a part in it"


class Seeing(ScriptedProbe):
    def sights(self) -> tuple[Sight, ...]:
        alike = [Sight(f"thing {number}", seen=True, detail="all 2 devices") for number in range(12)]
        return (*alike, Sight("true utilization", seen=False, detail=LONG, remedy="run as root, " + LONG))


def seen(*, devices: bool = True, meter: bool = True, refs: Sequence[DeviceRef] = ()) -> Looked:
    clock = FixedClock()
    probes = [("nvml", Seeing(clock, readings=99, devices=refs))] if devices else []
    found = Observation({Stream.NODE: ({"meter": "rapl", "power_mw": 9},)}) if meter else Observation()
    source = ListedSource([found], name="rapl", period_s=10.0)
    thread_ran = threading.Event()
    source.read = lambda: (thread_ran.set(), found)[1]  # type: ignore[method-assign, func-returns-value]
    real_wait = clock.wait

    def wait(duration_s: float) -> None:
        thread_ran.wait(2)
        real_wait(duration_s)

    clock.wait = wait  # type: ignore[method-assign]
    return look(Settings(node="gpu-01"), clock, threading.Event(), probes, [source])


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_page_fits_80_columns_and_says_what_to_do() -> None:
    page = pretty(seen(), Style(io.StringIO(), {}))
    assert max(map(len, page.splitlines())) <= WIDTH
    assert "\x1b" not in page
    assert "wattledger-agent" in page.splitlines()[0]
    # The counter of the fake is the clock: 6 readings a second apart are 5 J, at 1 W.
    (first, _) = [line for line in page.splitlines() if line.startswith("  H100 ")]
    assert first.split() == ["H100", "1", "W", "1-1", "5", "J", "-", "-", "-"]


def test_what_is_seen_alike_is_told_once() -> None:
    page = pretty(seen(), Style(Terminal(), {"NO_COLOR": "1"}))
    assert page.count("all 2 devices") == 1
    assert "thing 0 · thing 1 · thing 2" in page
    assert "12 of 13 seen" in page
    assert "✗ true utilization" in page
    assert "→ run as root" in page


def test_colours_are_for_terminals_that_want_them() -> None:
    found = seen()
    assert "\x1b[31m✗\x1b[0m" in pretty(found, Style(Terminal(), {}))
    assert "\x1b" not in pretty(found, Style(Terminal(), {"TERM": "dumb"}))


def test_a_terminal_without_the_signs_gets_plain_ones() -> None:
    class Plain(Terminal):
        encoding = "ascii"

    pretty(seen(), Style(Plain(), {"NO_COLOR": ""})).encode("ascii")


def test_nothing_to_meter_is_said_and_a_meter_of_the_node_is_enough() -> None:
    nothing = seen(devices=False, meter=False)
    assert not nothing.measurable
    assert "Nothing here can be metered" in pretty(nothing, Style(io.StringIO(), {}))
    assert seen(devices=False).measurable


def test_what_is_metered_is_the_board_and_not_each_instance_on_it() -> None:
    boards = [DeviceRef("GPU-0", "H100"), DeviceRef("GPU-1", "H100")]
    cut = [DeviceRef(f"MIG-{n}", "H100", kind="mig", parent_uuid="GPU-1", slice_ratio=1 / 7) for n in range(2)]
    page = pretty(seen(refs=[*boards, *cut]), Style(io.StringIO(), {}))
    assert "2 devices can be metered, 2 MIG instances on them are seen" in page
    assert max(map(len, page.splitlines())) <= WIDTH
    assert "2 devices can be metered;" in pretty(seen(refs=boards), Style(io.StringIO(), {}))


def test_the_same_is_there_as_json() -> None:
    found = json.loads(json.dumps(seen().to_json()))
    assert found["measurable"]
    assert [device["uuid"] for device in found["devices"]] == ["GPU-0", "GPU-1"]
    assert found["devices"][0]["used_mj"] == 5_000
    assert [section["name"] for section in found["sections"]] == ["nvml", "rapl"]
    assert {"setting": "server_url", "adds": "somewhere to send what is measured"} in found[
        "settings_that_would_add_more"
    ]


def test_a_sight_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(ScriptedProbe):
        def sights(self) -> tuple[Sight, ...]:
            threading.Event().wait(20)
            return ()

    monkeypatch.setattr("collector.look._PATIENCE_S", 0.05)
    clock = FixedClock()
    found = look(Settings(node="n"), clock, threading.Event(), [("nvml", Stuck(clock, readings=9))], [])
    assert [sight.seen for sight in found.sections[0].sights] == [False]
