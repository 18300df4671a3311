"""Asks Slurm by its commands: sacct for what ran, squeue for what waits.

A job's name is its user's to choose and may hold bars and line breaks, so columns are parted by a word made up anew for each
call: nobody can write a record of a job into the name of another. Times are asked for as seconds since 1970, for any zone.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from collector.wire import cleaned
from ingest.pollers.errors import RightsError, SourceError
from ingest.pollers.slurm_rows import Record, Waiting, record, waiting

_SACCT: Final = {
    "job_id": "JobID",
    "cluster": "Cluster",
    "account": "Account",
    "user": "User",
    "partition": "Partition",
    "qos": "QOS",
    "state": "State",
    "submit": "Submit",
    "eligible": "Eligible",
    "start": "Start",
    "end": "End",
    "alloc_tres": "AllocTRES",
    "node_list": "NodeList",
    "suspended": "Suspended",
    "reason": "Reason",
    "name": "JobName",
}
_SQUEUE: Final = {
    "id": "JobArrayID",
    "submit": "SubmitTime",
    "eligible": "EligibleTime",
    "reason": "Reason",
    "account": "Account",
    "user": "UserName",
    "partition": "Partition",
    "qos": "QOS",
    "tres": "tres-alloc",
    "name": "Name",
}
_INSTANTS: Final = frozenset({"submit", "eligible", "start", "end"})
_NULLS: Final = frozenset({"", "none", "unknown", "n/a", "(null)", "none assigned"})
IDS_PER_CALL: Final = 500


@dataclass
class SlurmCommands:
    """The commands in ``bin_dir`` (default: PATH). ``name``: the cluster, where it is not the one the commands talk to."""

    name: str | None = None
    bin_dir: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 120.0

    @cached_property
    def cluster(self) -> str:
        """The cluster asked about."""
        if self.name is not None:
            return self.name
        done = self._run(["scontrol", "show", "config"])
        match = re.search(r"^ClusterName\s*=\s*(\S+)$", done, re.MULTILINE)
        if match is None:
            raise SourceError("`scontrol show config` names no cluster; name it with --cluster")
        return match[1]

    def ran(self, since: datetime, until: datetime) -> list[Record]:
        """Return the records of jobs that ran, or waited, at some time since then; of a requeued job each run's."""
        span = [f"--starttime={_local(since)}", f"--endtime={_local(until)}"]
        return self._sacct(span, until)

    def named(self, native_ids: Sequence[str], until: datetime) -> list[Record]:
        """Return all records of some jobs, however long ago."""
        found: list[Record] = []
        for place in range(0, len(native_ids), IDS_PER_CALL):
            ids = ",".join(native_ids[place : place + IDS_PER_CALL])
            found += self._sacct([f"--jobs={ids}", "--starttime=2000-01-01T00:00:00"], until)
        return found

    def waiting(self) -> list[Waiting]:
        """Return the jobs that wait now."""
        token = _token()
        columns = ",".join(f"{column}:{token}" for column in _SQUEUE.values())
        command = ["squeue", "--noheader", "--all", "--states=PENDING", f"--Format={columns}", *self._of_cluster()]
        rows = _rows(self._run(command), token, list(_SQUEUE), ends=True)
        return [each for row in rows if (each := waiting(row)) is not None]

    def _sacct(self, which: Sequence[str], until: datetime) -> list[Record]:
        token = _token()
        command = ["sacct", "--allocations", "--duplicates", "--allusers", "--parsable2", "--noheader"]
        command += [f"--delimiter={token}", f"--format={','.join(_SACCT.values())}", *which]
        rows = _rows(self._run([*command, *self._of_cluster()]), token, list(_SACCT), ends=False)
        return [each for row in rows if (each := record(row, self.cluster, until)) is not None]

    def _of_cluster(self) -> list[str]:
        return [] if self.name is None else [f"--clusters={self.name}"]

    def _run(self, command: Sequence[str]) -> str:
        program = command[0]
        path = str(self.bin_dir / program) if self.bin_dir else program
        environment = {**os.environ, **self.environment, "LC_ALL": "C", "TZ": "UTC", "SLURM_TIME_FORMAT": "%s"}
        try:
            done = subprocess.run(
                [path, *command[1:]],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SourceError(
                f"{program} did not answer in {self.timeout_s:.0f} s; is slurmdbd or slurmctld busy?"
            ) from None
        except OSError as error:
            raise SourceError(
                f"{program} cannot be run: {error.strerror}; run this where Slurm's commands are, or use --rest-url"
            ) from None
        said = done.stderr.strip()
        # A command that lost its daemon may still leave with 0: what it printed is not all there is.
        if done.returncode != 0 or re.search(r"error:", said):
            refused = re.search(r"(?i)access/permission denied|not authori[sz]ed|invalid user", said)
            raise (RightsError if refused else SourceError)(
                f"{program} failed ({done.returncode}): {said.splitlines()[0] if said else 'without a word'}; "
                "it is asked again in the next round"
            )
        return done.stdout


def _token() -> str:
    return f"<{secrets.token_hex(8)}>"


def _local(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _rows(text: str, token: str, names: Sequence[str], *, ends: bool) -> Iterator[dict[str, Any]]:
    """Yield rows of text whose columns are parted by the token; ``ends``: each record ends with it as well.

    A line without the right number of columns is what is left of a name with line breaks.
    """
    width = len(names)
    for line in text.split("\n"):
        cells = line.split(token)
        if len(cells) != width + ends:
            # Of a name with line breaks: all but the first line, which lacks nothing where the name comes last.
            if token in line and len(cells) == width and ends:
                cells.append("")
            else:
                continue
        yield {name: _value(name, cell) for name, cell in zip(names, cells, strict=False)}


def _value(name: str, cell: str) -> Any:
    text = cell.strip()
    if name in _INSTANTS:
        return int(text) * 1_000_000 if text.isdecimal() else None
    if name in {"user", "name", "account"}:
        return cleaned(text) or None
    return None if text.casefold() in _NULLS and name != "state" else cleaned(text)
