"""Nodes join by themselves, agents are listened for, and orders reach the node they are for and no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from analytics.io.fleet import fleet, raise_silences, raise_told
from collector.wire import COMMANDS_PATH, ENROLL_PATH, Command, Origin, Stream
from ingest.settings import Settings
from ingest.store import commands, tokens
from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.tokens import Scope
from tests.db.ingest_harness import batch_meta, body_of, device, device_row, make_site, now_us, rows, run, send
from tests.db.test_ingest_app import AGENT_COUNTS
from wattledger.cli import cli

pytestmark = pytest.mark.db
DAY = timedelta(days=1)


def join_token(db: Database, site_id: int, *, expires_at: datetime | None = None) -> str:
    engine = db.create_engine("admin")
    try:
        with engine.begin() as conn:
            issued = tokens.create(
                conn,
                "roll-out",
                [Scope.JOIN],
                actor="test",
                site_id=site_id,
                expires_at=expires_at or datetime.now(UTC) + DAY,
            )
            return issued.secret
    finally:
        engine.dispose()


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_a_node_joins_once_and_can_then_send_for_itself_alone(db: Database) -> None:
    site = make_site(db)
    join = join_token(db, site.site_id)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(ENROLL_PATH, json={"node": "node-9"}, headers=bearer(join))
        assert answer.status_code == 200
        assert answer.json()["node"] == "node-9"
        own = answer.json()["token"]
        body = body_of(batch_meta(node="node-9", devices=(device("n9"),)), device_row(now_us()))
        assert (await send(client, body, own)).status_code == 200
        foreign = body_of(batch_meta(node="node-8", devices=(device("n8"),)), device_row(now_us()))
        assert (await send(client, foreign, own)).status_code == 403
        assert (await send(client, body, join)).status_code == 403  # to join by, not to send with
        again = await client.post(ENROLL_PATH, json={"node": "node-9"}, headers=bearer(join))
        assert (again.status_code, again.json()["type"]) == (409, "urn:wattledger:problem:node_taken")
        taken = await client.post(ENROLL_PATH, json={"node": "node-1"}, headers=bearer(join))
        assert taken.status_code == 409
        with_own = await client.post(ENROLL_PATH, json={"node": "node-7"}, headers=bearer(own))
        assert with_own.status_code == 403
        for bad in (b"", b"[]", b'{"node": 1}', b'{"node": "a\\u0000b"}', b'{"node": ""}'):
            refused = await client.post(ENROLL_PATH, content=bad, headers=bearer(join))
            assert refused.status_code == 400
        with db.connect("admin") as admin:
            admin.execute("UPDATE tokens SET revoked_at = now() WHERE scopes = '{join}'")
        late = await client.post(ENROLL_PATH, json={"node": "node-6"}, headers=bearer(join))
        assert late.status_code == 401

    run(Settings(db), scenario)


def test_a_join_token_has_a_site_an_end_and_no_other_scope(db: Database) -> None:
    site = make_site(db)
    engine = db.create_engine("admin")
    until = datetime.now(UTC) + DAY
    with engine.begin() as conn:
        for scopes, site_id, expires_at, said in (
            ([Scope.JOIN], None, until, "no site"),
            ([Scope.JOIN], site.site_id, None, "must expire"),
            ([Scope.JOIN, Scope.AGENT], site.site_id, until, "no other scope"),
        ):
            with pytest.raises(ValueError, match=said):
                tokens.create(conn, "t", scopes, actor="test", site_id=site_id, expires_at=expires_at)
    engine.dispose()


def test_orders_are_handed_to_their_node_until_they_expire(db: Database) -> None:
    site = make_site(db)
    issued = now_us()
    orders = [
        Command(0, "node-1", "power_limit", {"watts": 500}, nonce, issued, issued + minutes * 60_000_000, "s")
        for nonce, minutes in (("a", 10), ("b", -1))
    ]
    engine = db.create_engine("worker")
    with engine.begin() as conn:
        for order in orders:
            node_id = conn.exec_driver_sql("SELECT id FROM nodes WHERE name = 'node-1'").scalar_one()
            commands.order(conn, node_id, order)
    engine.dispose()

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(2):  # an answer may be lost
            answer = await client.get(COMMANDS_PATH, headers=bearer(site.node_tokens["node-1"]))
            (found,) = answer.json()
            assert Command(**{**found, "id": 0}) == orders[0]
        other = await client.get(COMMANDS_PATH, headers=bearer(site.node_tokens["node-2"]))
        assert other.json() == []
        assert (await client.get(COMMANDS_PATH, headers=bearer(site.site_token))).status_code == 403
        assert (await client.get(COMMANDS_PATH)).status_code == 401

    run(Settings(db), scenario)
    with db.connect("admin") as admin:
        assert admin.execute("SELECT nonce, fetched_at IS NULL FROM agent_commands ORDER BY 1").fetchall() == [
            ("a", False),
            ("b", True),
        ]


def test_an_agent_that_falls_silent_is_a_finding_until_it_speaks_again(db: Database) -> None:
    site = make_site(db)

    async def scenario(client: httpx.AsyncClient) -> None:
        for node in ("node-1", "node-2"):
            meta = batch_meta(node=node, devices=(device(node),), origin=Origin.LIVE)
            health = {**dict.fromkeys(AGENT_COUNTS, 1), "at_us": now_us(), "sample_us": 1_000_000, "cpu_ratio": 0.003}
            body = body_of(meta, device_row(now_us()), agent=rows(Stream.AGENT, health))
            assert (await send(client, body, site.node_tokens[node])).status_code == 200

    run(Settings(db), scenario)
    now = datetime.now(UTC)
    with db.connect("admin") as admin:
        admin.execute("INSERT INTO nodes (site_id, name) VALUES (%s, 'never-heard-of')", (site.site_id,))
        admin.execute(
            "UPDATE spools SET last_seen_at = now() - interval '6 minutes' "
            "WHERE node_id = (SELECT id FROM nodes WHERE name = 'node-2')"
        )
    with db.connect("worker", autocommit=True) as connection:
        first, second = fleet(connection, now)
        assert (first.node, first.state, first.agent_version, first.origin) == ("node-1", "reporting", "0.1.0", "live")
        assert (first.sample_us, first.durable, first.released) == (1_000_000, True, True)
        assert (second.node, second.state) == ("node-2", "silent")
        assert raise_silences(connection, now) == ["node-2"]
        assert raise_silences(connection, now + timedelta(minutes=1)) == []  # the same silence
        late = now + timedelta(minutes=2)
        assert [node.state for node in fleet(connection, late)] == ["late", "silent"]
    with db.connect("admin") as admin:
        found = admin.execute("SELECT kind, evidence ->> 'node', end_at, origin FROM findings").fetchall()
        assert found == [("agent_silent", "node-2", now + timedelta(minutes=1), int(Origin.LIVE))]


def test_a_node_that_only_a_scheduler_knows_has_no_agent(db: Database) -> None:
    now = datetime.now(UTC)
    with db.connect("admin") as admin:
        admin.execute("INSERT INTO sites (name) VALUES ('s')")
        admin.execute(
            "INSERT INTO nodes (site_id, name) SELECT id, unnest(ARRAY['used', 'idle', 'long-ago']) FROM sites"
        )
        admin.execute(
            "INSERT INTO jobs (site_id, cluster, native_id, started_at, origin, source) "
            "SELECT id, 'c', '1', now() - interval '30 days', 2, 'sacct' FROM sites"
        )
        for node, ended in (("used", None), ("long-ago", now - timedelta(days=8))):
            admin.execute(
                "INSERT INTO allocations (site_id, job_id, node_id, accelerators, start_at, end_at, evidence) "
                "SELECT jobs.site_id, jobs.id, nodes.id, 8, jobs.started_at, %s, 'slurmctld' FROM jobs, nodes "
                "WHERE nodes.name = %s",
                (ended, node),
            )
    with db.connect("worker", autocommit=True) as connection:
        assert [(node.node, node.state) for node in fleet(connection, now)] == [("used", "no_agent")]


def test_evidence_that_contradicts_itself_becomes_a_finding_once(db: Database) -> None:
    site = make_site(db)
    event = {"at_us": now_us(), "kind": "attribution_conflict", "subject": "GPU-a", "detail": "job 7 or job 8"}
    other = {**event, "kind": "clock_step", "subject": None}

    async def scenario(client: httpx.AsyncClient) -> None:
        body = body_of(batch_meta(), device_row(now_us()), node_event=rows(Stream.NODE_EVENT, event, event, other))
        assert (await send(client, body, site.node_tokens["node-1"])).status_code == 200

    run(Settings(db), scenario)
    with db.connect("worker", autocommit=True) as connection:
        assert raise_told(connection, datetime.now(UTC)) == 1
        assert raise_told(connection, datetime.now(UTC)) == 0
    with db.connect("admin") as admin:
        found = admin.execute(
            "SELECT findings.kind, uuid, evidence FROM findings JOIN devices ON devices.id = device_id"
        ).fetchall()
    evidence = {"node": "node-1", "subject": "GPU-a", "detail": "job 7 or job 8"}
    assert found == [("attribution_conflict", "GPU-a", evidence)]


def test_fleet_status_folds_names_and_says_by_exit_code_that_somebody_is_missing(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tuple(f"gpu{number:03d}" for number in range(1, 13))
    site = make_site(db, nodes=nodes)

    async def scenario(client: httpx.AsyncClient) -> None:
        for node in nodes:
            meta = batch_meta(node=node, devices=(device(node),))
            assert (await send(client, body_of(meta, device_row(now_us())), site.node_tokens[node])).status_code == 200

    run(Settings(db), scenario)
    monkeypatch.setenv(URL_VARIABLE, db.url)
    home = ["--home", str(tmp_path)]
    shown = CliRunner().invoke(cli, [*home, "fleet", "status", "--check"])
    assert shown.exit_code == 0, shown.output
    assert "gpu[001-012]" in shown.output
    assert "12 reporting" in shown.output
    assert "simulated: not a real node" in shown.output
    with db.connect("admin") as admin:
        admin.execute("UPDATE spools SET last_seen_at = now() - interval '1 hour'")
    shown = CliRunner().invoke(cli, [*home, "fleet", "status", "--nodes", "--state", "silent", "--check"])
    assert shown.exit_code == 1
    assert "60 min ago" in shown.output

    master = tmp_path / "master.key"
    master.write_text("m" * 44)
    words = ["fleet", "order", "gpu001", "--site", "site-1", "--power-limit-w", "500", "--master-key-file", str(master)]
    shown = CliRunner().invoke(cli, [*home, *words])
    assert shown.exit_code == 0, shown.output
    derived = CliRunner().invoke(
        cli, [*home, "fleet", "key", "gpu001", "--site", "site-1", "--master-key-file", str(master)]
    )
    engine = db.create_engine("writer")
    with engine.begin() as conn:
        node_id = conn.exec_driver_sql("SELECT id FROM nodes WHERE name = 'gpu001'").scalar_one()
        (order,) = commands.waiting(conn, node_id, datetime.now(UTC))
    engine.dispose()
    assert order.signature == order.sign(bytes.fromhex(derived.output.strip()))
    assert order.args == {"device": "*", "watts": 500}
    assert order.expires_at_us - order.issued_at_us == 3_600_000_000
