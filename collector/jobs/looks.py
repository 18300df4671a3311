"""One look at each place where evidence lies: processes, the kubelet, mapping folders. Turns names into runs and devices.

Each look says what it found, or counts why it found nothing; none decides who holds a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from collector.jobs.evidence import Evidence, Finding, Grant, Job, Use
from collector.jobs.kubelet import KubeletClient, KubeletError, PodDevice
from collector.jobs.ledger import uses_by_device
from collector.jobs.mapping import MappingError, MappingFolder, read_mapping
from collector.jobs.names import DeviceNames
from collector.jobs.pods import PodNames
from collector.jobs.processes import ProcessTable, Standing
from collector.jobs.roster import Roster
from collector.jobs.shares import Sample
from collector.probe import ProcessReading

_PROOFS: Final = {"cgroup": Evidence.CGROUP, "slurmstepd": Evidence.SLURMSTEPD, "environ": Evidence.ENVIRON}
_REPLICAS_KEPT_US: Final = 300_000_000
_MPS_KEY: Final = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


@dataclass(slots=True)
class Processes:
    """What a look at the processes gave."""

    at_us: dict[str, int] = field(default_factory=dict)
    """By device, the instant it was looked at."""
    uses: dict[str, list[Use]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class ProcessLook:
    """Finds out for whom the processes run that the driver saw."""

    def __init__(self, table: ProcessTable, roster: Roster, pods: PodNames) -> None:
        """Ask the table about pids, the roster about names."""
        self._table = table
        self._roster = roster
        self._pods = pods
        self._torn: set[tuple[int, str]] = set()

    def look(
        self, readings: Sequence[ProcessReading], device_uuids: Sequence[str], now_us: int, errors: Counter[str]
    ) -> Processes:
        """Return who uses the devices; one that no reading names was looked at with the others and is free."""
        if not self._table.sees_host_pids():
            errors["jobs:foreign_pid_namespace"] += 1
            return Processes()
        looked_us = max((reading.at_us for reading in readings), default=now_us)
        found = Processes(dict.fromkeys(device_uuids, looked_us))
        uses: list[tuple[str, Job, Evidence, int]] = []
        standings = {
            reading.pid: self._table.standing(reading.pid, reading.at_us, hints=reading.kind == "mps")
            for reading in readings
            if reading.pid > 0
        }
        begun = self._begun(standings.values())
        for reading in readings:
            found.at_us[reading.device_uuid] = max(reading.at_us, found.at_us.get(reading.device_uuid, 0))
            standing = standings.get(reading.pid)
            if standing is None:
                continue  # gone already, or never this process
            job, evidence = self._job(standing, reading.at_us, begun)
            if job is not None and evidence is not None:
                uses.append((reading.device_uuid, job, evidence, standing.started_at_us))
            threads = standing.hints.get(_MPS_KEY)
            found.samples.append(
                Sample(
                    reading,
                    job,
                    evidence or ("none" if standing.holder is None else "cgroup"),
                    None if threads is None else float(threads),
                )
            )
            if standing.conflict is not None and (standing.pid, standing.conflict) not in self._torn:
                self._torn.add((standing.pid, standing.conflict))
                detail = f"pid {standing.pid}: {standing.conflict}"
                found.findings.append(Finding(reading.at_us, "attribution_conflict", reading.device_uuid, detail))
        pids = {reading.pid for reading in readings}
        self._torn = {entry for entry in self._torn if entry[0] in pids}
        for kind, count in self._table.forget_others(pids).items():
            errors[f"jobs:{kind}"] += count
        found.uses = uses_by_device(uses)
        return found

    def _begun(self, standings: Iterable[Standing | None]) -> dict[str, int]:
        """Return when jobs on this node began by their slurmstepds, if a process is there whose run is not surely known."""
        for standing in standings:
            if standing is None or standing.holder is None or standing.holder.kind != "slurm":
                continue
            if standing.proof == "environ":
                continue
            run = self._roster.knows(("slurm", standing.holder.id))
            if run is None or (standing.started_at_us > run.seen_us and (run.uid is None or run.ended_us is not None)):
                return self._table.stepds()
        return {}

    def _job(self, standing: Standing, at_us: int, begun: dict[str, int]) -> tuple[Job | None, Evidence | None]:
        holder = standing.holder
        if holder is None or holder.kind in ("login", "system"):
            return None, None
        evidence = _PROOFS[standing.proof]
        first_us = standing.started_at_us
        if evidence is Evidence.ENVIRON:
            run = self._roster.corroborated(holder.id, standing.uid)
            return (None, None) if run is None else (run.job, evidence)
        if holder.kind == "slurm":
            return self._roster.slurm(holder.id, at_us, first_us, begun.get(holder.id)).job, evidence
        if holder.kind == "pod":
            born_us = self._pods.born_us(holder.id)
            begun_us = first_us if born_us is None else min(born_us, first_us)
            return self._roster.pod(holder.id, self._pods.name_of(holder.id), at_us, begun_us).job, evidence
        return self._roster.container(holder.id, at_us, first_us).job, evidence


class PodLook:
    """Asks the kubelet which pods hold which devices."""

    def __init__(self, client: KubeletClient, roster: Roster, pods: PodNames) -> None:
        """Ask through ``client``."""
        self._client = client
        self._roster = roster
        self._pods = pods
        self._replicas: dict[str, set[str]] = {}
        self._replicas_at_us: int | None = None

    def look(self, names: DeviceNames, now_us: int, errors: Counter[str]) -> dict[str, list[Grant]] | None:
        """Return the grants of all pods by device; None where the kubelet does not say."""
        if not self._client.socket.exists():
            return None
        try:
            listed = self._client.list()
        except KubeletError as error:
            errors[f"jobs:kubelet_{error.kind}"] += 1
            return None
        self._pods.look()
        held: dict[str, dict[tuple[str, str], list[PodDevice]]] = {}
        for device in listed:
            uuid = names.find(device.device)
            if uuid is not None:
                held.setdefault(uuid, {}).setdefault((device.namespace, device.pod), []).append(device)
            elif "gpu" in device.resource or "mig" in device.resource:
                errors["jobs:pod_device_unknown"] += 1
        if any(is_replica(device.device) for device in listed):
            self._count_replicas(names, now_us, errors)
        return {uuid: self._grants(uuid, pods, now_us) for uuid, pods in held.items()}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _grants(self, uuid: str, pods: dict[tuple[str, str], list[PodDevice]], now_us: int) -> list[Grant]:
        grants = []
        whole: list[Job] = []
        for name, devices in pods.items():
            uid = self._pods.uid_of(*name)
            born_us = None if uid is None else self._pods.born_us(uid)
            job = self._roster.pod(uid, name, now_us, now_us if born_us is None else min(born_us, now_us)).job
            replicas = {device.device for device in devices if is_replica(device.device)}
            if replicas:
                of = len(self._replicas.get(uuid, ()))
                ratio = len(replicas) / of if of >= len(replicas) else None
                weight = len(replicas) if ratio is None else None
                grants.append(Grant(job, Evidence.POD_RESOURCES, None, ratio, weight))
            elif any("/" not in device.resource for device in devices):
                grants.append(Grant(job, Evidence.POD_RESOURCES))  # a claim of dynamic allocation may be shared
            else:
                whole.append(job)
        if whole:
            # A device plugin gives a device to one container. Older kubelets still list the pod that completed before.
            newest = max(whole, key=lambda job: job.key.started_at_us)
            grants.append(Grant(newest, Evidence.POD_RESOURCES))
        return grants

    def _count_replicas(self, names: DeviceNames, now_us: int, errors: Counter[str]) -> None:
        if self._replicas_at_us is not None and abs(now_us - self._replicas_at_us) < _REPLICAS_KEPT_US:
            return
        self._replicas_at_us = now_us
        try:
            listed = self._client.allocatable()
        except KubeletError as error:
            errors[f"jobs:kubelet_{error.kind}"] += 1
            return
        self._replicas = {}
        for device in listed:
            uuid = names.find(device)
            if uuid is not None and is_replica(device):
                self._replicas.setdefault(uuid, set()).add(device)


def is_replica(device: str) -> bool:
    """Say whether a device plugin's id means a part of a shared device."""
    return "::" in device or "/vgpu" in device


def mapped_grants(
    folders: Sequence[MappingFolder], names: DeviceNames, roster: Roster, now_us: int, errors: Counter[str]
) -> dict[str, list[Grant]] | None:
    """Return the jobs that mapping folders name, by device; None where a folder cannot be read."""
    found: dict[str, dict[str, Grant]] = {}
    for folder in folders:
        try:
            entries = read_mapping(folder.path)
        except MappingError:
            errors["jobs:mapping_unusable"] += 1
            return None
        for entry in entries:
            uuid = names.find(entry.device, folder.numbering)
            if uuid is None:
                errors["jobs:mapped_device_unknown"] += 1
                continue
            for job_id in entry.jobs:
                since_us = min(entry.since_us, now_us)
                job = roster.slurm(job_id, now_us, since_us, None).job
                found.setdefault(uuid, {}).setdefault(job_id, Grant(job, Evidence.JOB_MAPPING, since_us))
    return {uuid: list(grants.values()) for uuid, grants in found.items()}
