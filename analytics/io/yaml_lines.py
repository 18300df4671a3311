"""Reads a YAML document as plain strings, lists and mappings, and remembers the line of everything in it.

Every scalar stays the text that was written: whoever validates decides what ``no``, ``0x10`` or ``12.10`` means, and a
decimal never passes through a float. It refuses duplicate keys, anchors (a small file can expand to gigabytes), other tags
and documents over a size, each with its line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

MAX_BYTES: Final = 1_048_576
MAX_DEPTH: Final = 32
"""Ten times what our documents need. The parser's time grows faster than the depth."""

Path = tuple[str | int, ...]
Plain = str | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong with a document: where, and what to do about it."""

    line: int
    where: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.where}: {self.message}" if self.where else f"line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data, the line of each path into it, and what was wrong with the YAML itself."""

    data: Plain | None
    lines: Mapping[Path, int]
    faults: tuple[Fault, ...]

    def line_of(self, path: Sequence[str | int]) -> int:
        """Return the line of ``path``, or of the nearest thing above it that was written down."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(tuple(path[:length]))
            if line is not None:
                return line
        return 1


def read(text: str) -> Document:
    """Parse one YAML document; never raises for what is in it."""
    if len(text.encode()) > MAX_BYTES:
        return Document(None, {}, (Fault(1, "", f"longer than {MAX_BYTES} bytes; split it"),))
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                return Document(None, {}, (Fault(_line(event.start_mark), "", "nested too deeply"),))
            anchored = getattr(event, "anchor", None)
            if anchored:
                return Document(
                    None,
                    {},
                    (Fault(_line(event.start_mark), "", f"anchor or alias {anchored!r}; write the value out"),),
                )
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        return Document(
            None, {}, (Fault(_line(error.problem_mark or error.context_mark), "", f"not YAML: {error.problem}"),)
        )
    except yaml.reader.ReaderError as error:
        return Document(None, {}, (Fault(1 + text[: error.position].count("\n"), "", f"not YAML: {error.reason}"),))
    if root is None:
        return Document(None, {}, (Fault(1, "", "the document is empty"),))
    lines: dict[Path, int] = {}
    faults: list[Fault] = []
    data = _plain(root, (), lines, faults)
    return Document(data, lines, tuple(faults))


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 1


def spelled(path: Sequence[str | int]) -> str:
    """Return a path as people write it: ``budgets[2].limits.cost``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _plain(node: yaml.Node, path: Path, lines: dict[Path, int], faults: list[Fault]) -> Plain:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Plain] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                faults.append(Fault(line, spelled(path), "a key must be plain text"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in found:
                faults.append(Fault(line, spelled(here), f"written twice; the first is on line {lines[here]}"))
                continue
            lines[here] = line  # of the key: that is where a reader looks
            found[key] = _plain(value_node, here, lines, faults)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, position), lines, faults) for position, item in enumerate(node.value)]
    return str(node.value)
