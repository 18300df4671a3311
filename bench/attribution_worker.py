"""The worker of the attribution benchmarks as a process of its own: closes what is due each time it is told an instant.

It is the product's closer with the product's settings, in the processes a worker closes hours in. One line in (an instant),
one line out (what the round did, and how long it took from the first read to the last commit).
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path

from analytics.closing.pool import Pool, memory_of, processes_of
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from ingest.store.segments import Segments


def main(socket_dir: Path, segments: Path) -> None:
    pool = Pool(memory_of(os.environ), children=processes_of(os.environ))
    settings = WorkerSettings(code_version="bench")
    closer = HourCloser(Database.on_socket(socket_dir), settings, Segments.at(segments), closing=pool)
    _tell({"ready": True})
    for line in sys.stdin:
        began_s = time.perf_counter()
        done = closer.run(datetime.fromisoformat(line.strip()))
        seconds = time.perf_counter() - began_s
        counted = {name: getattr(done, name) for name in ("closed", "restated", "provisional", "unchanged", "failed")}
        _tell(counted | {"lost_races": done.lost_races, "seconds": seconds})
    pool.end()


def _tell(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
