"""XID lines of the kernel log, each once."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.errors import SpoolError
from collector.probe import Row
from collector.source.kernel_log import KernelLogSource, Xid, find_xid
from collector.wire import Stream

WALL_US, MONOTONIC_US = 1_800_000_000_000_000, 5_000_000_000


class Kernel:
    """A ring buffer that gives one record a read, as /dev/kmsg does: each reader begins with the oldest."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.writers: list[socket.socket] = []
        self.remembered: dict[str, str] = {}

    def log(self, sequence: int, text: str, *, logged_us: int = 4_000_000_000, priority: int = 4) -> None:
        record = f"{priority},{sequence},{logged_us},-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:9b:00.0\n".encode()
        self.records.append(record)
        for writer in self.writers:
            with contextlib.suppress(BrokenPipeError):  # that reader is gone
                writer.send(record)

    def open(self) -> int:
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a read gives one record
        reader.setblocking(False)
        self.writers.append(writer)
        for record in self.records:
            writer.send(record)
        return reader.detach()

    def source(self, *, boot_id: str = "b1", forgetful: bool = False) -> KernelLogSource:
        return KernelLogSource(
            boot_id=boot_id,
            recall=None if forgetful else self.remembered.get,
            remember=None if forgetful else self.remembered.__setitem__,
            now_us=lambda: (WALL_US, MONOTONIC_US),
            open_log=self.open,
        )

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def events(source: KernelLogSource) -> list[Row]:
    return list(source.read().rows.get(Stream.NODE_EVENT, ()))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "xid"),
    [
        ("NVRM: Xid (PCI:0000:9b:00): 119, pid=2024380, name=nvidia-smi, Timeout", Xid("0000:9b:00", 119)),
        ("NVRM: Xid (0000:03:00): 13, 0001 00000000 0000a0c0", Xid("0000:03:00", 13)),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained error", Xid("0000:01:00", 94)),
        ("NVRM: Xid (PCI:0001:C8:00.0): 63, Row Remapper", Xid("0001:c8:00", 63)),
        (
            "NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            Xid("0000:41:00", 79),
        ),
        ("NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.", Xid("0000:41:00", 79)),
        ("NVRM: The NVIDIA GPU at PCI:0000:41:00 has fallen off the bus and is not responding", Xid("0000:41:00", 79)),
        ("NVRM: GPU at PCI:0000:9b:00: GPU-509665ad-b600-ac93-3616-d754b23d636d", None),
        ("NVRM: GPU4 GSP RPC buffer contains function 103 (GSP_RM_ALLOC) and data 0x2081 0x4.", None),
        ("usb 1-1: new device", None),
    ],
)
def test_a_line_tells_its_xid_and_address(line: str, xid: Xid | None) -> None:
    assert find_xid(line) == xid


@pytest.mark.unit
def test_an_xid_is_an_event_dated_as_the_kernel_dated_it(kernel: Kernel) -> None:
    kernel.log(10, "NVRM: Xid (PCI:0000:9b:00): 31, pid=1, name=python", logged_us=4_999_000_000)
    (row,) = events(kernel.source())
    assert row == {
        "at_us": WALL_US - 1_000_000,  # a second before now
        "kind": "kernel_xid",
        "subject": "0000:9b:00",
        "code": 31,
        "detail": "NVRM: Xid (PCI:0000:9b:00): 31, pid=1, name=python",
    }


@pytest.mark.unit
def test_a_line_is_told_once_whatever_restarts(kernel: Kernel) -> None:
    kernel.log(10, "NVRM: Xid (PCI:0000:9b:00): 31, pid=1")
    kernel.log(11, "something else")
    source = kernel.source()
    assert [row["code"] for row in events(source)] == [31]
    assert events(source) == []
    source.close()
    assert events(source) == []  # opened again: the kernel begins with the oldest line
    source.close()
    kernel.log(12, "NVRM: Xid (PCI:0000:9b:00): 48, pid=1")
    again = kernel.source()
    assert [row["code"] for row in events(again)] == [48]
    again.close()


