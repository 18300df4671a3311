"""One person in every place that may name people: pseudonyms at each door, all of it handed out, all of it forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from collector.wire import Stream
from ingest.receivers import redact
from ingest.receivers.native import Reader, decode
from ingest.store import privacy
from ingest.store.engine import Database
from ingest.store.personal import NOT_PERSONAL, PERSONAL
from ingest.store.privacy import Privacy
from ingest.store.tables import books as ledger
from ingest.store.tables import call_reports, control, lineage, metadata, queue, reference, samples, series, work
from tests.db.ingest_harness import batch_meta, body_of, now_us, rows
from tests.fakes.books import Books, hour
from wattledger.cli import cli

pytestmark = pytest.mark.db

Run = Callable[..., Result]
NOW = datetime.now(UTC)
MAIL = "ada@lovelace.example"


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("admin")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("SELECT ensure_partitions(CURRENT_DATE - 1, CURRENT_DATE + 2, NULL)"))
        yield connection
    engine.dispose()


@pytest.fixture
def run(db: Database, tmp_path: Path) -> Run:
    def invoke(*words: str) -> Result:
        (tmp_path / "home").mkdir(exist_ok=True)
        return CliRunner().invoke(
            cli, ["--home", str(tmp_path / "home"), *words], env={"WATTLEDGER_DATABASE_URL": db.url}
        )

    return invoke


def letter(user: str, label: str | None = None) -> bytes:
    """A body of an agent in which somebody's job begins on a device."""
    event = {
        "at_us": now_us(),
        "device": 0,
        "action": 1,
        "cluster": "lab",
        "native_job_id": "7",
        "job_started_at_us": now_us() - 1,
        "user": user,
        "label": label,
        "evidence": "hook",
    }
    return body_of(batch_meta(), allocation=rows(Stream.ALLOCATION, event))


def adding(conn: sa.Connection) -> Callable[..., object]:
    def add(table: sa.Table, **values: Any) -> object:
        return conn.execute(sa.insert(table).values(**values))

    return add


