"""Reads folders in which other tools note the job on each GPU: jobstats' /run/gpustat and dcgm-exporter's job-mapping directory.

Both hold a file a device, named by number or UUID. jobstats writes ``<job> <uid>`` and numbers as Slurm does (minor numbers);
dcgm-exporter's has a job id a line and numbers as DCGM does (``<gpu>`` or ``<gpu>.<instance>``). Read, never written.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from collector.jobs.names import Numbering

_MAX_FILES: Final = 1_024
_MAX_FILE_BYTES: Final = 4_096
_MAX_JOBS: Final = 64
_NS_PER_US: Final = 1_000
_FILE: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?|(?:GPU|MIG)-[A-Za-z0-9/-]{1,80}")
_LINE: Final = re.compile(r"([0-9]{1,10})(?:[ \t]+([0-9]{1,10}))?")


@dataclass(frozen=True, slots=True)
class MappingFolder:
    """A folder and how its numbers count."""

    path: Path
    numbering: Numbering


@dataclass(frozen=True, slots=True)
class Mapped:
    """The jobs noted for one device."""

    device: str
    jobs: tuple[str, ...]
    since_us: int
    """When the file was written."""


class MappingError(Exception):
    """The folder cannot be used; the message says why."""


def read_mapping(folder: Path, trusted_uids: Collection[int] | None = None) -> tuple[Mapped, ...]:
    """Return what is noted; devices without a job are left out. Raises MappingError where the folder is not to be read or trusted.

    A folder that is not there holds nothing.
    """
    trusted = trusted_uids if trusted_uids is not None else {0, os.geteuid()}
    try:
        state = folder.stat()
        if state.st_uid not in trusted or (state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX):
            raise MappingError(f"{folder} may be written by others than root; its files prove nothing")
        names = sorted(os.listdir(folder))  # noqa: PTH208  names are all that is wanted
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise MappingError(f"{folder}: {error.strerror}") from error
    found = []
    for name in names[:_MAX_FILES]:
        entry = _read(folder / name, trusted) if _FILE.fullmatch(name) else None
        if entry is not None and entry.jobs:
            found.append(entry)
    return tuple(found)


def _read(path: Path, trusted: Collection[int]) -> Mapped | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None  # written and removed all the time
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid not in trusted:
            return None
        lines = os.read(descriptor, _MAX_FILE_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    jobs = dict.fromkeys(match[1] for line in lines if (match := _LINE.fullmatch(line.strip())) is not None)
    return Mapped(path.name, tuple(jobs)[:_MAX_JOBS], state.st_mtime_ns // _NS_PER_US)