@pytest.mark.unit
def test_after_a_boot_numbers_begin_again(kernel: Kernel) -> None:
    kernel.remembered["kernel_log_sequence"] = "b0 5000"
    kernel.log(10, "NVRM: Xid (PCI:0000:9b:00): 31, pid=1")
    source = kernel.source(boot_id="b1")
    assert [row["code"] for row in events(source)] == [31]
    source.close()


@pytest.mark.unit
def test_without_a_memory_only_lines_from_now_on_are_told(kernel: Kernel) -> None:
    kernel.log(10, "NVRM: Xid (PCI:0000:9b:00): 31, pid=1")
    source = kernel.source(forgetful=True)
    assert events(source) == []
    kernel.log(11, "NVRM: Xid (PCI:0000:9b:00): 48, pid=1")
    assert [row["code"] for row in events(source)] == [48]
    source.close()


@pytest.mark.unit
def test_what_a_process_wrote_into_the_log_proves_nothing(kernel: Kernel) -> None:
    kernel.log(10, "NVRM: Xid (PCI:0000:9b:00): 79, forged", priority=12)  # facility 1: user
    source = kernel.source()
    assert events(source) == []
    source.close()


@pytest.mark.unit
def test_a_fall_told_in_two_wordings_is_one_event(kernel: Kernel) -> None:
    kernel.log(10, "NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.", logged_us=1_000_000)
    kernel.log(11, "NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.", logged_us=1_000_200)
    kernel.log(12, "NVRM: GPU 0000:42:00.0: GPU has fallen off the bus.", logged_us=1_000_300)
    source = kernel.source()
    assert [row["subject"] for row in events(source)] == ["0000:41:00", "0000:42:00"]
    source.close()


@pytest.mark.unit
def test_a_flood_is_cut_and_counted(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.source.kernel_log._MAX_ROWS", 2)
    for number in range(5):
        kernel.log(number, f"NVRM: Xid (PCI:0000:9b:00): {31 + number}, pid=1")
    source = kernel.source()
    observation = source.read()
    assert len(observation.rows[Stream.NODE_EVENT]) == 2
    assert observation.errors == {"kernel_log:flood": 3}
    source.close()


@pytest.mark.unit
def test_a_spool_that_cannot_remember_holds_no_event_back(kernel: Kernel) -> None:
    def fail(_name: str, _value: str) -> None:
        raise SpoolError("disk full")

    kernel.log(10, "NVRM: Xid (PCI:0000:9b:00): 31, pid=1")
    source = KernelLogSource(recall=kernel.remembered.get, remember=fail, open_log=kernel.open)
    observation = source.read()
    assert [row["code"] for row in observation.rows[Stream.NODE_EVENT]] == [31]
    assert observation.errors == {"kernel_log:not_remembered": 1}
    source.close()


@pytest.mark.unit
def test_a_log_nobody_may_read_is_a_sight(tmp_path: Path) -> None:
    source = KernelLogSource(path=tmp_path / "kmsg")
    assert source.read().errors == {}
    assert source.sights()[0].remedy == "give the container the device /dev/kmsg"

    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    denied = KernelLogSource(open_log=refused)
    assert denied.read().errors == {}
    assert "CAP_SYSLOG" in str(denied.sights()[0].remedy)


@pytest.mark.real
def test_the_recorded_log_s_five_xids_are_found(kernel: Kernel, shared: Path) -> None:
    lines = (shared / "data/fixtures/kernel-log/dmesg-with-xid-119.log").read_text().splitlines()
    for number, line in enumerate(lines):
        kernel.log(number, line.split("] ", 1)[-1])
    source = kernel.source()
    found = events(source)
    assert [(row["subject"], row["code"]) for row in found] == [("0000:9b:00", 119)] * 5
    source.close()
