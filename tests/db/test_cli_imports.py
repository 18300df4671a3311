"""`wattledger import` as a person runs it: what it prints, and what its exit code says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.store import partitions
from ingest.store.engine import Database
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
POWER = "node,ts_ms,watts\nn1,1715341080000,2000\nn1,1715341082000,2100\n"
"""2024-05-10 11:38:00 UTC and two seconds later."""
Write = Callable[[str, str], Path]


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return made


def count(database: Database, table: str) -> int:
    with database.connect("admin") as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(str(row[0]))


def test_a_file_taken_whole_leaves_with_0_and_says_what_it_took(terminal: Terminal, write: Write) -> None:
    ran = terminal.run("import", "node-power", write("a.csv", POWER), "--site", "lab")
    assert (ran.exit_code, ran.err) == (0, "")
    assert "rows read     2" in ran.out
    assert "written       2 node_samples" in ran.out
    assert "period        2024-05-10 11:38 UTC to 2024-05-10 11:38 UTC" in ran.out


def test_refused_rows_are_listed_with_their_line_and_leave_with_1(terminal: Terminal, write: Write) -> None:
    log = write("a.csv", POWER + "n1,1715341084000,-43\nn1,1715341086000,0\nn1,1715341088000,abc\n")
    ran = terminal.run("import", "node-power", log, "--site", "lab", "--show", "2")
    assert ran.exit_code == 1
    assert ran.err == "3 of 5 rows were refused\n"
    assert ran.out.endswith(
        "refused rows by reason\n"
        "  2  power not positive\n"
        "  1  power is not a number\n"
        "the first 2\n"
        "  line 4  power not positive  -43000 mW\n"
        "  line 5  power not positive  0 mW\n"
    )


def test_a_file_that_cannot_be_used_leaves_with_2_and_no_trace(terminal: Terminal, write: Write, db: Database) -> None:
    no_power = terminal.run("import", "node-power", write("a.csv", "node,ts_ms\nn1,1715341080000\n"), "--site", "lab")
    mixed = terminal.run(
        "import", "node-power", write("b.csv", "node,ts_ms,power\nn1,1715341080000,2 kW\nn1,1,7 W\n"), "--site", "lab"
    )
    missing = terminal.run("import", "jobs", "/nowhere/jobs.csv", "--site", "lab")
    assert [no_power.exit_code, mixed.exit_code, missing.exit_code] == [2, 2, 2]
    assert no_power.err.startswith("error: a.csv has neither power nor energy")
    assert "mixes units: kW and W" in mixed.err
    assert missing.err == "error: cannot read /nowhere/jobs.csv: No such file or directory\n"
    assert (count(db, "sites"), count(db, "imports"), count(db, "late_node_samples")) == (0, 0, 0)


def test_a_second_import_says_when_the_first_was_and_does_nothing(
    terminal: Terminal, write: Write, db: Database
) -> None:
    log = write("a.csv", POWER)
    terminal.run("import", "node-power", log, "--site", "lab")
    again = terminal.run("import", "node-power", log, "--site", "lab")
    assert again.exit_code == 0
    assert "imported before" in again.out
    assert count(db, "late_node_samples") == 2


def test_a_dry_run_reports_as_json_and_keeps_nothing(terminal: Terminal, write: Write, db: Database) -> None:
    ran = terminal.run("import", "node-power", write("a.csv", POWER), "--site", "lab", "--dry-run", "--format", "json")
    assert ran.json["dry_run"] is True
    assert ran.json["written"] == {"node_samples": 2}
    assert (count(db, "late_node_samples"), count(db, "sites")) == (0, 0)


def test_without_a_site_the_only_one_is_meant_and_of_several_none(terminal: Terminal, write: Write) -> None:
    log = write("a.csv", POWER)
    assert "--site NAME (none is known yet" in terminal.run("import", "node-power", log).err
    terminal.run("sites", "set", "lab")
    assert "site lab" in terminal.run("import", "node-power", log).out
    terminal.run("sites", "set", "annex")
    several = terminal.run("import", "node-power", log)
    assert several.exit_code == 2
    assert "known are annex, lab" in several.err


def test_columns_units_and_zone_are_told_by_options(terminal: Terminal, write: Write, db: Database) -> None:
    log = write("bmc.csv", "host;when;inlet\nn1;2024-05-10 13:38:00;2.0\n")
    told = ["--map", "power=inlet", "--map", "at=when", "--unit", "power=kW", "--tz", "Europe/Berlin"]
    ran = terminal.run("import", "node-power", log, "--site", "lab", *told)
    assert ran.exit_code == 0, ran.err
    with db.connect("admin") as connection:
        found = connection.execute("SELECT at, power_mw FROM late_node_samples").fetchall()
    assert found == [(datetime(2024, 5, 10, 11, 38, tzinfo=UTC), 2_000_000)]


@pytest.mark.parametrize(
    ("arguments", "text", "table", "rows"),
    [
        (
            ["jobs", "--cluster", "c1", "--tz", "UTC"],
            "job_id,start,end,gpus\n7,2024-05-10 10:00,2024-05-10 11:00,8\n",
            "jobs",
            1,
        ),
        (
            ["sacct", "--cluster", "c1", "--tz", "UTC"],
            "JobID|Start|End|State|AllocTRES\n7|2024-05-10T10:00:00|2024-05-10T11:00:00|COMPLETED|gres/gpu=8\n",
            "jobs",
            1,
        ),
        (
            ["llm-log", "--provider", "azure", "--model", "gpt-4", "--tenant", "acme/chat", "--tz", "UTC"],
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
            "api_calls",
            1,
        ),
        (["tariffs"], "valid_from,price_eur_per_kwh\n2026-01-01T00:00:00Z,0.18\n", "tariffs", 1),
        (["intensity", "--zone", "DE"], "datetime_utc,gco2e_per_kwh\n2026-01-01T00:00,312.4\n", "intensity", 1),
        (
            ["prices", "--valid-from", "2026-01-01"],
            "provider,model,meter,amount,unit\nowned,H100,accelerator_hour,2.35,hour\n",
            "prices",
            1,
        ),
        (["facility-factors"], "valid_from,factor,category\n2026-01-01T00:00:00Z,1.32,2\n", "facility_factors", 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_each_format_is_taken_by_its_own_command(
    terminal: Terminal, write: Write, db: Database, arguments: list[str], text: str, table: str, rows: int
) -> None:
    ran = terminal.run("import", arguments[0], write("file.csv", text), "--site", "lab", *arguments[1:])
    assert ran.exit_code == 0, ran.err
    assert count(db, table) == rows


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--map", "power"], "must look like ours=theirs"),
        (["--map", "watts=power"], "this import has no field 'watts'"),
        (["--tz", "Mars/Olympus"], "is not an IANA time zone"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(terminal: Terminal, write: Write, option: list[str], said: str) -> None:
    log = write("a.csv", "node,at,watts\nn1,2024-05-10 11:38:00,2000\n")
    ran = terminal.run("import", "node-power", log, "--site", "lab", *option)
    assert ran.exit_code == 2
    assert said in ran.err


def test_a_long_import_does_not_keep_live_writers_from_a_new_day(
    terminal: Terminal, write: Write, db: Database
) -> None:
    # The import is stopped in the middle of its transaction, after its partitions, by a lock on the changes it notes.
    log = write("a.csv", POWER)
    ended = threading.Event()
    results: list[int] = []

    def run() -> None:
        from click.testing import CliRunner  # noqa: PLC0415 - the terminal's own outputs are the main thread's

        from wattledger.cli import cli  # noqa: PLC0415

        made = CliRunner().invoke(
            cli, ["--home", str(terminal.home), "import", "node-power", str(log), "--site", "lab"]
        )
        results.append(made.exit_code)
        ended.set()

    writer = db.create_engine("writer")
    with db.connect("admin") as blocker:
        blocker.execute("LOCK TABLE changes IN EXCLUSIVE MODE")
        importer = threading.Thread(target=run)
        importer.start()
        with db.connect("admin", autocommit=True) as watcher:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INTO changes%'"
            )
            while watcher.execute(waiting).fetchone() == (0,):
                assert not ended.wait(0.05), "the import ended without noting a change"
        with writer.begin() as conn:
            assert partitions.ensure_days(conn, "node_samples", [datetime(2026, 3, 1, tzinfo=UTC).date()]) == 1
            conn.execute(sa.text("SELECT 1"))
        blocker.rollback()
        importer.join(30)
    writer.dispose()
    assert results == [0]
