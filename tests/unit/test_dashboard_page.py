"""The overview page, run by Streamlit's own test runner against a fake API: good weather, nothing yet, and bad weather."""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.fakes.api import TOKEN, FakeApi, a_good_day, no_energy, nothing_yet, serving

Show = Callable[[], AppTest]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(a_good_day()) as running:
        yield running


@pytest.fixture
def show(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("WATTLEDGER_API_URL", api.url)
    monkeypatch.setenv("WATTLEDGER_API_TOKEN_FILE", str(token))

    def run() -> AppTest:
        page = AppTest.from_file(str(files("dashboard") / "app.py"), default_timeout=180).run()
        assert not page.exception
        return page

    return run


def text(page: AppTest) -> str:
    shown = (*page.markdown, *page.caption, *page.warning, *page.info, *page.error)
    return "\n".join(element.value for element in shown)


def test_a_good_day_shows_figures_charts_budgets_and_findings(show: Show) -> None:
    page = show()
    assert [(metric.label, metric.value) for metric in page.metric] == [
        ("Cost (USD)", "13,620"),
        ("Energy (kWh)", "2,510"),
        ("Carbon (kgCO2e)", "1,106"),
        ("Idle waste (USD)", "325.7"),
        ("Throttled (USD)", "74.10"),
        ("Mapped", "96.4 %"),
    ]
    assert len(page.get("vega_lite_chart")) == 4
    assert [len(table.value) for table in page.dataframe] == [4, 14]
    assert "399.8 USD of the cost (2.9 %) could have been avoided; 240.0 GPU-h idle (3.9 % of the time held)" in text(
        page
    )


def test_simulated_data_is_marked_at_the_top_and_in_every_section(show: Show) -> None:
    page = show()
    assert page.warning[0].value.startswith("**SIMULATED DATA.**")
    headings = [element.value for element in page.markdown if element.value.startswith("#####")]
    assert len(headings) == 6
    assert all("SIMULATED" in heading for heading in headings)


def test_live_data_carries_no_mark(show: Show, api: FakeApi) -> None:
    bill = a_good_day()["/v1/bill"]({})
    assert isinstance(bill, dict)
    bill["total"]["origins"] = ["live"]
    api.answers["/v1/bill"] = lambda _: bill
    api.answers["/v1/fleet/power"] = lambda _: {"step_s": 600, "points": []}
    api.answers["/v1/tenants/energy"] = no_energy
    api.answers["/v1/findings"] = lambda _: {"findings": [], "next_cursor": None}
    api.answers["/v1/budgets"] = lambda _: {"budgets": []}
    page = show()
    assert not page.warning
    assert "SIMULATED" not in text(page)
    assert "origin: live" in text(page)


def test_choosing_a_period_asks_for_it(show: Show, api: FakeApi) -> None:
    page = show()
    api.asked.clear()
    page.button_group[0].select("6 h").run()
    assert not page.exception
    (asked,) = [parameters for path, parameters in api.asked if path == "/v1/fleet/power"]
    assert asked["step_s"] == "60"


def test_the_toggle_changes_the_chart_to_energy(show: Show) -> None:
    page = show()
    page.button_group[2].select("Energy").run()
    assert not page.exception
    assert "IT energy (kWh)" in page.get("vega_lite_chart")[2].proto.spec


def test_power_by_tenant_is_told_with_its_energy_source_coverage_and_origin(show: Show) -> None:
    page = show()
    (told,) = [caption.value for caption in page.caption if "by who held the devices" in caption.value]
    assert "in steps of 10 min" in told
    assert "kWh of IT energy in all · source: measured · lowest coverage of a tenant 99.1 % · origin: simulated" in told
    page.button_group[1].select("Energy").run()
    assert not page.exception
    assert "IT energy (kWh per 10 min)" in page.get("vega_lite_chart")[1].proto.spec


def test_an_empty_installation_says_what_will_come(show: Show, api: FakeApi) -> None:
    api.answers.update(nothing_yet())
    page = show()
    assert not page.metric
    assert "nothing in the books of the last 48 h" in page.info[0].value
    assert "wattledger demo" in page.info[0].value


def test_a_server_that_is_down_is_an_explanation_and_not_a_traceback(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTLEDGER_API_URL", "http://127.0.0.1:1")
    page = show()
    assert "http://127.0.0.1:1 does not answer" in page.error[0].value
    assert "wattledger up" in page.error[0].value


def test_a_refused_token_is_told_with_the_way_to_a_new_one(
    show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("wl_2_of-somebody-else")
    page = show()
    assert "the API refuses this token: the token is unknown" in page.error[0].value
