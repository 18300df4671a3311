"""The counters of a network interface that only its driver knows, as ``ethtool -S`` shows them, without starting a process.

Linux has no file for them, only an ioctl; any user may ask. It reads all counters by name and judges none.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from typing import Final

_SIOCETHTOOL: Final = 0x8946
_GSTRINGS: Final = 0x1B
_GSTATS: Final = 0x1D
_GSSET_INFO: Final = 0x37
_SS_STATS: Final = 1
_NAME_BYTES: Final = 32
_MAX_NAME: Final = 15
_MAX_COUNTERS: Final = 16_384
_SLACK: Final = 256
"""The kernel writes as many counters as the driver has when asked, whatever room we announce, and a driver may gain some (a
queue, say) between counting and reading."""


class EthtoolStats:
    """Reads interfaces through one socket, and remembers the names of their counters."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._socket: socket.socket | None = None
        self._names: dict[tuple[str, int], list[str]] = {}

    def read(self, interface: str) -> dict[str, int]:
        """Return the counters by name. Raises OSError: EOPNOTSUPP where the driver has none, ENODEV where it is gone."""
        count = self._count(interface)
        if not 0 < count <= _MAX_COUNTERS:
            return {}
        names = self._names.get((interface, count))
        if names is None:
            if len(self._names) > 256:
                self._names.clear()
            names = self._names[interface, count] = self._read_names(interface, count)
        answer = self._ask(interface, struct.pack("=II", _GSTATS, count), 8 * (count + _SLACK))
        told = struct.unpack_from("=I", answer, 4)[0]
        if told != count:
            return {}  # they changed between the two questions: the names would not fit
        return dict(zip(names, struct.unpack_from(f"={count}Q", answer, 8), strict=True))

    def close(self) -> None:
        """Close the socket."""
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    def _count(self, interface: str) -> int:
        answer = self._ask(interface, struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _SS_STATS), 8)
        mask, count = struct.unpack_from("=QI", answer, 8)
        return int(count) if mask else 0

    def _read_names(self, interface: str, count: int) -> list[str]:
        answer = self._ask(interface, struct.pack("=III", _GSTRINGS, _SS_STATS, count), _NAME_BYTES * (count + _SLACK))
        return [
            answer[start : start + _NAME_BYTES].split(b"\0", 1)[0].decode("ascii", "replace")
            for start in range(12, 12 + _NAME_BYTES * count, _NAME_BYTES)
        ]

    def _ask(self, interface: str, request: bytes, room: int) -> bytes:
        name = interface.encode("ascii", "replace")
        if not 0 < len(name) <= _MAX_NAME:
            raise OSError(f"no interface can be called {interface!r}")
        if self._socket is None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        buffer = ctypes.create_string_buffer(request, len(request) + room)
        # struct ifreq: 16 bytes of name, then a pointer, 40 bytes in all
        fcntl.ioctl(self._socket, _SIOCETHTOOL, struct.pack("=16sQ16x", name, ctypes.addressof(buffer)))
        return buffer.raw
