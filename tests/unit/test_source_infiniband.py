"""Ports of InfiniBand and RoCE adapters from recorded and hand-made trees."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from collector.probe import Row
from collector.source import files
from collector.source.ethtool import EthtoolStats
from collector.source.infiniband import InfinibandSource
from collector.wire import COLUMNS, Stream


class Seconds:
    """A monotonic clock under the test's control."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rows(source: InfinibandSource) -> dict[str, Row]:
    return {str(row["port"]): row for row in source.read().rows.get(Stream.FABRIC, ())}


def make_port(root: Path, *, layer: str = "InfiniBand", **files: str) -> Path:
    folder = root / "class/infiniband/mlx5_0/ports/1"
    (folder / "counters").mkdir(parents=True)
    (folder / "hw_counters").mkdir()
    texts = {"state": "4: ACTIVE\n", "rate": "100 Gb/sec (4X EDR)\n", "link_layer": f"{layer}\n"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name, text in files.items():
        (folder / name.replace("__", "/")).write_text(text)
    return folder


@pytest.mark.real
def test_an_h100_host_s_ports_are_read_as_recorded(shared: Path) -> None:
    read = rows(InfinibandSource(sys_root=shared / "data/fixtures/sysfs"))
    assert sorted(read) == ["mlx5_0/1", "mlx5_1/1", "mlx5_4/1", "mlx5_5/1"]
    assert read["mlx5_0/1"] == {
        "port": "mlx5_0/1",
        "span_us": 0,
        "state": 4,
        "rate_mbps": 400_000,
        "tx_bytes": 4 * 230_442_669_431_839,  # the file counts words of 4 bytes
        "rx_bytes": 4 * 230_539_874_932_483,
        "tx_wait_ticks": 2_489_603_687,
        "symbol_errors": 0,
        "link_downed": 0,
        "receive_errors": 14,
        "discards": 0,
        "link_recoveries": 0,
        "integrity_errors": 0,
        "buffer_overruns": 15,
        "remote_errors": 0,
        "out_of_sequence": 0,
        "retransmissions": 0,
        "adaptive_retransmissions": 3,
        "ack_timeouts": 0,
        "receiver_not_ready": 0,
    }
    assert set(read["mlx5_0/1"]) <= {column.name for column in COLUMNS[Stream.FABRIC]}


@pytest.mark.real
def test_another_adapter_s_errors_are_read_as_recorded(shared: Path) -> None:
    row = rows(InfinibandSource(sys_root=shared / "data/fixtures/sysfs-procfs"))["mlx5_0/1"]
    assert (row["rate_mbps"], row["tx_bytes"], row["rx_bytes"]) == (25_000, 4 * 2_880_761_508_848, 4 * 18_126_345_378)
    assert (row["out_of_sequence"], row["retransmissions"], row["ack_timeouts"]) == (1, 1, 131)
    assert row["adaptive_retransmissions"] == 99


@pytest.mark.unit
def test_counters_a_port_does_not_have_are_null(tmp_path: Path) -> None:
    make_port(tmp_path, counters__port_xmit_data="N/A (no PMA)\n", counters__symbol_error="7\n")
    observation = InfinibandSource(sys_root=tmp_path).read()
    (row,) = observation.rows[Stream.FABRIC]
    assert (row["tx_bytes"], row["symbol_errors"]) == (None, 7)
    assert "rx_bytes" not in row
    assert observation.errors == {}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("code", "counted"), [(errno.EINVAL, {}), (errno.EOPNOTSUPP, {}), (errno.EIO, {"infiniband:EIO": 1})]
)
def test_a_refusal_is_null_and_a_fault_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, counted: dict[str, int]
) -> None:
    folder = make_port(tmp_path, counters__port_xmit_wait="5\n", counters__symbol_error="7\n")
    real = files.read_small

    def refuse(path: Path) -> str:
        if path == folder / "counters/port_xmit_wait":
            raise OSError(code, "refused")
        return real(path)

    monkeypatch.setattr("collector.source.infiniband.read_small", refuse)
    observation = InfinibandSource(sys_root=tmp_path).read()
    (row,) = observation.rows[Stream.FABRIC]
    assert (row["tx_wait_ticks"], row["symbol_errors"]) == (None, 7)
    assert observation.errors == counted


