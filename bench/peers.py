"""``python -m bench.peers [NAME]``: installs the peers from Debian where missing and runs what is measured beside them.

Like ``python -m bench``, with the peers' versions in each result. Exit code 1: a target was missed; 2: a peer cannot be had.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from typing import Final

from bench import BENCHES, peers_servers
from bench.__main__ import RESULTS
from bench.report import Result, append, show

BESIDE_PEERS: Final = ("ingest.peers", "ingest.disk", "query.fleet", "agent.cost")


def main(arguments: list[str]) -> int:
    names = [name for name in BESIDE_PEERS if not arguments or name in arguments]
    if len(names) < len(arguments):
        sys.stderr.write(f"no such comparison among {' '.join(arguments)}; there are: {', '.join(BESIDE_PEERS)}\n")
        return 2
    try:
        peers_servers.install_missing()
    except peers_servers.PeersMissingError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    versions = {program: peers_servers.version(program) for program in peers_servers.PACKAGES}
    results: list[Result] = []
    for name in names:
        sys.stderr.write(f"running {name} beside its peers\n")
        made: list[Result] = importlib.import_module(BENCHES[name]).run()
        told = [replace(result, detail={**result.detail, "peer_versions": versions}) for result in made]
        append(told, RESULTS)
        results += told
    show(results)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
