"""Pages of a bill: together they are the whole, of one moment, cheap, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from analytics.api.app import create_api
from analytics.api.cursors import cursor_of
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope
from tests.fakes.books import KWH_MJ, Books, hour, usage
from tests.fakes.serving import serving

pytestmark = pytest.mark.db
JOBS = 11


@dataclass
class Stand:
    url: str
    books: Books
    issue: Callable[[str], dict[str, str]]
    asked: list[str]

    def get(self, token: dict[str, str], **query: Any) -> httpx.Response:
        period = {"from": hour(0).isoformat(), "to": hour(2).isoformat()}
        return httpx.get(f"{self.url}/v1/bill", params={**period, **query}, headers=token, timeout=30)

    def pages(self, token: dict[str, str], **query: Any) -> Iterator[dict[str, Any]]:
        cursor: dict[str, str] = {}
        while True:
            page = self.get(token, **query, **cursor).raise_for_status().json()
            yield page
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}


@pytest.fixture
def stand(db: Database) -> Iterator[Stand]:
    """Eleven jobs of acme and eleven of globex on two devices."""
    engine = db.create_engine("admin")
    api = create_api(db)
    asked: list[str] = []
    sa.event.listen(api.state.api.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn, serving(api) as url:
        books = Books.open(conn)
        rows = []
        for number in range(JOBS):
            for tenant in ("acme/nlp", "globex"):
                job = books.job(tenant, f"{tenant}-{number}")
                device = books.device_ids[number % 2]
                rows.append(usage(job_id=job, tenant_id=books.tenant(tenant), devices={device: KWH_MJ}, cost="1.1"))
        books.close(0, rows)

        def issue(path: str) -> dict[str, str]:
            made = tokens.create(conn, "t", [Scope.READ], actor="test", tenant_path=path)
            return {"Authorization": f"Bearer {made.secret}"}

        yield Stand(url, books, issue, asked)
    engine.dispose()


@pytest.mark.parametrize(("group_by", "rows"), [("job", 2 * JOBS), ("tenant", 2), ("device", 4)])
@pytest.mark.parametrize("limit", [1, 3, 1_000])
def test_the_pages_of_a_bill_are_the_whole_bill(stand: Stand, group_by: str, rows: int, limit: int) -> None:
    token = stand.issue("*")
    whole = stand.get(token, group_by=group_by).json()
    pages = list(stand.pages(token, group_by=group_by, limit=limit))
    assert len(whole["rows"]) == rows
    assert [row for page in pages for row in page["rows"]] == whole["rows"]
    assert {page["total"]["cost"] for page in pages} == {"24.2"}  # 22 x 1.10
    assert [bool(page["rollups"]) for page in pages] == [group_by == "tenant"] + [False] * (len(pages) - 1)


def test_a_tenant_sees_its_own_rows_on_every_page_whatever_cursor_it_brings(stand: Stand) -> None:
    everything, acme = stand.issue("*"), stand.issue("acme")
    theirs = next(stand.pages(everything, group_by="job", limit=4))["next_cursor"]
    rows = [row for page in stand.pages(acme, group_by="job", limit=2) for row in page["rows"]]
    assert {row["tenant"] for row in rows} == {"acme/nlp"}
    assert len(rows) == JOBS
    answer = stand.get(acme, group_by="job", limit=4, cursor=theirs)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:wattledger:problem:books_changed")
    assert "globex" not in answer.text


def test_every_page_is_of_the_moment_of_the_first_and_asks_the_books_nothing(stand: Stand) -> None:
    token = stand.issue("*")
    pages = stand.pages(token, group_by="job", limit=5)
    first = next(pages)
    whole = stand.get(token, group_by="job").json()
    stand.books.close(1, [usage(job_id=1, tenant_id=stand.books.tenant("acme/nlp"), devices={1: 1}, cost="9")])
    stand.asked.clear()
    rest = list(pages)
    assert first["rows"] + [row for page in rest for row in page["rows"]] == whole["rows"]
    assert {page["total"]["cost"] for page in (first, *rest)} == {"24.2"}
    assert not [statement for statement in stand.asked if "ledger" in statement]
    assert stand.get(token).json()["total"]["cost"] == "33.2"


def test_another_process_goes_on_with_the_same_bill_and_refuses_a_changed_one(stand: Stand, db: Database) -> None:
    token = stand.issue("*")
    whole = stand.get(token, group_by="job").json()
    first = stand.get(token, group_by="job", limit=7).json()
    again = {"group_by": "job", "limit": 100, "cursor": first["next_cursor"]}
    with serving(create_api(db)) as url:
        second = Stand(url, stand.books, stand.issue, []).get(token, **again).json()
        assert first["rows"] + second["rows"] == whole["rows"]
    stand.books.close(1, [usage(job_id=1, tenant_id=stand.books.tenant("acme/nlp"), devices={1: 1}, cost="9")])
    with serving(create_api(db)) as url:
        answer = Stand(url, stand.books, stand.issue, []).get(token, **again)
    assert answer.status_code == 409
    assert "begin without cursor" in answer.json()["detail"]


def test_a_cursor_past_the_end_is_refused(stand: Stand) -> None:
    token = stand.issue("*")
    first = stand.get(token, group_by="job", limit=7).json()
    forged = cursor_of("00000000000000000000000000000000:3")
    assert stand.get(token, group_by="job", cursor=forged).status_code == 409
    assert first["next_cursor"] is not None
