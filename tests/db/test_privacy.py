"""People's names: pseudonyms at the door and of old jobs, what is known of one person, and forgetting one without changing a figure."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from analytics.io.statements import GroupBy, bill
from ingest.store import privacy
from ingest.store.engine import Database
from ingest.store.privacy import Privacy
from ingest.store.tables import control, work
from tests.fakes.books import KWH_MJ, Books, hour, usage
from wattledger.cli import cli

pytestmark = pytest.mark.db

Run = Callable[..., Result]
PSEUDONYM = re.compile("user-[0-9a-f]{20}")


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("admin")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def books(conn: sa.Connection) -> Books:
    """Ada's two jobs and Bob's one, with costs that do not come out even."""
    made = Books.open(conn)
    tenant = made.tenant("acme")
    one, two = made.device_ids
    jobs = [
        made.job("acme", number, user_name=user, start=0, end=3)
        for number, user in zip("123", ("ada", "ada", "bob"), strict=True)
    ]
    made.close(
        1,
        [
            usage(
                job_id=jobs[0], tenant_id=tenant, devices={one: KWH_MJ}, cost="0.100000001", electricity="0.000000003"
            ),
            usage(job_id=jobs[2], tenant_id=tenant, devices={two: KWH_MJ}, cost="7.123456789"),
        ],
    )
    made.close(2, [usage(job_id=jobs[1], tenant_id=tenant, devices={one: KWH_MJ}, cost="0.200000002")])
    return made


@pytest.fixture
def run(db: Database, tmp_path: Path) -> Run:
    def invoke(*words: str) -> Result:
        (tmp_path / "home").mkdir(exist_ok=True)
        return CliRunner().invoke(
            cli, ["--home", str(tmp_path / "home"), *words], env={"WATTLEDGER_DATABASE_URL": db.url}
        )

    return invoke


def by_user(conn: sa.Connection) -> dict[str | None, Decimal]:
    made = bill(conn, hour(0), hour(3), GroupBy.JOB)
    found: dict[str | None, Decimal] = {}
    for row in made.rows:
        name = row.details["user_name"]
        found[name] = found.get(name, Decimal(0)) + row.figures.cost
    return found


def users(conn: sa.Connection) -> list[Any]:
    return list(conn.execute(sa.text("SELECT user_name FROM jobs ORDER BY id")).scalars())


def test_names_are_replaced_at_the_door_by_an_hmac_of_the_installations_key(conn: sa.Connection) -> None:
    made = Books.open(conn)
    made.job(None, "before", user_name="ada")
    assert privacy.change(conn, Privacy(pseudonyms=True), actor="test")
    for number in ("1", "2"):
        made.job(None, number, user_name="ada")
    made.job(None, "3", user_name="Ada")
    made.job(None, "4", user_name=None)
    before, one, two, other, nobody = users(conn)
    assert nobody is None
    assert (before, one == two, other == one) == ("ada", True, False)
    inner, outer = conn.execute(sa.text("SELECT inner_pad, outer_pad FROM privacy_settings")).one()
    key = bytes(byte ^ 0x36 for byte in inner)
    assert bytes(byte ^ 0x5C for byte in outer) == key
    assert one == "user-" + hmac.new(key, b"ada", hashlib.sha256).hexdigest()[:20]
    conn.execute(sa.text("UPDATE jobs SET user_name = user_name"))  # a pseudonym is not replaced again
    assert users(conn)[1:3] == [one, one]
    job_id = conn.execute(sa.select(sa.func.max(work.jobs.c.id))).scalar_one()
    facts = {"user_name": [7, "ada"], "account": [7, "nlp"]}
    report = {"job_id": job_id, "source": "slurmctld", "facts": facts}
    conn.execute(sa.insert(work.metadata.tables["job_reports"]).values(**report))  # type: ignore[attr-defined]
    kept = conn.execute(sa.text("SELECT facts FROM job_reports")).scalar_one()
    assert kept == {"user_name": [7, one], "account": [7, "nlp"]}


def test_no_service_can_read_the_key_or_make_a_pseudonym(db: Database, conn: sa.Connection) -> None:
    privacy.change(conn, Privacy(pseudonyms=True), actor="test")
    for role in ("writer", "worker", "api"):
        for statement in (b"SELECT * FROM privacy_settings", b"SELECT pseudonym_of('ada')"):
            with db.connect(role) as service, pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(statement)
    with db.connect("worker") as worker:
        assert worker.execute("SELECT pseudonym_round(10)").fetchone() == (0,)


def test_names_of_old_jobs_are_replaced_and_bills_by_user_stay_to_the_last_digit(
    db: Database, conn: sa.Connection, books: Books
) -> None:
    running = books.job("acme", "9", user_name="ada", start=0)
    before = by_user(conn)
    assert before == {"ada": Decimal("0.300000006"), "bob": Decimal("7.123456789")}
    days = (datetime.now(UTC) - hour(3)).days
    privacy.change(conn, Privacy(names_kept_days=days + 2), actor="test")
    with db.connect("worker") as worker:
        assert worker.execute("SELECT pseudonym_round(10)").fetchone() == (0,)  # not old enough
    conn.execute(
        sa.text(
            "UPDATE jobs SET ended_at = ended_at - make_interval(days => 3), started_at = started_at - make_interval(days => 3) WHERE ended_at IS NOT NULL"
        )
    )
    with db.connect("worker") as worker:
        assert worker.execute("SELECT pseudonym_round(2)").fetchone() == (2,)
        assert worker.execute("SELECT pseudonym_round(10)").fetchone() == (1,)
        assert worker.execute("SELECT pseudonym_round(10)").fetchone() == (0,)
    after = by_user(conn)
    assert sorted(after.values()) == sorted(before.values())
    assert all(name is not None and PSEUDONYM.fullmatch(name) for name in after)
    assert after[privacy.pseudonym(conn, "ada")] == before["ada"]
    assert conn.execute(sa.select(work.jobs.c.user_name).where(work.jobs.c.id == running)).scalar_one() == "ada"


def test_an_erased_person_is_in_no_table_and_the_bill_adds_up_as_before(
    conn: sa.Connection, books: Books, run: Run
) -> None:
    before, total = by_user(conn), sum(by_user(conn).values())
    conn.execute(sa.text("SELECT ensure_partitions(CURRENT_DATE - 1, CURRENT_DATE + 2, NULL)"))
    span = {"started_at": datetime.now(UTC), "trace_id": "t", "span_id": "s", "name": "n", "kind": "tool"}
    attributes = {"enduser.id": "ada", "deep": [{"user.id": "ada"}], "said": "adamant", "ada": "bob"}
    conn.execute(sa.insert(work.spans).values(**span, site_id=books.site_id, attributes=attributes, origin=1))
    action = {"idempotency_key": "k", "kind": "cancel", "plane": "slurm", "status": "dry_run", "dry_run": True}
    target = {"user_name": "ada", "native_id": "1"}
    conn.execute(
        sa.insert(control.actions).values(**action, tenant_id=books.tenant("acme"), target=target, evidence={})
    )
    exported = json.loads(run("privacy", "export", "ada").stdout)
    assert {table: len(rows) for table, rows in exported.items()} == {"jobs": 2, "actions": 1, "spans": 1}
    done = run("privacy", "erase", "ada", "--yes")
    assert done.exit_code == 0, done.output
    erased = re.search("erased-[0-9a-f]{20}", done.stdout)
    assert erased is not None
    assert by_user(conn) == {erased[0]: before["ada"], "bob": before["bob"]}
    assert sum(by_user(conn).values()) == total
    kept = conn.execute(sa.select(work.spans.c.attributes)).scalar_one()
    assert kept == {"enduser.id": erased[0], "deep": [{"user.id": erased[0]}], "said": "adamant", "ada": "bob"}
    assert conn.execute(sa.select(control.actions.c.target)).scalar_one()["user_name"] == erased[0]
    assert run("privacy", "export", "ada").exit_code == 1
    assert run("privacy", "erase", "ada", "--yes").exit_code == 1
    acts = json.loads(run("audit", "log", "--action", "privacy", "--format", "json").stdout)
    assert {act["action"] for act in acts} == {"privacy.erase", "privacy.export"}
    assert '"ada"' not in json.dumps(acts)


def test_who_was_stored_under_a_pseudonym_is_found_and_erased_by_name(conn: sa.Connection, run: Run) -> None:
    assert run("privacy", "pseudonym", "ada").exit_code == 1
    assert "replaced by pseudonyms" in run("privacy", "set", "--pseudonyms").output
    made = Books.open(conn)
    made.job(None, "1", user_name="ada")
    made.job(None, "2", user_name="bob")
    called = run("privacy", "pseudonym", "ada").stdout.strip()
    assert users(conn)[0] == called
    assert [row["native_id"] for row in json.loads(run("privacy", "export", "ada").stdout)["jobs"]] == ["1"]
    assert run("privacy", "erase", "ada", "--yes").exit_code == 0
    assert called not in users(conn)
    assert PSEUDONYM.fullmatch(users(conn)[1])
    shown = run("privacy", "set", "--keep-names", "90").output
    assert "replaced by pseudonyms" in shown
    assert "replaced 90 days after the end" in shown
    assert "kept for ever" in run("privacy", "set", "--no-pseudonyms", "--keep-names", "0").output
