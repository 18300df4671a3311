"""Tables for people: nothing to show is said in words, not as a heading over an empty table."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from analytics.io.statement_table import as_table
from analytics.io.statements import Bill, Figures, GroupBy
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
