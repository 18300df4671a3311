"""Reads the ports of InfiniBand and RoCE adapters from /sys/class/infiniband, and what pauses Ethernet put on them.

Counters are given raw and cumulative; a counter the port does not have is null. What is several counters of one kind in the
driver is their sum, and null where one of them could not be read this time, as a sum must not run backwards. Adapters keep
their own pace (``lifespan``, about 10 ms), so reading at 10 s costs them nothing.
"""

from __future__ import annotations

import errno
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from collector.clock import US_PER_S
from collector.probe import Observation, Row, Sight
from collector.source.ethtool import EthtoolStats
from collector.source.files import NOT_SUPPORTED, names_in, read_small
from collector.source.rows import fitted
from collector.wire import Stream

_WORD_BYTES: Final = 4
_MAX_PORTS: Final = 128
_LOOK_AGAIN_S: Final = 60.0

_COUNTERS: Final[dict[str, tuple[str, ...]]] = {
    "tx_bytes": ("counters/port_xmit_data",),
    "rx_bytes": ("counters/port_rcv_data",),
    "tx_wait_ticks": ("counters/port_xmit_wait",),
    "symbol_errors": ("counters/symbol_error",),
    "link_downed": ("counters/link_downed",),
    "receive_errors": ("counters/port_rcv_errors",),
    "discards": ("counters/port_xmit_discards",),
    "link_recoveries": ("counters/link_error_recovery",),
    "integrity_errors": ("counters/local_link_integrity_errors",),
    "buffer_overruns": ("counters/excessive_buffer_overrun_errors",),
    "remote_errors": ("counters/port_rcv_remote_physical_errors",),
    # Sent as receiver of congested packets, and obeyed as their sender.
    "congestion_notifications": ("hw_counters/np_cnp_sent", "hw_counters/rp_cnp_handled"),
    "ecn_marked_packets": ("hw_counters/np_ecn_marked_roce_packets",),
    "out_of_sequence": ("hw_counters/out_of_sequence",),
    # What makes the sender send again: a NAK, or an answer that implies one.
    "retransmissions": ("hw_counters/packet_seq_err", "hw_counters/implied_nak_seq_err"),
    "adaptive_retransmissions": ("hw_counters/roce_adp_retrans",),
    "ack_timeouts": ("hw_counters/local_ack_timeout_err",),
    "receiver_not_ready": ("hw_counters/rnr_nak_retry_err", "hw_counters/out_of_buffer"),
}
_IN_WORDS: Final = frozenset({"tx_bytes", "rx_bytes"})
_PAUSES: Final = {
    "pause_rx_us": re.compile(r"rx_(?:prio\d|global)_pause_duration"),
    "pause_tx_us": re.compile(r"tx_(?:prio\d|global)_pause_duration"),
}
_RATE: Final = re.compile(r"(\d{1,6})(?:\.(\d))? Gb/sec")
_STATE: Final = re.compile(r"(\d):")
_MBPS_PER_GBPS: Final = 1_000


@dataclass(slots=True)
class _Port:
    """One port: where its counters are, and when they were read."""

    name: str
    folder: Path
    files: dict[str, tuple[Path, ...]]
    interface: str | None
    read_at_s: float | None = None
    pauses: bool = field(default=True)


