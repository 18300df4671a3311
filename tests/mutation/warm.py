"""The process that has the model and its tests imported: it watches one run of them, then forks a child for each mutant.

It is a pytest plugin in place of pytest's own loop, so that a child neither imports nor collects. A fault within a function is put
into that function in the child; what is run at import (constants) is not for this process: it hands such mutants back.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, TypedDict

from tests.mutation.child import Verdict, forked, outcome
from tests.mutation.laws import shorten
from tests.mutation.operators import Mutant
from tests.mutation.witnesses import Watch, Witness, Witnesses

if TYPE_CHECKING:
    import pytest

Told = Callable[[str, Mutant, Verdict], None]


class Seen(TypedDict):
    passed: bool
    took_s: float
    lines: dict[str, list[int]]


_WATCHED_S = 900
_PATIENCE = 10
"""A mutant's tests may take so many times as long as without the fault, and some seconds, before they are called endless."""
_SOME_S = 5


class Loop:
    """Takes the place of pytest's loop over the tests."""

    def __init__(self, model: Path, work: Iterable[tuple[str, Mutant]], jobs: int, folder: Path, told: Told) -> None:
        self._model, self._work, self._jobs, self._folder, self._told = model, work, jobs, folder, told
        self._import = Watch(model)
        self.failing: list[str] = []
        self.witnesses = Witnesses([], {})
        self.left: list[tuple[str, Mutant]] = []
        """What has to be imported anew."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._import.close()
        if _computed():
            raise RuntimeError(
                "a test file computes with polars when it is imported: a fork would wait for threads it lacks"
            )
        items = {item.nodeid: item for item in session.items}
        shorten(items.values())
        functions = _functions(self._model)
        gc.collect()
        gc.freeze()
        told = self._watched(list(items.values()))
        self.failing = sorted(test for test, seen in told.items() if not seen["passed"])
        seen = [Witness(test, seen["took_s"], seen["lines"]) for test, seen in told.items() if seen["passed"]]
        imported = {module: sorted(lines) for module, lines in self._import.lines.items()}
        self.witnesses = Witnesses(seen, imported)
        running: dict[int, tuple[str, Mutant]] = {}
        for module, mutant in self._work:
            source = (self._model / f"{module}.py").read_text()
            change = _change(functions, self._model / f"{module}.py", source, mutant)
            tests = self.witnesses.of_line(module, mutant.line, source)
            if change is None or self.witnesses.imports(module, mutant.line, source):
                self.left.append((module, mutant))
            elif not tests:
                self._told(module, mutant, Verdict.NOT_RUN)
            else:
                limit_s = _SOME_S + _PATIENCE * sum(test.took_s for test in tests)
                chosen = [items[test.test] for test in tests]
                running[forked(lambda c=change, t=chosen: _passes(c, t), limit_s)] = (module, mutant)  # type: ignore[misc]
            while len(running) >= self._jobs:
                self._reap(running)
        while running:
            self._reap(running)
        return True

    def _reap(self, running: dict[int, tuple[str, Mutant]]) -> None:
        pid, status = os.wait()
        self._told(*running.pop(pid), outcome(status))

    def _watched(self, items: list[pytest.Item]) -> dict[str, Seen]:
        """Run all tests once in a child; return of each whether it passes, its time and its lines."""
        beside = self._folder / "witnesses.json"

        def watch() -> bool:
            told: dict[str, Seen] = {}
            for item, after in _paired(items):
                watch, before_s = Watch(self._model), time.process_time()
                passed = _passed(item, after)
                watch.close()
                lines = {module: sorted(lines) for module, lines in watch.taken().items()}
                told[item.nodeid] = {"passed": passed, "took_s": time.process_time() - before_s, "lines": lines}
            beside.write_text(json.dumps(told))
            return True

        _, status = os.waitpid(forked(watch, _WATCHED_S), 0)
        if outcome(status) is not Verdict.SURVIVED:
            raise RuntimeError(f"the unhurt tests did not end by themselves: wait status {status}")
        return dict(json.loads(beside.read_text()))


def _computed() -> bool:
    """Return whether polars has threads of its own in this process."""
    names = (path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
    return any(name.startswith("polars-0") for name in names)


def _paired(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, pytest.Item | None]]:
    yield from zip(items, [*items[1:], None], strict=True)


def _passed(item: pytest.Item, after: pytest.Item | None) -> bool:
    run = importlib.import_module("_pytest.runner").runtestprotocol
    return not any(report.failed for report in run(item, nextitem=after, log=False))


def _passes(change: Callable[[], None], items: list[pytest.Item]) -> bool:
    change()
    return all(_passed(item, after) for item, after in _paired(items))


def _functions(model: Path) -> dict[tuple[str, str, int], list[FunctionType]]:
    """Return the functions of the modules of a folder by file, name and first line."""
    folder = str(model.resolve())
    found: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(folder):
            code = thing.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(thing)
    return found


def _change(
    functions: dict[tuple[str, str, int], list[FunctionType]], path: Path, source: str, mutant: Mutant
) -> Callable[[], None] | None:
    """Return what puts a fault into the function it stands in; none if it stands in none, or in none that is imported."""
    mine = list(_codes(compile(source, str(path.resolve()), "exec")))
    holding = [
        number for number, code in enumerate(mine) if mutant.line in _lines(code) and not code.co_name.startswith("<")
    ]
    if len(holding) != 1:
        return None
    code = mine[holding[0]]
    found = functions.get((code.co_filename, code.co_qualname, code.co_firstlineno), [])
    if not found:
        return None

    def change() -> None:
        theirs = list(_codes(compile(mutant.source, "<mutant>", "exec")))
        for function in found:
            function.__code__ = theirs[holding[0]]

    return change


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the functions of a module and of its classes, in the order of the source; not those within them."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & CO_OPTIMIZED:
                yield constant
            else:
                yield from _codes(constant)


def _lines(code: CodeType) -> range:
    inner = [_lines(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    told = [line for _, _, line in code.co_lines() if line is not None]
    return range(code.co_firstlineno, max([*told, *(lines.stop - 1 for lines in inner)]) + 1)
