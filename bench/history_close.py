"""The worker of the history benchmark as a process of its own: closes hours until none is due."""

from __future__ import annotations

import json
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database


def main(socket_dir: Path) -> None:
    closer = HourCloser(Database.on_socket(socket_dir), WorkerSettings(code_version="bench"))
    hours = 0
    while True:
        done = closer.run(datetime.now(UTC))
        if done.failed or done.lost_races:
            raise RuntimeError(f"the worker did not close: {done}")
        hours += done.closed
        if not done.closed and not done.restated:
            break
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"hours": hours, "peak_kib": used.ru_maxrss, "cpu_s": round(used.ru_utime + used.ru_stime, 2)}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