class InfinibandSource:
    """All InfiniBand and RoCE ports of this node."""

    def __init__(
        self,
        *,
        sys_root: Path = Path("/sys"),
        period_s: float = 10.0,
        ethtool: Callable[[str], dict[str, int]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at nothing yet. ``ethtool`` answers an interface's counters by name (default: the kernel's)."""
        self.name = "infiniband"
        self.period_s = period_s
        self._root = sys_root / "class" / "infiniband"
        self._monotonic = monotonic
        self._stats = EthtoolStats()
        self._ethtool = ethtool or self._stats.read
        self._ports: dict[str, _Port] = {}
        self._looked_at_s: float | None = None

    def read(self) -> Observation:
        """Return one row a port."""
        errors: Counter[str] = Counter()
        now_s = self._monotonic()
        if self._looked_at_s is None or now_s - self._looked_at_s >= _LOOK_AGAIN_S:
            self._find_ports()
            self._looked_at_s = now_s
        rows = []
        for port in list(self._ports.values()):
            row = self._read_port(port, errors)
            if row is None:
                self._looked_at_s = None  # the adapter went away, or its driver was reloaded: look again next time
                continue
            span_s = 0.0 if port.read_at_s is None else now_s - port.read_at_s
            port.read_at_s = now_s
            row["span_us"] = round(span_s * US_PER_S)
            rows.append(fitted(Stream.FABRIC, row, errors, self.name))
        return Observation({Stream.FABRIC: tuple(rows)} if rows else {}, dict(errors))

    def sights(self) -> tuple[Sight, ...]:
        """Say which ports there are, and which kinds of counters they lack."""
        self._find_ports()
        ports = self._ports.values()
        subject = "InfiniBand and RoCE ports"
        if not ports:
            return (
                Sight(
                    subject,
                    seen=False,
                    detail=f"{self._root} holds no adapter",
                    remedy="load the adapter's driver (mlx5_ib); in a container mount the host's /sys"
                    if self._root.parent.exists()
                    else None,
                ),
            )
        found = [Sight(subject, seen=True, detail=", ".join(sorted(port.name for port in ports)))]
        lacking = [port.name for port in ports if "out_of_sequence" not in port.files]
        if lacking:
            found.append(
                Sight(
                    "loss and congestion counters of ports",
                    seen=False,
                    detail=f"no hw_counters on {', '.join(lacking)}",
                    remedy="only the physical function of an adapter with the vendor's driver has them",
                )
            )
        ethernet = [port for port in ports if port.interface is not None]
        if ethernet and not any(self._read_pauses(port, Counter()) for port in ethernet):
            found.append(
                Sight(
                    "pauses by priority flow control",
                    seen=False,
                    detail=f"no counters on {', '.join(str(port.interface) for port in ethernet)}",
                    remedy="they exist where priority flow control is on, and not inside a virtual machine",
                )
            )
        return tuple(found)

    def close(self) -> None:
        """Close the socket that asked for pauses."""
        self._stats.close()

    def _find_ports(self) -> None:
        found: dict[str, _Port] = {}
        for device in names_in(self._root):
            for number in names_in(self._root / device / "ports"):
                name = f"{device}/{number}"
                if not number.isdecimal() or len(found) >= _MAX_PORTS:
                    continue
                folder = self._root / device / "ports" / number
                files = {
                    column: tuple(folder / part for part in parts if (folder / part).is_file())
                    for column, parts in _COUNTERS.items()
                }
                files = {column: parts for column, parts in files.items() if parts}
                known = self._ports.get(name)
                found[name] = _Port(
                    name,
                    folder,
                    files,
                    self._interface(device, int(number)),
                    read_at_s=None if known is None else known.read_at_s,
                )
        self._ports = found

    def _interface(self, device: str, number: int) -> str | None:
        """Return the network interface that an Ethernet port has."""
        try:
            if read_small(self._root / device / "ports" / str(number) / "link_layer") != "Ethernet":
                return None
        except OSError:
            return None
        folder = self._root / device / "device" / "net"
        interfaces = names_in(folder)
        for interface in interfaces:
            try:
                if int(read_small(folder / interface / "dev_port")) == number - 1:
                    return interface
            except (OSError, ValueError):
                continue
        return interfaces[0] if len(interfaces) == 1 else None

    def _read_port(self, port: _Port, errors: Counter[str]) -> Row | None:
        try:
            state = _STATE.match(read_small(port.folder / "state"))
            rate = _RATE.match(read_small(port.folder / "rate"))
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                errors[f"{self.name}:{errno.errorcode.get(error.errno or 0, 'os')}"] += 1
            if error.errno == errno.ENOENT:
                return None
            state = rate = None
        row: Row = {
            "port": port.name,
            "state": None if state is None else int(state[1]),
            "rate_mbps": None if rate is None else int(rate[1]) * _MBPS_PER_GBPS + int(rate[2] or 0) * 100,
        }
        for column, paths in port.files.items():
            total: int | None = 0
            for path in paths:
                value = self._counter(path, errors)
                total = None if value is None or total is None else total + value
            row[column] = total * _WORD_BYTES if total is not None and column in _IN_WORDS else total
        row.update(self._read_pauses(port, errors))
        return row

    def _counter(self, path: Path, errors: Counter[str]) -> int | None:
        try:
            text = read_small(path)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                errors[f"{self.name}:{errno.errorcode.get(error.errno or 0, 'os')}"] += 1
            return None
        if text.isdecimal() and len(text) <= 20:
            return int(text)
        if not text.startswith("N/A"):
            errors[f"{self.name}:unreadable"] += 1
        return None

    def _read_pauses(self, port: _Port, errors: Counter[str]) -> Row:
        if port.interface is None or not port.pauses:
            return {}
        try:
            counters = self._ethtool(port.interface)
        except OSError as error:
            if error.errno in NOT_SUPPORTED | {errno.EPERM}:
                port.pauses = False  # asked again when ports are looked for again
            else:
                errors[f"{self.name}:ethtool"] += 1
            return {}
        row: Row = {}
        for column, pattern in _PAUSES.items():
            parts = [value for name, value in counters.items() if pattern.fullmatch(name)]
            if parts:
                row[column] = sum(parts)
        return row
