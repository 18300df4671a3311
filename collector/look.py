"""Looks around for ``--once``: reads every probe and source for some seconds and gathers what this node shows and hides.

It keeps nothing, sends nothing and tells no source that it was heard: an agent that runs beside it misses nothing.
"""

from __future__ import annotations

import os
import pwd
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from collector.clock import US_PER_S, Clock
from collector.config import FIELDS, Settings
from collector.probe import Probe, Row, Sight, Source, Sweep
from collector.recorder import agent_version
from collector.sampler import Cadence, RowBuilder
from collector.source_thread import SourceThreads
from collector.wire import DeviceRef, Stream

T = TypeVar("T")

DURATION_S: Final = 6.0
_PATIENCE_S: Final = 5.0
_TITLES: Final = {
    "nvml": "NVIDIA devices",
    "nvidia_smi": "NVIDIA devices (nvidia-smi)",
    "amd": "AMD devices",
    "dcgm": "DCGM exporter",
    "replay": "Replayed trace",
    "jobs": "Jobs",
    "infiniband": "Fabric",
    "host": "Host",
    "rapl": "Processor power",
    "redfish": "Node power (Redfish)",
    "ipmi": "Node power (IPMI)",
    "kernel_log": "Kernel log",
    "cloud": "Cloud instance",
    "engines": "Inference engines",
}
# Settings that are off or empty by default, and what each would add.
_OFFERS: Final = {
    "server_url": "somewhere to send what is measured",
    "dcgm_url": "devices and profiling metrics as a DCGM exporter tells them",
    "redfish_url": "power of the whole node, from its BMC over the network",
    "ipmi": "power of the whole node, from its BMC through the kernel",
    "engine_urls": "requests, tokens and latencies of vLLM and SGLang servers",
    "cloud": "instance type, zone, spot or on-demand, interruption notices",
    "otlp_listen": "traces of LLM calls made on this node",
    "environ": "job ids from the environment of processes, as a hint",
}
_OFF: Final = ("", False, "never")


@dataclass(frozen=True, slots=True)
class Device:
    """One device and its mean readings over the time it was looked at."""

    ref: DeviceRef
    row: Row
    used_mj: int | None
    """What its counter moved by; None without a counter."""


