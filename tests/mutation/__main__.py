"""Runs mutants of ``analytics/model``: ``python -m tests.mutation [--only MODULE ...] [--most N] [--jobs N]``. Exit code 1: below 90 %.

Each mutant is run in a process of its own against the unit tests of its module (:func:`tests_of`) until one fails: killed. One
that all pass survives and is listed. Those of ``equivalents.py`` are not run. Score and survivors go to build/mutation.json after
every mutant, so that a run cut off leaves what it found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from tests.mutation.child import Verdict, outcome, start
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.operators import Mutant, mutants

MODEL = Path("analytics/model")
TESTS = Path("tests/unit")
REPORT = Path("build/mutation.json")
TARGET_PERCENT = 90
_ELSEWHERE = {
    "activity": ["sharing"],
    "levels": ["sharing"],
    "claims": ["holding"],
    "contests": ["holding"],
    "usage": ["energy", "edges", "sensors"],
    "cost": ["usage", "money", "methods"],
    "carbon": ["usage", "money"],
    "tokens": ["usage", "money"],
    "readings": ["energy", "wraps"],
    "authority": ["sensors", "findings"],
    "node_meters": ["overhead"],
    "shared_it": ["overhead"],
    "beyond": ["overhead"],
}
"""Modules whose tests stand in another one's file."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one mutant."""

    module: str
    line: int
    what: str
    verdict: Verdict


def tests_of(module: str) -> list[str]:
    """Return the test files that have to notice a fault of a module: its own, or those that name it or close hours with it."""
    named = [TESTS / f"test_model_{name}.py" for name in (module, *_ELSEWHERE.get(module, []))]
    own = [*named, TESTS / f"test_{module}.py"]
    found = [str(path) for path in own if path.exists()]
    naming = [str(path) for path in sorted(TESTS.glob("*.py")) if f"analytics.model.{module} " in path.read_text()]
    return list(dict.fromkeys(found + naming)) or [str(path) for path in sorted(TESTS.glob("test_model_*.py"))]


def told_apart(module: str) -> tuple[list[Mutant], list[dict[str, str | int]]]:
    """Return the mutants of a module to run, and those that change nothing, with their reasons."""
    source = (MODEL / f"{module}.py").read_text()
    lines = ["", *(line.strip() for line in source.splitlines())]
    reasons = {(e.text, e.what, e.nth): e.reason for e in EQUIVALENTS if e.module == module}
    real: list[Mutant] = []
    same: list[dict[str, str | int]] = []
    for mutant in mutants(source):
        reason = reasons.get((lines[mutant.line], mutant.what, mutant.nth))
        if reason is None:
            real.append(mutant)
        else:
            same.append({"module": module, "line": mutant.line, "what": mutant.what, "reason": reason})
    return real, same


def drawn(module: str, found: list[Mutant], most: int | None, seed: int) -> list[Mutant]:
    """Return at most ``most`` of the mutants, drawn evenly by ``seed``, in the order of their lines."""
    if most is None or len(found) <= most:
        return found
    return sorted(random.Random(f"{seed}/{module}").sample(found, most), key=lambda mutant: mutant.line)


def run(work: Iterable[tuple[str, Mutant]], jobs: int) -> Iterator[Ran]:
    """Run mutants, ``jobs`` at a time; they come back as they finish."""
    waiting = iter(work)
    running: dict[int, tuple[str, Mutant]] = {}
    while True:
        for module, mutant in islice(waiting, jobs - len(running)):
            running[start(f"analytics.model.{module}", mutant.source, tests_of(module))] = (module, mutant)
        if not running:
            return
        pid, status = os.wait()
        module, mutant = running.pop(pid)
        yield Ran(module, mutant.line, mutant.what, outcome(status))


def main(arguments: Sequence[str]) -> int:
    modules = [path.stem for path in sorted(MODEL.glob("*.py")) if path.stem != "__init__"]
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=modules, metavar="MODULE", help="all by default")
    parser.add_argument("--most", type=int, help="mutants of each module; all by default")
    parser.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", type=Path, default=REPORT)
    told = parser.parse_args(arguments)
    wanted = [module for module in modules if not told.only or module in told.only]
    unhurt = run(((module, Mutant(0, "nothing", (MODEL / f"{module}.py").read_text())) for module in wanted), told.jobs)
    broken = sorted(result.module for result in unhurt if result.verdict is not Verdict.SURVIVED)
    if broken:
        sys.stderr.write(f"their tests fail without any fault: {', '.join(broken)}; they are left out\n")
    ran: list[Ran] = []
    equivalent: list[dict[str, str | int]] = []
    asked = {"only": told.only, "most_of_a_module": told.most, "seed": told.seed, "left_out": broken}
    told.report.parent.mkdir(parents=True, exist_ok=True)

    def write(*, finished: bool) -> None:
        text = json.dumps(asked | {"finished": finished} | asdict(scored(ran)) | {"equivalent": equivalent}, indent=1)
        beside = told.report.with_suffix(".part")
        beside.write_text(text + "\n")
        beside.replace(told.report)

    for module in wanted:
        if module in broken:
            continue
        real, same = told_apart(module)
        equivalent += same
        for result in run(((module, mutant) for mutant in drawn(module, real, told.most, told.seed)), told.jobs):
            ran.append(result)
            if result.verdict is Verdict.SURVIVED:
                sys.stderr.write(f"survived: {MODEL / result.module}.py:{result.line}: {result.what}\n")
            write(finished=False)
    write(finished=True)
    report = scored(ran)
    for module, (killed, count) in report.modules.items():
        sys.stdout.write(f"{module:16} {killed:5} of {count:5}  {100 * killed / count:5.1f} %\n")
    sys.stdout.write(f"{'all':16} {report.killed:5} of {report.mutants:5}  {report.score_percent:5.1f} %\n")
    sys.stdout.write(f"{'equivalent':16} {len(equivalent):5}, not run (tests/mutation/equivalents.py)\n")
    return 0 if report.score_percent >= TARGET_PERCENT else 1


@dataclass(frozen=True, slots=True)
class Report:
    """Of all mutants that ran."""

    mutants: int
    killed: int
    timed_out: int
    score_percent: float
    modules: dict[str, tuple[int, int]]
    """Killed, and all, of each module."""
    survivors: list[Ran]


def scored(ran: Sequence[Ran]) -> Report:
    """Return counts by module, the score in percent and the survivors."""
    killed = [result for result in ran if result.verdict is not Verdict.SURVIVED]
    modules = {
        module: (sum(r.module == module for r in killed), sum(r.module == module for r in ran))
        for module in sorted({result.module for result in ran})
    }
    survivors = sorted((r for r in ran if r.verdict is Verdict.SURVIVED), key=lambda r: (r.module, r.line, r.what))
    timed_out = sum(result.verdict is Verdict.TIMED_OUT for result in ran)
    return Report(len(ran), len(killed), timed_out, round(100 * len(killed) / max(len(ran), 1), 1), modules, survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
