"""A group whose help lists its commands with the whole first sentence of each; click's own cuts them off."""

from __future__ import annotations

import inspect

import click


class Listing(click.Group):
    """A group of commands, to be named as ``cls`` of every group."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, first_sentence(command.help or "")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, on one line and without its full stop."""
    words = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return words.split(". ")[0].removesuffix(".")