@dataclass(slots=True)
class Section:
    """One probe or source: what it shows and hides, and what went wrong while it was read."""

    name: str
    sights: tuple[Sight, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    @property
    def title(self) -> str:
        """What an operator would call it."""
        return _TITLES.get(self.name, self.name)


@dataclass(frozen=True, slots=True)
class Looked:
    """Everything that was seen."""

    node: str
    user: str
    version: str
    duration_s: float
    devices: tuple[Device, ...]
    events: tuple[str, ...]
    sections: tuple[Section, ...]
    offers: tuple[tuple[str, str], ...]
    measurable: bool
    """Whether anything here can be metered: a device, or the power of the node."""

    def to_json(self) -> dict[str, Any]:
        """Return the same as objects that JSON can hold."""
        return {
            "node": self.node,
            "user": self.user,
            "agent_version": self.version,
            "duration_s": self.duration_s,
            "measurable": self.measurable,
            "devices": [
                {"uuid": device.ref.uuid, "model": device.ref.model, "vendor": device.ref.vendor, "kind": device.ref.kind}
                | {"used_mj": device.used_mj, "readings": {k: v for k, v in sorted(device.row.items()) if v is not None}}
                for device in self.devices
            ],
            "events": list(self.events),
            "sections": [
                {
                    "name": section.name,
                    "title": section.title,
                    "rows": section.rows,
                    "errors": section.errors,
                    "sights": [
                        {"subject": s.subject, "seen": s.seen, "detail": s.detail, "remedy": s.remedy} for s in section.sights
                    ],
                }
                for section in self.sections
            ],
            "settings_that_would_add_more": [{"setting": name, "adds": adds} for name, adds in self.offers],
        }  # fmt: skip


def look(
    settings: Settings,
    clock: Clock,
    stop: threading.Event,
    probes: Sequence[tuple[str, Probe]],
    sources: Sequence[Source],
    *,
    duration_s: float = DURATION_S,
) -> Looked:
    """Read everything for a while; returns early where ``stop`` is set."""
    # To read jobs is to take in what hooks left for the agent; what can be seen of them is told without.
    threads = SourceThreads([source for source in sources if source.name != "jobs"], clock, jitter=lambda: 0.0)
    threads.start()
    views = [_View(name, probe, settings.sample_us) for name, probe in probes]
    cadence = Cadence(settings.sample_us, clock.now())
    until_us = clock.now().monotonic_us + round(duration_s * US_PER_S)
    while not stop.is_set() and clock.now().monotonic_us < until_us:
        clock.wait(cadence.wait_s(clock.now()))
        tick = cadence.reached(clock.now())
        if tick is not None and not tick.clock_step_us:
            for view in views:
                view.read(tick.due_us)
    devices = [device for view in views for device in view.devices()]
    sections = [Section(view.name, _sights(view.probe), dict(view.errors), view.extra_rows) for view in views]
    for _, probe in probes:
        probe.close()
    metered, heard = _heard(threads, sources)
    threads.close()
    return Looked(
        node=settings.node,
        user=_user(),
        version=agent_version(),
        duration_s=duration_s,
        devices=tuple(devices),
        events=tuple(dict.fromkeys(event for view in views for event in view.events)),
        sections=(*sections, *heard),
        offers=tuple(
            (name, adds) for name, adds in _OFFERS.items() if name in FIELDS and getattr(settings, name) in _OFF
        ),
        measurable=bool(devices) or metered,
    )


class _View:
    """What one probe said so far."""

    def __init__(self, name: str, probe: Probe, period_us: int) -> None:
        self.name = name
        self.probe = probe
        self.errors: Counter[str] = Counter()
        self.events: list[str] = []
        self.extra_rows = 0
        # One row for the whole time: its length is a multiple of the period far beyond it, so that only flush ends it.
        self._builder = RowBuilder(period_us=period_us, row_us=period_us * 1_000_000)
        self._sweep: Sweep | None = None
        self._first_mj: dict[int, int] = {}
        self._due_us = 0

    def read(self, due_us: int) -> None:
        sweep = self._sweep = self.probe.read()
        self._builder.add(due_us, sweep.readings)
        self._due_us = due_us
        self.errors.update(sweep.errors)
        self.extra_rows += sum(map(len, sweep.rows.values()))
        for reading in sweep.readings:
            energy_mj = reading.values.get("energy_mj")
            if energy_mj is not None:
                self._first_mj.setdefault(reading.device, int(energy_mj))
        self.events += [
            f"{sweep.devices[event.device].uuid}: {event.kind} {event.detail or event.code or ''}".rstrip()
            for event in sweep.events
            if event.kind != "not_supported"  # the sights say it better
        ]

    def devices(self) -> list[Device]:
        if self._sweep is None:
            return []
        found = []
        for row in self._builder.flush(self._due_us):
            position = int(row["device"] or 0)
            energy_mj, first_mj = row.get("energy_mj"), self._first_mj.get(position)
            used_mj = energy_mj - first_mj if isinstance(energy_mj, int) and first_mj is not None else None
            found.append(Device(self._sweep.devices[position], row, used_mj))
        return found


def _heard(threads: SourceThreads, sources: Sequence[Source]) -> tuple[bool, list[Section]]:
    sections = {source.name: Section(source.name) for source in sources}
    metered = False
    for seen in threads.take():
        section = sections[seen.source]
        section.rows += sum(map(len, seen.observation.rows.values()))
        for kind, count in seen.observation.errors.items():
            section.errors[kind] = section.errors.get(kind, 0) + count
        for row in seen.observation.rows.get(Stream.NODE, ()):
            metered |= row.get("energy_mj") is not None or row.get("power_mw") is not None
    for source in sources:
        sections[source.name].sights = _sights(source)
    return metered, list(sections.values())


def _sights(seer: object) -> tuple[Sight, ...]:
    """Ask for sights, but not for ever: this may be the first time that anything touches a broken device."""
    ask: Callable[[], tuple[Sight, ...]] | None = getattr(seer, "sights", None)
    if ask is None:
        return ()
    answer = _within(_PATIENCE_S, ask)
    return answer or (Sight("answer", seen=False, detail=f"none within {_PATIENCE_S:g} s"),)


def _within(patience_s: float, ask: Callable[[], T]) -> T | None:
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(patience_s)
    return answers[0] if answers else None


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"  # a container need not know its users
