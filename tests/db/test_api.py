"""The read API over real tokens and row-level security: who sees what, and what a gate answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa

from analytics.actions.plan import plan
from analytics.actions.settings import ActionSettings
from analytics.api.app import create_api
from analytics.api.client import check
from analytics.api.cursors import cursor_of
from analytics.io import budgets
from collector.wire import Origin
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tables import books as book_tables
from ingest.store.tables import reference
from ingest.store.tokens import Scope
from tests.fakes.books import KWH_MJ, MODEL, Books, usage
from tests.fakes.books import tokens as usage_tokens
from tests.fakes.serving import serving

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
PERIOD = {"from": (THIS_HOUR - timedelta(hours=3)).isoformat(), "to": THIS_HOUR.isoformat()}
POLICY = """\
version: 1
budgets:
  - name: nlp
    tenant: acme/nlp
    period: year
    currency: USD
    limits: {cost: 100, energy_kwh: 1000}
    ladder: [{at: 80%, do: warn}, {at: 100%, do: cancel}]
  - name: whole house
    tenant: acme
    period: year
    currency: USD
    limits: {cost: 150}
    ladder: [{at: 100%, do: warn}]
"""


@dataclass
class Api:
    client: httpx.Client
    url: str
    books: Books
    admin: sa.Connection
    issue: Callable[..., dict[str, str]]

    def get(self, path: str, headers: dict[str, str], **query: Any) -> httpx.Response:
        return self.client.get(path, headers=headers, params=query)


@pytest.fixture
def api(db: Database) -> Iterator[Api]:
    """Two rival tenants of acme and one of globex, each with a job in the last two hours of the books."""
    engine = db.create_engine("admin")
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        serving(create_api(db)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        books = Books.open(conn)
        one, two = books.device_ids
        nlp, globex = books.tenant("acme/nlp"), books.tenant("globex")
        first = books.job("acme/nlp", "1", accelerators=1)
        second = books.job("globex", "2")
        number = (THIS_HOUR - datetime(2026, 11, 11, tzinfo=UTC)) // timedelta(hours=1)
        books.close(
            number - 2,
            [
                # 0.5 kWh in an hour of one accelerator: 500 W
                usage(job_id=first, tenant_id=nlp, devices={one: KWH_MJ // 2}, cost="60", carbon_g="200"),
                usage(job_id=second, tenant_id=globex, devices={two: KWH_MJ // 2}, cost="20"),
            ],
        )
        books.close(
            number - 1,
            [usage(job_id=second, tenant_id=globex, devices={two: KWH_MJ // 2}, cost="20", origin=Origin.SIMULATED)],
        )
        conn.execute(
            sa.insert(reference.prices).values(
                provider="owned",
                model=MODEL,
                meter="accelerator_hour",
                amount=Decimal("3.5"),
                unit="hour",
                currency="USD",
                source="test",
                valid_from=THIS_HOUR - timedelta(days=9),
            )
        )
        conn.execute(
            sa.insert(reference.tariffs).values(
                site_id=books.site_id,
                metering_point="it",
                amount_per_kwh=Decimal("0.25"),
                currency="USD",
                source="test",
                valid_from=THIS_HOUR - timedelta(days=9),
            )
        )
        conn.execute(
            sa.insert(book_tables.findings).values(
                dedupe_key="a",
                site_id=books.site_id,
                kind="idle_waste",
                job_id=second,
                tenant_id=globex,
                start_at=THIS_HOUR - timedelta(hours=2),
                end_at=THIS_HOUR,
                evidence={},
                avoidable_cash=Decimal("1.5"),
                currency="USD",
                confidence=0.9,
                origin=1,
            )
        )
        conn.execute(
            sa.insert(reference.bindings).values(
                position=1, tenant_id=nlp, account="lang*", valid_from=THIS_HOUR - timedelta(days=9)
            )
        )
        budgets.apply(conn, POLICY, THIS_HOUR - timedelta(days=1), actor="test")

        def issue(path: str | None, *scopes: Scope) -> dict[str, str]:
            made = tokens.create(conn, "t", scopes or (Scope.READ, Scope.GATE), actor="test", tenant_path=path)
            return {"Authorization": f"Bearer {made.secret}"}

        yield Api(client, url, books, conn, issue)
    engine.dispose()


READS = [
    "/v1/bill",
    "/v1/budgets",
    "/v1/budgets/acme/nlp",
    "/v1/findings",
    "/v1/actions",
    "/v1/fleet/power",
    "/v1/tenants/energy",
]


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wl_1_nonsense"}, {"Authorization": "Basic eA=="}])
def test_without_a_good_token_nothing_is_shown(api: Api, path: str, header: dict[str, str]) -> None:
    answer = api.get(path, header, **PERIOD)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_slash_too_many_is_a_404_that_says_so(api: Api) -> None:
    for answer in (api.client.get("/v1/bill/"), api.client.post("/v1/gate/", json={})):
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:wattledger:problem:not_found")
        assert answer.json()["detail"].endswith("ask without the slash at its end")


@pytest.mark.parametrize("path", READS)
def test_a_gate_token_does_not_read(api: Api, path: str) -> None:
    answer = api.get(path, api.issue("*", Scope.GATE), **PERIOD)
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:wattledger:problem:scope_missing")


def test_a_read_token_does_not_ask_the_gate(api: Api) -> None:
    answer = api.client.post(
        "/v1/gate", json={"accelerators": 1, "model": MODEL, "hours": 1}, headers=api.issue("*", Scope.READ)
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("group_by", ["tenant", "job", "device"])
def test_a_tenant_sees_its_bill_and_nothing_of_another(api: Api, group_by: str) -> None:
    answer = api.get("/v1/bill", api.issue("acme"), group_by=group_by, **PERIOD)
    assert answer.status_code == 200
    data = answer.json()
    assert {row["tenant"] for row in data["rows"]} == {"acme/nlp"}
    assert data["total"]["cost"] == "60"
    assert data["total"]["energy_kwh"] == "0.5"
    assert data["total"]["carbon_kgco2e"] == "0.2"
    assert "globex" not in answer.text
    assert data["mapped_share_ratio"] == "1"


def test_a_token_for_all_sees_all_with_origins(api: Api) -> None:
    data = api.get("/v1/bill", api.issue("*"), **PERIOD).json()
    assert data["total"]["cost"] == "100"
    assert data["total"]["origins"] == ["live", "simulated"]
    assert {row["key"] for row in data["rows"]} == {"acme/nlp", "globex"}


def test_asking_for_somebody_elses_tenant_is_refused(api: Api) -> None:
    headers = api.issue("acme")
    for path, query in (
        ("/v1/bill", {**PERIOD, "tenant": "globex"}),
        ("/v1/budgets/globex", {}),
        ("/v1/budgets/acme2", {}),
    ):
        answer = api.get(path, headers, **query)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:wattledger:problem:tenant_not_covered")


def test_findings_and_actions_of_others_stay_hidden(api: Api) -> None:
    assert api.get("/v1/findings", api.issue("acme")).json()["findings"] == []
    (finding,) = api.get("/v1/findings", api.issue("globex")).json()["findings"]
    assert (finding["tenant"], finding["avoidable_cash"], finding["native_id"]) == ("globex", "1.5", "2")


def test_the_action_log_shows_dry_runs_to_their_tenant(api: Api, db: Database, tmp_path: Any) -> None:
    tight = POLICY.replace("cost: 100", "cost: 10")
    engine = db.create_engine("owner")
    with engine.begin() as conn:
        budgets.apply(conn, tight, datetime.now(UTC) - timedelta(minutes=1), actor="test")
        plan(conn, budgets.evaluate(conn, datetime.now(UTC)), ActionSettings(tmp_path), {"lab"}, datetime.now(UTC))
    engine.dispose()
    (action,) = api.get("/v1/actions", api.issue("acme")).json()["actions"]
    assert (action["status"], action["dry_run"], action["target"]["native_id"]) == ("dry_run", True, "1")
    assert api.get("/v1/actions", api.issue("globex")).json()["actions"] == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-11-01T00:00:00"}, "no time zone"),
        ({"from": "2026-11-01T00:30:00Z", "to": "2026-11-01T02:00:00Z"}, "full UTC hour"),
        ({"from": "2020-01-01T00:00:00Z"}, "days"),
        ({"group_by": "colour"}, "group_by"),
        ({"cursor": "§"}, "cursor"),
        ({"cursor": cursor_of("1")}, "cursor"),
        ({"cursor": cursor_of(f"{'0' * 32}:9\0")}, "cursor"),
    ],
)
def test_a_bad_question_is_a_400_that_says_what_to_do(api: Api, query: dict[str, str], says: str) -> None:
    answer = api.get("/v1/bill", api.issue("*"), **{**PERIOD, **query})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("text", ["a\0", "a\nb", "\x7f"])
def test_a_name_the_database_cannot_hold_is_a_400_wherever_one_is_asked_for(api: Api, text: str) -> None:
    everything = api.issue("*")
    answers = [
        api.get("/v1/bill", everything, tenant=text, **PERIOD),
        api.get("/v1/findings", everything, kind=text),
    ]
    assert api.get(f"/v1/budgets/{quote(text)}", everything).status_code in (400, 404)  # a line end is in no path
    answers += [
        api.client.post(
            "/v1/gate",
            json={"accelerators": 1, "model": MODEL, "hours": 1, "tenant": "acme", field: text},
            headers=everything,
        )
        for field in ("model", "tenant", "site", "account", "user_name", "label")
    ]
    assert [answer.status_code for answer in answers] == [400] * 8


def test_budgets_say_what_is_left(api: Api) -> None:
    found = api.get("/v1/budgets/acme/nlp", api.issue("acme/nlp")).json()["budgets"]
    by_measure = {budget["measure"]: budget for budget in found}
    cost = by_measure["cost"]
    assert (cost["limit"], cost["spent"], cost["left"], cost["verdict"], cost["unit"]) == (
        "100",
        "60",
        "40",
        "allow",
        "USD",
    )
    assert by_measure["energy_kwh"]["left"] == "999.5"
    assert {budget["name"] for budget in api.get("/v1/budgets", api.issue("acme")).json()["budgets"]} == {
        "nlp",
        "whole house",
    }
    assert api.get("/v1/budgets/acme/other", api.issue("acme")).status_code == 404


def ask(api: Api, headers: dict[str, str], **spec: Any) -> dict[str, Any]:
    answer = api.client.post(
        "/v1/gate", json={"accelerators": 2, "model": MODEL, "hours": "1", **spec}, headers=headers
    )
    return dict(answer.json(), http=answer.status_code)


def test_a_gate_estimates_from_rates_in_force_and_measured_power(api: Api) -> None:
    answer = ask(api, api.issue("acme"), tenant="acme/nlp")
    # 2 accelerator-hours at 3.5 + 2 x 0.5 kWh at 0.25
    assert (answer["cost"], answer["energy_kwh"], answer["accelerator_hours"]) == ("7.25", "1", "2")
    assert (answer["verdict"], answer["source"], answer["carbon_kgco2e"]) == ("allow", "forecast", None)
    assert {budget["left_after"] for budget in answer["budgets"]} == {"32.75", "82.75", "998.5"}


def test_a_gate_warns_and_denies_from_the_budget_left(api: Api) -> None:
    headers = api.issue("acme")
    assert ask(api, headers, tenant="acme/nlp", hours="6")["verdict"] == "deny"  # 60 + 43.5 is over 100
    assert ask(api, headers, tenant="acme/nlp", hours="3")["verdict"] == "warn"  # 60 + 21.75 is over 80


def test_the_gate_takes_the_account_where_no_tenant_is_named(api: Api) -> None:
    assert ask(api, api.issue("acme"), account="language")["tenant"] == "acme/nlp"
    unknown = ask(api, api.issue("acme"), account="finance")
    assert (unknown["http"], unknown["type"]) == (422, "urn:wattledger:problem:unmapped")


def test_the_gate_does_not_answer_for_somebody_elses_tenant(api: Api) -> None:
    assert ask(api, api.issue("globex"), tenant="acme/nlp")["http"] == 403


def test_a_budget_above_the_token_counts_but_shows_no_figures(api: Api) -> None:
    answer = ask(api, api.issue("acme/nlp"), tenant="acme/nlp")
    hidden = [budget for budget in answer["budgets"] if budget["name"] is None]
    assert len(hidden) == 1
    assert hidden[0] == {
        "measure": "cost",
        "verdict": "allow",
        **dict.fromkeys(("name", "tenant", "unit", "limit", "spent", "left", "left_after")),
        **dict.fromkeys(("unpriced_lines", "usage_unknown_calls", "unmeasured_lines")),
    }


def test_what_a_budget_could_not_count_is_two_numbers_to_the_gate_and_the_api(api: Api) -> None:
    nlp, tenant = api.books.tenant("acme/nlp"), "acme/nlp"
    number = (THIS_HOUR - datetime(2026, 11, 11, tzinfo=UTC)) // timedelta(hours=1)
    api.books.close(
        number - 3,
        [
            usage_tokens(tenant_id=nlp, count=5_000, cost=None),  # told its tokens, of which nobody told the price
            usage_tokens(tenant_id=nlp, count=70, cost=None, unit="request"),  # 70 calls told no tokens
        ],
    )
    headers = api.issue("acme")
    gaps = {
        budget["measure"]: (budget["unpriced_lines"], budget["usage_unknown_calls"], budget["unmeasured_lines"])
        for budget in api.get("/v1/budgets/acme/nlp", headers).json()["budgets"]
    }
    assert gaps == {"cost": (1, 70, 0), "energy_kwh": (0, 0, 0)}
    answer = ask(api, headers, tenant=tenant)
    assert {
        (budget["name"], budget["measure"]): (budget["unpriced_lines"], budget["usage_unknown_calls"])
        for budget in answer["budgets"]
    } == {("nlp", "cost"): (1, 70), ("whole house", "cost"): (1, 70), ("nlp", "energy_kwh"): (0, 0)}
    assert "not counted: 1 line without a price, 70 API calls that told no usage" in answer["reason"]


def test_a_model_without_a_price_cannot_be_answered_for(api: Api) -> None:
    answer = ask(api, api.issue("acme"), tenant="acme/nlp", model="B200")
    assert (answer["http"], answer["type"]) == (422, "urn:wattledger:problem:no_price")


@pytest.mark.parametrize(("hours", "exit_code"), [("1", 0), ("3", 0), ("9", 1)])
def test_the_gate_client_turns_the_verdict_into_an_exit_code(api: Api, hours: str, exit_code: int) -> None:
    secret = api.issue("acme")["Authorization"].removeprefix("Bearer ")
    spec = {"accelerators": 2, "model": MODEL, "hours": hours, "tenant": "acme/nlp"}
    assert check(spec, api.url, secret, client=api.client).exit_code == exit_code


def test_the_gate_client_says_2_when_there_is_no_answer(api: Api) -> None:
    spec = {"accelerators": 2, "model": "B200", "hours": "1", "tenant": "acme/nlp"}
    secret = api.issue("acme")["Authorization"].removeprefix("Bearer ")
    assert check(spec, api.url, secret, client=api.client).exit_code == 2
    assert check(spec, api.url, "wl_1_bad", client=api.client).exit_code == 2

    def dead(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    for transport in (httpx.MockTransport(dead), httpx.MockTransport(lambda _: httpx.Response(502, text="<html>"))):
        with httpx.Client(transport=transport) as client:
            result = check(spec, "http://localhost:1", secret, client=client)
            assert result.exit_code == 2
            assert secret not in result.message


def test_fleet_power_is_summed_per_minute_for_tokens_that_cover_all(api: Api) -> None:
    minute = THIS_HOUR - timedelta(minutes=10)
    rows = [
        {
            "minute_at": minute,
            "device_id": device,
            "energy_mj": 30_000_000,
            "covered_us": covered,
            "throttled_us": 0,
            "origin": 1,
        }
        for device, covered in zip(api.books.device_ids, (60_000_000, 30_000_000), strict=True)
    ]
    api.admin.execute(sa.insert(book_tables.minute_rollups), rows)
    (point,) = api.get("/v1/fleet/power", api.issue("*"), **PERIOD).json()["points"]
    assert (point["power_w"], point["coverage_ratio"], point["site"]) == (1000.0, 0.75, "lab")  # 2 x 30 kJ in a minute
    assert api.get("/v1/fleet/power", api.issue("acme"), **PERIOD).status_code == 403


def test_the_openapi_document_describes_every_path_with_problems(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/bill",
        "/v1/budgets",
        "/v1/budgets/{path}",
        "/v1/gate",
        "/v1/findings",
        "/v1/actions",
        "/v1/audit",
        "/v1/fleet/power",
        "/v1/meters/gap",
        "/v1/lineage/{response_id}",
        "/v1/tenants/energy",
        "/v1/periods",
        "/v1/periods/{name}",
        "/v1/lines",
        "/v1/why",
        "/v1/disputes",
        "/v1/disputes/{number}/resolution",
    }
    assert all({"401", "403"} <= set(operation["responses"]) for path in paths.values() for operation in path.values())
