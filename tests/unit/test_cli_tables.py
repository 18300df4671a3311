"""Tables for people: nothing to show is said in words, not as a heading over an empty table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from analytics.io.statement_table import as_table
from analytics.io.statements import Bill, Figures, GroupBy
from wattledger.cli import output
from wattledger.cli.output import Shown, print_rows

pytestmark = pytest.mark.unit


def test_a_bill_of_nothing_is_two_lines() -> None:
    first, last = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)
    empty = Bill(first, last, GroupBy.TENANT, None, (), (), Figures(), None, "closed", 0, None)
    assert as_table(empty, 80) == (
        "2026-11-01T00:00:00Z to 2026-11-02T00:00:00Z, no hour of it closed yet\nnothing used\n"
    )


def test_a_table_without_rows_is_its_notes_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Shown("id", "id")]
    print_rows([], columns, "table", notes=["0 waiting in all"])
    print_rows([], columns, "table")
    assert capsys.readouterr().out == "0 waiting in all\nnone\n"
    print_rows([], columns, "csv")
    assert capsys.readouterr().out == "id\n"


ROWS = [{"job": "sim/1", "cost": 1234.5, "why": "held without work for an hour", "origin": None}]
COLUMNS = [
    Shown("job", "job"),
    Shown("cost", "avoidable cost", lambda cost: f"{cost:,.2f}", numeric=True),
    Shown("why", "because", leaves=2),
    Shown("origin", "origin", leaves=1),
]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda width: monkeypatch.setattr(output, "screen_width", lambda: width)


def test_on_a_wide_screen_every_column_stands_in_one_line(
    screen: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    screen(120)
    print_rows(ROWS, COLUMNS, "table", title="Jobs", notes=["one job"])
    assert capsys.readouterr().out.splitlines() == [
        "Jobs",
        "       avoidable",
        "job         cost  because                        origin",
        "sim/1   1,234.50  held without work for an hour  -",
        "one job",
    ]


def test_on_a_narrow_screen_whole_columns_leave_and_no_cell_is_cut(
    screen: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    screen(48)
    print_rows(ROWS, COLUMNS, "table", notes=["one job"])
    assert capsys.readouterr().out.splitlines() == [
        "       avoidable",
        "job         cost  because",
        "sim/1   1,234.50  held without work for an hour",
        "one job",
        "no room here for origin: use a wider screen, or",
        "--format csv",
    ]
    screen(10)
    print_rows(ROWS, COLUMNS, "table")
    assert capsys.readouterr().out.splitlines()[:3] == ["       avoidable", "job         cost", "sim/1   1,234.50"]
