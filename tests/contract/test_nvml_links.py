"""NVLink by link: both generations of counters, in bytes."""

from __future__ import annotations

import pytest

from collector.wire import COLUMNS, Stream
from tests.fakes.nvml.build import FakeNvml
from tests.fakes.nvml.harness import Node

pytestmark = pytest.mark.contract


def test_each_link_is_a_row_of_bytes_and_errors_every_ten_seconds(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="nvlink:4:18")
    node = Node(nvml)
    rows = node.sweep(100.0).rows[Stream.FABRIC]
    assert len(rows) == 18
    uuid = node.probe.read().devices[0].uuid
    # The fake moves 10,240,000 B/s on link 0 and so much more on each further one, and link 2 has two errors of each kind.
    assert rows[2] == {
        "at_us": node.clock.wall_us,
        "port": f"nvlink/{uuid}/2",
        "span_us": 0,
        "state": 1,
        "rate_mbps": 26_562 * 8,  # the driver says MB/s
        "tx_bytes": 3 * 10_240_000 * 100,
        "rx_bytes": 3 * 10_240_000 * 100,
        "retransmissions": 2,
        "link_recoveries": 2,
        "integrity_errors": 2,
    }
    assert all(Stream.FABRIC not in node.sweep().rows for _ in range(9))
    later = node.sweep().rows[Stream.FABRIC]
    assert later[2]["span_us"] == 10_000_000
    assert later[2]["tx_bytes"] == 3 * 10_240_000 * 110


def test_nvlink_5_counts_other_things_under_other_numbers(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="nvlink:5:18")
    node = Node(nvml)
    row = node.sweep(10.0).rows[Stream.FABRIC][3]
    measured = {name: value for name, value in row.items() if name not in ("at_us", "port", "span_us")}
    assert measured == {
        "state": 1,
        "rate_mbps": 53_125 * 8,
        "tx_bytes": 4 * 10_240_000 * 10,
        "rx_bytes": 4 * 10_240_000 * 10,
        "discards": 3,
        "receive_errors": 6,  # receive errors and malformed packets
        "buffer_overruns": 3,
        "remote_errors": 3,
        "integrity_errors": 3,
        "link_recoveries": 3,
        "symbol_errors": 3,
    }
    assert row.keys() <= {column.name for column in COLUMNS[Stream.FABRIC]}


def test_a_device_without_links_has_no_rows_and_is_not_asked_again_for_an_hour(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="nvlink:0:0")
    node = Node(nvml)
    assert all(Stream.FABRIC not in node.sweep().rows for _ in range(30))
    nvml.configure(1)
    nvml.cdll.nvmlInitWithFlags(0)
    assert all(Stream.FABRIC not in node.sweep().rows for _ in range(30))
    node.sweep(3_600.0)
    assert len(node.sweep(10.0).rows[Stream.FABRIC]) == 18


def test_all_links_cost_one_driver_call(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="nvlink:4:18")
    node = Node(nvml)
    node.sweep()
    node.sweep()
    before = nvml.calls
    node.sweep()
    plain = nvml.calls - before
    node.sweep(8.0)  # the links are due, and the processes: three lists and the utilization, and two slow calls
    assert nvml.calls - before - plain == plain + 1 + 4 + 2


def test_a_link_that_is_not_connected_has_its_state_and_no_more(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="nvlink:4:4,idle_links:2")
    node = Node(nvml)
    rows = node.sweep(10.0).rows[Stream.FABRIC]
    assert [row["state"] for row in rows] == [0, 0, 1, 1]
    assert ["tx_bytes" in row for row in rows] == [False, False, True, True]
    assert rows[3]["integrity_errors"] == 3


def test_links_that_cannot_be_read_leave_the_device(nvml: FakeNvml) -> None:
    nvml.configure(1, faults="many_fields:40:2")  # a driver that refuses calls for more than forty fields
    node = Node(nvml)
    sweeps = [node.sweep() for _ in range(15)]
    assert [len(sweep.readings) for sweep in sweeps] == [1] * 15
    assert sweeps[0].errors == {"links:2": 1}
    assert all(Stream.FABRIC not in sweep.rows for sweep in sweeps)
