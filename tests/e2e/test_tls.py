"""`wattledger serve` and `up` over TLS with real certificates: who gets in, who does not, and this machine's own way in."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme

from collector.config import Settings as AgentSettings
from collector.run import open_client
from ingest.store import tokens
from ingest.store.engine import Database
from wattledger.ports import free_port_or_explain

pytestmark = pytest.mark.e2e


@dataclass
class Certs:
    """Two authorities, one of servers and one of clients, and files of what they issued."""

    folder: Path
    ca: trustme.CA
    client_ca: trustme.CA

    def server(self, *, expired: bool = False) -> list[str]:
        """Write a server's certificate; return the options of `serve` that name it."""
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        issued = self.ca.issue_cert("127.0.0.1", not_after=until)
        self.write("server", issued)
        return ["--tls-cert", str(self.folder / "server.crt"), "--tls-key", str(self.folder / "server.key")]

    def client(self, by: trustme.CA, *, expired: bool = False) -> dict[str, str]:
        """Write a client's certificate; return the agent's settings that name it."""
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        self.write("client", by.issue_cert("gpu-001.example", not_after=until))
        return {
            "client_cert_file": str(self.folder / "client.crt"),
            "client_key_file": str(self.folder / "client.key"),
        }

    def write(self, name: str, issued: trustme.LeafCert) -> None:
        (self.folder / f"{name}.key").write_bytes(issued.private_key_pem.bytes())
        (self.folder / f"{name}.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def authority(self, ca: trustme.CA, name: str) -> str:
        ca.cert_pem.write_to_path(str(self.folder / name))
        return str(self.folder / name)


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path, trustme.CA(), trustme.CA())


@contextmanager
def served(db: Database, home: Path, *options: str) -> Iterator[tuple[str, str]]:
    """`wattledger serve` as a process; yields its TLS address and the one in the clear on loopback."""
    port, internal = (free_port_or_explain(0, "--port") for _ in range(2))
    home.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "wattledger", "--home", str(home), "serve", "--port", str(port)]
    environment = {**os.environ, "WATTLEDGER_DATABASE_URL": db.url, "WATTLEDGER_INGEST_MIN_FREE_MIB": "0"}
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [*words, "--internal-port", str(internal), *options], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (home / "serve.log").read_text()
            assert time.monotonic() < deadline, (home / "serve.log").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{internal}/readyz").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"https://127.0.0.1:{port}", f"http://127.0.0.1:{internal}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in {0, -signal.SIGTERM}, (home / "serve.log").read_text()


def reached(url: str, ca: str, **settings: str) -> bool:
    """Say whether an agent of these settings gets an answer; one that no TLS came of is none."""
    with open_client(AgentSettings(server_url=url, ca_file=ca, **settings)) as client:  # type: ignore[arg-type]
        try:
            return client.get(f"{url}/healthz").is_success
        except httpx.TransportError as error:
            if not any(
                word in str(error).lower() for word in ("ssl", "certificate", "closed", "reset", "disconnected")
            ):
                raise
            return False


def test_an_agent_that_knows_the_authority_is_served_and_no_other(db: Database, certs: Certs, tmp_path: Path) -> None:
    ca, other = certs.authority(certs.ca, "ca"), certs.authority(trustme.CA(), "other")
    with served(db, tmp_path / "home", *certs.server()) as (url, internal):
        assert reached(url, ca)
        assert not reached(url, other)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/healthz")
        old = ssl.create_default_context(cafile=ca)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"{url}/healthz", verify=old).is_success
        engine = db.create_engine("owner")
        with engine.begin() as conn:
            made = tokens.create(conn, "t", [tokens.Scope.READ], actor="test", tenant_path="*")
        engine.dispose()
        header = {"authorization": f"Bearer {made.secret}"}
        inside = httpx.get(f"{internal}/v1/budgets", headers=header)  # as the dashboard and commands ask
        assert inside.json() == httpx.get(f"{url}/v1/budgets", headers=header, verify=old).json() == {"budgets": []}
    assert made.secret not in (tmp_path / "home" / "serve.log").read_text()


def test_with_a_client_authority_only_its_certificates_get_in(db: Database, certs: Certs, tmp_path: Path) -> None:
    ca = certs.authority(certs.ca, "ca")
    asks = ("--client-ca", certs.authority(certs.client_ca, "clients"))
    with served(db, tmp_path / "home", *certs.server(), *asks) as (url, internal):
        assert reached(url, ca, **certs.client(certs.client_ca))
        assert not reached(url, ca)
        assert not reached(url, ca, **certs.client(certs.ca))
        assert not reached(url, ca, **certs.client(certs.client_ca, expired=True))
        assert httpx.get(f"{internal}/healthz").is_success


def test_an_expired_server_is_refused_by_its_agents(db: Database, certs: Certs, tmp_path: Path) -> None:
    ca = certs.authority(certs.ca, "ca")
    with served(db, tmp_path / "home", *certs.server(expired=True)) as (url, _):
        assert not reached(url, ca)


@pytest.mark.parametrize("command", ["serve", "up"])
def test_other_machines_are_not_let_in_without_tls(tmp_path: Path, command: str) -> None:
    words = [sys.executable, "-m", "wattledger", "--home", str(tmp_path), command, "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "give --tls-cert and --tls-key, or --behind-proxy where a proxy in front ends TLS" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_serves_tls_once_somebody_has_a_token_and_its_own_processes_go_on(
    db: Database, certs: Certs, tmp_path: Path
) -> None:
    environment = {**os.environ, "WATTLEDGER_DATABASE_URL": db.url, "WATTLEDGER_INGEST_MIN_FREE_MIB": "0"}
    base = [sys.executable, "-m", "wattledger", "--home", str(tmp_path / "home")]
    asks = ("--client-ca", certs.authority(certs.client_ca, "clients"))
    up = [*base, "up", "--once", "--host", "0.0.0.0", "--port", "0", "--dashboard-port", "0", *certs.server(), *asks]

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)

    refused = run(up)
    assert (refused.returncode, "nobody has a token yet" in refused.stderr) == (2, True), refused.stderr
    assert run([*base, "token", "create", "ci", "--scope", "gate", "--tenant", "acme"]).returncode == 0
    done = run(up)
    assert done.returncode == 0, done.stderr + (tmp_path / "home/log/serve.log").read_text()
    assert "ingest and API  https://127.0.0.1:" in done.stdout
