"""The worker beside a sustained load, as a process of its own: closes each hour as the senders' clock passes it.

The senders' instants run faster than time does; what time it is for them stands in a file. Ends on SIGTERM and says what
it did, one JSON object on standard output.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from wattledger.work import step_back

INTERVAL_S: Final = 10.0


def main(socket_dir: Path, clock: Path) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    step_back()
    closer = HourCloser(Database.on_socket(socket_dir), WorkerSettings(code_version="bench"))
    closed = restated = failed = 0
    longest_s = 0.0
    while not stop.wait(INTERVAL_S):
        began_s = time.monotonic()
        done = closer.run(datetime.fromtimestamp(float(clock.read_text()), UTC))
        longest_s = max(longest_s, time.monotonic() - began_s)
        closed, restated, failed = closed + done.closed, restated + done.restated, failed + done.failed
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "hours_closed": closed,
        "hours_restated": restated,
        "hours_failed": failed,
        "longest_round_s": round(longest_s, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
    }
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
