"""What outlives a reload of the settings."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from collector import run
from collector.agent import Ending
from collector.commands import compose
from collector.commands.journal import Change, Journal
from collector.commands.power import PowerLimit
from collector.config import Settings
from collector.probe import Probe, Sweep
from collector.run import Runner
from collector.spool import Spool
from tests.fakes.agent import ScriptedProbe
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit


class Held(ScriptedProbe):
    """Cannot let go of its driver, as one that has a call in it that hangs."""

    released = False


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        node="n",
        spool_path=str(tmp_path / "spool.db"),
        release_file="",
        sample_s=0.1,
        row_s=0.1,
        batch_s=0.1,
        jobs=False,
        host=False,
        rapl=False,
        infiniband=False,
        kernel_log=False,
    )


def test_what_a_probe_owes_its_driver_is_asked_for_after_the_reload(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Probe] = []
    monkeypatch.setattr(run, "make_probes", lambda *_args, **_names: [("nvml", given[-1])])
    runner = Runner(settings, lambda: settings)
    owing, fresh = Held(FixedClock(), readings=1), ScriptedProbe(FixedClock(), readings=1)
    given.append(owing)
    runner._run_once(settings)
    assert [device.probe for device in runner._owing] == [owing]
    given.append(fresh)
    (device,) = runner._threads([("nvml", fresh)])
    assert not device.release()  # its own is free, and the driver is not
    runner._run_once(settings)
    assert [device.probe for device in runner._owing] == [owing]
    owing.released = True
    assert device.let_go()
    runner._run_once(settings)
    assert runner._owing == []


class Signalling(ScriptedProbe):
    """Sends a signal when it is read, and one when it is let go of, each once."""

    def __init__(
        self, send: Callable[[int], object], *, at_read: int | None = None, at_close: int | None = None
    ) -> None:
        super().__init__(FixedClock(), readings=1_000)
        self.send, self.at_read, self.at_close = send, at_read, at_close

    def read(self) -> Sweep:
        number, self.at_read = self.at_read, None
        found = super().read()
        if number is not None:
            self.send(number)
        return found

    def close(self) -> None:
        super().close()
        number, self.at_close = self.at_close, None
        if number is not None:
            self.send(number)


def test_devices_that_were_let_go_by_signal_stay_so_over_a_reload_and_come_back_in_a_new_driver_epoch(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    given: list[Probe] = []

    def make(*_args: object, driver_epochs: dict[str, int], **_names: object) -> list[tuple[str, Probe]]:
        epochs.append(driver_epochs["nvml"])
        return [("nvml", given[-1])]

    monkeypatch.setattr(run, "make_probes", make)
    others = replace(settings, labels="rack=r1")
    runner = Runner(settings, lambda: others)

    def send(number: int) -> None:
        runner._doorbell._note(number, None)

    first = Signalling(send, at_read=signal.SIGUSR1, at_close=signal.SIGHUP)
    given.append(first)
    assert runner._run_once(settings) is Ending.RELOAD
    assert first.opened == 1
    second = Signalling(send, at_close=signal.SIGTERM)
    given.append(second)
    assert runner._run_once(others) is Ending.STOPPED
    assert second.opened == 0
    third = Signalling(send, at_close=signal.SIGUSR1, at_read=signal.SIGTERM)
    given.append(third)
    assert runner._run_once(others) is Ending.STOPPED
    assert third.opened == 1
    assert epochs == [0, 1, 1]


class Board:
    limit_mw = 300_000

    def __init__(self, _released: object) -> None:
        """One board; what is asked of it here changes the class, as a process's end does not change a board."""

    def devices(self) -> tuple[str, ...]:
        return ("GPU-0",)

    def limit(self, _device_uuid: str) -> PowerLimit:
        return PowerLimit(Board.limit_mw, 200_000, 700_000)

    def set_limit(self, _device_uuid: str, limit_mw: int) -> None:
        Board.limit_mw = limit_mw


def test_what_orders_left_is_undone_though_no_more_orders_are_wanted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "NvmlPower", Board)
    probe = ScriptedProbe(FixedClock(), readings=8)
    monkeypatch.setattr(run, "make_probes", lambda *_args, **_names: [("nvml", probe)])
    limits: list[int] = []
    probe.before_read = lambda _left: limits.append(Board.limit_mw)
    spool = Spool(Path(settings.spool_path), max_bytes=1 << 20)
    Journal(spool).note(Change("GPU-0", "n1", 700_000, 300_000, 1 << 60))
    spool.close()
    assert not settings.commands
    Runner(settings, lambda: settings)._run_once(settings)
    assert limits[-1] == 700_000, "while the agent runs, not only at its end"
    spool = Spool(Path(settings.spool_path), max_bytes=1 << 20)
    assert Journal(spool).changes() == {}
    spool.close()
