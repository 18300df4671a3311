"""What outlives a reload of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector import run
from collector.config import Settings
from collector.probe import Probe
from collector.run import Runner
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
