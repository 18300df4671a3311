"""A node joins, measures, forwards a trace, carries out an order and undoes it: agent, driver and ingest as processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import URL_VARIABLE, Database
from tests.e2e.fleet_stand import await_true, copied, free_port, rows, serving
from tests.fakes.nvml.build import build_or_skip, environment, start_agent
from wattledger.cli import cli

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PATIENCE_S = 120.0
FAST = ("--sample-s", "0.5", "--row-s", "1", "--batch-s", "1", "--health-s", "1", "--node", "gpu-01")


def wattledger(database: Database, folder: Path, *words: str) -> str:
    result = CliRunner().invoke(cli, ["--home", str(folder), *words], env={URL_VARIABLE: database.url})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_node_joins_reports_and_takes_orders(
    server: EmbeddedServer, database: Database, tmp_path: Path, shared: Path
) -> None:
    library = build_or_skip(tmp_path)
    token, key, port = tmp_path / "token", tmp_path / "gpu-01.key", free_port()
    (tmp_path / "master.key").write_text("m" * 44)
    master = ("--site", "site-1", "--master-key-file", str(tmp_path / "master.key"))
    with copied(server, database) as own, serving(own, tmp_path) as url:

        def seen(query: str) -> list[tuple[object, ...]]:
            return rows(own, query)

        join = wattledger(
            own, tmp_path, "token", "create", "all", "--scope", "join", "--site", "site-1", "--expires", "1d"
        )
        (tmp_path / "join.token").write_text(join)
        enrolment = ["--join-token-file", str(tmp_path / "join.token"), "--server-url", url]
        enrolment += ["--node", "gpu-01", "--token-file", str(token)]
        joined = subprocess.run(
            [sys.executable, "-m", "collector", "enroll", *enrolment],
            env=environment(library, gpus=2),
            capture_output=True,
            text=True,
            check=False,
        )
        assert joined.returncode == 0, joined.stderr
        assert oct(token.stat().st_mode)[-3:] == "600"
        assert token.read_text().strip() not in joined.stdout + joined.stderr

        key.write_text(wattledger(own, tmp_path, "fleet", "key", "gpu-01", *master))
        key.chmod(0o600)
        agent = start_agent(
            library,
            tmp_path / "spool.db",
            *FAST,
            *("--server-url", url, "--token-file", str(token), "--otlp-listen", f"127.0.0.1:{port}"),
            *("--commands", "--command-key-file", str(key), "--command-poll-s", "1"),
            *("--power-limit-min-w", "200", "--power-limit-max-w", "700"),
            gpus=2,
        )
        try:
            await_true(lambda: len(seen("SELECT DISTINCT device_id FROM device_samples")) == 2, PATIENCE_S, "samples")
            await_true(lambda: seen("SELECT FROM agent_health") != [], PATIENCE_S, "the agent's own health")
            await_true(lambda: seen("SELECT FROM device_health") != [], PATIENCE_S, "the devices' health")
            assert seen("SELECT DISTINCT durable, released FROM agent_health") == [(1, 0)]
            assert "gpu-01" in wattledger(own, tmp_path, "fleet", "status", "--check")

            capture = shared / "captures/otlp/openllmetry-openai/traces-1.raw.bin"
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/traces",
                content=capture.read_bytes(),
                headers={"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"},
            )
            assert answer.status_code == 200
            await_true(lambda: seen("SELECT FROM api_calls") != [], PATIENCE_S, "the forwarded trace's calls")

            wattledger(own, tmp_path, "fleet", "order", "gpu-01", "--power-limit-w", "500", "--minutes", "5", *master)
            applied = "SELECT code FROM node_events WHERE kind = 'order_applied'"
            await_true(lambda: seen(applied) == [(500_000,), (500_000,)], PATIENCE_S, "the order is carried out")
            limits = "SELECT DISTINCT ON (device_id) power_limit_mw FROM device_samples WHERE power_limit_mw IS NOT NULL ORDER BY device_id, at DESC"
            await_true(lambda: set(seen(limits)) == {(500_000,)}, PATIENCE_S, "the driver says so too")
            foreign = "UPDATE agent_commands SET signature = md5(signature), nonce = md5(nonce)"
            with own.connect("admin") as admin:
                admin.execute(foreign)
            await_true(
                lambda: seen("SELECT FROM node_events WHERE kind = 'order_refused'") != [], PATIENCE_S, "a forged order"
            )
        finally:
            agent.terminate()
            _, log = agent.communicate(timeout=30)
        assert agent.returncode == 0, log
        assert "undone" in log or seen("SELECT FROM node_events WHERE kind = 'order_undone'"), log
