"""Runs benchmarks: all, or the one named (a prefix such as ``ingest`` names several). Exit code 1: a target was missed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from bench import BENCHES
from bench.report import Result, append, show

RESULTS = Path("build/bench.jsonl")


def main(arguments: list[str]) -> int:
    wanted = arguments[0] if arguments else ""
    names = [name for name in BENCHES if name == wanted or name.startswith(f"{wanted}." if wanted else "")]
    if not names or len(arguments) > 1:
        sys.stderr.write(f"no benchmark {' '.join(arguments)!r}; there are: {', '.join(BENCHES)}\n")
        return 2
    results: list[Result] = []
    for name in names:
        sys.stderr.write(f"running {name}\n")
        made: list[Result] = importlib.import_module(BENCHES[name]).run()
        append(made, RESULTS)
        results += made
    show(results)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