def fill(conn: sa.Connection, who: str) -> Books:
    """Name somebody in every table that may name people, and Bob beside."""
    made = Books.open(conn)
    tenant, site = made.tenant("acme"), {"site_id": made.site_id}
    add = adding(conn)
    job = made.job("acme", "1", user_name=who, account=who, label=f"team=nlp,owner={who}", name=who, start=0, end=3)
    other = made.job("acme", "2", user_name="bob", account=who, name=who, start=0, end=3)
    for one, user in ((job, who), (other, "bob")):
        facts = {"user_name": [7, user], "account": [7, who], "label": [7, f"owner={user}"]}
        add(queue.job_reports, job_id=one, source="slurm", facts=facts)
    pod = {"cluster": "lab", "uid": "u", "exporter": "ksm", "origin": 1, "seen_at": NOW, "told_us": 7}
    add(series.kube_pods, **site, **pod, facts={"label": [7, f"team=nlp,owner={who}"]})
    wait = {"cluster": "lab", "native_id": "9", "submitted_at": NOW, "source": "slurm", "origin": 1}
    add(queue.queue_entries, **site, **wait, user_name=who, facts={"user_name": [7, who]})
    call = {"called_at": NOW, "provider": "openai", "model": "m", "usage_known": True, "origin": 1, "source": "span"}
    add(work.api_calls, **site, **call, dedupe_key="a", api_key=who, response_id="r-1")
    add(work.api_calls, **site, **call, dedupe_key="b", api_key="bob", response_id="r-2")
    counted = {"counted_at": NOW, "counted_key": "a", "status": "ok"}
    add(call_reports.call_reports, **site, **call, **counted, dedupe_key="a", api_key=who)
    line = {"hour_at": hour(0), "revision": 1, "pool": "api", "charge_category": "api_tokens", "quantity": 1}
    billed = {"quantity_unit": "token", "billed_cost": 1, "effective_cost": 1, "currency": "EUR", "status": "closed"}
    told = {"source": "measured", "coverage": 1.0, "origin": 1, "api_key": who, "tenant_id": tenant}
    add(ledger.ledger_lines, **site, **line, **billed, **told, line_key=f"1|api:{who}|openai/m/output|api_tokens|-")
    span = {"started_at": NOW, "trace_id": "t", "span_id": "s", "name": "n", "kind": "tool", "origin": 1}
    add(work.spans, **site, **span, attributes={"user.id": who, "said": f"{who}mant"})
    outcome = {"kind": "rated", "judged_at": NOW, "source": "api", "origin": 1}
    add(lineage.outcomes, **site, **outcome, dedupe_key="o1", response_id="r-9", label=who, dataset_ids=["d", who])
    add(lineage.outcomes, **site, **outcome, dedupe_key="o2", response_id="r-1", label="good")  # of a call of hers
    add(lineage.outcomes, **site, **outcome, dedupe_key="o3", response_id="r-2", label="good")
    lines = {"run_id": "1", "job_namespace": who, "job_name": "train", "state": "start", "first_event_at": NOW}
    add(lineage.lineage_runs, **site, **lines, origin=1)
    run_id = conn.execute(sa.select(lineage.lineage_runs.c.id)).scalar_one()
    told_event = {"event_type": "start", "event_at": NOW, "facets_ignored": 0, "producer": who}
    add(lineage.lineage_events, lineage_run_id=run_id, **told_event, facets={"model": who})
    add(lineage.lineage_datasets, lineage_run_id=run_id, direction="input", namespace=who, name="chats")
    add(reference.bindings, position=1, tenant_id=tenant, user_name=who, valid_from=hour(0))
    add(reference.tenant_details, tenant_id=tenant, contact=who, valid_from=hour(0))
    share = {"at": NOW, "device_id": made.device_ids[0], "epoch_id": 1, "span_us": 1, "processes": 1}
    add(samples.device_shares, **share, evidence="cgroup", method="measured", label=f"owner={who}")
    for user in (who, "bob"):
        head = {"reason": "clock_skew", "detail": "d", "headers": {}}
        add(samples.dead_letters, **site, **head, body=letter(user, f"owner={user},team=nlp"))
    return made


def everything(conn: sa.Connection) -> str:
    """All that the tables hold as text, the texts of dead letters too."""
    said = []
    for table in metadata.tables.values():
        if table.name not in {"privacy_settings", "audit"}:
            said += [str(row) for row in conn.execute(sa.select(table))]
    for body in conn.execute(sa.select(samples.dead_letters.c.body)).scalars():
        said += [str(decode([stream])) for stream in Reader().read(bytes(body)).streams]
    return "\n".join(said)


def test_a_person_is_handed_out_and_forgotten_wherever_a_name_may_stand(conn: sa.Connection, run: Run) -> None:
    fill(conn, "ada")
    exported = json.loads(run("privacy", "export", "ada").stdout)
    assert {table: len(rows) for table, rows in exported.items()} == {
        "jobs": 1,
        "queue_entries": 1,
        "job_reports": 1,
        "kube_pods": 1,
        "device_shares": 1,
        "api_calls": 1,
        "call_reports": 1,
        "ledger_lines": 1,
        "spans": 1,
        "outcomes": 2,  # one with her name, and one of a response to her
        "lineage_runs": 1,
        "lineage_events": 1,
        "lineage_datasets": 1,
        "bindings": 1,
        "tenant_details": 1,
        "dead_letters": 1,
    }
    assert exported["dead_letters"][0]["reason"] == "clock_skew"
    assert "body" not in exported["dead_letters"][0]
    done = run("privacy", "erase", "ada", "--yes")
    assert done.exit_code == 0, done.output
    (line,) = conn.execute(sa.select(ledger.ledger_lines.c.api_key, ledger.ledger_lines.c.line_key)).all()
    assert line.line_key == f"1|api:{line.api_key}|openai/m/output|api_tokens|-"
    assert line.api_key.startswith("erased-")
    label = conn.execute(sa.select(work.jobs.c.label).where(work.jobs.c.native_id == "1")).scalar_one()
    erased = label.removeprefix("team=nlp,owner=")
    assert erased.startswith("erased-")
    assert conn.execute(sa.select(reference.bindings.c.user_name)).scalar_one() == erased  # the rule still fits
    assert conn.execute(sa.select(samples.device_shares.c.label)).scalar_one() == f"owner={erased}"
    left = everything(conn)
    assert run("privacy", "export", "ada").exit_code == 1
    # What is Bob's stays, and so do an account of that name and a word that begins like it.
    bobs = conn.execute(sa.select(work.jobs.c.account, work.jobs.c.name).where(work.jobs.c.user_name == "bob")).one()
    assert bobs == ("ada", "ada")
    assert "adamant" in left
    facts = conn.execute(sa.select(queue.job_reports.c.facts).order_by(queue.job_reports.c.job_id)).scalars().all()
    assert facts[0] == {"user_name": [7, erased], "account": [7, "ada"], "label": [7, f"owner={erased}"]}
    assert facts[1]["user_name"] == [7, "bob"]


