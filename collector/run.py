"""Composes an agent from its settings and runs it, again with others where it was told to read them anew.

It owns what outlives a reload: the process, the spool with what waits for it, probes that still owe their driver its closing, and a
release by signal. It measures and sends nothing itself.
"""

from __future__ import annotations

import fcntl
import logging
import os
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from collector import logs
from collector.agent import Agent, Ending
from collector.clock import Clock, SystemClock
from collector.commands.left import orders_may_be_left
from collector.config import Settings
from collector.doorbell import Doorbell
from collector.errors import AgentError, ConfigError, LibraryReplacedError
from collector.exchange import IDENTITY, no_cookies
from collector.http import httpx
from collector.look import Looked, look
from collector.memory import give_back, no_authorities, one_heap, usual_authorities
from collector.placement import pin, step_back
from collector.probe import Probe
from collector.probe.replay import ReplayProbe
from collector.probe_thread import ProbeThread
from collector.recorder import agent_version
from collector.release import Release
from collector.service import ServiceManager
from collector.ship import BODIES_PER_S, DRAIN_S, TIMEOUT, Shipper
from collector.source_thread import SourceThreads
from collector.sources import Around, make_probes, make_sources
from collector.spool import Spool
from collector.stores import Stores
from collector.wire import DeviceRef

_LOG = logging.getLogger(__name__)

_BYTES_PER_MIB: Final = 1_048_576
LOCK_NAME: Final = "agent.lock"
_PROBES: Final = ("nvml", "amd", "dcgm")


