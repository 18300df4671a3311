"""What administrators do leaves a row: who, when, what, and what it was before. No secret, and nothing is changed later."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from ingest.store import audit
from ingest.store.engine import Database
from wattledger.cli import cli

pytestmark = pytest.mark.db

Run = Callable[..., Result]
BINDINGS = "bindings:\n  - {tenant: acme/nlp, account: nlp}\n"
PRICES = "provider,model,meter,amount,unit,currency,valid_from\nowned,H100,accelerator_hour,2.5,hour,USD,2026-01-01T00:00:00Z\n"


@pytest.fixture
def run(db: Database, tmp_path: Path) -> Run:
    def invoke(*words: str) -> Result:
        (tmp_path / "home").mkdir(exist_ok=True)
        environment = {"WATTLEDGER_DATABASE_URL": db.url}
        return CliRunner().invoke(cli, ["--home", str(tmp_path / "home"), *words], env=environment)

    return invoke


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def acts(run: Run, *words: str) -> list[dict[str, Any]]:
    listed = run("audit", "log", "--format", "json", *words)
    assert listed.exit_code == 0, listed.output
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def test_each_administrative_command_leaves_its_row(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bindings, prices = tmp_path / "bindings.yaml", tmp_path / "prices.csv"
    bindings.write_text(BINDINGS)
    prices.write_text(PRICES)
    made = run("token", "create", "ci", "--scope", "gate", "--tenant", "acme")
    rotated = run("token", "rotate", "1")
    for words in (
        ("token", "revoke", "1"),
        ("sites", "set", "lab", "--time-zone", "Europe/Berlin"),
        ("sites", "set", "lab", "--grid-zone", "DE"),
        ("tenants", "apply", str(bindings)),
        ("import", "prices", str(prices), "--site", "lab"),
        ("actions", "pause", "--all", "--reason", "prices are wrong"),
        ("actions", "resume"),
    ):
        done = run(*words)
        assert done.exit_code == 0, (words, done.output)
    found = acts(run)
    assert [act["action"] for act in reversed(found)] == [
        "token.create",
        "token.rotate",
        "token.revoke",
        "sites.set",
        "sites.set",
        "tenants.apply",
        "import.prices",
        "actions.pause",
        "actions.resume",
    ]
    assert all(act["actor"].endswith("(command line)") for act in found)
    by_action = {act["action"]: act for act in found}
    zones = by_action["sites.set"]["detail"]  # the later one, as the newest come first, is overwritten by the earlier
    assert (zones["before"], zones["after"]["time_zone"]) == (None, "Europe/Berlin")
    (later, _) = acts(run, "--action", "sites")
    assert (later["detail"]["before"]["grid_zone"], later["detail"]["after"]["grid_zone"]) == (None, "DE")
    assert by_action["import.prices"]["detail"]["rows_written"] == 1
    assert by_action["tenants.apply"]["detail"]["rules_added"] == 1
    assert by_action["actions.pause"]["detail"] == {"reason": "prices are wrong"}
    secrets = [result.stdout.strip().removeprefix("wl_") for result in (made, rotated)]
    shown = "".join(run("audit", "log", "--format", form).output for form in ("table", "csv", "json")) + caplog.text
    assert all(len(secret) > 20 and secret not in shown for secret in secrets)


def test_what_changed_nothing_leaves_no_row(run: Run, tmp_path: Path) -> None:
    bindings = tmp_path / "bindings.yaml"
    bindings.write_text(BINDINGS)
    for _ in range(2):
        assert run("tenants", "apply", str(bindings)).exit_code == 0
    assert run("token", "revoke", "9").exit_code == 1
    assert run("sites", "set", "lab", "--time-zone", "Nowhere/None").exit_code == 2
    assert len(acts(run)) == 1


def test_the_log_is_filtered_and_a_program_can_read_its_csv(run: Run, conn: sa.Connection) -> None:
    for number in range(3):
        audit.note(conn, f"ada{number}", "token.create", f"token/{number}", after={"name": 'x, "y"'})
    audit.note(conn, "bob", "tokens", "tokens")
    conn.commit()
    assert [act["subject"] for act in acts(run, "--action", "token", "--top", "2")] == ["token/2", "token/1"]
    assert [act["subject"] for act in acts(run, "--actor", "ada0", "--since", "1h")] == ["token/0"]
    (_, row, *_) = csv.DictReader(io.StringIO(run("audit", "log", "--format", "csv").stdout))
    assert json.loads(row["detail"])["after"] == {"name": 'x, "y"'}


def test_secrets_are_hidden_whoever_hands_them_in(conn: sa.Connection) -> None:
    bearer = "wl_7_" + "A" * 43
    audit.note(
        conn,
        "ada",
        "x",
        "y",
        after={"password": "p", "nested": [{"api_key": "k", "token": "t", "keys": 2}], "said": f"Bearer {bearer}!"},
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    (act,) = audit.acts(conn)
    assert act.detail == {
        "at": "2026-01-01T00:00:00+00:00",
        "before": None,
        "after": {"password": "***", "nested": [{"api_key": "***", "token": "***", "keys": 2}], "said": "Bearer ***!"},
    }
