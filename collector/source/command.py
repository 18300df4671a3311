"""Runs another program of this node for its output, within time and size, and leaves nothing of it behind.

For what has no file and no library: a management controller's tool, a vendor's. The program gets no input, no terminal, an
environment of two variables, and a process group of its own, so that what it starts ends with it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/rocm/bin",
}
_CHUNK_BYTES: Final = 65_536
_MAX_COMPLAINT_BYTES: Final = 4_096


class CommandError(Exception):
    """No usable output; ``kind`` is short and countable: missing, denied, timeout, too_large, exit_1, ..."""

    def __init__(self, kind: str, detail: str) -> None:
        """Keep both; the detail is for people."""
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def find(name: str) -> str | None:
    """Return the path of a program in the places of the system, not in those of whoever started the agent; None if missing."""
    if "/" in name:
        return name if os.access(name, os.X_OK) else None
    for folder in _ENVIRONMENT["PATH"].split(":"):
        path = f"{folder}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113  a dozen string joins, no objects
            return path
    return None


def output_of(command: Sequence[str], *, timeout_s: float, max_bytes: int = 1_048_576) -> str:
    """Return what the program wrote to its standard output. Raises CommandError for anything but exit code 0 in time."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise CommandError("missing", f"{command[0]} is not there") from error
    except OSError as error:
        raise CommandError("denied", f"{command[0]} cannot be started: {error}") from error
    try:
        output, complaint = _read(process, time.monotonic() + timeout_s, max_bytes, command[0], timeout_s)
    finally:
        _end(process)
    if process.returncode != 0:
        lines = complaint.decode("utf-8", "replace").split("\n")
        raise CommandError(f"exit_{process.returncode}", f"{command[0]}: {lines[0][:200]}")
    return output.decode("utf-8", "replace")


def _read(
    process: subprocess.Popen[bytes], give_up_at: float, max_bytes: int, name: str, timeout_s: float
) -> tuple[bytes, bytes]:
    assert process.stdout is not None  # noqa: S101  asked for
    assert process.stderr is not None  # noqa: S101
    output, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, complaint)
        while selector.get_map():
            left_s = give_up_at - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                raise CommandError("timeout", f"{name} had not ended after {timeout_s} s")
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data is output:
                    output += chunk
                    if len(output) > max_bytes:
                        raise CommandError("too_large", f"{name} wrote more than {max_bytes} bytes")
                elif len(complaint) < _MAX_COMPLAINT_BYTES:
                    complaint += chunk
    try:
        process.wait(max(0.0, give_up_at - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise CommandError("timeout", f"{name} had not ended after {timeout_s} s") from error
    return bytes(output), bytes(complaint)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process in an uninterruptible driver call does not even die of that: it is left, its pipes are closed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
