"""PCIe byte counters, where they are 32 bits wide and where not."""

from __future__ import annotations

import pytest

from collector.probe.nvml_pcie import PcieBytes
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node, kinds, values_of

pytestmark = pytest.mark.contract


def test_a_wide_counter_passes_as_it_is(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="pcie:20000000000")
    node = Node(nvml)
    node.sweep()
    assert [values_of(node.sweep())["pcie_tx_bytes"] for _ in range(3)] == [
        40_000_000_000,
        60_000_000_000,
        80_000_000_000,
    ]


def test_a_narrow_counter_is_unwrapped_with_the_rate_that_gpm_measured(nvml: FakeNvml) -> None:
    # 20 GB/s go round 32 bits 4.66 times a second: no two readings could tell that alone.
    nvml.configure(1, faults="pcie:20000000000,pcie32")
    node = Node(nvml)
    first = values_of(node.sweep())["pcie_rx_bytes"]
    assert first == 20_000_000_000 % 2**32
    later = [values_of(node.sweep())["pcie_rx_bytes"] for _ in range(3)]
    assert later == [first + 20_000_000_000, first + 40_000_000_000, first + 60_000_000_000]


def test_a_narrow_counter_without_gpm_is_null_and_told(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="pcie32,call:nvmlGpmQueryDeviceSupport:3")
    node = Node(nvml)
    told = {event.detail for event in node.sweep().events}
    assert {"pcie_tx_bytes", "pcie_rx_bytes"} <= told
    assert values_of(node.sweep())["pcie_tx_bytes"] is None


def test_a_counter_that_falls_below_32_bits_shows_that_it_is_narrow() -> None:
    pcie = PcieBytes()
    at_us = 0
    for raw, expected in ((4_000_000_000, 4_000_000_000), (4_200_000_000, 4_200_000_000)):
        values: dict[str, int | float | None] = {"pcie_tx_bytes": raw}
        pcie.notice(values)
        pcie.unwrap(values, {}, at_us)
        at_us += 1_000_000
        assert (values["pcie_tx_bytes"], pcie.narrow) == (expected, False)
    values = {"pcie_tx_bytes": 105_032_704}  # 4.4 GB wrapped
    pcie.notice(values)
    assert pcie.narrow
    pcie.unwrap(values, {"pcie_tx_bytes": 195e6}, at_us)
    assert values["pcie_tx_bytes"] == 4_400_000_000


def test_a_reading_without_a_rate_is_made_up_for_by_the_next() -> None:
    pcie = PcieBytes()
    pcie.narrow = True
    readings: list[int | float | None] = []
    for second, rate in ((0, None), (1, None), (2, 3e9)):
        values: dict[str, int | float | None] = {"pcie_rx_bytes": second * 3_000_000_000 % 2**32}
        pcie.unwrap(values, {} if rate is None else {"pcie_rx_bytes": rate}, second * 1_000_000)
        readings.append(values["pcie_rx_bytes"])
    assert readings == [0, None, 6_000_000_000]


def test_a_counter_of_a_reloaded_driver_is_no_wrap(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="pcie:3000000,reload@10")
    node = Node(nvml)
    node.sweep(9.0)
    node.sweep()
    reloaded = node.sweep(1.0)
    assert (0, "driver_reload", None) in kinds(reloaded)
    assert values_of(reloaded)["pcie_tx_bytes"] == 33_000_000
