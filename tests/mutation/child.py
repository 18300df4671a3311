"""One mutant in one forked process: its source takes its module's place at import, pytest runs, the exit status tells.

The parent imports what is heavy and never computes with it, so that a child neither pays for the imports nor has threads to miss.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from types import CodeType, ModuleType

_HEAVY = ("dataframely", "numpy", "polars", "pytest")
LIMIT_S = 60
"""A fault may make a loop endless."""
_SURVIVED = 7
"""Exit status no interpreter, signal or pytest uses."""


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "timed_out"
    SURVIVED = "survived"


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


def start(module: str, source: str, tests: Sequence[str]) -> int:
    """Fork a process that runs ``tests`` with ``module`` made of ``source``; return its pid."""
    for heavy in _HEAVY:
        importlib.import_module(heavy)
    pid = os.fork()
    if pid:
        return pid
    try:
        status = _run(module, source, tests)
    except BaseException:  # noqa: BLE001 - whatever it is, the fault was noticed
        status = 1
    os._exit(status)


def outcome(status: int) -> Verdict:
    """Return what the wait status of a child says."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return Verdict.TIMED_OUT
    return Verdict.SURVIVED if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _SURVIVED else Verdict.KILLED


def _run(module: str, source: str, tests: Sequence[str]) -> int:
    loaded = [name for name in sys.modules if name.split(".")[0] in {"analytics", "ingest", "collector"}]
    if loaded:
        raise RuntimeError(f"{loaded[0]} was imported before its mutant; keep the parent free of our own packages")
    signal.alarm(LIMIT_S)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.meta_path.insert(0, _InPlace(module, source))
    # Of the plugins that are installed only what pyproject.toml asks for: the others take longer to import than the tests to run.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    quiet = ("-x", "-q", "--no-header", "--tb=no", "--noconftest", "-p", "no:cacheprovider", "-p", "pytest_timeout")
    passed = importlib.import_module("pytest").main([*quiet, *tests]) == 0
    return _SURVIVED if passed else 1
