"""Texts that are code somewhere else, texts without measure, and names without number: data, or refused with a limit that is named."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest

from collector.wire import DeviceRef
from ingest.receivers import remote_write
from ingest.series.intake import Intake
from ingest.series.memory import MAX_NEW_OF_A_NODE
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import Site, batch_meta, body_of, device_row, make_site, now_us, run, running, send
from tests.fakes import series as fake

pytestmark = pytest.mark.db
CODE = (
    "'; DROP TABLE nodes; --",
    '"; DROP TABLE nodes; --',
    "$$; SELECT pg_sleep(60); --",
    "\\'); DELETE FROM devices; --",
    "%s %(x)s {0} {x}",
    "a\\.\nb",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    '"} 1\nwattledger_fake_total{x="',
    "../../../../etc/passwd",
    "*",
    "%",
    "acme/*",
)
MILLION = "WATTLEDGER_FUZZ_SECONDS" in os.environ
SERIES = 1_000_000 if MILLION else 60_000
A_REQUEST = 20_000


def outcome_of(text: str) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat()
    return {"response_id": text, "kind": text, "label": text, "model": text, "at": at}


def job_of(text: str) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat()
    run_of = {"cluster": text, "id": text, "start": at}
    named = dict.fromkeys(("account", "user", "partition", "qos", "namespace", "name", "workload", "reason"), text)
    event = {"kind": "job", "at": at, "job": run_of, "state": "running", **named}
    return {"version": 1, "source": "test", "events": [event]}


def run_event_of(text: str) -> dict[str, Any]:
    return {
        "eventTime": datetime.now(UTC).isoformat(),
        "eventType": "COMPLETE",
        "producer": text,
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json",
        "run": {"runId": "0190b5c2-7c8e-7b3a-9d53-0242ac120002"},
        "job": {"namespace": text, "name": text},
        "inputs": [{"namespace": text, "name": text}],
    }


async def post_all(client: httpx.AsyncClient, site: Site, text: str) -> list[httpx.Response]:
    """Send the text in every field that takes one."""
    headers = {"authorization": f"Bearer {site.site_token}", "content-type": "application/json"}
    bodies = {
        "/v1/outcomes": outcome_of(text),
        "/v1/jobs/events": job_of(text),
        "/api/v1/lineage": run_event_of(text),
        "/v1/enroll": {"node": text},
    }
    answers = [await client.post(path, content=json.dumps(body), headers=headers) for path, body in bodies.items()]
    at_ms = now_us() // 1_000
    labels = fake.device_labels("DCGM_FI_DEV_POWER_USAGE", text, text, modelName=text, pci_bus_id=text)
    engine = {"__name__": "vllm:num_requests_running", "instance": text, "model_name": text, "engine": text}
    written = fake.write_request(fake.series(labels, (1.0, at_ms)), fake.series(engine, (1.0, at_ms)))
    told = {**fake.HEADERS, "authorization": f"Bearer {site.site_token}"}
    answers.append(await client.post(remote_write.PATH, content=written, headers=told))
    if text.isprintable() and len(text) < 255:
        meta = batch_meta(node=text, boot_id=text, devices=(DeviceRef(text, text),), labels={"rack": text})
        answers.append(await send(client, body_of(meta, device_row(now_us())), site.site_token))
    return answers


def test_what_is_code_elsewhere_is_text_here(db: Database) -> None:
    site = make_site(db)

    async def scenario(client: httpx.AsyncClient) -> None:
        for text in CODE:
            for answer in await post_all(client, site, text):
                assert answer.status_code < 500, (text, answer.url, answer.text)
        exposed = (await client.get("/metrics")).text
        assert not any(line.startswith("wattledger_fake_total") for line in exposed.splitlines())

    run(Settings(db), scenario)
    printable = {text for text in CODE if text.isprintable()}
    with db.connect("admin") as admin:
        for table, column in (("nodes", "name"), ("devices", "uuid"), ("jobs", "native_id"), ("outcomes", "kind")):
            kept = {row[0] for row in admin.execute(f"SELECT {column} FROM {table}")}
            assert printable <= kept, (table, printable - kept)


def test_a_megabyte_of_text_is_refused_or_cut_and_never_kept(db: Database) -> None:
    site = make_site(db)

    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in await post_all(client, site, "A" * 1_000_000):
            assert answer.status_code < 500
        assert (await client.get("/readyz")).status_code == 200

    run(Settings(db), scenario)
    with db.connect("admin") as admin:
        for table in ("nodes", "devices", "jobs", "outcomes", "lineage_runs", "engines"):
            long = admin.execute(f"SELECT count(*) FROM {table} WHERE octet_length({table}::text) > 65536").fetchone()
            assert long == (0,), table


def test_series_without_number_are_refused_with_the_reason_and_cost_bounded_memory() -> None:
    intake = Intake()
    at_us = now_us()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    named: set[str] = set()
    for first in range(0, SERIES, A_REQUEST):
        body = fake.write_request(
            *(
                fake.series(
                    {"__name__": "DCGM_FI_DEV_POWER_USAGE", "UUID": f"GPU-{number}", "Hostname": "n"},
                    (1.0, at_us // 1000),
                )
                for number in range(first, min(first + A_REQUEST, SERIES))
            )
        )
        taken = intake.remote_write(body, 1, "n", at_us, None)
        refused += taken.tally.samples["too_many_new"] + taken.tally.samples["too_many_devices"]
        named |= {device.uuid for each in taken.bodies for device in each.meta.devices}
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert len(named) <= MAX_NEW_OF_A_NODE
    assert refused >= SERIES - MAX_NEW_OF_A_NODE
    assert grown_mib < 400, f"{grown_mib:.0f} MiB for {SERIES} series"


def test_devices_without_number_are_answered_429_with_the_limit_and_others_go_on(db: Database) -> None:
    site = make_site(db)

    async def main() -> None:
        async with running(Settings(db, node_new_per_h=2_000)) as client:
            statuses = []
            for batch in range(20):
                devices = tuple(DeviceRef(f"GPU-{batch}-{number}", "H100") for number in range(500))
                body = body_of(batch_meta(devices=devices), device_row(now_us()))
                answer = await send(client, body, site.node_tokens["node-1"])
                statuses.append(answer.status_code)
            assert statuses == [200] * 3 + [429] * 17
            assert orjson.loads(answer.content)["type"] == "urn:wattledger:problem:too_many_new"
            assert "2000 may be new to the server in an hour" in orjson.loads(answer.content)["detail"]
            assert 0 < int(answer.headers["retry-after"]) <= 3_600
            other = body_of(batch_meta(node="node-2"), device_row(now_us()))
            assert (await send(client, other, site.node_tokens["node-2"])).status_code == 200

    asyncio.run(main())
    with db.connect("admin") as admin:
        assert admin.execute("SELECT count(*) FROM devices").fetchone() == (3 * 500 + 2,)
