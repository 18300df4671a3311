"""Bodies that could not be taken: told, looked into, sent again once, and dropped only on request."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.settings import Settings
from ingest.store.dead_letters import DeadLetter, bury
from ingest.store.engine import Database
from tests.db.ingest_harness import Site, batch_meta, body_of, device_row, make_site, now_us, run, send
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.db
HOUR_US = 3_600_000_000
AHEAD_US = 2 * HOUR_US


@pytest.fixture
def terminal(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal.on(db, tmp_path / "home", monkeypatch, capsys)


@pytest.fixture
def site(db: Database) -> Site:
    return make_site(db)


def query(db: Database, statement: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(statement).fetchall()  # type: ignore[return-value,call-overload,unused-ignore]


def skewed(db: Database, site: Site, *, copies: int = 1) -> int:
    """Have a node whose clock is two hours ahead send two rows; return when, by its clock, the first was taken."""
    at_us = now_us() + AHEAD_US - 60_000_000
    body = body_of(batch_meta(), device_row(at_us), device_row(at_us + 10_000_000, 1))

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(copies):
            sent_at = str(now_us() + AHEAD_US)
            answer = await send(client, body, site.site_token, Wattledger_Sent_At=sent_at)
            assert answer.status_code == 202

    run(Settings(db), scenario)
    return at_us


def buried(db: Database, site: Site, body: bytes, *, reason: str = "other", **headers: str) -> None:
    writer = db.create_engine("writer")
    bury(writer, DeadLetter(site.site_id, None, reason, "as a test has it", body, headers))
    writer.dispose()


def test_a_letter_is_listed_with_age_node_reason_and_size(terminal: Terminal, db: Database, site: Site) -> None:
    skewed(db, site)
    query(db, "UPDATE dead_letters SET received_at = now() - interval '49 hours' RETURNING id")
    (row,) = terminal.run("deadletter", "list", "--format", "json").json
    assert (row["letter_id"], row["node"], row["reason"]) == (1, "node-1", "clock_skew")
    assert row["age_s"] == pytest.approx(49 * 3600, abs=60)
    assert abs(row["skew_us"] - AHEAD_US) < 30_000_000
    shown = terminal.run("deadletter", "list").out
    assert "2 d" in shown
    assert f"{row['body_bytes']:,}" in shown
    assert "1 waiting in all" in shown
    assert terminal.run("deadletter", "list", "--reason", "other", "--format", "json").json == []


def test_what_can_be_read_is_shown_and_the_bytes_go_to_a_file_only(
    terminal: Terminal, db: Database, site: Site, tmp_path: Path
) -> None:
    at_us = skewed(db, site)
    facts = terminal.run("deadletter", "show", "1", "--raw", tmp_path / "body", "--format", "json").json
    assert facts["rows"] == {"device_samples": 2}
    assert facts["devices"] == "GPU-a, GPU-b"
    assert datetime.fromisoformat(facts["first_at"]) == datetime.fromtimestamp(at_us / 1e6, UTC)
    corrected = datetime.fromisoformat(facts["first_at_corrected"]).timestamp()
    assert corrected == pytest.approx((at_us - AHEAD_US) / 1e6, abs=30)
    assert (tmp_path / "body").read_bytes() == query(db, "SELECT body FROM dead_letters")[0][0]
    assert terminal.run("deadletter", "show", "99").exit_code == 1


def test_nothing_a_sender_chose_reaches_the_terminal_as_it_is(terminal: Terminal, db: Database, site: Site) -> None:
    buried(db, site, b"\x1b]0;owned\x07 no batch", **{"user-agent": "agent/1"})
    query(db, """UPDATE dead_letters SET headers = '{"user-agent": "\\u001b[2J"}', detail = E'a\\x1bb' RETURNING id""")
    shown = terminal.run("deadletter", "show", "1")
    assert shown.exit_code == 0
    assert all(character.isprintable() or character == "\n" for character in shown.out)
    assert "cannot be read: malformed" in shown.out


def test_a_body_with_a_wrong_clock_is_sent_again_as_told_and_once(terminal: Terminal, db: Database, site: Site) -> None:
    at_us = skewed(db, site, copies=2)
    undecided = terminal.run("deadletter", "replay", "1")
    assert undecided.exit_code == 1
    assert "say --clock corrected or --clock as-sent" in undecided.out
    early = terminal.run("deadletter", "replay", "1", "--clock", "as-sent")
    assert early.exit_code == 1
    assert "2 of 2 rows lie in the future" in early.out
    assert query(db, "SELECT reason FROM dead_letters WHERE id = 1") == [("from_the_future",)]
    # Nothing of the batch id was used up by the refusal.
    right = terminal.run("deadletter", "replay", "1", "--clock", "corrected")
    assert (right.exit_code, right.out) == (0, "1: 2 rows taken\n")
    rows = query(db, "SELECT at, energy_mj FROM device_samples ORDER BY at")
    assert [energy for _, energy in rows] == [1_000, 1_000]
    assert rows[0][0].timestamp() == pytest.approx((at_us - AHEAD_US) / 1e6, abs=30)
    assert (rows[1][0] - rows[0][0]).total_seconds() == 10
    again = terminal.run("deadletter", "replay", "1", "--clock", "corrected")
    assert again.exit_code == 0
    assert "replayed already" in again.out
    # The other letter is the same batch: it was in, and that settles it.
    twin = terminal.run("deadletter", "replay", "--all", "--clock", "corrected")
    assert twin.out == "2: was in already, nothing written\n"
    assert query(db, "SELECT count(*) FROM device_samples") == [(2,)]
    assert query(db, "SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL") == [(0,)]
    assert terminal.run("deadletter", "replay", "--all").out == "none waits\n"


def test_what_still_cannot_be_taken_stays_with_its_new_reason(terminal: Terminal, db: Database, site: Site) -> None:
    buried(db, site, b"no batch")
    ran = terminal.run("deadletter", "replay", "1", "99")
    assert ran.exit_code == 1
    assert "1: still refused, malformed: not a zstd frame" in ran.out
    assert "99: there is no such letter" in ran.out
    assert query(db, "SELECT reason, replayed_at FROM dead_letters") == [("malformed", None)]


def test_a_letter_is_dropped_when_somebody_says_so_and_the_audit_keeps_what_it_was(
    terminal: Terminal, db: Database, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = body_of(batch_meta(), device_row(now_us()))
    buried(db, site, b"one")
    buried(db, site, good)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert terminal.run("deadletter", "drop", "1").exit_code == 1  # nobody is there to say yes
    assert terminal.run("deadletter", "drop").exit_code == 2
    dropped = terminal.run("deadletter", "drop", "1", "7", "--yes")
    assert (dropped.exit_code, dropped.out) == (1, "1: dropped\n7: there is no such letter\n")
    assert terminal.run("deadletter", "replay", "2").exit_code == 0
    assert "1 dropped" in terminal.run("deadletter", "drop", "--replayed", "--yes").out
    assert query(db, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert query(
        db, "SELECT subject, detail ->> 'body_bytes', detail ->> 'replayed' FROM audit WHERE action = 'deadletter.drop'"
    ) == [("deadletter/1", "3", "false"), ("deadletter/2", str(len(good)), "true")]
