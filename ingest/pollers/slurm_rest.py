"""Asks Slurm through slurmrestd with a JWT: for machines without Slurm's commands. The API's version is discovered.

Shapes differ by version: numbers may be wrapped (``{"set": true, "number": 5}``), a state may be a list. An answer of 200 may
carry errors all the same, and then is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx

from collector.wire import cleaned
from ingest.pollers.errors import RightsError, SourceError
from ingest.pollers.slurm_rows import Record, Waiting, record, waiting

_VERSION: Final = re.compile(r"/slurmdb/v0\.0\.(\d+)/jobs/?")
_NO_NODES: Final = frozenset({"", "None assigned"})
_REFUSED: Final = re.compile(r"(?i)authentication|permission|not authorized|access denied")


@dataclass
class SlurmRest:
    """One slurmrestd. ``token`` is asked for with each request: ``scontrol token`` makes one for a limited time."""

    client: httpx.Client
    url: str
    user: str
    token: Callable[[], str]
    name: str | None = None

    @cached_property
    def cluster(self) -> str:
        """The cluster asked about: the one its controller speaks of, where it is not named."""
        if self.name is not None:
            return self.name
        answer = self._get(f"/slurmdb/{self.version}/clusters/")
        names = [str(each["name"]) for each in answer.get("clusters", ()) if each.get("name")]
        if len(names) != 1:
            raise SourceError(f"slurmdbd knows the clusters {', '.join(names) or 'none'}; name one with --cluster")
        return names[0]

    @cached_property
    def version(self) -> str:
        """The newest version that slurmdbd's part is served in."""
        for path in ("/openapi/v3", "/openapi.json", "/openapi"):
            try:
                paths = self._get(path).get("paths", {})
            except SourceError as error:
                if isinstance(error, RightsError):
                    raise
                continue
            found = [int(match[1]) for each in paths if (match := _VERSION.fullmatch(each))]
            if found:
                return f"v0.0.{max(found)}"
        raise SourceError(
            f"{self.url} serves no /slurmdb/v0.0.N/jobs; start slurmrestd with -s openapi/dbv0.0.N or newer"
        )

    def ran(self, since: datetime, until: datetime) -> list[Record]:
        """Return the records of jobs that ran, or waited, at some time since then."""
        params = {"start_time": f"uts{int(since.timestamp())}", "end_time": f"uts{int(until.timestamp())}"}
        return self._records(self._get(f"/slurmdb/{self.version}/jobs", params), until)

    def named(self, native_ids: Sequence[str], until: datetime) -> list[Record]:
        """Return all records of some jobs, of their array tasks and components too."""
        found: list[Record] = []
        for number in sorted({re.split(r"[_+]", native_id)[0] for native_id in native_ids}):
            found += self._records(self._get(f"/slurmdb/{self.version}/job/{number}"), until)
        return found

    def waiting(self) -> list[Waiting]:
        """Return the jobs that wait now."""
        jobs = self._get(f"/slurm/{self.version}/jobs").get("jobs", ())
        rows = (self._pending(job) for job in jobs if "PENDING" in _words(job.get("job_state")))
        return [each for row in rows if (each := waiting(row)) is not None]

    def _records(self, answer: Mapping[str, Any], now: datetime) -> list[Record]:
        rows = (_accounted(job) for job in answer.get("jobs", ()) if job.get("cluster") in {None, "", self.cluster})
        return [each for row in rows if (each := record(row, self.cluster, now)) is not None]

    def _pending(self, job: Mapping[str, Any]) -> dict[str, Any]:
        tasks = job.get("array_task_string")
        array = _number(job.get("array_job_id")) or job["job_id"]
        return {
            "id": f"{array}_[{tasks}]" if tasks else str(job["job_id"]),
            "submit": _instant(job.get("submit_time")),
            "eligible": _instant(job.get("eligible_time")),
            "reason": _text(job.get("state_reason")),
            "account": _text(job.get("account")),
            "user": _text(job.get("user_name")),
            "partition": _text(job.get("partition")),
            "qos": _text(job.get("qos")),
            "tres": job.get("tres_req_str"),
            "name": _text(job.get("name")),
        }

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        headers = {"X-SLURM-USER-NAME": self.user, "X-SLURM-USER-TOKEN": self.token(), "accept": "application/json"}
        where = f"{self.url.rstrip('/')}{path}"
        try:
            answer = self.client.get(where, params=params, headers=headers)
        except httpx.TransportError as error:
            raise SourceError(
                f"slurmrestd at {self.url} does not answer: {str(error) or type(error).__name__}"
            ) from error
        try:
            said = answer.json()
        except ValueError as error:
            raise SourceError(f"{where} answers {answer.status_code} without JSON; is it slurmrestd?") from error
        faults = [fault for fault in said.get("errors") or () if fault] if isinstance(said, dict) else ["no object"]
        if answer.status_code in {401, 403} or (faults and _REFUSED.search(str(faults))):
            raise RightsError(
                f"{where} refuses: {_fault(faults)}; make a token with `scontrol token` for a user who sees all jobs"
            )
        if answer.status_code != 200 or faults:
            raise SourceError(
                f"{where} answers {answer.status_code}: {_fault(faults)}; is its token valid, and are its daemons up? "
                "It is asked again in the next round"
            )
        return dict(said)


