"""``python -m tests.fuzz``: each decoder for its share of the time. ``--repeat FILE`` decodes one saved input again."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from tests.fuzz.harness import attempt, fuzz, kept, watch_time
from tests.fuzz.targets import Target, all_targets


def main() -> int:
    """Return 0 where nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="in all, divided over the decoders")
    parser.add_argument(
        "--seed", type=int, default=None, help="repeats a run, given the same speed; the clock by default"
    )
    parser.add_argument("--only", action="append", help="a decoder's name, or what it begins with; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where failing inputs are kept")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="decode one saved input and show what happens")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    watch_time()
    found = all_targets()
    if options.repeat:
        return _repeat(found, options.repeat)
    chosen = [target for target in found if not options.only or target.name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"no decoder of that name; there are {', '.join(target.name for target in found)}")
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"{len(chosen)} decoders, {options.seconds / len(chosen):.1f} s each, seed {seed}", flush=True)
    failures: list[Path] = []
    for target in chosen:
        outcome = fuzz(target, options.folder, options.seconds / len(chosen), seed)
        refused = outcome.inputs - outcome.read
        print(
            f"{target.name:20} {outcome.inputs:8} inputs, {outcome.read:7} read, {refused:7} refused, "
            f"slowest {outcome.slowest_s * 1000:.0f} ms, {len(outcome.failures)} failures",
            flush=True,
        )
        for path in outcome.failures:
            print(f"    {path.with_suffix('.txt').read_text(encoding='utf-8').strip().splitlines()[-1]:.200}")
            print(f"    again: {sys.executable} -m tests.fuzz --repeat {path}", flush=True)
        failures += outcome.failures
    return 1 if failures else 0


def _repeat(found: list[Target], path: Path) -> int:
    # The longest name that fits: one decoder's may begin with another's.
    fitting = [target for target in found if path.name.startswith(target.name)]
    target = max(fitting, key=lambda each: len(each.name))
    kind, fault = attempt(target, kept(path))
    print(fault or f"{target.name}: {kind}")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
