"""The dashboard in a real browser: charts are drawn, simulated data is marked, nothing fails on the way.

Set WATTLEDGER_SCREENSHOT to a file to keep the picture.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.fleet_stand import await_true, command, free_port
from tests.fakes.api import TOKEN, a_good_day, serving

pytestmark = pytest.mark.e2e

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
SLOW_MS = 90_000
PATIENCE_S = 120.0
CHART = '[data-testid="stVegaLiteChart"]'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dashboard process that asks a fake API."""
    token = tmp_path_factory.mktemp("dashboard") / "token"
    token.write_text(TOKEN)
    port = free_port()
    with serving(a_good_day()) as api:
        names = {"WATTLEDGER_API_URL": api.url, "WATTLEDGER_API_TOKEN_FILE": str(token)}
        words = ["dashboard", "--port", str(port)]
        log = token.parent / "dashboard.log"
        with command(words, log, names) as process:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).is_success
                except httpx.TransportError:
                    return False

            await_true(answers, PATIENCE_S, "the dashboard answers", log)
            yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    if BROWSER is None:
        pytest.skip("no browser; install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 2100})
        opened.set_default_timeout(SLOW_MS)
        yield opened
        browser.close()


def test_the_overview_is_drawn_whole_and_marked_as_simulated(page: Page, url: str, tmp_path: Path) -> None:
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    expect(page.get_by_text("SIMULATED DATA.")).to_be_visible(timeout=SLOW_MS)
    for axis in ("cost (USD)", "avoidable cost (USD)"):
        expect(page.locator(CHART).get_by_text(axis, exact=True)).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(CHART).get_by_text("IT power (kW)", exact=True)).to_have_count(2)  # of the fleet, and by tenant
    expect(page.locator(CHART).get_by_text("simulated data")).to_have_count(4)
    expect(page.locator('[data-testid="stMetric"]')).to_have_count(6)
    expect(page.get_by_text("Dearest findings")).to_be_visible()
    expect(page.locator('[data-testid="stDataFrame"] canvas').first).to_be_visible()
    page.wait_for_timeout(1000)  # tables paint on canvases, which tell nobody when they are done
    picture = Path(os.environ.get("WATTLEDGER_SCREENSHOT") or tmp_path / "overview.png")
    page.screenshot(path=picture)
    assert picture.stat().st_size > 60_000  # an empty page of this size takes about 15 kB
    assert faults == []


def test_the_page_asks_no_other_host_for_anything(page: Page, url: str) -> None:
    """A cluster's network often ends at its edge, and what a fleet costs is nobody else's business."""
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    page.goto(url)
    expect(page.get_by_text("Dearest findings")).to_be_visible(timeout=SLOW_MS)
    assert {each for each in asked if not each.startswith((url, "data:", "blob:"))} == set()


def test_no_figure_is_cut_off_at_1280_pixels(page: Page, url: str) -> None:
    page.goto(url)
    values = page.locator('[data-testid="stMetricValue"] > div')
    expect(values).to_have_count(6, timeout=SLOW_MS)
    assert values.evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_toggle_redraws_the_bars_in_kilowatt_hours(page: Page, url: str) -> None:
    page.goto(url)
    bars = page.locator(CHART).nth(2)
    expect(bars.get_by_text("cost (USD)")).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("radio", name="Energy").nth(1).click()
    expect(bars.get_by_text("IT energy (kWh)")).to_be_visible(timeout=SLOW_MS)


def test_power_by_tenant_is_drawn_in_steps_and_its_toggle_shows_their_energy(page: Page, url: str) -> None:
    page.goto(url)
    areas = page.locator(CHART).nth(1)
    expect(areas.get_by_text("acme/research/nlp")).to_be_visible(timeout=SLOW_MS)
    expect(areas.get_by_text("no tenant")).to_be_visible()
    page.get_by_role("radio", name="Energy").first.click()
    expect(areas.get_by_text("IT energy (kWh per 10 min)")).to_be_visible(timeout=SLOW_MS)
