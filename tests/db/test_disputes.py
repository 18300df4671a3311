"""A line of a bill is disputed by its name, shown on the bill, in the way of the month's close, and resolved; no figure moves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from analytics.errors import CloseError
from analytics.io.disputes import lines_of_hour, listed, open_dispute, page_of_lines, parsed, resolve
from analytics.io.statement_table import as_table
from analytics.io.statements import bill
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store import tenancy
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOW = HOUR_AT + 20 * HOUR


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR - timedelta(seconds=10))
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(NOW)
    return fleet


@pytest.fixture
def owner(fleet: SmallFleet) -> Iterator[sa.Connection]:
    engine = fleet.database.create_engine("owner")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
    engine.dispose()


def test_a_disputed_line_is_told_by_its_name_on_the_bill_and_to_nobody_else(
    fleet: SmallFleet, owner: sa.Connection
) -> None:
    line = next(each for each in lines_of_hour(owner, HOUR_AT) if each.category == "gpu_owned" and each.tenant)
    assert line.name is not None
    assert line.name.startswith("2026-11-01T08:00Z/")

    made = open_dispute(owner, line.name, " it was cancelled ", by="ada")

    assert (made.tenant, made.billed_cost, made.reason) == ("acme/research/nlp", line.billed_cost, "it was cancelled")
    with pytest.raises(CloseError, match="is disputed already"):
        open_dispute(owner, line.name, "once more", by="ada")
    assert open_dispute(owner, line.name, "once more", by="ada", again=True) == made
    shown = bill(owner, HOUR_AT, HOUR_AT + HOUR)
    assert (shown.disputed.lines, shown.disputed.cost) == (1, line.billed_cost)
    assert "1 line of it worth " in as_table(shown)
    assert [each.is_disputed for each in lines_of_hour(owner, HOUR_AT) if each.name == line.name] == [True]

    done = resolve(owner, made.id, "right", by="grace", now=NOW)

    assert (done.resolved_by, done.resolution) == ("grace", "right")
    assert listed(owner) == []
    assert listed(owner, resolved=True) == [done]
    assert bill(owner, HOUR_AT, HOUR_AT + HOUR).disputed.lines == 0
    with pytest.raises(CloseError, match="there is no open dispute"):
        resolve(owner, made.id, "twice", by="grace", now=NOW)


def test_a_tenant_can_neither_see_nor_dispute_nor_resolve_another_s_line(
    fleet: SmallFleet, owner: sa.Connection
) -> None:
    line = next(each for each in lines_of_hour(owner, HOUR_AT) if each.tenant)
    assert line.name is not None
    made = open_dispute(owner, line.name, "mine", by="ada")
    owner.execute(sa.text("INSERT INTO tenants (path) VALUES ('globex')"))
    engine = fleet.database.create_engine("api")
    with engine.begin() as api, tenancy.tenant_scope(api, "globex"):
        assert lines_of_hour(api, HOUR_AT) == []
        assert listed(api) == []
        with pytest.raises(CloseError, match="there is no line called"):
            open_dispute(api, line.name, "not mine", by="eve")
        with pytest.raises(CloseError, match="there is no open dispute"):
            resolve(api, made.id, "gone", by="eve", now=NOW)
    with engine.begin() as api, tenancy.tenant_scope(api, "acme"):
        assert [each.id for each in listed(api)] == [made.id]
        with pytest.raises(CloseError, match="there is no open dispute"):  # its own it cannot answer either
            resolve(api, made.id, "gone", by="eve", now=NOW)
    engine.dispose()


@pytest.mark.parametrize(
    "name", ["", "x", "2026-11-01T08:00Z", "2026-13-01T08:00Z/abababababab", "2026-11-01T08:30Z/abababababab"]
)
def test_what_names_no_line_is_refused_in_words(name: str) -> None:
    with pytest.raises(CloseError, match="names no line"):
        parsed(name)


def test_an_hour_and_the_beginning_of_a_link_name_a_line() -> None:
    assert parsed("2026-11-01T08:00Z/abababababab") == (datetime(2026, 11, 1, 8, tzinfo=UTC), "abababababab")


def test_lines_and_disputes_come_by_pages_that_hold_each_once(fleet: SmallFleet, owner: sa.Connection) -> None:
    every = lines_of_hour(owner, HOUR_AT)
    assert len(every) == 2  # the job's time and its electricity
    first, place = page_of_lines(owner, HOUR_AT, None, after=None, limit=1)
    second, end = page_of_lines(owner, HOUR_AT, None, after=place, limit=1)
    assert end is None
    assert sorted(line.category for line in first + second) == ["electricity", "gpu_owned"]
    for line in every:
        open_dispute(owner, str(line.name), "wrong", by="ada")
    (newest,) = listed(owner, limit=1)
    (older,) = listed(owner, before_id=newest.id, limit=1)
    assert newest.id > older.id
    assert listed(owner, before_id=older.id) == []