class Runner:
    """Runs one agent after the other, each with the settings that held when it began."""

    def __init__(self, settings: Settings, load: Callable[[], Settings], *, replay: Path | None = None) -> None:
        """Begin with ``settings``; ``load`` reads them anew, and raises ConfigError where they are impossible."""
        self._settings = settings
        self._load = load
        self._replay = replay
        self._next: Settings | None = None
        self._refused: str | None = None
        self._agent: Agent | None = None
        self._owing: list[ProbeThread] = []
        """Closed, but for a driver call that hung: they go on closing by themselves."""
        self._release = Release()
        self._left_released = False
        """Whether the agent before ended while the devices were let go: counters may have been reset since it read them."""
        self._stores = Stores()
        self._doorbell = Doorbell()
        self._service = ServiceManager(os.environ, os.getpid())

    def run(self, signals: tuple[int, ...]) -> None:
        """Run until told to stop. Raises AgentError where the agent cannot start or has to leave."""
        one_heap()
        self._doorbell.watch(signals)
        if self._settings.low_priority:
            for fault in step_back():
                _LOG.warning("%s", fault)
        try:
            self._run_all()
        finally:
            self._stores.close()

    def _run_all(self) -> None:
        before: Settings | None = None
        while True:
            try:
                ending = self._run_once(self._settings)
            except LibraryReplacedError:
                raise
            except AgentError as error:
                if before is None:
                    raise
                self._refused = f"kept the settings before: {error}"
                _LOG.error("%s", self._refused)
                self._settings, before = before, None
                continue
            if ending is Ending.STOPPED or self._next is None:
                return
            before, self._settings, self._next = self._settings, self._next, None

    def _run_once(self, settings: Settings) -> Ending:
        logs.set_level(settings.log_level)
        if settings.cpu_affinity and (fault := pin(settings.cpu_affinity)):
            _LOG.warning("%s", fault)
        stop = threading.Event()
        clock = SystemClock(stop, self._doorbell.wait)
        with _only_one(settings), open_client(settings) as client:
            spool = self._stores.spool(settings)
            shipper = _shipper(settings, client, spool, stop)
            boot_id = read_boot_id()
            self._agent = None
            give_back()  # of the agent before this one
            probes = self._probes(settings, spool, clock, boot_id)
            around = Around(clock, boot_id, dict(probes), spool, self._devices)
            # Readings of now beside a trace of then would be neither.
            sources = make_sources(settings, around) if self._replay is None else []
            devices = self._threads(probes)
            self._release.watch(settings.release_file)
            agent = self._agent = Agent(
                settings,
                devices,
                SourceThreads(sources, clock, ring=self._doorbell.ring),
                spool,
                clock,
                shipper,
                boot_id=boot_id,
                doorbell=self._doorbell,
                service=self._service,
                reload=self._reload,
                release=self._release,
                writer=self._stores.writer_of(spool),
                owing=[device for device in self._owing if device.name not in dict(probes)],
            )
            try:
                self._add_helpers(agent, settings, spool, clock)
            except AgentError:
                for device in devices:
                    device.begin_close()
                self._stores.abandon(spool)
                raise
            self._stores.begin(agent.recorder.writer)
            if self._refused:
                agent.tell("settings_refused", detail=self._refused)
                self._refused = None
            _LOG.info("wattledger-agent %s on %s, spool %s", agent_version(), settings.node, spool.uuid)
            sender = threading.Thread(target=shipper.run, args=(stop,), name="ship", daemon=True) if shipper else None
            if sender:
                sender.start()
            try:
                return agent.run(stop)
            finally:
                stop.set()
                self._left_released = agent.released
                self._owing = [device for device in (*self._owing, *devices) if not device.gone]
                if sender:
                    # What is on its way may arrive; what is not stays in the spool. A disk that hangs keeps the sender too.
                    sender.join(DRAIN_S if agent.stored else 0.0)
                if agent.hands_on:
                    self._stores.keep(agent.recorder.writer)
                elif agent.stored and (sender is None or not sender.is_alive()):
                    spool.close()

    def _threads(self, probes: list[tuple[str, Probe]]) -> list[ProbeThread]:
        owing = self._owing
        return [
            ProbeThread(name, probe, before=[device for device in owing if device.name == name])
            for name, probe in probes
        ]

    def _probes(self, settings: Settings, spool: Spool, clock: Clock, boot_id: str) -> list[tuple[str, Probe]]:
        if self._replay is not None:
            # Counters of a trace start over at each replay, so each replay is a boot of its own.
            return [("replay", ReplayProbe(self._replay, clock, boot_id=f"replay-{uuid.uuid4()}"))]
        # What the agent before knew of the counters, to see whether they went on, went with it.
        beyond = 1 if self._left_released else 0
        epochs = {name: self._stores.known_epoch(spool, name, boot_id) + beyond for name in _PROBES}
        return make_probes(settings, clock, boot_id=boot_id, driver_epochs=epochs)

    def _devices(self) -> tuple[DeviceRef, ...]:
        return self._agent.recorder.devices() if self._agent else ()

    def _add_helpers(self, agent: Agent, settings: Settings, spool: Spool, clock: Clock) -> None:
        if settings.otlp_listen:
            from collector.otlp_listener import OtlpListener  # noqa: PLC0415

            agent.beside.append(OtlpListener(settings.otlp_listen, spool, lambda: clock.now().wall_us))
        if self._replay is not None:
            return
        if settings.commands:
            from collector.commands.compose import make_channel  # noqa: PLC0415

            agent.beside.append(make_channel(settings, open_client, agent, spool, clock))
        elif orders_may_be_left(spool, in_spool=self._stores.writer_of(spool) is None):
            # Switched off after a crash, say: a limit that an order set is not to stay for good.
            from collector.commands.compose import make_undoing  # noqa: PLC0415

            agent.beside.append(make_undoing(agent, spool, clock))

    def _reload(self) -> bool:
        """Read the settings anew; say whether a new agent has to be made for them."""
        agent = self._agent
        assert agent is not None  # noqa: S101  the agent itself asks
        try:
            found = self._load()
        except ConfigError as error:
            _LOG.error("the settings stay as they are: %s", error)
            agent.tell("settings_refused", detail=str(error))
            return False
        if found == self._settings:
            _LOG.info("the settings are what they were")
            return False
        agent.tell("settings_reloaded")
        self._next = found
        return True


