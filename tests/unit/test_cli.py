"""The command line as a whole: every command explains itself, and a known error is one line, not a traceback."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from wattledger.cli import COMMANDS, SUMMARIES, cli
from wattledger.cli.failure import DATABASE_TROUBLE, RIGHTS_MISSING, SERVICE_DOWN, SPEAKING, explained, explanation
from wattledger.errors import NotReadyError
from wattledger.home import Home
from wattledger.runtime import database_of


def below(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from below(command, (*path, name))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_subcommand_has_help_with_examples(name: str) -> None:
    assert isinstance(cli, click.Group)
    command = cli.get_command(click.Context(cli), name)
    parts = below(command, (name,)) if isinstance(command, click.Group) else ()
    for words in [(name,), *parts]:
        answer = CliRunner().invoke(cli, [*words, "--help"])
        assert answer.exit_code == 0, answer.output
        example = rf"^ +.*wattledger .*\b{re.escape(words[-1])}\b"
        assert re.search(example, answer.output, re.MULTILINE), f"{' '.join(words)} shows no example"


@pytest.mark.parametrize("name", ["serve", "migrate"])
def test_what_needs_a_database_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    told = " ".join(CliRunner().invoke(cli, [name, "--help"]).output.split())
    assert "WATTLEDGER_DATABASE_URL" in told
    assert "`wattledger up` has made in this home" in told
    with pytest.raises(NotReadyError, match=r"`wattledger up`.*or name a database in WATTLEDGER_DATABASE_URL"):
        database_of(Home(tmp_path / "none", "--home"), {})


def test_every_command_has_a_summary() -> None:
    assert COMMANDS.keys() == SUMMARIES.keys()


def test_an_unknown_command_is_a_usage_error() -> None:
    answer = CliRunner().invoke(cli, ["bil"])
    assert answer.exit_code == 2
    assert "No such command 'bil'" in answer.output


@pytest.mark.parametrize("name", sorted(SPEAKING))
def test_every_error_that_speaks_for_itself_exists(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), kind), Exception)


def test_the_classes_of_others_are_named_as_python_names_them() -> None:
    kinds = (
        psycopg.OperationalError,
        psycopg.errors.InsufficientPrivilege,
        sa.exc.OperationalError,
        httpx.TransportError,
    )
    named = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    assert named == {*DATABASE_TROUBLE, RIGHTS_MISSING, SERVICE_DOWN}


def test_a_known_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, explained():
        raise NotReadyError("there is nothing in /srv yet; start with `wattledger up`")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is nothing in /srv yet; start with `wattledger up`\n"


def test_a_database_that_is_down_is_told_without_a_traceback() -> None:
    said = explanation(psycopg.OperationalError("connection refused\nmore of it"))
    assert said is not None
    assert said.startswith("the database does not answer: connection refused; is it running?")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError
