"""Runs mutants of ``analytics/model``: ``python -m tests.mutation [--only MODULE ...] [--most N] [--jobs N]``. Exit code 1: below 90 %.

Each mutant is run in a process of its own against the tests that run its line (``witnesses.py``), the quickest first, until one
fails: killed. One that all pass, or that no test runs, survives and is listed. Those of ``equivalents.py`` are not run. Score and
survivors go to build/mutation.json while it runs, so that a run cut off leaves what it found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.mutation.child import HEAVY, PYTEST, Verdict, forked, made_anew, outcome
from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.laws import LAWS
from tests.mutation.operators import Mutant, mutants
from tests.mutation.warm import Loop
from tests.mutation.witnesses import Witness, Witnesses

MODEL = Path("analytics/model")
TESTS = Path("tests/unit")
REPORT = Path("build/mutation.json")
TARGET_PERCENT = 90
_EVERY_S = 2
"""The report is written so often."""
_ANEW_S = 60
"""Processor time to import everything anew, beside the tests' own."""
_OF_MODEL = re.compile(r"analytics\.(model|pipeline|inputs|frames)\b")
_KILLED = {Verdict.KILLED, Verdict.TIMED_OUT}


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one mutant."""

    module: str
    line: int
    what: str
    nth: int
    verdict: Verdict


def tests_of_model() -> list[str]:
    """Return the unit test files that speak of the model or of what drives it, and laws: which of their tests runs what is watched.

    Not those of the simulated fleet, which compute when they are imported.
    """
    found = (path for path in sorted(TESTS.glob("test_*.py")) if not path.stem.startswith(("test_bench", "test_sim")))
    return [str(path) for path in found if path.stem.startswith("test_model") or _OF_MODEL.search(path.read_text())] + [
        *LAWS
    ]


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


def run(work: Sequence[tuple[str, Mutant]], files: Sequence[str], jobs: int, failing: list[str]) -> Iterator[Ran]:
    """Run mutants, ``jobs`` at a time; they come back as they finish. ``failing`` is told the tests that fail without any fault."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for heavy in HEAVY:
        importlib.import_module(heavy)
    with tempfile.TemporaryDirectory() as folder:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _warm(work, files, jobs, Path(folder), writing)
        os.close(writing)
        with os.fdopen(reading) as lines:
            told = (json.loads(line) for line in lines)
            last: dict[str, list[str] | list[int]] = {}
            for message in told:
                if "verdict" in message:
                    module, mutant = work[message["number"]]
                    yield Ran(module, mutant.line, mutant.what, mutant.nth, Verdict(message["verdict"]))
                else:
                    last = message
        _, status = os.waitpid(pid, 0)
        if status or not last:
            raise RuntimeError(f"the process with the tests ended with wait status {status}; its output is above")
        failing += [str(test) for test in last["failing"]]
        seen = json.loads((Path(folder) / "seen.json").read_text())
    witnesses = Witnesses([Witness(**each) for each in seen["tests"]], seen["at_import"])
    yield from _anew([work[int(number)] for number in last["left"]], witnesses, jobs)


def _warm(work: Sequence[tuple[str, Mutant]], files: Sequence[str], jobs: int, folder: Path, writing: int) -> None:
    """Be the process that has the tests imported; its verdicts go into a pipe, a line each."""
    numbers = {id(mutant): number for number, (_, mutant) in enumerate(work)}
    status = 1
    with os.fdopen(writing, "w", buffering=1) as told:

        def tell(module: str, mutant: Mutant, verdict: Verdict) -> None:
            del module
            told.write(json.dumps({"number": numbers[id(mutant)], "verdict": verdict}) + "\n")

        loop = Loop(MODEL, work, jobs, folder, tell)
        try:
            os.dup2(2, 1)
            done = importlib.import_module("pytest").main([*PYTEST, *files], plugins=[loop])
            seen = {"tests": [asdict(test) for test in loop.witnesses.tests], "at_import": loop.witnesses.at_import}
            (folder / "seen.json").write_text(json.dumps(seen))
            left = [numbers[id(mutant)] for _, mutant in loop.left]
            told.write(json.dumps({"left": left, "failing": loop.failing}) + "\n")
            status = 0 if done in {0, 5} else 1
        finally:
            told.flush()
            os._exit(status)


def _anew(work: Sequence[tuple[str, Mutant]], witnesses: Witnesses, jobs: int) -> Iterator[Ran]:
    """Run mutants of what is computed at import: each imports everything."""
    running: dict[int, tuple[str, Mutant]] = {}

    def reaped() -> Ran:
        pid, status = os.wait()
        module, mutant = running.pop(pid)
        return Ran(module, mutant.line, mutant.what, mutant.nth, outcome(status))

    for module, mutant in work:
        tests = witnesses.of_module(module)
        if not tests:
            yield Ran(module, mutant.line, mutant.what, mutant.nth, Verdict.NOT_RUN)
            continue
        name, names = f"analytics.model.{module}", [test.test for test in tests]
        passes: Callable[[], bool] = lambda n=name, s=mutant.source, t=names: made_anew(n, s, t)  # type: ignore[misc] # noqa: E731
        running[forked(passes, _ANEW_S + 10 * sum(test.took_s for test in tests))] = (module, mutant)
        if len(running) >= jobs:
            yield reaped()
    while running:
        yield reaped()


def main(arguments: Sequence[str]) -> int:
    modules = [path.stem for path in sorted(MODEL.glob("*.py")) if path.stem != "__init__"]
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], choices=modules, metavar="MODULE", help="all by default")
    parser.add_argument("--most", type=int, help="mutants of each module; all by default")
    parser.add_argument("--seed", type=int, default=0, help="by which they are drawn")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--tests",
        nargs="*",
        help="test files to ask; by default all unit tests that speak of the model, and laws of it",
    )
    parser.add_argument("--report", type=Path, default=REPORT)
    told = parser.parse_args(arguments)
    wanted = [module for module in modules if not told.only or module in told.only]
    apart = {module: told_apart(module) for module in wanted}
    work = [(name, mutant) for name, (real, _) in apart.items() for mutant in drawn(name, real, told.most, told.seed)]
    random.Random(told.seed).shuffle(work)  # so that a run cut off has a fair sample of all
    equivalent = [each for _, same in apart.values() for each in same]
    ran: list[Ran] = []
    failing: list[str] = []
    asked = {"only": told.only, "most_of_a_module": told.most, "seed": told.seed}
    asked |= {"started_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    told.report.parent.mkdir(parents=True, exist_ok=True)

    def write(*, finished: bool) -> None:
        used = os.times()
        cpu_s = round(used.user + used.system + used.children_user + used.children_system)
        head = asked | {"left_out": failing, "finished": finished, "cpu_s": cpu_s}
        text = json.dumps(head | asdict(scored(ran)) | {"equivalent": equivalent}, indent=1)
        beside = told.report.with_suffix(".part")
        beside.write_text(text + "\n")
        beside.replace(told.report)

    written_s = time.monotonic()
    for result in run(work, told.tests or tests_of_model(), told.jobs, failing):
        ran.append(result)
        if result.verdict not in _KILLED:
            sys.stderr.write(f"{result.verdict}: {MODEL / result.module}.py:{result.line}: {result.what}\n")
        if time.monotonic() > written_s + _EVERY_S:
            write(finished=False)
            written_s = time.monotonic()
    write(finished=True)
    if failing:
        sys.stderr.write(f"these fail without any fault and were left out: {', '.join(failing)}\n")
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
    endless: list[Ran]


def scored(ran: Sequence[Ran]) -> Report:
    """Return counts by module, the score in percent and the survivors."""
    killed = [result for result in ran if result.verdict in _KILLED]
    modules = {
        module: (sum(r.module == module for r in killed), sum(r.module == module for r in ran))
        for module in sorted({result.module for result in ran})
    }
    inorder = sorted(ran, key=lambda r: (r.module, r.line, r.what, r.nth))
    survivors = [result for result in inorder if result.verdict not in _KILLED]
    endless = [result for result in inorder if result.verdict is Verdict.TIMED_OUT]
    score = round(100 * len(killed) / max(len(ran), 1), 1)
    return Report(len(ran), len(killed), len(endless), score, modules, survivors, endless)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
