"""A line of a bill is explained from its readings to the last digit, from the command line and to a tenant of its own lines alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from analytics.io.periods import close_month
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import month
from ingest.store import tokens
from ingest.store.engine import URL_VARIABLE
from ingest.store.scopes import Scope
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_node_overhead import meter, node_rows
from tests.fakes.serving import serving
from wattledger.cli import cli
from wattledger.service import create_service

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = datetime(2026, 12, 2, tzinfo=UTC)
START = "2026-11-01T08:00:00Z"


@pytest.fixture
def fleet(db: Any) -> SmallFleet:
    """A job from 8:00 to 8:20 at 100 W, another to 8:50; 2 USD an hour, 0.20 USD per kWh."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=20))
    fleet.job("8", HOUR_AT + timedelta(minutes=20), HOUR_AT + timedelta(minutes=50), account="other")
    HourCloser(fleet.database, SETTINGS).run(LATER)
    return fleet


@pytest.fixture
def home(fleet: SmallFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(URL_VARIABLE, fleet.database.url)
    return tmp_path


def asked(home: Path, *words: str, code: int = 0) -> dict[str, Any]:
    answer = CliRunner().invoke(cli, ["--home", str(home), "why", *words, "--format", "json"])
    assert answer.exit_code == code, answer.output
    found: dict[str, Any] = json.loads(answer.output)
    return found


def names(fleet: SmallFleet, where: str) -> list[str]:
    rows = fleet.rows(
        f"SELECT to_char(hour_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00\"Z\"') || '/' || substr(encode(chain_sha256, 'hex'), 1, 12) "
        f"FROM current_ledger_lines WHERE {where} ORDER BY charge_category"
    )
    return [str(name) for (name,) in rows]


def part(found: dict[str, Any], name: str, steps: str | None = None) -> list[tuple[str, str | None]]:
    rows = found["steps"] if steps is None else found["lines"][int(steps)]["steps"]
    return [(step["words"], step["value"]) for step in rows if step["part"] == name]


def again(fleet: SmallFleet, kind: str) -> None:
    with fleet.admin() as connection:
        fleet.changed(kind, HOUR_AT, HOUR_AT + HOUR, connection)
    HourCloser(fleet.database, SETTINGS).run(LATER)


def test_a_line_is_followed_to_its_readings_and_comes_out_to_the_last_digit(fleet: SmallFleet, home: Path) -> None:
    (name,) = names(fleet, "charge_category = 'electricity' AND holder_key ~ '[|]7[|]'")

    found = asked(home, name)

    assert (found["ground"], found["holds"], found["simulated"]) == ("samples", True, False)
    assert part(found, "evidence") == [("n1 GPU-1: from 08:00:00 to 08:20:00, told by cgroup (rank 3)", None)]
    assert part(found, "binding") == [("rule 1: matches", None), ("so it is paid by", "acme/research/nlp")]
    # 100 W from the reading at 8:00 to that at 8:20.
    assert part(found, "readings") == [
        ("C(08:00:00) is the reading there", "0"),
        ("C(08:20:00) is the reading there", "120,000,000"),
        ("08:00:00–08:20:00, counter (native), 120 intervals: the difference", "120,000,000"),
    ]
    # 120 kJ of the hour's 360 kJ: 0.02 USD in all, of which a third is 0.006666666...
    assert part(found, "price", "0")[-1] == ("120,000,000 mJ × 0.2 ÷ 3,600,000,000", "1/150 ≈ 0.006666666667")
    assert part(found, "rounding", "0")[-1] == ("this line", "0.006666667")
    assert found["lines"][0]["billed_cost"] == "0.006666667"


def test_a_job_is_explained_in_its_costliest_hour_and_named_by_its_start_where_it_ran_twice(
    fleet: SmallFleet, home: Path
) -> None:
    found = asked(home, "c1/7")
    assert found["job"]["name"] == f"c1/7@{START}"
    assert [line["charge_category"] for line in found["lines"]] == ["gpu_owned", "electricity"]
    assert found["lines"][0]["billed_cost"] == "0.666666667"
    fleet.job("7", HOUR_AT - 2 * HOUR, HOUR_AT - HOUR)
    runner = CliRunner()
    twice = runner.invoke(cli, ["--home", str(home), "why", "7"])
    assert twice.exit_code == 2
    assert f"2 jobs are called 7: c1/7@{START}, c1/7@2026-11-01T06:00:00Z; name one of them" in twice.output
    assert asked(home, f"7@{START}")["holds"]
    fleet.rows("UPDATE jobs SET native_id = '8@2026-11-03' WHERE native_id = '8' RETURNING 1")
    assert asked(home, "8@2026-11-03")["job"]["name"] == "c1/8@2026-11-03@2026-11-01T08:20:00Z"
    for words in (["nothing"], [f"7@{START}", "--hour", "2026-11-01T09:00Z"], ["2026-11-01T08:00Z/abababababab"]):
        answer = runner.invoke(cli, ["--home", str(home), "why", *words])
        assert answer.exit_code == 2, answer.output
    shown = runner.invoke(cli, ["--home", str(home), "why", f"7@{START}"]).output
    assert "Every figure comes out as the books have it, to the last digit." in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_every_line_of_an_hour_comes_out_after_a_rating_and_from_its_sealed_file(fleet: SmallFleet, home: Path) -> None:
    Sealer(fleet.database, Segments.at(home / "segments")).seal(hour_of(fleet.site_id, HOUR_AT))
    fleet.rows("UPDATE tariffs SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
        "VALUES (%s, 'it', 0.35, 'USD', 'late', '2026-10-01Z') RETURNING 1",
        fleet.site_id,
    )
    again(fleet, "tariffs")
    assert fleet.rows("SELECT kind FROM ledger_runs ORDER BY id DESC LIMIT 1") == [("rate",)]
    found = names(fleet, f"hour_at = '{HOUR_AT:%Y-%m-%d %H}:00Z'")
    assert len(found) == 6  # two jobs and idle, each with its board and its electricity
    for name in found:
        told = asked(home, name)
        assert told["holds"]
        assert told["ground"] == "samples", told["why_not_samples"]


def test_what_has_no_counter_of_its_own_is_told_as_stored_beside_what_is_followed(
    fleet: SmallFleet, home: Path
) -> None:
    node_rows(fleet, meter(fleet, "redfish"), 400)
    again(fleet, "node_samples")
    found = asked(home, "7")
    assert (found["ground"], found["holds"]) == ("samples", True)
    assert found["why_not_samples"] == "but 1 of 2 usage hours, of no counter of their own: as stored"
    (words,) = [words for words, _ in part(found, "energy") if "meter" in words]
    assert (
        "chassis:s1/n1: what the node's meter shows beyond its boards, by what its holders drew, as stored; held 0 s"
        in words
    )


def test_what_was_altered_is_said_and_ends_with_one(fleet: SmallFleet, home: Path) -> None:
    (name,) = names(fleet, "charge_category = 'electricity' AND holder_key ~ '[|]7[|]'")
    fleet.rows(
        "UPDATE ledger_lines SET billed_cost = billed_cost + 0.000000001 WHERE charge_category = 'electricity' "
        "AND holder_key ~ '[|]7[|]' RETURNING 1"
    )
    assert asked(home, name, code=1)["lines"][0]["differs"] == ["cost: 0.006666667 worked out, 0.006666668 stored"]
    fleet.rows("UPDATE device_samples SET energy_mj = energy_mj + 1 WHERE at = %s RETURNING 1", HOUR_AT)
    found = asked(home, name, code=1)
    assert found["differs"] == ["n1 GPU-1: 119,999,999 mJ from its readings, 120,000,000 mJ in the usage hour"]


def test_without_samples_it_is_explained_from_the_usage_hours_and_says_so(fleet: SmallFleet, home: Path) -> None:
    fleet.rows("DELETE FROM device_samples RETURNING 1")
    found = asked(home, "7")
    assert (found["holds"], found["ground"], found["why_not_samples"]) == (
        True,
        "stored usage hours",
        "its samples are gone",
    )
    assert part(found, "energy") == [("n1 GPU-1: the stored usage hour; held 1,200 s × 1", "120,000,000")]


def test_a_correction_of_a_closed_month_is_what_its_hour_would_be_by_now_less_what_was_posted(
    fleet: SmallFleet, home: Path
) -> None:
    with fleet.database.connect("owner", autocommit=True) as owner:
        given: dict[str, Any] = {"now": LATER, "lateness": timedelta(minutes=15), "by": "ada"}
        accepted = frozenset({"coverage", "mapped"})
        close_month(owner, month("2026-11"), None, **given, accepted=accepted)
    fleet.rows("UPDATE tariffs SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
        "VALUES (%s, 'it', 0.50, 'USD', 'late', '2026-10-01Z') RETURNING 1",
        fleet.site_id,
    )
    again(fleet, "tariffs")
    (name,) = names(fleet, "status = 'correction' AND holder_key ~ '[|]7[|]'")

    found = asked(home, name)

    # A third of 0.1 kWh at 0.50 instead of 0.20 USD.
    assert part(found, "correction", "0")[0][0].startswith(
        "billed cost: 0.016666667 by now − 0.006666667 posted before"
    )
    assert found["lines"][0]["billed_cost"] == "0.010000000"
    assert Decimal(part(found, "correction", "0")[0][1] or 0) == Decimal("0.01")
    assert found["holds"]
    # The frozen line is explained as it stands.
    (frozen,) = names(fleet, "charge_category = 'electricity' AND status = 'closed' AND holder_key ~ '[|]7[|]'")
    assert asked(home, frozen)["lines"][0]["billed_cost"] == "0.006666667"


@pytest.fixture
def api(fleet: SmallFleet) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    app = create_service(
        fleet.database, {"WATTLEDGER_INGEST_TOKEN_CACHE_S": "0", "WATTLEDGER_INGEST_MIN_FREE_MIB": "0"}
    )
    engine = fleet.database.create_engine("admin")
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        serving(app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        connection.execute(sa.text("INSERT INTO tenants (path) VALUES ('globex') ON CONFLICT DO NOTHING"))
        made = {
            path: tokens.create(connection, "t", [Scope.READ], actor="test", tenant_path=path).secret
            for path in ("*", "acme", "globex")
        }
        yield client, made
    engine.dispose()


def test_a_tenant_is_told_why_of_its_own_lines_and_of_nobody_elses(
    fleet: SmallFleet, api: tuple[httpx.Client, dict[str, str]]
) -> None:
    client, secrets = api
    (mine,) = names(fleet, "charge_category = 'electricity' AND holder_key ~ '[|]7[|]'")
    (idle,) = names(fleet, "charge_category = 'electricity' AND pool = 'idle'")

    def get(path: str, what: str) -> httpx.Response:
        return client.get("/v1/why", params={"what": what}, headers={"authorization": f"Bearer {secrets[path]}"})

    own, whole = get("acme", mine), get("*", mine)
    assert (own.status_code, whole.status_code) == (200, 200)
    assert own.json()["holds"]
    assert own.json()["lines"][0]["unseen"] == ["cost: within the last place of its exact share"]
    assert whole.json()["lines"][0]["unseen"] == []
    assert part(whole.json(), "rounding", "0")[-1] == ("this line", "0.006666667")
    for other in (
        "360,000,000",
        "180,000,000",
        "c1/8",
        "globex",
    ):  # what the hour took in all, and what others had of it
        assert other not in own.text
    assert get("*", idle).json()["holds"]
    for path, what in (("acme", idle), ("globex", mine), ("globex", "7"), ("acme", "8")):
        answer = get(path, what)
        assert answer.status_code == 404, (path, what)
        assert "USD" not in answer.text
    assert get("acme", "7").json()["job"]["hours"][0]["billed_cost"] == "0.673333334"
    assert client.get("/v1/why", params={"what": mine}).status_code == 401


def test_tokens_of_a_line_of_calls_are_counted_again(fleet: SmallFleet, home: Path) -> None:
    fleet.rows(
        "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
        "VALUES ('openai', 'gpt', 'output_tokens', 0.00001, 'token', 'USD', 'test', '2026-10-01Z') RETURNING 1"
    )
    fleet.rows(
        "INSERT INTO api_calls (called_at, dedupe_key, site_id, api_key, provider, model, output_text_tokens, reasoning_tokens, usage_known, "
        "source, origin) SELECT %s, n::text, %s, 'k', 'openai', 'gpt', 1000 * n, 7, true, 'span', 1 FROM generate_series(1, 3) AS n RETURNING 1",
        HOUR_AT + timedelta(minutes=3),
        fleet.site_id,
    )
    again(fleet, "api_calls")
    reasoning, text = sorted(
        (asked(home, name) for name in names(fleet, "pool = 'api'")), key=lambda each: each["lines"][0]["quantity"]
    )
    assert part(text, "price", "0")[0] == ("output text tokens of 3 calls under this key", "6,000")
    assert (text["lines"][0]["billed_cost"], reasoning["lines"][0]["billed_cost"]) == ("0.060000000", "0.000210000")
    assert text["holds"]
    assert reasoning["holds"]
    fleet.rows("UPDATE api_calls SET output_text_tokens = 999 WHERE dedupe_key = '1' RETURNING 1")
    assert asked(home, text["asked"], code=1)["lines"][0]["differs"][0].startswith("quantity: 5,999 worked out")
