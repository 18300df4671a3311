"""What the programs understand, asked of themselves: commands with their flags, and the variables that are read anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import click

from collector import config
from ingest.settings import PREFIX, Settings
from wattledger.cli import cli

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = REPOSITORY / "deploy"
PROGRAMS: Final = {"wattledger", "wattledger-agent"}
_OURS: Final = ("analytics", "dashboard", "ingest", "wattledger")


def known_variables() -> set[str]:
    """Return the names of all variables that the server's processes read: whole names in the sources, and ingest's settings."""
    found: set[str] = set()
    for package in _OURS:
        for path in (REPOSITORY / package).rglob("*.py"):
            found |= set(re.findall(r'"(WATTLEDGER_[A-Z_]*[A-Z])"', path.read_text(encoding="utf-8")))
    ingest = {PREFIX + entry.name.upper() for entry in fields(Settings) if {"bounds", "text"} & entry.metadata.keys()}
    return found | ingest


def known_agent_variables() -> set[str]:
    return {config.ENV_PREFIX + entry.name.upper() for entry in fields(config.Settings)}


def unknown_variables(names: Iterable[str]) -> set[str]:
    """Return those of ours that nobody reads."""
    known = known_variables() | known_agent_variables()
    return {name for name in names if name.startswith("WATTLEDGER_") and name not in known}


def refused(words: Sequence[str]) -> str | None:
    """Say why `wattledger WORDS` would not be understood, without running it; None when it would be.

    Values are converted and required options asked for, as a run would; files need not exist.
    """
    command: click.Command = cli
    context = click.Context(cli, info_name="wattledger")
    rest = list(words)
    while True:
        if isinstance(command, click.Group):
            command.no_args_is_help = False
        # Interspersed options are kept as the command itself parses them.
        parser = command.make_parser(context)
        try:
            values, arguments, _ = parser.parse_args(list(rest))
        except click.UsageError as error:
            return error.format_message()
        if not isinstance(command, click.Group):
            missing = [
                parameter.name
                for parameter in command.params
                if parameter.required and not values.get(str(parameter.name))
            ]
            if command.name == "serve" and values.get("host") == "0.0.0.0" and not values.get("behind_proxy"):
                return "listens for everybody and does not say that TLS ends in front of it"
            return f"missing {missing}" if missing else None
        if not arguments:
            return None
        found = command.get_command(context, arguments[0])
        if found is None:
            return f"no command {arguments[0]!r}"
        context = click.Context(found, info_name=arguments[0], parent=context)
        command, rest = found, list(arguments[1:])
