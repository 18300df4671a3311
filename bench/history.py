"""history: 48 hours of 128 GPUs every 10 s (2.2 M rows, with jobs and LLM calls) from the wire to a closed ledger.

What `make demo` loads, in the same processes: a feed that makes and sends, the ingest server, then a worker that closes. The
feed's own making is part of the time. At the end the books must balance against a query over the raw samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.report import Result
from bench.stand import Stand, ingest_process, stand
from ingest.store.engine import Database
from wattledger.demo import furnish
from wattledger.runtime import Secret
from wattledger.simulate.spec import BLOCK_US, FleetSpec

HOURS: Final = 48
NODES: Final = 16
TARGET_S: Final = 60.0
TARGET_GIB: Final = 1.5
_KIB_PER_GIB: Final = 1 << 20
_RETENTION: Final = "WATTLEDGER_INGEST_HOT_RETENTION_H"

# Each device's counter from first to last reading of an epoch: what its hours must add up to.
_METERED: Final = """
SELECT sum(last_mj - first_mj)::text FROM (
    SELECT max(energy_mj) AS last_mj, min(energy_mj) AS first_mj FROM device_samples GROUP BY device_id, epoch_id
) AS epochs
"""


def run() -> list[Result]:
    now_us = int(datetime.now(UTC).timestamp()) * 1_000_000
    spec = FleetSpec(start_at_us=(now_us // BLOCK_US - HOURS - 1) * BLOCK_US, nodes=NODES)
    with tempfile.TemporaryDirectory() as folder, _kept_hot(), stand() as on:
        token = Secret(Path(folder) / "token")
        furnish(on.database, spec, token, now=datetime.now(UTC))
        with ingest_process(on) as server_pid:
            url = f"http://127.0.0.1:{on.port}"
            fed = _child("feed", str(spec.start_at_us), str(NODES), str(HOURS), url, str(token.path))
            closed = _child("close", str(on.socket_dir))
            peaks = {"feed": fed["peak_kib"], "worker": closed["peak_kib"], "ingest": _peak_kib(server_pid)}
            peaks["postgres"] = max(_peak_kib(pid) for pid in _backends(on))
            cpu = {"feed": fed["cpu_s"], "worker": closed["cpu_s"], "ingest": _cpu_s(server_pid)}
            cpu["postgres"] = sum(_cpu_s(pid) for pid in {*_backends(on), *_postmaster(on)})
        _check(on.database)
    seconds = fed["seconds"] + closed["seconds"]
    largest = max(peaks, key=lambda name: peaks[name])
    gib = peaks[largest] / _KIB_PER_GIB
    detail = {"feed_s": fed["seconds"], "close_s": closed["seconds"], "rows": fed["rows"], "spans": fed["spans"]}
    # What of the time is work: on a machine that others use too, this is the part of the result that still says something.
    detail |= {f"{name}_cpu_s": round(used_s, 1) for name, used_s in cpu.items()}
    peaks_gib = {f"{name}_gib": round(kib / _KIB_PER_GIB, 3) for name, kib in peaks.items()}
    return [
        Result("history.time", seconds, "s", f"< {TARGET_S:g} s", seconds < TARGET_S, detail=detail),
        Result("history.memory", gib, "GiB", f"< {TARGET_GIB:g} GiB", gib < TARGET_GIB, detail=peaks_gib),
    ]


@contextmanager
def _kept_hot() -> Iterator[None]:
    """Have the server take two-day-old rows as the demo does: into hot partitions."""
    before = os.environ.get(_RETENTION)
    os.environ[_RETENTION] = "96"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETENTION]
        else:
            os.environ[_RETENTION] = before


def _child(part: str, *words: str) -> dict[str, Any]:
    """Run one part in a process of its own; return what it reports. Its start counts: a user waits for it."""
    started_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", f"bench.history_{part}", *words], check=True, stdout=subprocess.PIPE)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts | {"seconds": round(time.perf_counter() - started_s, 2)}


def _peak_kib(pid: int) -> int:
    """Return the most memory a process ever held, shared pages included; 0 for one that ended meanwhile."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process and of those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _postmaster(on: Stand) -> list[int]:
    """Return the parent of the server's processes: the time of those that ended is in its account."""
    stat = Path(f"/proc/{_backends(on)[0]}/stat").read_text()
    return [int(stat.rpartition(")")[2].split()[1])]


def _backends(on: Stand) -> list[int]:
    """Return the processes of the server that are there now: PostgreSQL's memory is one per connection, plus shared."""
    with on.database.connect("admin") as connection:
        return [int(str(pid)) for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity").fetchall()]


def _check(database: Database) -> None:
    with database.connect("admin") as connection:
        (metered,) = connection.execute(_METERED).fetchone() or (None,)
        (books,) = connection.execute("SELECT sum(energy_mj)::text FROM current_usage_hours").fetchone() or (None,)
        (hours,) = connection.execute("SELECT count(*) FROM ledger_hours WHERE status = 'closed'").fetchone() or (0,)
    if metered != books or int(str(hours)) < HOURS:
        raise RuntimeError(f"{hours} hours closed; the books say {books} mJ, the meters {metered} mJ")
