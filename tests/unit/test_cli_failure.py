"""What a person gets to see of an error: one line and exit code 2, never a traceback for what they can put right."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import sqlalchemy as sa

import wattledger
from wattledger.cli.failure import SPEAKING, explained, explanation
from wattledger.errors import NotReadyError


def _class(name: str) -> type[Exception]:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, type)
    assert issubclass(found, Exception)
    return found


@pytest.mark.parametrize("name", sorted(SPEAKING))
def test_every_name_in_the_list_is_an_error_of_ours(name: str) -> None:
    found = _class(name)
    assert f"{found.__module__}.{found.__qualname__}" == name, "named by where it is defined, or it never matches"


def _own_errors() -> Iterator[type[Exception]]:
    """Errors that may leave their module; one named with an underscore is caught where it is raised."""
    for module in pkgutil.walk_packages(wattledger.__path__, "wattledger."):
        if module.name == "wattledger.__main__":
            continue
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(found, Exception) and found.__module__ == module.name and found.__name__[0] != "_":
                yield found


def test_every_error_the_command_line_package_defines_speaks() -> None:
    silent = [
        found.__qualname__
        for found in _own_errors()
        if explanation(found.__new__(found)) is None and not issubclass(found, KeyboardInterrupt)
    ]
    assert silent == []


def test_a_known_error_is_one_line_on_standard_error_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, explained():
        raise NotReadyError("there is nothing in /srv/wl yet; start with `wattledger up`")
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == "error: there is nothing in /srv/wl yet; start with `wattledger up`\n"
    assert printed.out == ""


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explained():
        raise ZeroDivisionError
    with pytest.raises(OSError, match="Bad file descriptor"), explained():
        raise OSError(9, "Bad file descriptor")


def test_a_subclass_of_a_known_error_speaks_too() -> None:
    from ingest.importers.errors import UnitError  # noqa: PLC0415

    assert explanation(UnitError("column 'power' states no unit")) == "column 'power' states no unit"


def test_a_database_that_is_down_is_told_from_one_that_refuses() -> None:
    down = psycopg.OperationalError("connection failed: No such file or directory\n\tIs the server running?")
    assert explanation(down) == (
        "the database does not answer: connection failed: No such file or directory; "
        "is it running? Try `wattledger up` or `wattledger doctor`"
    )
    locked = psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
    wrapped = sa.exc.OperationalError("SELECT 1", {}, locked)
    for error in (locked, wrapped):
        assert explanation(error) == (
            "the database could not do it: canceling statement due to lock timeout; try again, and see `wattledger doctor`"
        )
    denied = sa.exc.ProgrammingError(
        "SELECT 1", {}, psycopg.errors.InsufficientPrivilege("permission denied for table tokens")
    )
    assert explanation(denied) == (
        "the database refuses: permission denied for table tokens; its user must be a member of the roles wattledger_*"
    )


def test_a_service_that_is_down_and_a_file_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    assert str(explanation(httpx.ConnectError("Connection refused"))).startswith(
        "the service does not answer: Connection"
    )
    with pytest.raises(IsADirectoryError) as caught:
        tmp_path.read_bytes()
    assert explanation(caught.value) == f"{tmp_path}: Is a directory"
    assert explanation(PermissionError(13, "Permission denied", "/srv/wl")) == (
        "no permission: [Errno 13] Permission denied: '/srv/wl'"
    )
    assert (
        explanation(TimeoutError("3 hours are not in the books after 300 s"))
        == "3 hours are not in the books after 300 s"
    )
