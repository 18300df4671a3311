"""Which test runs which line of the model, and how long it takes. Watches one run of unhurt code; judges nothing."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tests.mutation.laws import is_law

Lines = dict[str, set[int]]
"""Of each module, by its name, the lines that were run."""

_WHOLE = "test_method_bytes.py"
"""Runs nearly all of the model, on sites in which everything awkward happens."""
_OTHERS = 24
"""So many tests of other files are asked at most: most lines are run by hundreds, and what these pass the others seldom notice."""
_ALSO = {
    "node_meters": ("test_model_wraps.py",),
    "plain": ("test_model_energy.py",),
    "readings": ("test_model_energy.py", "test_model_wraps.py"),
}
"""Test files that are a module's own though they name another, which is the way into it."""
_LAWS = 6
"""So many laws at most, those of the module first, then the quickest."""


@dataclass(frozen=True, slots=True)
class Witness:
    """One test and what it runs."""

    test: str
    """Its node id."""
    took_s: float
    """Processor time, watched: about twice what it takes alone."""
    lines: dict[str, list[int]]

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


class Watch:
    """Notes the lines of the modules of a folder as they are run in this thread, until it is closed."""

    def __init__(self, folder: Path) -> None:
        self._modules = {str(path.resolve()): path.stem for path in folder.glob("*.py")}
        self.lines: Lines = defaultdict(set)
        sys.settrace(self._enter)

    def close(self) -> None:
        sys.settrace(None)

    def taken(self) -> Lines:
        """Return what was run since this was last asked."""
        lines, self.lines = self.lines, defaultdict(set)
        return lines

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        module = self._modules.get(frame.f_code.co_filename)
        if module is None:
            return None
        lines = self.lines[module]
        lines.add(frame.f_lineno)

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            del event, argument
            lines.add(frame.f_lineno)
            return line

        return line


def statement_lines(source: str) -> dict[int, range]:
    """Return, of each line of a module, the lines of the innermost statement it belongs to; of a block, those of its head.

    The interpreter tells the lines of a statement that it likes to tell: one of them is enough.
    """
    spans: dict[int, range] = {}
    for node in ast.walk(ast.parse(source)):  # outer ones first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
            span = range(node.lineno, max(last, node.lineno) + 1)
            spans |= dict.fromkeys(span, span)
    return spans


@dataclass(slots=True)
class Witnesses:
    """What the tests run, asked by line."""

    tests: list[Witness]
    at_import: dict[str, list[int]]
    _spans: dict[str, dict[int, range]] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)

    def of_line(self, module: str, line: int, source: str) -> list[Witness]:
        """Return the tests that run a line, the quickest first: all of the module's own files, the whole books, some others, some laws."""
        span = self._span(module, line, source)
        asked = [test for test in self.of_module(module) if not span.isdisjoint(test.lines[module])]
        laws = sorted((test for test in asked if is_law(test.file)), key=lambda law: not self._owns(law.file, module))
        running = [test for test in asked if not is_law(test.file)]
        own = [test for test in running if self._owns(test.file, module)]
        others = [test for test in running if test not in own]
        whole = [test for test in others if test.file.endswith(_WHOLE)]
        return own + whole + [test for test in others if test not in whole][:_OTHERS] + laws[:_LAWS]

    def of_module(self, module: str) -> list[Witness]:
        """Return the tests that run anything of a module beyond its import."""
        return sorted((test for test in self.tests if test.lines.get(module)), key=lambda test: test.took_s)

    def imports(self, module: str, line: int, source: str) -> bool:
        """Return whether a line is run when its module, or a test, is imported."""
        return not self._span(module, line, source).isdisjoint(self.at_import.get(module, ()))

    def _owns(self, file: str, module: str) -> bool:
        """Return whether a test file is a module's own: it has its name, or names it."""
        if file not in self._texts:
            self._texts[file] = Path(file).read_text()
        named = module in Path(file).stem or f"analytics.model.{module} import" in self._texts[file]
        return named or file.endswith(_ALSO.get(module, ()))

    def _span(self, module: str, line: int, source: str) -> set[int]:
        if module not in self._spans:
            self._spans[module] = statement_lines(source)
        return set(self._spans[module].get(line, range(line, line + 1)))
