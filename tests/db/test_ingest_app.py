"""Bodies over HTTP: what is taken, what is refused, with which answer, and what is in the tables afterwards."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import zstandard

from collector.wire import COLUMNS, MAX_BODY_BYTES, MAX_CADENCE_US, MAX_DECODED_BYTES, SAMPLES_PATH, Stream
from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, headers, make_site, now_us, rows, run, send

pytestmark = pytest.mark.db
HOUR_US = 3_600_000_000
AGENT_COUNTS = [column.name for column in COLUMNS[Stream.AGENT] if not column.nullable]


def query(db: Database, statement: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(statement).fetchall()  # type: ignore[return-value,call-overload,unused-ignore]


def reason(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("urn:wattledger:problem:")


def test_a_batch_sent_five_times_at_once_is_kept_once(db: Database) -> None:
    site = make_site(db)
    at = now_us()
    body = body_of(batch_meta(), device_row(at), device_row(at, 1))

    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(send(client, body, site.node_tokens["node-1"]) for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 5
        assert sorted(answer.json()["duplicate"] for answer in answers) == [False, True, True, True, True]
        again = await send(client, body, site.node_tokens["node-1"])
        assert again.json() == {"accepted_rows": 0, "duplicate": True, "refused": []}

    run(Settings(db, writers=4, linger_ms=0), scenario)
    assert query(db, "SELECT count(*) FROM device_samples") == [(2,)]
    assert query(db, "SELECT received::text FROM spools") == [("{[1,2)}",)]


def test_a_steady_senders_repetition_beside_new_batches_is_counted_once(db: Database) -> None:
    site = make_site(db)
    at = now_us()
    metas = [batch_meta(sequence=number) for number in range(1, 7)]
    bodies = [body_of(meta, device_row(at, temp_c=60), device_row(at, 1, temp_c=61)) for meta in metas]

    async def scenario(client: httpx.AsyncClient) -> None:
        secret = site.node_tokens["node-1"]
        assert (await send(client, bodies[2], secret)).json()["accepted_rows"] == 2
        answers = await asyncio.gather(*(send(client, body, secret) for body in bodies))
        assert [answer.json()["duplicate"] for answer in answers] == [False, False, True, False, False, False]

    run(Settings(db, writers=1, linger_ms=200), scenario)
    assert query(db, "SELECT temp_c, count(*) FROM device_samples GROUP BY 1 ORDER BY 1") == [(60, 6), (61, 6)]


def test_the_collector_is_left_as_it_was_found(db: Database) -> None:
    before = gc.get_threshold()

    async def scenario(_: httpx.AsyncClient) -> None:
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() != before

    run(Settings(db), scenario)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def test_refused_rows_are_counted_and_the_rest_is_kept(db: Database) -> None:
    site = make_site(db)
    at = now_us()
    body = body_of(
        batch_meta(),
        device_row(at, temp_c=61, sm_active_ratio=float("nan"), energy_mj=-5),
        device_row(at, 2),
        device_row(at, -1),
        device_row(at + HOUR_US),
        device_row(5),
        device_row(at, span_us=-1),
    )

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, body, site.node_tokens["node-1"])
        assert answer.status_code == 200
        assert answer.json()["accepted_rows"] == 1
        assert {refusal["reason"]: refusal["rows"] for refusal in answer.json()["refused"]} == {
            "unknown_device": 2,
            "from_the_future": 1,
            "before_2000": 1,
            "impossible_span": 1,
            "not_a_number": 1,
            "negative_counter": 1,
        }

    run(Settings(db), scenario)
    assert query(db, "SELECT temp_c, sm_active_ratio, energy_mj, power_average_mw FROM device_samples") == [
        (61, None, None, 300_000)
    ]
    assert query(db, "SELECT sum(rows) FROM rejections") == [(7,)]


def test_what_is_no_batch_is_refused_with_a_reason(db: Database) -> None:
    site = make_site(db)
    good = body_of(batch_meta(), device_row(now_us()))
    raw = zstandard.ZstdDecompressor().decompress(good)
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    bomb = zstandard.ZstdCompressor().compress(bytes(MAX_DECODED_BYTES + 1))
    too_slow = body_of(batch_meta(cadence_us=MAX_CADENCE_US + 1), device_row(now_us()))
    wrong_version = zstandard.ZstdCompressor().compress(raw.replace(b'"wire_version":1', b'"wire_version":9'))

    async def scenario(client: httpx.AsyncClient) -> None:
        secret = site.node_tokens["node-1"]
        assert reason(await send(client, good[:-7], secret)) == (400, "malformed")
        assert reason(await send(client, bytes(damaged), secret)) == (400, "malformed")
        assert reason(await send(client, b"", secret)) == (400, "malformed")
        assert reason(await send(client, bomb, secret)) == (413, "too_large")
        assert reason(await send(client, bytes(MAX_BODY_BYTES + 1), secret)) == (413, "too_large")
        assert reason(await send(client, wrong_version, secret)) == (400, "wire_version")
        assert reason(await send(client, too_slow, secret)) == (400, "cadence")
        assert "speaks 1" in (await send(client, wrong_version, secret)).json()["detail"]
        assert reason(await send(client, raw, secret, content_encoding="identity")) == (415, "unsupported_media")
        assert (await send(client, good, secret)).status_code == 200
        assert 'outcome="wire_version"' in (await client.get("/metrics")).text
        assert 'outcome="cadence"' in (await client.get("/metrics")).text

    run(Settings(db), scenario)
    assert query(db, "SELECT count(*) FROM device_samples") == [(1,)]


def test_only_a_valid_token_of_the_right_node_may_send(db: Database) -> None:
    site = make_site(db)
    body = body_of(batch_meta(), device_row(now_us()))
    admin = db.create_engine("admin")
    with admin.begin() as conn:
        now = datetime.now(UTC)
        agent = [tokens.Scope.AGENT]
        expired = tokens.create(
            conn, "old", agent, actor="t", site_id=site.site_id, expires_at=now - timedelta(seconds=1)
        )
        revoked = tokens.create(conn, "out", agent, actor="t", site_id=site.site_id)
        tokens.revoke(conn, revoked.token.id, now, actor="t")
        reader = tokens.create(conn, "reader", [tokens.Scope.READ], actor="t", tenant_path="*")
    admin.dispose()

    async def scenario(client: httpx.AsyncClient) -> None:
        nobody = await client.post(SAMPLES_PATH, content=body, headers={**headers("x"), "authorization": ""})
        assert reason(nobody) == (401, "token_missing")
        assert nobody.headers["www-authenticate"] == "Bearer"
        assert reason(await send(client, body, "wl_1_" + "A" * 43)) == (401, "token_unknown")
        assert reason(await send(client, body, expired.secret)) == (401, "token_expired")
        assert reason(await send(client, body, revoked.secret)) == (401, "token_revoked")
        assert reason(await send(client, body, reader.secret)) == (403, "scope_missing")
        assert reason(await send(client, body, site.node_tokens["node-2"])) == (403, "wrong_node")
        assert (await send(client, body, site.site_token)).status_code == 200

    run(Settings(db), scenario)


def test_a_wrong_clock_sends_the_body_to_the_dead_letters(db: Database) -> None:
    site = make_site(db)
    body = body_of(batch_meta(), device_row(now_us()))

    async def scenario(client: httpx.AsyncClient) -> None:
        sent_at = now_us() - 400_000_000
        answer = await send(client, body, site.node_tokens["node-1"], Wattledger_Sent_At=str(sent_at))
        assert answer.status_code == 202
        assert answer.json()["reason"] == "clock_skew"
        assert -430_000_000 < answer.json()["skew_us"] <= -400_000_000
        fine = await send(client, body, site.node_tokens["node-1"], Wattledger_Sent_At=str(now_us() - 299_000_000))
        assert fine.status_code == 200

    run(Settings(db), scenario)
    ((kept, skew_us, header_names),) = query(
        db, "SELECT body, skew_us, array(SELECT jsonb_object_keys(headers)) FROM dead_letters"
    )
    assert bytes(kept) == body
    assert skew_us <= -400_000_000
    assert "authorization" not in header_names
    assert query(db, "SELECT count(*) FROM device_samples") == [(1,)]


def test_a_device_on_two_nodes_is_refused_and_raised(db: Database) -> None:
    site = make_site(db)
    at = now_us()

    async def scenario(client: httpx.AsyncClient) -> None:
        mine = body_of(batch_meta(), device_row(at), device_row(at, 1))
        assert (await send(client, mine, site.node_tokens["node-1"])).json()["accepted_rows"] == 2
        claimed = body_of(batch_meta(node="node-2"), device_row(at), device_row(at, 1))
        answer = await send(client, claimed, site.node_tokens["node-2"])
        assert answer.json()["accepted_rows"] == 0
        assert answer.json()["refused"] == [{"stream": "device_samples", "reason": "device_on_two_nodes", "rows": 2}]

    run(Settings(db), scenario)
    assert query(db, "SELECT count(*) FROM device_samples") == [(2,)]
    assert query(db, "SELECT kind, count(*) FROM findings GROUP BY kind") == [("device_on_two_nodes", 2)]


def test_a_cloned_spool_is_refused_not_taken_for_a_repetition(db: Database) -> None:
    site = make_site(db)
    meta = batch_meta()
    at = now_us()

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await send(client, body_of(meta, device_row(at)), site.node_tokens["node-1"])).status_code == 200
        clone = batch_meta(spool=meta.spool, node="node-2", devices=())
        answer = await send(client, body_of(clone), site.node_tokens["node-2"])
        assert reason(answer) == (400, "foreign_spool")

    run(Settings(db), scenario)


def test_every_stream_reaches_its_table(db: Database) -> None:
    site = make_site(db)
    at = now_us()
    job = {
        "at_us": at - 60_000_000,
        "device": 0,
        "action": 1,
        "energy_mj": 100,
        "cluster": "c",
        "native_job_id": "7",
        "job_started_at_us": at - 61_000_000,
        "user": "ann",
        "account": "nlp",
        "evidence": "cgroup",
        "share_ratio": 0.25,
    }
    body = body_of(
        batch_meta(),
        device_row(at),
        node=rows(
            Stream.NODE,
            {"at_us": at, "meter": "ac", "span_us": 10, "power_mw": 9},
            {"at_us": at, "meter": "dc", "span_us": 10},
        ),
        fabric=rows(Stream.FABRIC, {"at_us": at, "port": "mlx5_0/1", "span_us": 10, "tx_bytes": 4}),
        engine=rows(
            Stream.ENGINE, {"at_us": at, "engine": "http://e", "model": "m", "span_us": 10, "prompt_tokens": 8}
        ),
        allocation=rows(Stream.ALLOCATION, job),
        device_event=rows(Stream.DEVICE_EVENT, {"at_us": at, "device": 1, "kind": "xid", "code": 79}),
        device_health=rows(Stream.DEVICE_HEALTH, {"at_us": at, "device": 1, "remapping_pending": 1}),
        device_share=rows(
            Stream.DEVICE_SHARE,
            {
                "at_us": at,
                "device": 0,
                "span_us": 5,
                "processes": 2,
                "sm_util_percent": 12.5,
                "evidence": "cgroup",
                "method": "measured",
            },
        ),
        node_event=rows(Stream.NODE_EVENT, {"at_us": at, "kind": "kernel_xid", "subject": "0000:3b:00", "code": 79}),
        agent=rows(Stream.AGENT, {**dict.fromkeys(AGENT_COUNTS, 1), "at_us": at, "spool_bytes": -1, "cpu_ratio": 0.25}),
    )

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, body, site.node_tokens["node-1"])
        assert (answer.status_code, answer.json()["accepted_rows"]) == (200, 11)
        assert answer.json()["refused"] == [{"stream": "agent_health", "reason": "negative_counter", "rows": 1}]

    run(Settings(db), scenario)
    assert query(
        db, "SELECT meters.name, power_mw FROM node_samples JOIN meters ON meters.id = meter_id ORDER BY 1"
    ) == [
        ("ac", 9),
        ("dc", None),
    ]
    assert query(db, "SELECT name, tx_bytes FROM fabric_samples JOIN fabric_ports p ON p.id = port_id") == [
        ("mlx5_0/1", 4)
    ]
    assert query(db, "SELECT name, prompt_tokens FROM engine_samples JOIN engines e ON e.id = engine_id") == [
        ("http://e", 8)
    ]
    assert query(db, "SELECT kind, code FROM device_events") == [("xid", 79)]
    assert query(db, "SELECT remapping_pending, recovery_action FROM device_health") == [(1, None)]
    assert query(db, "SELECT native_job_id, processes, sm_util_percent FROM device_shares") == [(None, 2, 12.5)]
    assert query(db, "SELECT kind, subject, code FROM node_events") == [("kernel_xid", "0000:3b:00", 79)]
    assert query(db, "SELECT samples, spool_bytes, cpu_ratio FROM agent_health") == [(1, None, 0.25)]
    assert query(
        db,
        "SELECT native_id, user_name, account, state, share_ratio::text, start_energy_mj, end_at, evidence "
        "FROM jobs JOIN allocations a ON a.job_id = jobs.id",
    ) == [("7", "ann", "nlp", "running", "0.250000", 100, None, "cgroup")]
    assert [kind for (kind,) in query(db, "SELECT DISTINCT kind FROM changes ORDER BY kind")] == [
        "agent_health",
        "allocations",
        "device_events",
        "device_health",
        "device_samples",
        "device_shares",
        "engine_samples",
        "fabric_samples",
        "node_events",
        "node_samples",
    ]


def test_the_database_being_away_loses_nothing(db: Database) -> None:
    site = make_site(db)
    meta = batch_meta()
    at = now_us()
    name = db.name

    async def scenario(client: httpx.AsyncClient) -> None:
        first = body_of(meta, device_row(at))
        assert (await send(client, first, site.node_tokens["node-1"])).status_code == 200
        # No new connection is let in, and those there are cut: what a restart looks like from here.
        with db.named("postgres").connect("admin", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            away = await send(
                client, body_of(batch_meta(spool=meta.spool, sequence=2), device_row(at)), site.node_tokens["node-1"]
            )
            assert reason(away) == (503, "database_unavailable")
            assert int(away.headers["retry-after"]) >= 1
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        for _ in range(100):
            back = await send(
                client, body_of(batch_meta(spool=meta.spool, sequence=2), device_row(at)), site.node_tokens["node-1"]
            )
            if back.status_code == 200:
                break
            await asyncio.sleep(0.1)
        assert back.status_code == 200
        assert (await client.get("/readyz")).status_code == 200

    run(Settings(db), scenario)
    assert query(db, "SELECT count(*) FROM device_samples") == [(2,)]
    assert query(db, "SELECT received::text FROM spools") == [("{[1,3)}",)]


def test_rows_past_hot_retention_or_of_a_sealed_hour_are_late(db: Database) -> None:
    site = make_site(db)
    at = now_us()
    sealed_us = (at - 2 * HOUR_US) // HOUR_US * HOUR_US
    with db.connect("admin", autocommit=True) as conn:
        conn.execute(
            "INSERT INTO hour_catalog (site_id, hour_at, state, generation) VALUES (%s, %s, 'sealed', 1)",
            [site.site_id, datetime.fromtimestamp(sealed_us / 1e6, UTC)],
        )
    body = body_of(
        batch_meta(),
        device_row(at, temp_c=1),
        device_row(sealed_us, temp_c=2),
        device_row(sealed_us + HOUR_US - 1, temp_c=3),
        device_row(sealed_us + HOUR_US, temp_c=4),
        device_row(at - 80 * HOUR_US, temp_c=5),
    )

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await send(client, body, site.node_tokens["node-1"])).json()["accepted_rows"] == 5

    run(Settings(db), scenario)
    assert query(db, "SELECT temp_c FROM device_samples ORDER BY temp_c") == [(1,), (4,)]
    assert query(db, "SELECT temp_c FROM late_samples ORDER BY temp_c") == [(2,), (3,), (5,)]
