"""Shows how far an import is, and what came of it: what was taken, what was refused and why, from when to when."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from ingest.importers.report import ImportReport, Progress, ProgressCallback

LONGEST_LINE: Final = 240


@contextmanager
def showing_progress(what: str) -> Iterator[ProgressCallback]:
    """Yield what an importer calls; draws a bar on standard error if that is a terminal, and nothing elsewhere."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[rows]}"),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    started_s = time.monotonic()
    with bar:
        reading = bar.add_task(f"reading {what}", total=None, rows="")
        storing: list[bars.TaskID] = []

        def advance(to: Progress) -> None:
            rate = to.rows / max(time.monotonic() - started_s, 1e-3)
            shown = f"{100 * to.done / max(to.total, 1):3.0f} %  {to.rows:,} rows  {rate:,.0f} rows/s"
            bar.update(reading, completed=to.done, total=to.total, rows=shown)
            if to.done >= to.total and not storing:  # how long the store takes nobody knows beforehand
                storing.append(bar.add_task("storing", total=None, rows=""))

        yield advance


def print_report(report: ImportReport, format_: str, *, shown: int) -> None:
    """Print the report on standard output; as JSON with every figure and up to 100 refused rows."""
    if format_ == "json":
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        click.echo("\n".join(_lines(report, shown)))
    refused = report.rejections.total
    if refused:
        click.echo(f"{refused:,} of {report.rows_read:,} rows were refused", err=True)


def _lines(report: ImportReport, shown: int) -> Iterator[str]:
    yield f"{report.kind}: {report.file_name}, site {report.site}" + (
        "  (dry run: nothing was kept)" if report.dry_run else ""
    )
    if report.already_imported_at is not None:
        yield f"  imported before, {_minute(report.already_imported_at)}; nothing was done"
        return
    refused = report.rejections.total
    facts = {
        "rows read": f"{report.rows_read:,}",
        "written": ", ".join(f"{count:,} {table}" for table, count in report.written.items()) or "nothing",
        "known before": f"{report.unchanged:,}" if report.unchanged else "",
        "refused": f"{refused:,}",
        "period": _period(report.first_at, report.last_at),
        "columns": _cut(", ".join(f"{ours} = {theirs}" for ours, theirs in report.columns.items())),
    }
    width = max(map(len, facts))
    yield from (f"  {name:<{width}}  {fact}" for name, fact in facts.items() if fact)
    yield from (f"  {'note':<{width}}  {_cut(note)}" for note in report.notes)
    if not refused:
        return
    yield ""
    yield "refused rows by reason"
    reasons = [each for each in report.rejections.by_reason.most_common() if each[1]]
    digits = max(len(f"{count:,}") for _, count in reasons)
    yield from (f"  {count:>{digits},}  {reason}" for reason, count in reasons)
    examples = sorted(report.rejections.examples, key=lambda each: each.line)[:shown]
    if examples:
        yield f"the first {len(examples)}" if refused > len(examples) else "all of them"
        lines = max(len(f"{each.line:,}") for each in examples)
        yield from (f"  line {each.line:>{lines},}  {each.reason}  {each.detail}".rstrip() for each in examples)


def _period(first_at: datetime | None, last_at: datetime | None) -> str:
    if first_at is None or last_at is None:
        return ""
    return f"from {_minute(first_at)}" if first_at == last_at else f"{_minute(first_at)} to {_minute(last_at)}"


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _cut(text: str) -> str:
    """Cut what only a program reads to the end; a table of prices may have 60 columns."""
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]} … (whole with --format json)"
