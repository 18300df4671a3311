"""The feed of the history benchmark as a process of its own: makes a fleet's hours and sends them, as the demo does."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from wattledger.simulate.feed import Feed
from wattledger.simulate.fleet import Fleet
from wattledger.simulate.spec import BLOCK_US, FleetSpec


def main(start_us: int, nodes: int, hours: int, url: str, token: str) -> None:
    fleet = Fleet(FleetSpec(start_at_us=start_us, nodes=nodes))
    with Feed(fleet, url, token) as feed:
        progress = feed.catch_up(start_us + hours * BLOCK_US)
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"rows": progress.rows, "spans": progress.spans, "sent_bytes": progress.sent_bytes}
    sys.stdout.write(json.dumps(facts | {"peak_kib": used.ru_maxrss, "cpu_s": round(used.ru_utime + used.ru_stime, 2)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]).read_text().strip())
