"""``wattledger-agent check``: would the agent work here, and if not, what to do. Changes nothing but an empty spool file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pynvml

from collector.clock import Clock
from collector.config import Settings
from collector.errors import AgentError, SpoolError
from collector.exchange import Exchange
from collector.probe.nvidia_smi import NvidiaSmiProbe
from collector.probe.nvml import NvmlProbe
from collector.run import open_client, read_boot_id
from collector.sources import by_nvidia_smi
from collector.spool import Spool

_LIMIT_S: Final = 60.0
_MAX_ANSWER_BYTES: Final = 2_048


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that was looked at."""

    fine: bool
    what: str
    found: str

    def __str__(self) -> str:
        """Return the line to print."""
        return f"{'ok  ' if self.fine else 'FAIL'}  {self.what:<8}{self.found}"


def check(settings: Settings, clock: Clock) -> list[Answer]:
    """Look at the driver, the spool, the token and the server."""
    return [_driver(settings, clock), _spool(settings), _token(settings), _server(settings)]


def _driver(settings: Settings, clock: Clock) -> Answer:
    if by_nvidia_smi(settings):
        return _tool(NvidiaSmiProbe(clock, boot_id=read_boot_id(), background=False))
    probe = NvmlProbe(clock, boot_id=read_boot_id(), driver_epoch=0, gpm=settings.gpm)
    sweep = probe.read()
    probe.close()
    if probe.unavailable_code is not None:
        error = pynvml.NVMLError(probe.unavailable_code)
        return Answer(False, "driver", f"{error}; the agent would run and wait for one")
    missing = sorted({event.detail or "" for event in sweep.events if event.kind == "not_supported"})
    limits = f"; not supported: {', '.join(missing)}" if missing else ""
    return Answer(
        bool(sweep.readings), "driver", f"{len(sweep.readings)} of {len(sweep.devices)} devices answer{limits}"
    )


def _tool(probe: NvidiaSmiProbe) -> Answer:
    sweep = probe.read()
    probe.close()
    first, *_ = probe.sights()
    return Answer(bool(sweep.readings), "driver", f"{first.subject}: {first.detail}")


def _spool(settings: Settings) -> Answer:
    try:
        spool = Spool(Path(settings.spool_path), max_bytes=settings.spool_max_mib * 2**20)
        held = spool.state()
        durable = spool.durable
        spool.close()
    except SpoolError as error:
        return Answer(False, "spool", f"{error}; set spool_path to a folder this user may write")
    place = "on disk" if durable else "IN MEMORY, lost at a reboot"
    return Answer(
        durable,
        "spool",
        f"{settings.spool_path} {place}: {held.batches} batches wait, {held.quarantined} in quarantine",
    )


def _token(settings: Settings) -> Answer:
    try:
        token = settings.token()
    except AgentError as error:
        return Answer(False, "token", str(error))
    if token is None:
        return Answer(not settings.server_url, "token", "none set; the server will want one (token_file or token_env)")
    return Answer(True, "token", f"found, {len(token)} characters")


def _server(settings: Settings) -> Answer:
    if not settings.server_url:
        return Answer(True, "server", "none set: batches stay in the spool")
    try:
        with open_client(settings) as client:
            code = Exchange(client, limit_s=_LIMIT_S, max_bytes=_MAX_ANSWER_BYTES).ask("GET", "/healthz").code
    except AgentError as error:
        return Answer(False, "server", f"{settings.server_url}: {error}")
    return Answer(code < 300, "server", f"{settings.server_url} answers {code}")
