"""The dashboard's client: answers become typed values, and each failure says what to do."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from dashboard.data import Api, ApiDownError, ApiError, ApiRefusedError
from tests.fakes.api import TENANTS, a_good_day

FROM, TO = datetime(2026, 11, 19, 13, tzinfo=UTC), datetime(2026, 11, 21, 13, tzinfo=UTC)


def api(handle: object = None) -> Api:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(200, json=a_good_day()[request.url.path](dict(request.url.params)))

    transport = httpx.MockTransport(handle or answer)  # type: ignore[arg-type]
    return Api("http://ledger:8470/", "secret", transport)


def test_a_bill_keeps_its_decimals_and_its_origin() -> None:
    with api() as client:
        bill = client.bill(FROM, TO)
    assert [row.tenant for row in bill.rows] == sorted(TENANTS)
    nlp = next(row for row in bill.rows if row.tenant == "acme/research/nlp").figures
    assert nlp.cost_by_category["gpu_owned"] == Decimal("4108.3")
    assert nlp.energy_kwh == Decimal("911.9")
    assert bill.total.origins == ("simulated",)
    assert bill.books_as_of_at == datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_a_period_is_asked_for_in_utc_and_steps() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        return httpx.Response(200, json={"step_s": 600, "points": []})

    with api(answer) as client:
        assert client.fleet_power(FROM, TO, 600) == ()
    assert asked == [
        {"from": "2026-11-19T13:00:00+00:00", "to": "2026-11-21T13:00:00+00:00", "step_s": "600", "by_model": "true"}
    ]


def test_energy_by_tenant_is_asked_for_until_there_is_no_further_page() -> None:
    with api() as client:
        steps = client.tenants_energy(FROM, TO, 600)
    assert [each.tenant for each in steps.tenants][-2:] == ["globex/quant", None]
    assert {len(each.energy_mj) for each in steps.tenants} == {288}
    assert (steps.from_at, steps.step_s) == (FROM, 600)


def test_budgets_and_findings_are_typed() -> None:
    with api() as client:
        first, *_ = client.budgets()
        finding, *_ = client.findings(FROM, TO)
    assert (first.name, first.spent, first.verdict) == ("nlp-week", Decimal("7460.25"), "warn")
    assert (finding.job, finding.avoidable_cash, finding.origin) == ("sim/4711", Decimal("1.75"), "simulated")


def test_a_server_that_is_down_says_how_to_start_it() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with api(refuse) as client, pytest.raises(ApiDownError, match="http://ledger:8470 does not answer") as caught:
        client.budgets()
    assert "wattledger up" in caught.value.remedy


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_repeats_the_servers_reason(status: int) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"title": "No", "status": status, "detail": "the token expired"})

    with api(refuse) as client, pytest.raises(ApiRefusedError, match="the token expired") as caught:
        client.budgets()
    assert "wattledger token create" in caught.value.remedy


def test_a_failing_server_is_told_with_path_and_status() -> None:
    with (
        api(lambda _: httpx.Response(503, text="down for a moment")) as client,
        pytest.raises(ApiError, match="/v1/budgets answers 503: down for a moment"),
    ):
        client.budgets()


def test_a_missing_token_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ApiRefusedError, match="WATTLEDGER_API_TOKEN_FILE is not set"):
        Api.from_env({})
    with pytest.raises(ApiRefusedError, match="cannot be read: No such file"):
        Api.from_env({"WATTLEDGER_API_TOKEN_FILE": str(tmp_path / "none")})
    (tmp_path / "token").write_text("secret\n")
    with Api.from_env({"WATTLEDGER_API_TOKEN_FILE": str(tmp_path / "token")}) as client:
        assert client.url == "http://127.0.0.1:8470"