def test_a_dead_letter_is_read_as_before_but_for_the_name(conn: sa.Connection) -> None:
    fill(conn, "ada")
    privacy.erase(conn, "ada", actor="test")
    bodies = conn.execute(sa.select(samples.dead_letters.c.body).order_by(samples.dead_letters.c.id)).scalars().all()
    hers, bobs = (Reader().read(bytes(body)) for body in bodies)
    frame = decode([stream for stream in hers.streams if stream.schema.stream is Stream.ALLOCATION])
    assert frame.select("user", "label", "native_job_id").rows() == [("---", "owner=---,team=nlp", "7")]
    frame = decode([stream for stream in bobs.streams if stream.schema.stream is Stream.ALLOCATION])
    assert frame.select("user", "label").rows() == [("bob", "owner=bob,team=nlp")]
    assert redact.blanked(letter("eve"), ["ada"]) is None


def test_the_act_is_in_the_audit_with_what_it_touched_and_without_the_name(conn: sa.Connection, run: Run) -> None:
    fill(conn, "ada")
    run("privacy", "export", "ada")
    run("privacy", "erase", "ada", "--yes")
    acts = json.loads(run("audit", "log", "--action", "privacy", "--format", "json").stdout)
    assert {act["action"] for act in acts} == {"privacy.erase", "privacy.export"}
    assert '"ada"' not in json.dumps(acts)
    (erased,) = [act["detail"] for act in acts if act["action"] == "privacy.erase"]
    assert erased["rows"]["dead_letters"] == 1
    assert erased["rows"]["outcomes"] == 1


def test_where_names_are_replaced_an_address_is_in_no_table(conn: sa.Connection, run: Run) -> None:
    assert "replaced by pseudonyms" in run("privacy", "set", "--pseudonyms").output
    called = privacy.pseudonym(conn, MAIL)
    fill_at_the_door(conn)
    assert MAIL not in everything(conn)
    kept = conn.execute(sa.select(work.spans.c.attributes)).scalar_one()
    assert kept == {
        "session.id": privacy.pseudonym(conn, "s-1"),
        "gen_ai.agent.id": "a-1",
        "said": f"by {called}, twice",
    }
    assert conn.execute(sa.select(work.api_calls.c.api_key)).scalar_one() == called
    assert conn.execute(sa.select(lineage.outcomes.c.dataset_ids)).scalar_one() == [f"s3://{called}/x", "d"]
    assert conn.execute(sa.select(work.jobs.c.label)).scalar_one() == f"owner={called}"
    assert set(json.loads(run("privacy", "export", MAIL).stdout)) >= {"api_calls", "jobs"}


def test_while_nobody_asks_for_pseudonyms_everything_is_kept_as_it_comes(conn: sa.Connection) -> None:
    privacy.change(conn, Privacy(pseudonyms=False), actor="test")
    fill_at_the_door(conn)
    assert conn.execute(sa.select(work.api_calls.c.api_key)).scalar_one() == MAIL
    assert conn.execute(sa.select(work.spans.c.attributes)).scalar_one()["session.id"] == "s-1"


