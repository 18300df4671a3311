"""The source of allocations and shares: gathers all evidence of a node, keeps the ledger, and tells what begins and ends.

Hooks are read on every call, all else every five seconds. What is told is noted in the facts first, so that a restart neither
loses an end nor tells a begin anew under another instant. It judges nothing itself and fails no other source.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from collector.clock import US_PER_S, Clock, Instant
from collector.errors import AgentError
from collector.jobs import kubelet, pods, state
from collector.jobs.evidence import Evidence, Finding, Grant, JobKey
from collector.jobs.hooks import HELD, HookEvent, HookFolder
from collector.jobs.ledger import Ledger
from collector.jobs.looks import PodLook, ProcessLook, mapped_grants
from collector.jobs.mapping import MappingFolder
from collector.jobs.names import DeviceNames, MinorNumbers, read_minors
from collector.jobs.processes import EnvironMode, ProcessTable
from collector.jobs.roster import Roster
from collector.jobs.rows import allocation_row, anew_row, finding_row, found_held
from collector.jobs.shares import Sample, share_rows
from collector.jobs.sight import job_sights
from collector.jobs.told import KEPT_US, Facts, Told, put_away, recall_told
from collector.jobs.watch import FolderWatch
from collector.probe import Observation, ProcessReading, Row, Sight
from collector.sampler import STEP_US
from collector.wire import DeviceRef, Stream, cleaned

_LOG = logging.getLogger(__name__)

HOOK_FOLDER: Final = Path("/run/wattledger/jobs")
MAPPING_FOLDERS: Final[tuple[MappingFolder, ...]] = (MappingFolder(Path("/run/gpustat"), "minor"),)
FACT: Final = "jobs"
PERIOD_S: Final = 5.0
_EARLY_US: Final = 500_000
_HELD_TOLD_US: Final = 5_000_000
"""So long the hooks' folder may be another's before it is told: the agent before this one may still be about to let go of it."""
_KUBELET_EVERY: Final = 2
_HEARTBEAT_US: Final = 60_000_000
_LOOKS_BEFORE_ANEW: Final = 3
"""An agent that knows nothing says what it found after so many looks: by then the driver was asked for processes, and hooks are in."""
_MUST_ANSWER: Final = ("jobs:kubelet_", "jobs:mapping_unusable", "jobs:hook", "jobs:minor", "jobs:processes_from")
"""While one of these failed, what is not seen may be held all the same."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What an operator decides."""

    cluster: str = "local"
    """The cluster of jobs whose manager does not say which it is; Slurm's hooks do."""
    node: str = ""
    """The name this node's readings are told under, to be compared with the hooks'; empty: it is not compared."""
    environ: EnvironMode = "hint"
    slurm_shared: bool = False
    """Slurm gives a device to several jobs at once (shards, MPS), even where the hooks are not told the parts."""


@dataclass(frozen=True, slots=True)
class JobPlaces:
    """Where evidence lies."""

    proc_root: Path = Path("/proc")
    hook_folder: Path = HOOK_FOLDER
    mapping_folders: tuple[MappingFolder, ...] = MAPPING_FOLDERS
    kubelet_socket: Path = kubelet.SOCKET
    pod_folder: Path = pods.FOLDER


_SETTINGS: Final = JobSettings()
_PLACES: Final = JobPlaces()


