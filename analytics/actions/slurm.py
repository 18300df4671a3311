"""Slurm through its command line: one run read with squeue, cancelled with scancel, suspended with scontrol.

It reads chosen columns and never key=value text, because a job's name and comment belong to its user, who could write
``StartTime=`` into them. It refuses ids that are not Slurm's, and knows one cluster: the one its commands talk to.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from analytics.actions.errors import PlaneError, PlaneRefusedError, PlaneTimeoutError, PlaneUnavailableError
from analytics.actions.plane import RunReading, RunState
from analytics.model.budget import Step

NATIVE_ID: Final = re.compile(r"\d{1,12}(_\d{1,9})?(\+\d{1,6})?")  # job, array task, heterogeneous component
COLUMNS: Final = "%i|%T|%S|%u|%a"
STATES: Final = {
    "PENDING": RunState.PENDING,
    "REQUEUED": RunState.PENDING,
    "RUNNING": RunState.RUNNING,
    "SUSPENDED": RunState.SUSPENDED,
    **dict.fromkeys(
        (
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "COMPLETING",  # its processes are being killed; it holds devices a moment longer
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "REVOKED",
            "TIMEOUT",
        ),
        RunState.ENDED,
    ),
}
UNKNOWN_JOB: Final = "Invalid job id specified"
UNREACHABLE: Final = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "Zero Bytes were")


@dataclass(frozen=True, slots=True)
class SlurmPlane:
    """The cluster the commands in ``bin_dir`` (default: PATH) talk to; ``environment`` may name another SLURM_CONF."""

    bin_dir: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    """A dead controller is reported after about 9 s."""

    def read(self, native_id: str) -> RunReading | None:
        cluster = self.cluster()
        done = self._run("squeue", "--noheader", "--states=all", f"--format={COLUMNS}", "--jobs", _checked(native_id))
        if done.returncode != 0:
            if UNKNOWN_JOB in done.stderr:
                return None
            raise _refusal("squeue", done)
        for row in done.stdout.splitlines():
            found_id, _, rest = row.strip().partition("|")
            if found_id == native_id:
                return _reading(cluster, native_id, rest)
        return None

    def act(self, step: Step, native_id: str) -> None:
        match step:
            case Step.CANCEL:
                self._ask("scancel", _checked(native_id))
            case Step.SUSPEND:
                self._ask("scontrol", "suspend", _checked(native_id))
            case Step.WARN:
                raise PlaneRefusedError("warn is not an act on a job")

    def undo(self, step: Step, native_id: str) -> None:
        if step is not Step.SUSPEND:
            raise PlaneRefusedError(f"{step} cannot be undone in Slurm")
        self._ask("scontrol", "resume", _checked(native_id))

    def cluster(self) -> str:
        """Return the name of the cluster as its controller gives it."""
        done = self._run("scontrol", "show", "config")
        match = re.search(r"^ClusterName\s*=\s*(\S+)$", done.stdout, re.MULTILINE)
        if done.returncode != 0 or match is None:
            raise _refusal("scontrol show config", done)
        return match[1]

    def _ask(self, *command: str) -> None:
        done = self._run(*command)
        if done.returncode != 0:
            refusal = _refusal(command[0], done)
            if isinstance(refusal, PlaneUnavailableError):
                raise PlaneTimeoutError(
                    str(refusal)
                )  # the request may have reached the controller before it went silent
            raise refusal

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = str(self.bin_dir / program) if self.bin_dir else program
        # Epoch seconds: squeue prints local time without a zone otherwise.
        environment = {**os.environ, "LC_ALL": "C", **self.environment, "SLURM_TIME_FORMAT": "%s"}
        try:
            return subprocess.run(
                [path, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PlaneTimeoutError(f"{program} did not answer in {self.timeout_s} s") from None
        except OSError as error:
            raise PlaneUnavailableError(
                f"{program} cannot be run: {error.strerror}; install Slurm's commands here"
            ) from None


def _checked(native_id: str) -> str:
    if not NATIVE_ID.fullmatch(native_id):
        raise PlaneRefusedError(f"{native_id!r:.40} is not a Slurm job id")
    return native_id


def _reading(cluster: str, native_id: str, rest: str) -> RunReading:
    parts = rest.split("|")
    if len(parts) != 4:
        raise PlaneUnavailableError(f"squeue answered {rest!r:.80}, not four columns; is this Slurm 22.05 or newer?")
    native_state, start, user, account = parts
    return RunReading(
        cluster=cluster,
        native_id=native_id,
        started_at=datetime.fromtimestamp(int(start), UTC) if start.isdigit() and int(start) else None,
        user_name=user,
        account=account,
        state=STATES.get(native_state, RunState.OTHER),
        native_state=native_state,
    )


def _refusal(program: str, done: subprocess.CompletedProcess[str]) -> PlaneError:
    words = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
    if any(sign in words for sign in UNREACHABLE):
        return PlaneUnavailableError(f"{program}: {words}")
    return PlaneRefusedError(f"{program}: {words}")
