"""One mutant in one forked process, whose exit status tells: a fault in a function that is imported already, or a module made anew.

What is heavy is imported before the fork and never computes there, so that a child neither pays for the imports nor has threads to miss.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from types import CodeType, ModuleType

HEAVY = ("dataframely", "numpy", "polars", "pytest")
PYTEST = ("-q", "-s", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-o", "timeout=0")
"""Of the plugins that are installed only what pyproject.toml asks for. No capture: its files would be shared by all children."""
_MEMORY_BYTES = 4 << 30
"""What a child may take beyond what its parent has: a dropped divisor can ask for a range of 10^15."""
_SURVIVED = 7
"""Exit status no interpreter, signal or pytest uses."""


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "timed_out"
    SURVIVED = "survived"
    NOT_RUN = "run by no test"


class _InPlace(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Gives one module another source."""

    def __init__(self, module: str, source: str) -> None:
        self._module, self._source = module, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._module else None

    def get_source(self, fullname: str) -> str:
        del fullname
        return self._source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, f"<mutant of {fullname}>", "exec")


def forked(passes: Callable[[], bool], limit_s: float) -> int:
    """Fork a process that asks whether tests pass, in ``limit_s`` of processor time, or five times as long if it waits; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _bound(limit_s)
        status = _SURVIVED if passes() else 1
    except BaseException:  # noqa: BLE001 - whatever it is, the fault was noticed
        status = 1
    os._exit(status)


def outcome(status: int) -> Verdict:
    """Return what the wait status of a child says."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL}:
        return Verdict.TIMED_OUT
    return Verdict.SURVIVED if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _SURVIVED else Verdict.KILLED


def made_anew(module: str, source: str, tests: Sequence[str]) -> bool:
    """Return whether ``tests`` pass with ``module`` made of ``source`` when it is imported; only for a process of its own."""
    loaded = [name for name in sys.modules if name.split(".")[0] in {"analytics", "ingest", "collector"}]
    if loaded:
        raise RuntimeError(f"{loaded[0]} was imported before its mutant; keep the parent free of our own packages")
    sys.meta_path.insert(0, _InPlace(module, source))
    return bool(importlib.import_module("pytest").main(["-x", *PYTEST, *tests]) == 0)


def _bound(limit_s: float) -> None:
    faulthandler.disable()  # pytest's writes to a copy of stderr; a child that aborts is a fault that was noticed
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(5 * limit_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s) + 1, int(limit_s) + 3))
    held_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held_bytes + _MEMORY_BYTES, resource.RLIM_INFINITY))