class JobSource:
    """Which job holds which device (stream ALLOCATION), what each used of it (DEVICE_SHARE), and contradictions (NODE_EVENT).

    Beside the methods of a source it has :meth:`wait`, which whoever paces it may use instead of sleeping: it returns early when a
    hook has run, so that the counters can be read at that moment; and :meth:`stop`, which ends a wait from another thread.
    """

    name: str = "jobs"
    period_s: float = PERIOD_S

    def __init__(
        self,
        *,
        clock: Clock,
        processes: Callable[[], tuple[ProcessReading, ...]],
        devices: Callable[[], tuple[DeviceRef, ...]],
        boot_id: str = "",
        facts: Facts | None = None,
        settings: JobSettings = _SETTINGS,
        places: JobPlaces = _PLACES,
        table: ProcessTable | None = None,
    ) -> None:
        """Look at nothing yet. ``table`` replaces the one that reads ``places.proc_root``."""
        self._clock = clock
        self._processes = processes
        self._devices = devices
        self._facts = facts
        self._settings = settings
        self._places = places
        self._folder = HookFolder(places.hook_folder)
        self._mappings = places.mapping_folders
        self._table = table or ProcessTable(proc_root=places.proc_root, environ=settings.environ)
        self._pods = pods.PodNames(places.pod_folder)
        self._ledger = Ledger()
        self._roster = Roster(settings.cluster, self._needed)
        self._process_look = ProcessLook(self._table, self._roster, self._pods)
        self._pod_look = PodLook(kubelet.KubeletClient(places.kubelet_socket), self._roster, self._pods)
        self._memory = state.Memory(boot_id)
        self._names = DeviceNames((), {})
        self._minors = MinorNumbers(lambda: read_minors(places.proc_root))
        self._unplaced: dict[str, HookEvent] = {}
        """Jobs whose devices could not be found yet, by number: the driver may come up after the first job."""
        self._undeletable: set[str] = set()
        """Files this user may not delete; the hooks' own limit takes them away some day."""
        self._watch: FolderWatch | None = None
        self._stopped = False
        self._recalled = False
        self._looks = 0
        self._looked_us: int | None = None
        self._saved_us = 0
        self._shares_at_us = 0
        self._last_readings: tuple[ProcessReading, ...] | None = None
        self._last_errors: Counter[str] = Counter()
        self._found: list[Finding] = []
        self._read_at: Instant | None = None
        self._slurm_node: str | None = None
        """Slurm's name of this node, where it is another than ours; None while none was told."""
        self._held_since_us: int | None = None
        """Since when the hooks' folder is another agent's, on the monotonic clock."""
        self._held_told = False

    def read(self) -> Observation:
        """Take in what is new; look at processes, kubelet and mapping folders where that is due."""
        now = self._clock.now()
        errors: Counter[str] = Counter()
        rows: dict[Stream, list[Row]] = {Stream.ALLOCATION: [], Stream.DEVICE_SHARE: [], Stream.NODE_EVENT: []}
        if not self._recalled and not self._recall(now.wall_us, rows, errors):
            # To go on without would tell the begins of running jobs anew. Where facts cannot be read nothing can be shipped either.
            self._last_errors = errors
            return Observation({}, dict(errors))
        self._follow_clock(now, errors)
        self._find_devices(errors)
        taken = self._take_hooks(errors)
        self._notice_held(now)
        due = self._looked_us is None or now.monotonic_us - self._looked_us >= round(PERIOD_S * US_PER_S) - _EARLY_US
        # While hooks wait to be taken in, a process could be of a job whose begin is not known yet.
        if due and self._names.devices and not self._folder.more:
            self._looked_us = now.monotonic_us
            rows[Stream.DEVICE_SHARE] = self._look(now.wall_us, errors)
        self._tell(now.wall_us, rows, errors, changed=bool(taken), anew=due and self._may_tell_anew(errors))
        self._last_errors = errors
        return Observation({stream: tuple(found) for stream, found in rows.items() if found}, dict(errors))

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a hook has run (True), or for ``timeout_s`` (False)."""
        if self._stopped:
            return False
        if self._folder.more:
            return True
        if self._watch is None:
            try:
                self._watch = FolderWatch([self._folder.path, *(folder.path for folder in self._mappings)])
            except OSError:  # no descriptor to be had: then at the pace of the period
                self._clock.wait(timeout_s)
                return False
        return self._watch.wait(timeout_s)

    def stop(self) -> None:
        """End the present wait and all later ones; from any thread."""
        self._stopped = True
        watch = self._watch
        if watch is not None:
            watch.stop()

    def sights(self) -> tuple[Sight, ...]:
        """Say which evidence of jobs this node gives, and which right or file would add what is missing."""
        return job_sights(
            self._folder,
            self._mappings,
            self._places.kubelet_socket,
            self._table,
            self._names,
            self._settings.environ,
            (self._settings.node, self._slurm_node),
            self._last_errors,
        )

    def close(self) -> None:
        """Let go of sockets and watches; holdings go on, to be taken up by the next agent."""
        self._pod_look.close()
        self._folder.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _recall(self, now_us: int, rows: dict[Stream, list[Row]], errors: Counter[str]) -> bool:
        """Go on where the last agent was: what it told last is told again, what a reboot ended is ended.

        Return whether the facts could be asked.
        """
        text: str | None = None
        told: list[Row] = []
        memory: state.Memory | None = None
        if self._facts is not None:
            try:
                text = self._facts.recall(FACT)
                memory = state.load(text, self._ledger, self._roster)
                if memory is not None:
                    told, damaged = recall_told(memory.parts, self._facts)
                    errors.update({"jobs:state_damaged": damaged} if damaged else {})
            except AgentError:
                errors["jobs:state_unreadable"] += 1
                self._ledger.devices.clear()
                self._roster.runs.clear()
                return False
        self._recalled = True
        if memory is None:
            if text is not None:
                errors["jobs:state_damaged"] += 1
            if self._facts is not None:
                self._memory.anew_at_us = now_us
            return True
        boot_id, self._memory = self._memory.boot_id, memory
        for name in memory.unplaced:
            memory.files.pop(name, None)
        rows[Stream.ALLOCATION] += [*told, *(entry.row for entry in memory.told)]
        if memory.boot_id != boot_id:
            self._ledger.rebooted(memory.at_us)
            self._memory.boot_id = boot_id
            self._memory.files = {}
        memory.handed_on(now_us)  # they are on their way again
        if memory.anew_told and memory.anew_at_us is not None:
            if now_us - memory.anew_at_us < KEPT_US:
                rows[Stream.NODE_EVENT].append(anew_row(memory.anew_at_us))
            else:
                memory.anew_at_us = None
        if memory.at_us - now_us > STEP_US:
            self._clock_set_back(now_us, memory.at_us - now_us, errors)
        return True

    def _follow_clock(self, now: Instant, errors: Counter[str]) -> None:
        """Notice that the wall clock was set back since the last reading; forward it only makes what is known older."""
        before, self._read_at = self._read_at, now
        if before is not None and before.offset_us - now.offset_us > STEP_US:
            # All that is known was known by the last reading, which was then by the clock as it is now.
            self._clock_set_back(before.monotonic_us + now.offset_us, before.offset_us - now.offset_us, errors)

    def _clock_set_back(self, known_us: int, back_us: int, errors: Counter[str]) -> None:
        errors["jobs:clock_set_back"] += 1
        self._ledger.clock_set_back(known_us)
        self._roster.clock_set_back(known_us)
        self._shares_at_us = min(self._shares_at_us, known_us)
        self._memory.clock_set_back(known_us)
        running = sum(
            held.since_us > known_us for device in self._ledger.devices.values() for held in device.open.values()
        )
        detail = (
            f"the wall clock was set back by {back_us / US_PER_S:.3f} s; {running} holdings had begun later than that"
        )
        self._found.append(Finding(known_us, "job_clock_set_back", "", detail))

    def _dated(self, event: HookEvent, errors: Counter[str]) -> HookEvent:
        """Return an event of a clock that has been set back since as of now: nothing happens in times to come."""
        now_us = self._clock.now().wall_us
        if event.at_us - now_us <= STEP_US:
            return event
        errors["jobs:hook_from_the_future"] += 1
        return replace(event, at_us=now_us)

    def _find_devices(self, errors: Counter[str]) -> None:
        devices = self._devices()
        # Again while there are no numbers: the driver's list may come up late. What is there is not asked twice: it wakes boards.
        if devices and (not self._names.numbered or devices != self._names.devices):
            minors, answered = self._minors.ask()
            if not answered:
                errors["jobs:minor_numbers_overdue"] += 1
            self._names = DeviceNames(devices, minors)

    def _take_hooks(self, errors: Counter[str]) -> list[HookEvent]:
        events = [self._dated(event, errors) for event in self._folder.read(self._memory.files)]
        for name in self._memory.files.keys() - self._folder.present:
            del self._memory.files[name]
            self._undeletable.discard(name)
        for kind, count in self._folder.errors.items():
            errors[f"jobs:{kind}"] += count
        for event in events:
            self._memory.files[event.name] = event.job_id
            if event.boot_id is not None and self._memory.boot_id and event.boot_id != self._memory.boot_id:
                continue  # of an earlier boot, whose jobs are gone; the folder is not on a tmpfs
            self._compare_node(event)
            run = self._roster.hooked(event)
            if event.action == "end":
                self._unplaced.pop(event.job_id, None)
                self._ledger.released(event.at_us, run.job.key)
            else:
                self._ledger.begun(event.at_us, run.job.key)
                self._unplaced[event.job_id] = event
                self._place(event)
        for event in list(self._unplaced.values()):
            self._place(event)
        if self._unplaced and self._names.devices:
            errors["jobs:hook_device_unknown"] += len(self._unplaced)
            if not self._names.numbered:
                errors["jobs:minor_numbers_unknown"] += 1
        return events

    def _notice_held(self, now: Instant) -> None:
        """Tell once each time that another agent has the hooks' folder: no begin and no end of a job is told by this one then."""
        if HELD not in self._folder.errors:
            self._held_since_us, self._held_told = None, False
            return
        if self._held_since_us is None:
            self._held_since_us = now.monotonic_us
        if not self._held_told and now.monotonic_us - self._held_since_us >= _HELD_TOLD_US:
            self._held_told = True
            detail = f"another agent holds {self._folder.path}; what the hooks tell is not told by this one: run one agent a node"
            self._found.append(Finding(now.wall_us, "hooks_held", "", detail))

    def _compare_node(self, event: HookEvent) -> None:
        """Tell once that Slurm calls this node otherwise: what is imported from Slurm would be of another node."""
        if event.node is None or not self._settings.node or self._slurm_node or event.node == self._settings.node:
            return
        self._slurm_node = event.node
        detail = f"Slurm calls this node {event.node}, the agent {self._settings.node}; set node to Slurm's name"
        self._found.append(Finding(event.at_us, "node_name_mismatch", "", detail))
        _LOG.warning("%s", cleaned(detail))

    def _needed(self) -> set[JobKey]:
        """Return the runs whose end must find them: they have a device, or are to get one when the driver comes up."""
        waiting = (self._roster.knows(("slurm", job_id)) for job_id in self._unplaced)
        return self._ledger.held() | {run.job.key for run in waiting if run is not None}

    def _place(self, event: HookEvent) -> None:
        """Give the devices of a hook's start to its job, as far as they can be found."""
        run = self._roster.knows(("slurm", event.job_id))
        if run is None:
            self._unplaced.pop(event.job_id, None)
            return
        found = [self._names.find(name) for name in event.gpus]
        weight = 1 if self._settings.slurm_shared else None
        if event.shards is not None:
            weight = max(1, event.shards // max(1, len(event.gpus)))  # told for the node, spread over its boards
        grant = Grant(run.job, Evidence.HOOK, event.at_us, None, weight)
        self._ledger.granted(event.at_us, [uuid for uuid in found if uuid is not None], grant)
        if None not in found:
            self._unplaced.pop(event.job_id, None)

    def _look(self, now_us: int, errors: Counter[str]) -> list[Row]:
        """Ask everything that is not told by hooks; return the rows of shares."""
        self._looks += 1
        self._roster.forget(now_us, self._needed())
        self._ledger.present(now_us, {device.uuid for device in self._names.devices})
        mapped = mapped_grants(self._mappings, self._names, self._roster, now_us, errors)
        if mapped is not None:
            self._ledger.stated(now_us, Evidence.JOB_MAPPING, mapped)
        if self._looks % _KUBELET_EVERY == 1:
            granted = self._pod_look.look(self._names, now_us, errors)
            if granted is not None:
                self._ledger.stated(now_us, Evidence.POD_RESOURCES, granted)
        readings = self._processes()
        if readings and readings == self._last_readings:
            return []  # the driver was not asked since
        self._last_readings = readings
        if any(reading.at_us - self._clock.now().wall_us > STEP_US for reading in readings):
            errors["jobs:processes_from_the_future"] += 1
            return []  # dated by a clock that has been set back since
        uuids = [device.uuid for device in self._names.devices]
        found = self._process_look.look(readings, uuids, now_us, errors)
        self._ledger.used(found.at_us, found.uses)
        self._found += found.findings
        return self._share_rows(found.samples)

    def _share_rows(self, samples: list[Sample]) -> list[Row]:
        since_us, self._shares_at_us = (
            self._shares_at_us,
            max((sample.reading.at_us for sample in samples), default=self._shares_at_us),
        )
        return share_rows(samples, self._ledger.devices, since_us)

    def _may_tell_anew(self, errors: Counter[str]) -> bool:
        """Say whether an agent that began without knowing anything has looked everywhere by now."""
        if self._memory.anew_at_us is None or self._memory.anew_told or self._looks < _LOOKS_BEFORE_ANEW:
            return False
        return not any(kind.startswith(_MUST_ANSWER) for kind in errors) and not self._folder.more

    def _tell(
        self, now_us: int, rows: dict[Stream, list[Row]], errors: Counter[str], *, changed: bool, anew: bool
    ) -> None:
        """Put changes into rows, and what is needed to go on after a crash into the facts."""
        changes, findings = self._ledger.take()
        findings, self._found = [*findings, *self._found], []
        fresh: dict[Stream, list[Row]] = {
            Stream.ALLOCATION: [allocation_row(change) for change in changes],
            Stream.NODE_EVENT: [finding_row(finding) for finding in findings],
        }
        if anew and self._memory.anew_at_us is not None:
            fresh[Stream.ALLOCATION] += found_held(self._ledger.devices, self._memory.anew_at_us)
            fresh[Stream.NODE_EVENT].append(anew_row(self._memory.anew_at_us))
            self._memory.anew_told = changed = True
        for stream, found in fresh.items():
            rows[stream] += found
        # Events of allocations alone: the server would take a node event that is told twice for two.
        if self._facts is not None:
            self._memory.told += [Told(now_us, row) for row in fresh[Stream.ALLOCATION]]
        # Backwards too: an operator may have set the clock.
        beat = any(device.open for device in self._ledger.devices.values())
        beat = beat and abs(now_us - self._saved_us) >= _HEARTBEAT_US
        if (changes or findings or changed or beat) and self._save(now_us, errors):
            self._drop_files()

    def _save(self, now_us: int, errors: Counter[str]) -> bool:
        if self._facts is None:
            return True
        self._memory.at_us = now_us
        self._memory.unplaced = [event.name for event in self._unplaced.values()]
        try:
            put_away(self._memory.told, self._memory.parts, now_us, self._facts)
            self._facts.remember(FACT, state.dump(self._memory, self._ledger, self._roster))
        except AgentError as error:
            # The files of the hooks stay where they are: whoever comes next reads them again, with the same instants.
            errors["jobs:state_not_kept"] += 1
            _LOG.warning("the state of jobs cannot be noted: %s", error)
            return False
        self._saved_us = now_us
        return True

    def _drop_files(self) -> None:
        """Delete hooks' files that nobody needs any more: all but the starts of jobs that still run."""
        needed: dict[str, str] = {}
        for name, job_id in self._memory.files.items():
            run = self._roster.knows(("slurm", job_id))
            runs = job_id in self._unplaced or (run is not None and self._ledger.holds(run.job.key))
            if ".start." in name and runs:
                other = needed.get(job_id, name)
                # The first of the run's, whose instant was told, where its prolog ran twice; else the newest, of the run now.
                both = run is not None and run.job.key.started_at_us <= (int(min(name, other)[:19]) // 1_000) + US_PER_S
                needed[job_id] = min(name, other) if both else max(name, other)
        kept = set(needed.values())
        spent = [name for name in self._memory.files if name not in kept and name not in self._undeletable]
        self._undeletable |= self._folder.discard(spent)
        for name in spent:
            if name not in self._undeletable:
                del self._memory.files[name]
