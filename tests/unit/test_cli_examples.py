"""Every example that help or the documents show is a command line that the parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

from collector.cli import _parser as agent_parser
from wattledger.cli import cli

pytestmark = pytest.mark.unit
ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
VARIABLE: Final = re.compile(r"[A-Z_]+=\S+")
SHELL: Final = re.compile(r"\s(\||>|<|&&|\|\|)\s|\s{2,}|\s#|…")
"""What ends a command in an example: a pipe, a redirection, or the gap before what it does."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def root() -> click.Group:
    assert isinstance(cli, click.Group)
    return cli


ALL: Final = [((), root()), *commands(root())]


def examples(text: str, program: str) -> Iterator[list[str]]:
    """Yield the words of each line of a text that runs a program."""
    for line in text.splitlines():
        words = line.strip().removeprefix("$ ")
        while match := VARIABLE.match(words):
            words = words[match.end() :].lstrip()
        if words.startswith(f"{program} "):
            yield shlex.split(SHELL.split(words)[0])[1:]


def from_help() -> list[str]:
    return [shlex.join(words) for _, command in ALL for words in examples(command.epilog or "", "wattledger")]


def from_documents(program: str) -> list[str]:
    found = []
    for path in DOCUMENTS:
        for block in re.findall(r"```[a-z]*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            found += [shlex.join(words) for words in examples(block, program)]
    return found


def parsed(command: click.Command, words: list[str], path: str) -> None:
    """Parse as far as a shell line goes: names of commands and options, and how many words there are."""
    context = click.Context(command, info_name=path)
    _, rest, _ = command.make_parser(context).parse_args(words)
    if isinstance(command, click.Group) and rest:
        below = command.get_command(context, rest[0])
        assert below is not None, f"{path} has no command {rest[0]!r}"
        parsed(below, rest[1:], f"{path} {rest[0]}")
    else:
        assert not rest, f"{path} does not take {rest}"


@pytest.mark.parametrize("line", sorted({*from_help(), *from_documents("wattledger")}))
def test_an_example_is_a_command_that_there_is(line: str) -> None:
    parsed(root(), shlex.split(line), "wattledger")


def test_there_are_examples_in_help_and_in_the_documents() -> None:
    assert len(from_help()) > 60
    assert len(from_documents("wattledger")) > 20


@pytest.mark.parametrize("line", sorted({*from_documents("wattledger-agent")}))
def test_an_example_of_the_agent_is_one_it_takes(line: str) -> None:
    agent_parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_help_fits_a_narrow_terminal_and_cuts_no_sentence_short(path: tuple[str, ...]) -> None:
    answer = CliRunner().invoke(cli, [*path, "--help"], terminal_width=80)
    assert answer.exit_code == 0
    listed = re.split(r"\n  (Examples?|One per format):", answer.output)[0]
    assert "..." not in listed.partition("\n")[2], "a summary is cut off; give the command a short_help"
    assert max(map(len, listed.splitlines())) <= 80


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) or "wattledger" for path, _ in ALL])
def test_every_option_of_every_command_says_what_it_is(path: tuple[str, ...], command: click.Command) -> None:
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    assert [each.opts for each in options if not (each.help or "").strip()] == []
