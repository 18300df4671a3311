"""The agent as a whole: composes probe, recorder, spool and shipper, and runs the one loop that measures.

Measuring and sending are two threads that meet in the spool only, so a server that hangs never delays a reading.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import ssl
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from collector.clock import US_PER_S, Clock
from collector.config import Settings
from collector.errors import AgentError, LibraryReplacedError, SpoolError
from collector.http import httpx
from collector.probe import Probe, Sweep
from collector.probe.nvml import NvmlProbe
from collector.probe.replay import ReplayProbe
from collector.recorder import Recorder, agent_version
from collector.sampler import Cadence
from collector.ship import TIMEOUT, Shipper
from collector.spool import Spool

_LOG = logging.getLogger(__name__)

_BYTES_PER_MIB: Final = 1_048_576
_DRIVER_EPOCH: Final = "driver_epoch"
_SHIP_DRAIN_S: Final = 2.0


@dataclass(slots=True)
class Health:
    """What the agent says about itself."""

    probe_errors: Counter[str] = field(default_factory=Counter)
    loop_errors: int = 0
    clock_steps: int = 0


class Agent:
    """One agent; :meth:`run` measures until ``stop`` is set or, when replaying, the trace is over."""

    def __init__(self, settings: Settings, probe: Probe, spool: Spool, clock: Clock, shipper: Shipper | None) -> None:
        """Compose what was made elsewhere."""
        self.health = Health()
        self.recorder = Recorder(
            spool,
            clock,
            node=settings.node,
            period_us=settings.sample_us,
            row_us=settings.row_us,
            batch_us=settings.batch_us,
            labels=settings.label_pairs,
        )
        self._settings = settings
        self._probe = probe
        self._spool = spool
        self._clock = clock
        self._shipper = shipper
        self._driver_epoch: tuple[str, int] | None = None

    def run(self, stop: threading.Event) -> None:
        """Measure on the cadence; flush what is begun at the end. Raises LibraryReplacedError."""
        cadence = Cadence(self._settings.sample_us, self._clock.now())
        health_at_us = self._clock.now().monotonic_us + round(self._settings.health_s * US_PER_S)
        try:
            while not stop.is_set() and not getattr(self._probe, "finished", False):
                self._clock.wait(cadence.wait_s(self._clock.now()))
                if stop.is_set():
                    break
                self._turn(cadence)
                if self._clock.now().monotonic_us >= health_at_us:
                    health_at_us += round(self._settings.health_s * US_PER_S)
                    _LOG.info("%s", self.describe_health())
        finally:
            self.recorder.flush()
            self._probe.close()
            _LOG.info("%s", self.describe_health())

    def describe_health(self) -> str:
        """Return one line of figures about the agent itself."""
        recorder, usage = self.recorder.state, resource.getrusage(resource.RUSAGE_SELF)
        parts = {
            "samples": recorder.samples,
            "missed": recorder.samples_missed,
            "batches": recorder.batches,
            "dropped_rows": recorder.dropped_rows,
            "spool_failures": recorder.spool_failures,
            "clock_steps": self.health.clock_steps,
            "loop_errors": self.health.loop_errors,
            "rss_mib": f"{rss_bytes() / _BYTES_PER_MIB:.1f}",
            "cpu_s": f"{usage.ru_utime + usage.ru_stime:.2f}",
        }
        try:
            held = self._spool.state()
            parts |= {
                "spool_batches": held.batches,
                "spool_bytes": held.bytes,
                "quarantined": held.quarantined,
                "spool_dropped_batches": held.dropped_batches,
            }
        except SpoolError:
            parts["spool_batches"] = "unknown"  # the failure itself was logged where it happened
        if self._shipper is not None:
            parts |= {
                "sent_batches": self._shipper.state.sent_batches,
                "failed_sends": self._shipper.state.failed_attempts,
            }
        errors = ",".join(f"{kind}*{count}" for kind, count in sorted(self.health.probe_errors.items()))
        return (
            "health "
            + " ".join(f"{name}={value}" for name, value in parts.items())
            + f" probe_errors={errors or 'none'}"
        )

    def _turn(self, cadence: Cadence) -> None:
        """Do what is due now; the one place where an unforeseen fault is survived."""
        try:
            tick = cadence.reached(self._clock.now())
            if tick is None:
                return
            if tick.clock_step_us:
                self.health.clock_steps += 1
                _LOG.warning("the wall clock stepped by %.3f s", tick.clock_step_us / US_PER_S)
                self.recorder.clock_stepped()
                return
            sweep = self._probe.read()
            self._note(sweep)
            self.recorder.record(tick, sweep)
        except LibraryReplacedError:
            raise
        except Exception:  # noqa: BLE001  the outermost loop of the process
            self.health.loop_errors += 1
            _LOG.exception("one turn of the loop failed; going on")

    def _note(self, sweep: Sweep) -> None:
        self.health.probe_errors.update(sweep.errors)
        for event in sweep.events:
            uuid_of = sweep.devices[event.device].uuid
            _LOG.warning("device %s: %s code=%s %s", uuid_of, event.kind, event.code, event.detail or "")
        epoch = (sweep.epoch.boot_id, sweep.epoch.driver_epoch)
        if epoch != self._driver_epoch:
            # Before any batch of the new epoch is stored: a restart must not give the number to another epoch.
            try:
                self._spool.remember(_DRIVER_EPOCH, f"{epoch[0]} {epoch[1]}")
            except SpoolError as error:
                _LOG.error("cannot note the driver epoch, trying again with the next reading: %s", error)
                return
            self._driver_epoch = epoch


def run_agent(settings: Settings, clock: Clock, stop: threading.Event, *, replay: Path | None = None) -> None:
    """Compose an agent from settings and run it. Raises AgentError where it cannot start or has to leave."""
    with _only_one(settings), open_client(settings) as client:
        spool = Spool(Path(settings.spool_path), max_bytes=settings.spool_max_mib * _BYTES_PER_MIB)
        for damaged in spool.damaged_files:
            _LOG.error("the spool was damaged; it is kept as %s and a new one was started", damaged)
        if not spool.durable:
            _LOG.warning("the spool %s lies in memory: batches are lost at a reboot", spool.path)
        shipper = Shipper(client, spool, clock, token=settings.token) if settings.server_url else None
        agent = Agent(settings, make_probe(settings, spool, clock, replay), spool, clock, shipper)
        _LOG.info("wattledger-agent %s on %s, spool %s", agent_version(), settings.node, spool.uuid)
        sender = threading.Thread(target=shipper.run, args=(stop,), name="ship", daemon=True) if shipper else None
        if sender:
            sender.start()
        try:
            agent.run(stop)
        finally:
            stop.set()
            if sender:
                sender.join(_SHIP_DRAIN_S)  # what is on its way may arrive; what is not stays in the spool
            if sender is None or not sender.is_alive():
                spool.close()


def make_probe(settings: Settings, spool: Spool, clock: Clock, replay: Path | None) -> Probe:
    """Return the probe to read: the node's devices, or a trace."""
    if replay is not None:
        # Counters of a trace start over at each replay, so each replay is a boot of its own.
        return ReplayProbe(replay, clock, boot_id=f"replay-{uuid.uuid4()}")
    boot_id = read_boot_id()
    known_boot, _, known_epoch = (spool.recall(_DRIVER_EPOCH) or "").partition(" ")
    driver_epoch = int(known_epoch) if known_boot == boot_id and known_epoch else 0
    return NvmlProbe(clock, boot_id=boot_id, driver_epoch=driver_epoch, gpm=settings.gpm)


