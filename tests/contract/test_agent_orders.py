"""Power limits through the driver's own library: what is set, what is refused, and that nothing is held open for it."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from collector.commands.check import PowerOrder, RefusedError
from collector.commands.journal import Journal
from collector.commands.orders import Orders
from collector.commands.power import NvmlPower, PowerError
from collector.spool import Spool
from tests.fakes.nvml.build import FakeNvml

pytestmark = pytest.mark.contract

HOUR_US = 3_600_000_000


def quiet(kind: str, subject: str | None = None, *, code: int | None = None, detail: str | None = None) -> None:
    del kind, subject, code, detail


def test_a_limit_is_set_on_each_board_and_put_back(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.configure(2)
    power = NvmlPower()
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    orders = Orders(Journal(spool), power, quiet, lambda: 0)
    first, second = power.devices()
    power.set_limit(second, 600_000)
    orders.carry_out(PowerOrder("n", "*", 300_000, HOUR_US))
    assert [power.limit(uuid).now_mw for uuid in (first, second)] == [300_000, 300_000]
    assert power.limit(second).default_mw == 700_000
    orders.undo_all("the agent stops")
    assert [power.limit(uuid).now_mw for uuid in (first, second)] == [700_000, 600_000]
    power.set_limit(second, 700_000)
    spool.close()
    assert nvml.held[0] == 0  # opened and shut for each call


def test_what_the_board_does_not_allow_or_does_not_exist_is_refused_in_words(nvml: FakeNvml, tmp_path: Path) -> None:
    nvml.configure(1)
    power = NvmlPower()
    (only,) = power.devices()
    with pytest.raises(PowerError, match="Invalid Argument"):
        power.set_limit(only, 100_000)
    with pytest.raises(PowerError):
        power.limit("GPU-00000000-0000-0000-0000-000000000000")
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    orders = Orders(Journal(spool), power, quiet, lambda: 0)
    with pytest.raises(RefusedError, match=r"its board allows \[200, 700\] W"):
        orders.carry_out(PowerOrder("n", only, 100_000, HOUR_US))
    spool.close()
    assert nvml.held[0] == 0


def test_released_devices_are_not_opened_for_an_order(nvml: FakeNvml) -> None:
    nvml.configure(1)
    with pytest.raises(PowerError, match="released for maintenance"):
        NvmlPower(lambda: True).devices()
    assert nvml.held[0] == 0


def test_a_driver_that_is_not_there_is_an_error_of_ours(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="gone@0")
    with pytest.raises(PowerError, match="NVML cannot be opened"):
        NvmlPower().devices()
    assert pynvml.nvmlLib is not None