def fill_at_the_door(conn: sa.Connection) -> None:
    made = Books.open(conn)
    site = {"site_id": made.site_id}
    add = adding(conn)
    job = made.job(None, "1", user_name=MAIL, label=f"owner={MAIL}", name=f"for {MAIL}", account=MAIL)
    add(queue.job_reports, job_id=job, source="slurm", facts={"user_name": [7, MAIL], "label": [7, f"owner={MAIL}"]})
    wait = {"cluster": "lab", "native_id": "9", "submitted_at": NOW, "source": "slurm", "origin": 1}
    add(queue.queue_entries, **site, **wait, user_name=MAIL, label=f"owner={MAIL}", facts={"label": [7, f"o={MAIL}"]})
    call = {"called_at": NOW, "provider": "openai", "model": "m", "usage_known": True, "origin": 1, "source": "span"}
    add(work.api_calls, **site, **call, dedupe_key="a", api_key=MAIL)
    counted = {"counted_at": NOW, "counted_key": "a", "status": "ok", "dedupe_key": "a"}
    add(call_reports.call_reports, **site, **call, **counted, api_key=MAIL)
    attributes = {"session.id": "s-1", "gen_ai.agent.id": "a-1", "said": f"by {MAIL}, twice"}
    span = {"started_at": NOW, "trace_id": "t", "span_id": "s", "kind": "tool", "origin": 1, "attributes": attributes}
    add(work.spans, **site, **span, name=f"ask {MAIL}")
    outcome = {"kind": f"by {MAIL}", "judged_at": NOW, "source": "api", "origin": 1, "label": MAIL}
    add(lineage.outcomes, **site, **outcome, dedupe_key="o1", response_id="r", dataset_ids=[f"s3://{MAIL}/x", "d"])
    told = {"run_id": "1", "job_namespace": MAIL, "job_name": f"{MAIL}/train", "state": "start", "first_event_at": NOW}
    add(lineage.lineage_runs, **site, **told, origin=1)
    run_id = conn.execute(sa.select(lineage.lineage_runs.c.id)).scalar_one()
    event = {"event_type": "start", "event_at": NOW, "facets_ignored": 0, "producer": f"https://x/{MAIL}"}
    add(lineage.lineage_events, lineage_run_id=run_id, **event, facets={"model": MAIL})
    add(lineage.lineage_datasets, lineage_run_id=run_id, direction="input", namespace=f"s3://{MAIL}", name="chats")


def test_what_a_services_role_writes_is_replaced_as_well(db: Database, conn: sa.Connection) -> None:
    made = Books.open(conn)
    privacy.change(conn, Privacy(pseudonyms=True), actor="test")
    yesterday = NOW - timedelta(hours=1)
    with db.connect("writer") as writer:
        writer.execute(
            "INSERT INTO spans (site_id, started_at, trace_id, span_id, name, kind, attributes, origin) "
            "VALUES (%s, %s, 't', 's', 'n', 'tool', '{\"session.id\": \"s-1\"}', 1)",
            [made.site_id, yesterday],
        )
    kept = conn.execute(sa.select(work.spans.c.attributes)).scalar_one()
    assert kept == {"session.id": privacy.pseudonym(conn, "s-1")}


def test_no_tenants_table_is_left_out(db: Database) -> None:
    """Tables under row-level security bear what tenants do: each is looked at, in one half of the list or the other."""
    with db.connect("admin") as admin:
        rows = admin.execute(
            "SELECT relname::text FROM pg_class WHERE relrowsecurity AND NOT relispartition AND relnamespace = 'public'::regnamespace"
        ).fetchall()
    numbers_only = {"hour_jobs", "tenant_minutes", "tenant_moves"}
    assert {name for (name,) in rows} - numbers_only <= {*PERSONAL, *NOT_PERSONAL}
    assert control.tokens.name in PERSONAL