def look_around(settings: Settings, clock: Clock, stop: threading.Event, *, replay: Path | None) -> Looked:
    """Read what an agent with these settings would read, for ``--once``. Opens no spool and sends nothing."""
    probes: list[tuple[str, Probe]]
    if replay is not None:
        probes = [("replay", ReplayProbe(replay, clock, boot_id="once"))]
    else:
        probes = make_probes(settings, clock, boot_id=read_boot_id(), driver_epochs={})
    return look(settings, clock, stop, probes, make_sources(settings, Around(clock, read_boot_id(), dict(probes))))


def read_boot_id() -> str:
    """Return the kernel's id of this boot. Raises AgentError where there is none: without it epochs could not be told apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError as error:
        raise AgentError(f"cannot read the boot id: {error}") from error


def _shipper(settings: Settings, client: httpx.Client, spool: Spool, stop: threading.Event) -> Shipper | None:
    if not settings.server_url:
        return None
    limit = round(settings.ship_max_mib_per_s * _BYTES_PER_MIB) or None
    clock = SystemClock(stop)
    return Shipper(client, spool, clock, token=settings.token, max_bytes_per_s=limit, bodies_per_s=BODIES_PER_S)


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the lock beside the spool: two agents on one node would count every device twice."""
    path = Path(settings.spool_path + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _open_lock(path)
    except OSError as error:
        raise AgentError(
            f"cannot write beside the spool: {error}; set spool_path to a folder this user may write"
        ) from error
    otherwise = f"another agent holds {path}; stop it first, or give this one its own spool_path"
    with _held(lock, otherwise), _only_one_on_the_node(settings):
        yield


@contextmanager
def _only_one_on_the_node(settings: Settings) -> Iterator[None]:
    """Hold a file beside the release file, where its folder is: an agent with another spool counts every device twice as well.

    Where the folder is not there nobody has installed an agent as a service.
    """
    folder = Path(settings.release_file).parent
    if not settings.release_file or not folder.is_dir():
        yield
        return
    path = folder / LOCK_NAME
    try:
        lock = _open_lock(path)
    except OSError as error:
        if not os.path.lexists(path):
            # Who could have made it would hold it; this one goes on, unguarded.
            _LOG.warning("a second agent on this node would not be noticed: %s", error)
            yield
            return
        raise AgentError(
            f"cannot open {path}: {error}; an agent of another user is installed on this node, stop it and remove that file"
        ) from error
    with _held(lock, f"another agent runs on this node and holds {path}; stop it first"):
        yield


def _open_lock(path: Path) -> int:
    """Open or make a file that nobody but its owner can open, hence lock: whoever can read a file can hold its lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _held(descriptor: int, otherwise: str) -> Iterator[None]:
    """Hold the lock of an open file and close it in the end. Raises AgentError where another holds it or it cannot be locked."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AgentError(otherwise) from error
        except OSError as error:
            raise AgentError(
                f"cannot lock a file: {error}; locks are needed beside the spool and the release file"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def open_client(settings: Settings) -> Iterator[httpx.Client]:
    """Give out a client for the configured server. Raises AgentError where a certificate cannot be used."""
    verify: ssl.SSLContext
    try:
        if settings.ca_file or settings.client_cert_file:
            verify = ssl.create_default_context(cafile=settings.ca_file or None)
            if settings.client_cert_file:
                verify.load_cert_chain(settings.client_cert_file, settings.client_key_file)
        elif settings.server_url.lower().startswith("https:"):
            verify = usual_authorities(trust_env=True)
        else:
            verify = no_authorities()
    except (OSError, ssl.SSLError) as error:
        raise AgentError(f"cannot load the certificates: {error}") from error
    headers = {
        "User-Agent": f"wattledger-agent/{agent_version()}",
        "Accept": "application/json",
        "Accept-Encoding": IDENTITY,
    }
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx.Client(
        base_url=settings.server_url,
        verify=verify,
        timeout=TIMEOUT,
        headers=headers,
        limits=limits,
        cookies=no_cookies(),
    ) as client:
        yield client
