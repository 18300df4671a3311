"""Runs a command that the kernel kills when the supervisor dies, even by kill -9.

Run as a script by the supervisor, with its pid first: `python -I -S leash.py PID COMMAND…`. A step of its own between fork
and exec, because Python code between them (preexec_fn) may deadlock once the parent has threads. Imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    # SIGKILL: a child that can shrug off the signal would outlive its supervisor. Every process of ours survives kill -9.
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before we asked, so the kernel has nothing left to tell us
        sys.exit("the supervisor is gone")
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell wanted


if __name__ == "__main__":
    main()
