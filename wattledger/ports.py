"""Asks whether a TCP port can be bound, before anything starts, and says who has it when not.

Refuses to move to another port by itself: a dashboard at an unexpected address is found by nobody.
"""

import errno
import socket
from pathlib import Path

_LISTEN = "0A"


class PortError(RuntimeError):
    """The port cannot be bound; the message names it, its holder where visible, and the flag that changes it."""


def free_port_or_explain(port: int, flag: str, host: str = "127.0.0.1") -> int:
    """Return the port if it can be bound now, or a free one for 0; raises PortError that names the flag."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of a server that just ended must not look like a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                reason = f"in use by {_holder(port)}"
            raise PortError(
                f"port {port} on {host} ({flag}) cannot be used: {reason}; choose another with {flag}"
            ) from None
        return int(probe.getsockname()[1])


def own_address(host: str) -> str:
    """Return where a process of this machine reaches what listens on ``host``, as a URL writes it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (every address includes loopback)
    return f"[{host}]" if ":" in host else host


def _holder(port: int) -> str:
    """Name the process that listens on the port, as far as this user may see."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(str(handle.readlink()) in sockets for handle in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                return f"pid {process.name} ({command[:80]})"
        except OSError:  # another user's process, or one that just ended
            continue
    return "another process"


def _listening_inodes(port: int) -> list[str]:
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.append(fields[9])
    return inodes
