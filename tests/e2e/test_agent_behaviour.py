"""The real agent process in the hands of an operator and of bad weather: signals, maintenance, orders, servers gone wrong."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from collector import wire
from collector.spool import Spool
from collector.wire import Command, Stream
from tests.fakes.bodies import Body, read_body
from tests.fakes.nvml.build import build_or_skip, environment, start_agent

pytestmark = pytest.mark.e2e

FAST = ("--sample-s", "0.1", "--row-s", "0.5", "--batch-s", "0.5", "--no-gpm", "--node", "gpu-01", "--health-s", "1")
KEY = "ab" * 32


class Server(ThreadingHTTPServer):
    """Answers as it is told to, and keeps what it took."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: Callable[[_Handler], None] = lambda handler: handler.say(204)
        self.bodies: list[bytes] = []
        self.forwarded: list[tuple[str, str, bytes]] = []
        self.orders: list[dict[str, Any]] = []
        self.posts = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def decoded(self) -> list[Body]:
        return [read_body(body) for body in list(self.bodies)]

    def events(self) -> list[dict[str, Any]]:
        found = [body.streams[Stream.NODE_EVENT] for body in self.decoded() if Stream.NODE_EVENT in body.streams]
        return [row for frame in found for row in frame.to_dicts()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.say(200, json.dumps(self.server.orders).encode() if self.path == wire.COMMANDS_PATH else b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts += 1
        if self.path == wire.ENROLL_PATH:
            assert self.headers["Authorization"] == "Bearer j0in"
            self.say(200, json.dumps({"node": json.loads(body)["node"], "token": "n0de"}).encode())
            return
        if self.path == wire.SAMPLES_PATH:
            self.server.bodies.append(body)
        else:
            self.server.forwarded.append((self.path, self.headers["Content-Type"], body))
        self.server.answer(self)

    def say(self, code: int, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_or_skip(tmp_path_factory.mktemp("nvml-behaviour"))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


_STARTED: list[subprocess.Popen[str]] = []


def started(library: Path, spool: Path, *flags: str, gpus: int, faults: str = "") -> subprocess.Popen[str]:
    """Start an agent that does not outlive its test."""
    agent = start_agent(library, spool, *flags, gpus=gpus, faults=faults)
    _STARTED.append(agent)
    return agent


@pytest.fixture(autouse=True)
def _no_agent_is_left() -> Iterator[None]:
    yield
    while _STARTED:
        agent = _STARTED.pop()
        if agent.poll() is None:
            agent.kill()
            agent.communicate()


def until(claim: Callable[[], bool], timeout_s: float = 25.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.05)


def stopped(agent: subprocess.Popen[str]) -> tuple[float, str]:
    """Stop an agent; return the seconds it took and its log."""
    began_s = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    _, log = agent.communicate(timeout=15)
    assert agent.returncode == 0, log
    return time.monotonic() - began_s, log


def _healths(server: Server) -> list[dict[str, Any]]:
    found = [body.streams[Stream.AGENT] for body in server.decoded() if Stream.AGENT in body.streams]
    return [row for frame in found for row in frame.to_dicts()]


def kinds(server: Server) -> list[str]:
    return [row["kind"] for row in server.events()]


def test_maintenance_by_signal_and_by_file_closes_the_driver_and_loses_no_row_of_anything_else(
    library: Path, server: Server, tmp_path: Path
) -> None:
    flag = tmp_path / "release"
    flags = (*FAST, "--server-url", server.url, "--release-file", str(flag))
    agent = started(library, tmp_path / "spool.db", *flags, gpus=1)
    until(lambda: len(server.bodies) >= 2)
    agent.send_signal(signal.SIGUSR1)
    until(lambda: "released" in kinds(server))
    (released,) = [row for row in server.events() if row["kind"] == "released"]
    assert (released["subject"], released["code"]) == ("nvml", 1)
    quiet_from = len(server.bodies)
    until(lambda: len(server.bodies) >= quiet_from + 2)
    # The agent still tells of itself, and no device row comes any more.
    late = [body for body in server.decoded()[quiet_from + 1 :] if Stream.DEVICE in body.streams]
    assert late == []
    until(lambda: [row["released"] for row in _healths(server)][-1:] == [1])
    agent.send_signal(signal.SIGUSR1)
    until(lambda: "reopened" in kinds(server))
    flag.touch()
    until(lambda: kinds(server).count("released") == 2)
    flag.unlink()
    until(lambda: kinds(server).count("reopened") == 2)
    after = len(server.bodies)
    until(lambda: any(Stream.DEVICE in body.streams for body in server.decoded()[after:]))
    stopped(agent)
    uuids = {device.uuid for body in server.decoded() for device in body.meta.devices}
    assert len(uuids) == 1


def test_sighup_takes_new_settings_and_keeps_the_old_where_the_new_are_impossible(
    library: Path, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('labels = "rack=r1"\n')
    flags = (*FAST, "--server-url", server.url, "--config", str(file), "--release-file", "")
    agent = started(library, tmp_path / "spool.db", *flags, gpus=1)
    until(lambda: len(server.bodies) >= 2)
    file.write_text("row_s = 'often'\n")
    agent.send_signal(signal.SIGHUP)
    until(lambda: "settings_refused" in kinds(server))
    (refused,) = [row for row in server.events() if row["kind"] == "settings_refused"]
    assert "row_s must be a number" in refused["detail"]
    file.write_text('labels = "rack=r2"\n')
    agent.send_signal(signal.SIGHUP)
    until(lambda: bool(server.decoded()[-1].meta.labels == {"rack": "r2"}))
    # What only shows when it is tried is refused as well: this port is the server's.
    file.write_text(f'labels = "rack=r3"\notlp_listen = "127.0.0.1:{server.server_port}"\n')
    agent.send_signal(signal.SIGHUP)
    until(lambda: kinds(server).count("settings_refused") == 2)
    assert "cannot listen for traces" in str(server.events())
    assert server.decoded()[-1].meta.labels == {"rack": "r2"}
    _, log = stopped(agent)
    assert "settings_reloaded" in kinds(server), log
    labels = [body.meta.labels["rack"] for body in server.decoded()]
    assert labels == sorted(labels)
    # The same spool, the same epoch: as if nothing had happened.
    assert len({(body.meta.spool, body.meta.driver_epoch) for body in server.decoded()}) == 1
    assert [body.meta.sequence for body in server.decoded()] == list(range(1, len(labels) + 1))


@pytest.mark.parametrize(
    "weather",
    ["500", "garbage", "never", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("429", "cut off"))],
)
def test_whatever_a_server_answers_nothing_is_lost_and_sigterm_ends_within_five_seconds(
    weather: str, library: Path, server: Server, tmp_path: Path
) -> None:
    never = threading.Event()

    def garbage(handler: _Handler) -> None:
        handler.wfile.write(b"\x00\xff nothing like HTTP\r\n\r\n")
        handler.close_connection = True

    def cut_off(handler: _Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        handler.close_connection = True

    server.answer = {
        "500": lambda handler: handler.say(500, b"oops"),
        "429": lambda handler: handler.say(429, headers=(("Retry-After", "1"),)),
        "garbage": garbage,
        "cut off": cut_off,
        "never": lambda _handler: never.wait(30),
    }[weather]
    path = tmp_path / "spool.db"
    agent = started(library, path, *FAST, "--server-url", server.url, "--release-file", "", gpus=1)
    until(lambda: server.posts >= 1)
    time.sleep(0.8)
    took_s, log = stopped(agent)
    never.set()
    assert took_s < 5.0, log
    spool = Spool(path, max_bytes=1 << 26)
    kept = spool.state()
    oldest = spool.oldest()
    spool.close()
    assert (kept.quarantined, kept.dropped_batches) == (0, 0)
    if weather != "cut off":  # there the server did answer 200
        assert oldest is not None
        assert oldest.sequence == 1


def test_a_body_the_server_will_never_take_is_set_aside_and_the_rest_goes_on(
    library: Path, server: Server, tmp_path: Path
) -> None:
    refused = iter([400])
    server.answer = lambda handler: handler.say(next(refused, 204), b"a reason")
    path = tmp_path / "spool.db"
    agent = started(library, path, *FAST, "--server-url", server.url, "--release-file", "", gpus=1)
    until(lambda: len(server.bodies) >= 3)
    stopped(agent)
    spool = Spool(path, max_bytes=1 << 26)
    assert [(sequence, reason) for sequence, _, reason in spool.refusals()] == [(1, "HTTP 400: a reason")]
    spool.close()


def test_enrolment_gives_the_node_a_token_of_its_own(library: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "join").write_text("j0in\n")
    command = ["enroll", "--server", server.url, "--join-token-file", str(tmp_path / "join"), "--node", "gpu-07"]
    env = environment(library, gpus=1)
    run = subprocess.run(
        [*_python(), *command, "--token-file", str(tmp_path / "token")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "token").read_text() == "n0de\n"
    assert "gpu-07 has joined" in run.stdout
    assert "n0de" not in run.stdout + run.stderr
    assert "j0in" not in run.stdout + run.stderr
    incomplete = subprocess.run([*_python(), "enroll"], env=env, capture_output=True, text=True, check=False)
    assert incomplete.returncode == 2
    assert "enroll needs --server-url and --join-token-file" in incomplete.stderr


def test_traces_from_a_neighbour_arrive_as_they_came(library: Path, server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = (*FAST, "--server-url", server.url, "--otlp-listen", f"127.0.0.1:{port}", "--release-file", "")
    agent = started(library, tmp_path / "spool.db", *flags, gpus=1)
    until(lambda: len(server.bodies) >= 1)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/traces", b'{"resourceSpans":[]}', {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert (answer.status, answer.read()) == (200, b"{}")
    until(lambda: bool(server.forwarded))
    stopped(agent)
    assert server.forwarded == [("/v1/traces", "application/json", b'{"resourceSpans":[]}')]


def test_orders_are_off_until_they_are_wanted_and_a_forged_one_is_told(
    library: Path, server: Server, tmp_path: Path
) -> None:
    now_us = time.time_ns() // 1_000
    order = Command(
        5, "gpu-01", "power_limit", {"device": "*", "watts": 300}, "n" * 20, now_us, now_us + 600_000_000, "00"
    )
    server.orders = [vars_of(order)]
    key, token = tmp_path / "key", tmp_path / "token"
    key.write_text(KEY)
    key.chmod(0o600)
    token.write_text("s3cret\n")
    flags = (*FAST, "--server-url", server.url, "--token-file", str(token), "--release-file", "")
    wanted = ("--commands", "--command-key-file", str(key), "--command-poll-s", "1", "--power-limit-min-w", "200")
    agent = started(library, tmp_path / "spool.db", *flags, *wanted, "--power-limit-max-w", "700", gpus=1)
    until(lambda: "order_refused" in kinds(server))
    (refused,) = [row for row in server.events() if row["kind"] == "order_refused"]
    assert "signature" in refused["detail"]
    stopped(agent)


def vars_of(order: Command) -> dict[str, Any]:
    return {name: getattr(order, name) for name in Command.__slots__} | {"args": dict(order.args)}


def test_systemd_hears_when_it_measures_and_when_it_ends(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        env = environment(library, gpus=1) | {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        agent = subprocess.Popen(
            [*_python(), "run", *FAST, "--spool-path", str(tmp_path / "spool.db"), "--release-file", ""],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert manager.recv(100) == b"READY=1"
        assert [manager.recv(100) for _ in range(3)] == 3 * [b"WATCHDOG=1"]
        agent.send_signal(signal.SIGTERM)
        said = b""
        while said != b"STOPPING=1":
            said = manager.recv(100)
        agent.communicate(timeout=15)
        assert agent.returncode == 0


def _python() -> list[str]:
    return [sys.executable, "-m", "collector"]


def test_a_signed_order_is_carried_out_within_the_node_s_bounds_and_undone_at_the_end(
    library: Path, server: Server, tmp_path: Path
) -> None:
    now_us = time.time_ns() // 1_000
    too_low, fine = (
        Command(6, "gpu-01", "power_limit", {"device": "*", "watts": watts}, letter * 20, now_us, now_us + 600_000_000)
        for letter, watts in (("l", 90), ("f", 300))
    )
    server.orders = [vars_of(replace(order, signature=order.sign(bytes.fromhex(KEY)))) for order in (too_low, fine)]
    key, token = tmp_path / "key", tmp_path / "token"
    key.write_text(KEY)
    key.chmod(0o600)
    token.write_text("s3cret\n")
    flags = (*FAST, "--server-url", server.url, "--token-file", str(token), "--release-file", "", "--commands")
    bounds = ("--command-key-file", str(key), "--command-poll-s", "1", "--power-limit-min-w", "200")
    agent = started(library, tmp_path / "spool.db", *flags, *bounds, "--power-limit-max-w", "700", gpus=1)
    until(lambda: "order_applied" in kinds(server))
    took_s, log = stopped(agent)
    assert took_s < 5.0, log
    (refused,) = [row for row in server.events() if row["kind"] == "order_refused"]
    assert "90 W is outside of [200, 700] W" in refused["detail"]
    told = [(row["kind"], row["code"]) for row in server.events() if row["kind"] in ("order_applied", "order_undone")]
    assert told == [("order_applied", 300_000), ("order_undone", 700_000)]


def test_a_driver_call_that_never_comes_back_costs_its_device_alone_and_does_not_hold_up_the_end(
    library: Path, server: Server, tmp_path: Path
) -> None:
    flags = ("--sample-s", "1", "--row-s", "2", "--batch-s", "2", "--no-gpm", "--node", "gpu-01", "--release-file", "")
    agent = started(library, tmp_path / "spool.db", *flags, "--server-url", server.url, gpus=8, faults="hang:3:*@3")
    until(lambda: _last_rows(server).count(3) == 0 and len(server.bodies) >= 4)
    after = len(server.bodies)
    until(lambda: len(server.bodies) >= after + 2)
    took_s, log = stopped(agent)
    assert took_s < 5.0, log
    for body in server.decoded()[after : after + 2]:
        rows = body.streams[Stream.DEVICE]
        assert set(rows["device"]) == {0, 1, 2, 4, 5, 6, 7}
        assert rows["samples_missed"].sum() == 0, "the healthy devices kept their cadence"
    hung = [row for body in server.decoded() for row in _device_events(body) if row["kind"] == "hung"]
    assert [row["device"] for row in hung] == [3]


def _last_rows(server: Server) -> list[int]:
    bodies = [body for body in server.decoded() if Stream.DEVICE in body.streams]
    return list(bodies[-1].streams[Stream.DEVICE]["device"]) if bodies else [3]


def _device_events(body: Body) -> list[dict[str, Any]]:
    frame = body.streams.get(Stream.DEVICE_EVENT)
    return [] if frame is None else frame.to_dicts()
