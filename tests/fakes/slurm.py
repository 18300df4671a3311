"""Slurm's commands as scripts on a folder of state: enough to be read, cancelled, suspended, requeued, slow or dead.

Words and exit codes are those of Slurm 22.05. Each call of a command that acts is a line in ``acts.log``, written before
anything else, so a test can count what was really asked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from analytics.actions.slurm import SlurmPlane

_COMMON = """#!/bin/sh
D="{root}"
mode=$(cat "$D/mode")
if [ "$mode" = dead ]; then echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1; fi
"""
_SQUEUE = """
for last; do :; done
file="$D/jobs/$last"
if [ ! -f "$file" ]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi
IFS='|' read -r state start user account < "$file"
echo "$last|$state|$start|$user|$account"
"""
_ACT = """
echo "$(date +%s.%N) {program} $*" >> "$D/acts.log"
for last; do :; done
file="$D/jobs/$last"
IFS='|' read -r state start user account < "$file"
case "$mode" in
  refuse) echo "{program}: error: Access/permission denied" >&2; exit 1;;
  slow) sleep 0.2;;
  hang) sleep 8;;
  hang-after) echo "CANCELLED|$start|$user|$account" > "$file"; sleep 8;;
  ignore) exit 0;;
esac
echo "{state}|$start|$user|$account" > "$file"
"""


@dataclass(frozen=True)
class FakeSlurm:
    root: Path

    @classmethod
    def create(cls, root: Path) -> FakeSlurm:
        (root / "bin").mkdir(parents=True)
        (root / "jobs").mkdir()
        made = cls(root)
        made.mode("fine")
        made._script("squeue", _SQUEUE)
        made._script("scancel", _ACT.replace("{program}", "scancel").replace("{state}", "CANCELLED"))
        config = 'if [ "$1 $2" = "show config" ]; then echo "ClusterName             = lab"; exit 0; fi\n'
        suspend = _ACT.replace("{program}", "scontrol").replace("{state}", "$next")
        made._script("scontrol", config + 'case "$1" in suspend) next=SUSPENDED;; *) next=RUNNING;; esac\n' + suspend)
        return made

    def plane(self, timeout_s: float = 10.0) -> SlurmPlane:
        return SlurmPlane(bin_dir=self.root / "bin", timeout_s=timeout_s)

    def job(
        self, native_id: str, start: datetime, *, state: str = "RUNNING", user: str = "ada", account: str = "research"
    ) -> None:
        (self.root / "jobs" / native_id).write_text(f"{state}|{int(start.timestamp())}|{user}|{account}\n")

    def forget(self, native_id: str) -> None:
        (self.root / "jobs" / native_id).unlink()

    def state(self, native_id: str) -> str:
        return (self.root / "jobs" / native_id).read_text().partition("|")[0]

    def mode(self, mode: str) -> None:
        (self.root / "mode").write_text(mode)

    def acts(self) -> list[str]:
        """Return the acting calls so far, without their time."""
        log = self.root / "acts.log"
        return [line.partition(" ")[2] for line in log.read_text().splitlines()] if log.exists() else []

    def act_times_s(self) -> list[float]:
        log = self.root / "acts.log"
        return [float(line.partition(" ")[0]) for line in log.read_text().splitlines()] if log.exists() else []

    def wait_for_acts(self, count: int, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while len(self.acts()) < count:
            assert time.monotonic() < deadline, f"only {len(self.acts())} acts after {within_s} s"
            time.sleep(0.02)

    def _script(self, name: str, body: str) -> None:
        path = self.root / "bin" / name
        path.write_text(_COMMON.replace("{root}", str(self.root)) + body)
        path.chmod(0o755)
