"""The node's own processors, memory, disks and network."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.probe import Row
from collector.source.host import HostSource
from collector.wire import Stream

STAT = "cpu  {user} 10 20 {idle} 5 1 2 3 999 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1 2 3\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\nBuffers: 1 kB\n"
DISKSTATS = """\
   8       0 sda 100 0 2000 50 200 0 4000 60 0 70 80
   8       1 sda1 100 0 2000 50 200 0 4000 60 0 70 80
 253       0 dm-0 100 0 2000 50 200 0 4000 60 0 70 80
   7       0 loop0 1 0 7 0 0 0 9 0 0 0 0
"""
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  900    1 0 0 0 0 0 0  900    1 0 0 0 0 0 0
  eth0: 1000    1 0 0 0 0 0 0 2000    1 0 0 0 0 0 0
eth0v1:  500    1 0 0 0 0 0 0  600    1 0 0 0 0 0 0
  bond0:1000    1 0 0 0 0 0 0 2000    1 0 0 0 0 0 0
"""


class Node:
    def __init__(self, root: Path) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        (self.proc / "net").mkdir(parents=True)
        for disk in ("sda", "dm-0", "loop0"):
            (self.sys / "block" / disk).mkdir(parents=True)
        for interface, device in (("lo", ""), ("bond0", ""), ("eth0", "device"), ("eth0v1", "device/physfn")):
            (self.sys / "class/net" / interface / device).mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMINFO)
        (self.proc / "diskstats").write_text(DISKSTATS)
        (self.proc / "net/dev").write_text(NET_DEV)
        self.jiffies(user=100, idle=1000)
        self.now_s = 50.0
        self.source = HostSource(proc_root=self.proc, sys_root=self.sys, monotonic=lambda: self.now_s)

    def jiffies(self, *, user: int, idle: int) -> None:
        (self.proc / "stat").write_text(STAT.format(user=user, idle=idle))

    def read(self) -> Row:
        self.now_s += 10.0
        (row,) = self.source.read().rows[Stream.NODE]
        return row


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.unit
def test_each_byte_is_counted_once_on_the_hardware_it_went_through(node: Node) -> None:
    assert node.read() == {
        "meter": "host",
        "span_us": 0,
        "cpu_util_ratio": None,  # a share needs two readings
        "memory_total_bytes": 1_024_000,
        "memory_used_bytes": 600 * 1_024,
        "disk_read_bytes": 2000 * 512,
        "disk_write_bytes": 4000 * 512,
        "network_rx_bytes": 1_000,
        "network_tx_bytes": 2_000,
    }


@pytest.mark.unit
def test_the_share_of_busy_processors_is_of_the_time_between_two_readings(node: Node) -> None:
    node.read()
    node.jiffies(user=130, idle=1070)
    row = node.read()
    assert row["cpu_util_ratio"] == pytest.approx(0.3)
    assert row["span_us"] == 10_000_000
    assert node.read()["cpu_util_ratio"] is None  # no tick has passed: nothing is known, not 0


@pytest.mark.unit
def test_what_cannot_be_read_is_left_out_and_counted(node: Node) -> None:
    (node.proc / "meminfo").write_text("MemTotal: lots\n")
    (node.proc / "diskstats").unlink()
    observation = node.source.read()
    (row,) = observation.rows[Stream.NODE]
    assert observation.errors == {"host:meminfo": 1, "host:diskstats": 1}
    assert "memory_total_bytes" not in row
    assert row["network_rx_bytes"] == 1_000


@pytest.mark.unit
def test_inside_a_container_without_hardware_traffic_is_null_and_the_remedy_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    source = HostSource(proc_root=node.proc, sys_root=tmp_path / "none")
    (row,) = source.read().rows[Stream.NODE]
    assert "network_rx_bytes" not in row
    hidden = {sight.subject: sight.remedy for sight in source.sights() if not sight.seen}
    assert hidden["network traffic"] == "run the agent in the host's network namespace (hostNetwork: true)"


@pytest.mark.contract
def test_this_machine_s_own_proc_is_read() -> None:
    source = HostSource()
    observation = source.read()
    (row,) = observation.rows[Stream.NODE]
    assert observation.errors == {}
    assert isinstance(total := row["memory_total_bytes"], int)
    assert isinstance(used := row["memory_used_bytes"], int)
    assert 0 < used < total