@pytest.mark.unit
def test_a_sum_is_null_where_one_part_cannot_be_read_as_it_must_not_run_backwards(tmp_path: Path) -> None:
    folder = make_port(tmp_path, hw_counters__np_cnp_sent="5\n", hw_counters__rp_cnp_handled="6\n")
    source = InfinibandSource(sys_root=tmp_path)
    assert rows(source)["mlx5_0/1"]["congestion_notifications"] == 11
    (folder / "hw_counters/np_cnp_sent").write_text("garbage\n")
    assert rows(source)["mlx5_0/1"]["congestion_notifications"] is None


@pytest.mark.unit
def test_a_number_beyond_64_bits_costs_its_own_column_only(tmp_path: Path) -> None:
    make_port(tmp_path, counters__port_xmit_data=f"{2**63}\n", counters__symbol_error="7\n")
    observation = InfinibandSource(sys_root=tmp_path).read()
    (row,) = observation.rows[Stream.FABRIC]
    assert (row["tx_bytes"], row["symbol_errors"]) == (None, 7)
    assert observation.errors == {"infiniband:out_of_range:tx_bytes": 1}


@pytest.mark.unit
def test_a_row_spans_the_time_since_the_one_before(tmp_path: Path) -> None:
    clock = Seconds()
    make_port(tmp_path, counters__symbol_error="7\n")
    source = InfinibandSource(sys_root=tmp_path, monotonic=clock)
    spans = []
    for _ in range(3):
        spans.append(rows(source)["mlx5_0/1"]["span_us"])
        clock.now += 10.25
    assert spans == [0, 10_250_000, 10_250_000]


@pytest.mark.unit
def test_pauses_of_an_ethernet_port_are_summed_over_priorities(tmp_path: Path) -> None:
    folder = make_port(tmp_path, layer="Ethernet", counters__symbol_error="7\n")
    net = folder.parents[1] / "device/net/eth7"
    net.mkdir(parents=True)
    (net / "dev_port").write_text("0\n")
    asked = []

    def ethtool(interface: str) -> dict[str, int]:
        asked.append(interface)
        return {
            "rx_prio3_pause": 9,
            "rx_prio3_pause_duration": 40,
            "rx_prio4_pause_duration": 2,
            "tx_prio3_pause_duration": 5,
        }

    row = rows(InfinibandSource(sys_root=tmp_path, ethtool=ethtool))["mlx5_0/1"]
    assert (row["pause_rx_us"], row["pause_tx_us"], asked) == (42, 5, ["eth7"])


@pytest.mark.unit
def test_an_interface_without_counters_is_not_asked_every_time(tmp_path: Path) -> None:
    folder = make_port(tmp_path, layer="Ethernet", counters__symbol_error="7\n")
    (folder.parents[1] / "device/net/eth7").mkdir(parents=True)
    asked = []

    def ethtool(interface: str) -> dict[str, int]:
        asked.append(interface)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    source = InfinibandSource(sys_root=tmp_path, ethtool=ethtool, monotonic=lambda: 5.0)
    for _ in range(3):
        assert "pause_rx_us" not in rows(source)["mlx5_0/1"]
    assert asked == ["eth7"]
    subjects = [sight.subject for sight in source.sights() if not sight.seen]
    assert "pauses by priority flow control" in subjects


@pytest.mark.unit
def test_a_node_without_adapters_gives_nothing_and_says_why(tmp_path: Path) -> None:
    source = InfinibandSource(sys_root=tmp_path)
    assert source.read().rows == {}
    (sight,) = source.sights()
    assert (sight.seen, sight.remedy) == (False, None)


@pytest.mark.unit
def test_an_adapter_that_goes_away_leaves_the_others(tmp_path: Path) -> None:
    folder = make_port(tmp_path, counters__symbol_error="7\n")
    source = InfinibandSource(sys_root=tmp_path, monotonic=lambda: 5.0)
    assert len(rows(source)) == 1
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folder.rmdir()
    assert rows(source) == {}
    assert rows(source) == {}


@pytest.mark.contract
def test_the_kernel_answers_every_interface_of_this_machine_or_refuses_it() -> None:
    stats = EthtoolStats()
    for _, interface in socket.if_nameindex():
        try:
            counters = stats.read(interface)
        except OSError as refusal:
            if refusal.errno not in (errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM):
                raise
        else:
            assert all(name and value >= 0 for name, value in counters.items())
    with pytest.raises(OSError, match="no interface"):
        stats.read("a-name-that-is-too-long")
    with pytest.raises(OSError, match="No such device"):
        stats.read("nosuch0")
    stats.close()
