"""The `why` command: a line of a bill, or an hour of a job, explained from the readings to the last digit."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

import click

from wattledger.cli import EXIT_NO, EXIT_UNANSWERED, chosen_home
from wattledger.cli.bill import Instant
from wattledger.cli.output import decimal_cell, screen_width

if TYPE_CHECKING:
    from analytics.io.why import Why
    from analytics.model.explain import Explained, Step

WIDTH: Final = 100
_HEADINGS: Final = {
    "evidence": "Who held what, by whose word",
    "binding": "Who pays",
    "readings": "Readings",
    "energy": "Usage hours",
    "price": "Price",
    "rounding": "Rounding",
    "facility": "Facility energy",
    "carbon": "Carbon",
    "correction": "Correction",
}
_HOURS_TOLD: Final = 24
_DEVICES_TOLD: Final = 8
"""Whose readings a table shows; JSON has all."""


@click.command(
    epilog="""\b
Examples:
  wattledger why 2026-10-03T08:00Z/3f2a91c0de11         a line, by its name on the bill's page and in `disputes lines`
  wattledger why slurm/4711                             a job: its hours, and the costliest of them explained
  wattledger why 4711@2026-10-03T07:12:40Z --hour 2026-10-03T08:00Z
  wattledger why slurm/4711 --format json

\b
Exit code: 0 every figure comes out as it is stored, 1 one does not, 2 there is nothing of that name.
"""
)
@click.argument("job_or_line", metavar="JOB|LINE")
@click.option("--hour", "hour_at", type=Instant(), help="Which hour of the job. Default: the one that cost most.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or every digit.",
)
@click.pass_context
def why(ctx: click.Context, job_or_line: str, hour_at: datetime | None, format_: Literal["table", "json"]) -> None:
    """Explain a line of a bill, or an hour of a job: evidence, readings, price and each step of the arithmetic.

    JOB is CLUSTER/ID or an ID, with @START where it ran more than once. Each figure is worked out again and compared to the last digit.
    """
    from analytics.io.explain_reads import WhyError
    from analytics.io.why import answer, ask, why_dict
    from wattledger.runtime import ready_database, segments_of

    home = chosen_home(ctx)
    database = ready_database(home)
    try:
        with database.connect("worker", autocommit=True, application="wattledger-cli") as connection:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                asked = ask(connection, job_or_line, hour_at)
            found = answer(asked, (database, connection, segments_of(home)))
    except WhyError as error:
        click.echo(f"Error: {error}", err=True)
        ctx.exit(EXIT_UNANSWERED)
    if format_ == "json":
        click.echo(json.dumps(why_dict(found), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(as_text(found, min(screen_width() or WIDTH, 120))))
    if not found.holds:
        ctx.exit(EXIT_NO)


def as_text(why: Why, width: int) -> Iterator[str]:
    """Yield the lines of the explanation, none wider than ``width`` but a figure that is."""
    if why.is_simulated:
        yield from ("SIMULATED DATA: nobody used or owes any of this.", "")
    if why.job is not None:
        yield from _hours(why)
    yield f"Hour {why.hour_at:%Y-%m-%d %H:00} UTC, site {why.site}"
    yield from _wrapped(f"followed to {why.ground}" + (f": {why.why}" if why.why else ""), width, "")
    yield from steps_text(why.steps, width)
    for line in why.lines:
        yield ""
        yield from _line(line, width)
    yield ""
    yield from _verdict(why, width)


def _hours(why: Why) -> Iterator[str]:
    assert why.job is not None  # noqa: S101 - asked for before
    rows = sorted(why.job.hours, key=lambda row: row["billed_cost"] or 0, reverse=True)
    shown = sorted(rows[:_HOURS_TOLD], key=lambda row: row["hour_at"])
    yield f"Job {why.job.name}"
    for row in shown:
        mark = "→" if row["hour_at"] == why.hour_at else " "
        cost = "unpriced" if row["billed_cost"] is None else f"{row['billed_cost']:,.9f} {row['currency']}"
        energy = "-" if row["energy_mj"] is None else f"{decimal_cell(3)(row['energy_mj'] / 3_600_000_000)} kWh"
        word = "open" if row["is_open"] else ""
        yield f"{mark} {row['hour_at']:%Y-%m-%d %H:00}  {cost:>24}  {energy:>14}  {word}".rstrip()
    if len(rows) > len(shown):
        yield f"  and {len(rows) - len(shown)} hours that cost less"
    yield ""


def _line(explained: Explained, width: int) -> Iterator[str]:
    from analytics.io.explain_reads import line_name

    line = explained.line
    who = ", ".join(
        str(each)
        for each in (line["tenant"] or f"({line['pool']})", line["device_model"], line["charge_category"])
        if each
    )
    name = line_name(line) or "not chained yet, the hour is open"
    yield f"{who}  {name}"
    yield "═" * min(width, len(who) + 2 + len(name))
    if line["corrects_hour_at"] is not None:
        yield from _wrapped(f"corrects {line['corrects_hour_at']:%Y-%m-%d %H:00} UTC: {line['reason']}", width, "")
    yield from steps_text(explained.steps, width)
    for word in explained.differs:
        yield from _wrapped(f"✗ {word}", width, "")
    figures = ["unpriced" if line["billed_cost"] is None else f"{line['billed_cost']:f} {line['currency']}"]
    if line["energy_mj"] is not None:
        figures.append(f"{line['energy_mj']:,} mJ")
    if line["carbon_gco2e"] is not None:
        figures.append(f"{line['carbon_gco2e']:f} gCO2e")
    if not explained.differs:
        yield from _wrapped(f"✓ the books say {', '.join(figures)}", width, "")
    for word in explained.unseen:
        yield from _wrapped(f"  {word}", width, "")


def steps_text(steps: Sequence[Step], width: int) -> Iterator[str]:
    """Yield steps under their headings, those of one device together, each figure at the right."""
    part = of = None
    devices = list(dict.fromkeys(step.of for step in steps if step.of))
    for step in steps:
        if step.of in devices[_DEVICES_TOLD:]:
            continue
        if step.part != part:
            if part == "readings" and len(devices) > _DEVICES_TOLD:
                yield f"  and {len(devices) - _DEVICES_TOLD} devices more: --format json tells of all"
            part, of = step.part, None
            yield ""
            yield _HEADINGS.get(part, part)
        if step.of != of:
            of = step.of
            yield f"  {of}"
        figure = " ".join(filter(None, [step.value, step.unit]))
        yield from _with_figure(step.words, figure, width, "    " if step.of else "  ")


def _with_figure(words: str, figure: str, width: int, indent: str) -> Iterator[str]:
    """Yield words on the left, wrapped, and their figure on the right of the last line, or below it where there is no room."""
    room = width - len(indent)
    folded = textwrap.wrap(words, room) or [""]
    for text in folded[:-1]:
        yield f"{indent}{text}"
    last = folded[-1]
    if not figure:
        yield f"{indent}{last}"
    elif len(last) + 2 + len(figure) <= room:
        yield f"{indent}{last}{figure:>{room - len(last)}}"
    else:
        yield f"{indent}{last}"
        yield f"{indent}{figure:>{room}}"


def _verdict(why: Why, width: int) -> Iterator[str]:
    for word in why.differs:
        yield from _wrapped(f"✗ {word}", width, "")
    if why.holds:
        yield from _wrapped("Every figure comes out as the books have it, to the last digit.", width, "")
    else:
        yield from _wrapped("Not every figure comes out as the books have it.", width, "")


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)