def read_boot_id() -> str:
    """Return the kernel's id of this boot. Raises AgentError where there is none: without it epochs could not be told apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError as error:
        raise AgentError(f"cannot read the boot id: {error}") from error


def rss_bytes() -> int:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the lock beside the spool: two agents on one node would count every device twice."""
    path = Path(settings.spool_path + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.open("w", encoding="ascii")
    except OSError as error:
        raise AgentError(
            f"cannot write beside the spool: {error}; set spool_path to a folder this user may write"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError(
                f"another agent holds {path}; stop it first, or give this one its own spool_path"
            ) from error
        yield


@contextmanager
def open_client(settings: Settings) -> Iterator[httpx.Client]:
    """Give out a client for the configured server. Raises AgentError where a certificate cannot be used."""
    verify: ssl.SSLContext | bool = True
    if settings.ca_file or settings.client_cert_file:
        try:
            verify = ssl.create_default_context(cafile=settings.ca_file or None)
            if settings.client_cert_file:
                verify.load_cert_chain(settings.client_cert_file, settings.client_key_file)
        except (OSError, ssl.SSLError) as error:
            raise AgentError(f"cannot load the certificates: {error}") from error
    headers = {"User-Agent": f"wattledger-agent/{agent_version()}", "Accept": "application/json"}
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx.Client(
        base_url=settings.server_url, verify=verify, timeout=TIMEOUT, headers=headers, limits=limits
    ) as client:
        yield client