def token_of(path: Path) -> Callable[[], str]:
    """Return what reads a token's file anew each time: as `scontrol token` prints it, or the token alone."""

    def token() -> str:
        try:
            return path.read_text().strip().removeprefix("SLURM_JWT=")
        except OSError as error:
            raise RightsError(
                f"{path} cannot be read: {error.strerror}; put the output of `scontrol token` there"
            ) from error

    return token


def _accounted(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job of slurmdbd as a row of sacct."""
    time, array, het = job.get("time") or {}, job.get("array") or {}, job.get("het") or {}
    native_id = str(job["job_id"])
    task = array.get("task_id")
    if isinstance(task, Mapping):
        task = _number(task)
    if array.get("job_id") and task is not None:
        native_id = f"{array['job_id']}_{task}"
    elif het.get("job_id") and _number(het.get("job_offset")) is not None:
        native_id = f"{het['job_id']}+{_number(het.get('job_offset'))}"
    nodes = str(job.get("nodes") or "")
    state = job.get("state") or {}
    reason = _text(state.get("reason"))
    return {
        "job_id": native_id,
        "cluster": job.get("cluster") or None,
        "account": _text(job.get("account")),
        "user": _text(job.get("user")),
        "partition": _text(job.get("partition")),
        "qos": _text(job.get("qos")),
        "state": next(iter(_words(state.get("current"))), ""),
        "submit": _instant(time.get("submission")),
        "eligible": _instant(time.get("eligible")),
        "start": _instant(time.get("start")),
        "end": _instant(time.get("end")),
        "alloc_tres": ",".join(_tres((job.get("tres") or {}).get("allocated") or ())),
        "node_list": None if nodes in _NO_NODES else nodes,
        "suspended": _clock(_number(time.get("suspended"))),
        "reason": None if reason == "None" else reason,
        "name": _text(job.get("name")),
    }


def _tres(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for item in items:
        count = _number(item.get("count"))
        if count is not None:
            yield f"{item['type']}/{item['name']}={count}" if item.get("name") else f"{item['type']}={count}"


def _words(state: Any) -> list[str]:
    return [str(word) for word in state] if isinstance(state, list) else [str(state)]


def _number(value: Any) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("number") if value.get("set", True) and not value.get("infinite") else None
    return int(value) if isinstance(value, int | float) else None


def _instant(value: Any) -> int | None:
    seconds = _number(value)
    # 0 is not set; a year beyond 2100 is Slurm's word for never.
    return seconds * 1_000_000 if seconds and seconds < 4_102_444_800 else None


def _clock(seconds: int | None) -> str | None:
    if not seconds:
        return None
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _text(value: Any) -> str | None:
    # The first line, as the commands give it.
    return cleaned(str(value).partition("\n")[0].strip()) or None if value not in {None, ""} else None


def _fault(faults: Sequence[Any]) -> str:
    if not faults:
        return "without a word"
    first = faults[0]
    return str(first.get("description") or first.get("error") or first) if isinstance(first, Mapping) else str(first)
