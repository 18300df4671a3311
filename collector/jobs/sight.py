"""Says which evidence of jobs a node gives and what would add the rest, for ``wattledger-agent --once --pretty``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from collector.jobs.hooks import HELD, HookFolder
from collector.jobs.mapping import MappingError, MappingFolder, read_mapping
from collector.jobs.names import DeviceNames
from collector.jobs.processes import EnvironMode, ProcessTable
from collector.probe import Sight

_PTRACE: Final = "give the agent CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, or leave it: environments are hints only"


def job_sights(
    hooks: HookFolder,
    mappings: Sequence[MappingFolder],
    kubelet_socket: Path,
    table: ProcessTable,
    names: DeviceNames,
    environ: EnvironMode,
    node: tuple[str, str | None],
    errors: Mapping[str, int],
) -> tuple[Sight, ...]:
    """Return one sight for each kind of evidence; ``errors`` are those of the last reading.

    ``node``: this node's name as the agent has it, and as Slurm has it where that is another.
    """
    return (
        _processes(table),
        _hooks(hooks, errors),
        *_numbers(names),
        *_node(*node),
        *(_mapping(folder) for folder in mappings),
        _kubelet(kubelet_socket, errors),
        _environ(environ, errors),
    )


def _processes(table: ProcessTable) -> Sight:
    subject = "jobs by process (cgroup, slurmstepd)"
    if table.sees_host_pids():
        return Sight(subject, seen=True, detail="pids of the driver are pids here")
    remedy = "run the agent as a service of the host, or with hostPID: true and the host's cgroup namespace"
    return Sight(subject, seen=False, detail="the agent lives in a pid namespace of its own", remedy=remedy)


def _hooks(hooks: HookFolder, errors: Mapping[str, int]) -> Sight:
    subject = "Slurm prolog and epilog"
    if f"jobs:{HELD}" in errors:
        remedy = "run one agent a node"
        return Sight(subject, seen=False, detail=f"another agent takes in {hooks.path}", remedy=remedy)
    why = hooks.distrust()
    if why is None:
        return Sight(subject, seen=True, detail=f"{hooks.path}: allocations begin and end at the hooks' instants")
    remedy = (
        "if this is a Slurm node, install deploy/slurm/prolog.sh and epilog.sh: without them an allocated GPU without a process "
        "is not seen"
    )
    if hooks.path.exists():
        remedy = f"make {hooks.path} root's, with mode 0755"
    return Sight(subject, seen=False, detail=why, remedy=remedy)


def _numbers(names: DeviceNames) -> tuple[Sight, ...]:
    if names.numbered:
        return ()
    remedy = (
        "show the agent the host's /proc; until then hooks and mapping folders that name GPUs by number place nothing"
    )
    return (Sight("GPU numbers of Slurm", seen=False, detail="/proc/driver/nvidia/gpus is not there", remedy=remedy),)


def _node(name: str, slurm_name: str | None) -> tuple[Sight, ...]:
    if slurm_name is None:
        return ()
    remedy = f'set node = "{slurm_name}", so that telemetry and what is imported from Slurm are of one node'
    return (Sight("name of this node", seen=False, detail=f"{name} here, {slurm_name} in Slurm", remedy=remedy),)


def _mapping(folder: MappingFolder) -> Sight:
    subject = f"job mapping {folder.path}"
    if not folder.path.exists():
        return Sight(
            subject, seen=False, detail="there is no such folder (jobstats and dcgm-exporter's scripts make one)"
        )
    try:
        entries = read_mapping(folder.path)
    except MappingError as error:
        return Sight(subject, seen=False, detail=str(error), remedy="make the folder root's, with mode 0755")
    return Sight(subject, seen=True, detail=f"{len(entries)} devices with a job")


def _kubelet(socket: Path, errors: Mapping[str, int]) -> Sight:
    subject = "Kubernetes pod-resources"
    try:
        socket.stat()
    except PermissionError:
        return Sight(subject, seen=False, detail=f"{socket}: permission denied", remedy="run the agent as root")
    except OSError:
        remedy = f"mount {socket.parent} into the agent's pod, if this is a Kubernetes node"
        return Sight(subject, seen=False, detail=f"{socket} is not there", remedy=remedy)
    failed = sorted(kind.removeprefix("jobs:kubelet_") for kind in errors if kind.startswith("jobs:kubelet_"))
    if failed or not os.access(socket, os.W_OK):
        remedy = "pip install 'httpx[http2]'" if "no_http2" in failed else "run the agent as root"
        return Sight(subject, seen=False, detail=f"{socket}: {', '.join(failed) or 'may not be asked'}", remedy=remedy)
    return Sight(subject, seen=True, detail=f"{socket}: pods keep their devices even while nothing runs on them")


def _environ(environ: EnvironMode, errors: Mapping[str, int]) -> Sight:
    subject = "processes' environments"
    if environ == "never":
        return Sight(subject, seen=False, detail="never opened, as configured")
    denied = errors.get("jobs:environ_denied", 0)
    if denied:
        return Sight(subject, seen=False, detail=f"{denied} may not be read", remedy=_PTRACE)
    return Sight(subject, seen=True, detail="a hint where no cgroup names a job; never proof")
