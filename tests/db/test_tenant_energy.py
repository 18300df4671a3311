"""GET /v1/tenants/energy from outside: each tenant's minutes, whose they are to see, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from analytics.api.app import create_api
from analytics.api.cursors import cursor_of
from analytics.api.tenant_energy import MAX_STEPS, TenantEnergyPage
from collector.wire import Origin
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tables import books as book_tables
from ingest.store.tokens import Scope
from tests.fakes.books import KWH_MJ, Books, hour, usage
from tests.fakes.serving import serving

pytestmark = pytest.mark.db

ROUTE = "/v1/tenants/energy"
FROM = hour(10)
PERIOD = {"from": FROM.isoformat(), "to": (FROM + timedelta(minutes=4)).isoformat()}


@dataclass
class Asking:
    client: httpx.Client
    issue: Callable[[str], dict[str, str]]

    def get(self, tenant_path: str, **query: Any) -> httpx.Response:
        return self.client.get(ROUTE, headers=self.issue(tenant_path), params={**PERIOD, **query})

    def page(self, tenant_path: str, **query: Any) -> TenantEnergyPage:
        answer = self.get(tenant_path, **query)
        assert answer.status_code == 200, answer.text
        return TenantEnergyPage.model_validate_json(answer.content, strict=True)

    def energy(self, tenant_path: str, **query: Any) -> dict[str | None, list[int | None]]:
        return {series.tenant: series.energy_mj for series in self.page(tenant_path, **query).tenants}


@pytest.fixture
def asking(db: Database) -> Iterator[Asking]:
    """Four minutes: acme/nlp in the first two, globex in the second at two sites, nobody in the last; the third has no meter."""
    engine = db.create_engine("admin")
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        serving(create_api(db)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        books = Books.open(conn)
        nlp, globex = books.tenant("acme/nlp"), books.tenant("globex")
        books.tenant("acme/idle")
        job, other = books.job("acme/nlp", "1"), books.job("globex", "2")
        one, two = books.device_ids
        held = usage(job_id=job, tenant_id=nlp, devices={one: KWH_MJ}, covered_us=1_800_000_000)
        books.close(
            10,
            [held, usage(job_id=other, tenant_id=globex, devices={two: KWH_MJ}, origin=Origin.SIMULATED)],
        )
        second_site = conn.execute(sa.text("INSERT INTO sites (name) VALUES ('annex') RETURNING id")).scalar_one()
        for minute, tenant_id, energy_mj, site_id in (
            (0, nlp, 6_000, books.site_id),
            (1, nlp, 7_000, books.site_id),
            (1, globex, 1_000, books.site_id),
            (1, globex, 2_000, second_site),
            (3, None, 500, books.site_id),
        ):
            at = FROM + timedelta(minutes=minute)
            row = {"site_id": site_id, "minute_at": at, "tenant_id": tenant_id, "energy_mj": energy_mj}
            conn.execute(sa.insert(book_tables.tenant_minutes).values(**row))

        def issue(path: str) -> dict[str, str]:
            made = tokens.create(conn, "t", [Scope.READ], actor="test", tenant_path=path)
            return {"Authorization": f"Bearer {made.secret}"}

        yield Asking(client, issue)
    engine.dispose()


def test_every_minute_is_told_in_millijoules_and_one_without_a_meter_is_null(asking: Asking) -> None:
    page = asking.page("*")
    assert (page.from_at, page.to_at, page.step_s) == ("2026-11-11T10:00:00Z", "2026-11-11T10:04:00Z", 60)
    assert {series.tenant: series.energy_mj for series in page.tenants} == {
        "acme/nlp": [6_000, 7_000, None, None],
        "globex": [None, 3_000, None, None],  # of both sites together
        None: [None, None, None, 500],
    }
    assert page.next_cursor is None


def test_steps_of_several_minutes_are_their_sums_from_the_first_on(asking: Asking) -> None:
    assert asking.energy("*", step_s=120) == {"acme/nlp": [13_000, None], "globex": [3_000, None], None: [None, 500]}
    later = {"from": (FROM + timedelta(minutes=1)).isoformat(), "to": (FROM + timedelta(minutes=3)).isoformat()}
    assert asking.energy("acme", **later, step_s=120) == {"acme/nlp": [7_000]}


def test_each_series_says_its_source_coverage_and_origin_as_the_books_of_its_hours_do(asking: Asking) -> None:
    nlp, globex, nobody = asking.page("*").tenants
    assert (nlp.sources, nlp.origins) == (["measured"], ["live"])
    assert globex.origins == ["simulated"]
    # No line of the books is nobody's here: unknown is said, not made up.
    assert (nobody.sources, nobody.origins, nobody.coverage_ratio) == ([], [], None)


def test_a_tenant_sees_its_subtree_and_neither_others_nor_what_nobody_held(asking: Asking) -> None:
    assert set(asking.energy("acme")) == {"acme/nlp"}
    assert set(asking.energy("globex")) == {"globex"}
    assert asking.energy("acme/idle") == {}
    assert asking.energy("acme/n") == {}
    assert set(asking.energy("*", tenant="acme")) == {"acme/nlp"}
    refused = asking.get("acme", tenant="globex")
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:wattledger:problem:tenant_not_covered")


def test_pages_tell_every_tenant_once_and_nobody_last(asking: Asking) -> None:
    found: list[str | None] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        page = asking.page("*", limit=1, **cursor)
        found += [series.tenant for series in page.tenants]
        cursor = {"cursor": page.next_cursor or ""}
    assert found == ["acme/nlp", "globex", None]
    assert page.next_cursor is None
    # A cursor that another tenant got hold of shows it no more than it may see.
    assert asking.energy("globex", cursor=cursor_of("acme/nlp")) == {"globex": [None, 3_000, None, None]}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"from": "2026-11-11T10:00:00"}, "naive_instant"),
        ({"from": "2026-11-11T10:00:30Z"}, "invalid_period"),
        ({"from": "2026-11-11T11:00:00Z"}, "invalid_period"),
        ({"to": "9999-12-31T00:00:00Z"}, "invalid_period"),
        ({"to": (FROM + timedelta(minutes=MAX_STEPS + 1)).isoformat()}, "invalid_period"),
        ({"step_s": 180}, "invalid_period"),
        ({"step_s": 90}, "invalid_request"),
        ({"step_s": 0}, "invalid_request"),
        ({"to": (FROM + timedelta(minutes=MAX_STEPS)).isoformat(), "limit": 101}, "too_many_points"),
        ({"limit": 0}, "invalid_request"),
        ({"tenant": "acme\x00"}, "invalid_request"),
        ({"tenant": "/"}, "invalid_tenant"),
        ({"cursor": "%%%"}, "invalid_cursor"),
        ({"cursor": cursor_of("a\x00b")}, "invalid_cursor"),
    ],
)
def test_what_is_not_bounded_or_not_meant_is_refused_in_words(
    asking: Asking, query: dict[str, Any], reason: str
) -> None:
    answer = asking.get("*", **query)
    assert (answer.status_code, answer.json()["type"]) == (400, f"urn:wattledger:problem:{reason}"), answer.text
